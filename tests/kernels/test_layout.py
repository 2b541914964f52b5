"""How the rows of a plan are laid out."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
import references

from calmoe_kernels import layout


@pytest.mark.parametrize("block_size", [1, 2, 3, 5])
@pytest.mark.parametrize("num_experts", [1, 2, 3])
@pytest.mark.parametrize("slots", [0, 1, 4, 6])
def test_rows_hold_the_worst_load_and_no_more(slots, num_experts, block_size):
    loads = (
        load
        for load in itertools.product(range(slots + 1), repeat=num_experts)
        if sum(load) == slots
    )
    worst = max(sum(-(-size // block_size) * block_size for size in load) for load in loads)
    assert layout.num_rows(slots, 1, num_experts, None, block_size) == worst
    assert references.most_padded_rows(slots, num_experts, block_size) == worst


def test_rows_without_blocks():
    assert layout.num_rows(5, 3, 4, None, None) == 15
    assert layout.num_rows(5, 3, 4, 7, None) == 28
    assert layout.num_rows(5, 3, 4, None, 1) == 15
    assert layout.num_rows(0, 3, 4, 7, None) == 28


@pytest.mark.parametrize(
    ("capacity", "block_size", "sizes", "offsets"),
    [
        (None, None, [0, 5, 0, 4, 1], [0, 0, 5, 5, 9]),
        (None, 4, [0, 5, 0, 4, 1], [0, 0, 8, 8, 12]),
        (None, 1, [0, 5, 0, 4, 1], [0, 0, 5, 5, 9]),
        (4, None, [0, 4, 0, 4, 1], [0, 4, 8, 12, 16]),
    ],
)
def test_groups(capacity, block_size, sizes, offsets):
    load = jnp.array([0, 5, 0, 4, 1], jnp.int32)
    result = layout.groups(load, capacity=capacity, block_size=block_size)
    assert [x.tolist() for x in result] == [sizes, offsets]
    assert all(x.dtype == jnp.int32 for x in result)


@pytest.mark.parametrize("name", ["num_experts", "capacity", "block_size"])
@pytest.mark.parametrize("value", [0, -3])
def test_sizes_are_at_least_one(name, value):
    sizes = {"num_experts": 2, "capacity": None, "block_size": None, name: value}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got {name}={value}"):
        layout.check_layout(5, 2, **sizes)


def test_capacity_or_blocks():
    with pytest.raises(ValueError, match="got capacity=3 and block_size=4"):
        layout.check_layout(5, 2, 2, 3, 4)


@pytest.mark.parametrize(
    ("sizes", "rows"),
    [
        ((2**30, 2, 8, None, None), 2**31),
        ((5, 2, 2, 2**30, None), 2**31),
        ((2**30, 2, 8, 1, None), 8),
        ((2**16, 2**14, 2**29, None, 4), 2**29 * 5),
    ],
)
def test_positions_must_fit_int32(sizes, rows):
    tokens, k = sizes[:2]
    with pytest.raises(ValueError) as error:
        layout.check_layout(*sizes)
    assert f"less than 2**31, got tokens={tokens}, k={k} and {rows} rows." in str(error.value)


@pytest.mark.parametrize(
    "sizes", [(2**31 - 1, 1, 8, None, None), (5, 2, 1, 2**31 - 1, None), (0, 8, 1, None, 1)]
)
def test_one_less_fits(sizes):
    layout.check_layout(*sizes)


def test_offsets_of_many_rows():
    capacity = 2**31 // 8 - 1
    load = jnp.full(8, capacity, jnp.int32)
    expected = np.arange(8) * capacity
    assert layout.groups(load, capacity=capacity, block_size=None)[1].tolist() == expected.tolist()
    assert layout.groups(load, capacity=None, block_size=None)[1].tolist() == expected.tolist()


@pytest.mark.parametrize("name", ["capacity", "block_size", "num_experts"])
def test_sizes_beyond_int32_are_refused(name):
    sizes = {"num_experts": 2, "capacity": None, "block_size": None} | {name: 2**40}
    with pytest.raises(ValueError, match=f"{name}={2**40}"):
        layout.check_layout(0, 1, **sizes)
