"""Which implementation runs, and how the rows of a plan are laid out."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references

from calmoe_kernels import layout, selection
from calmoe_kernels.availability import Implementation


def declines(*args):
    raise NotImplementedError("not these sizes")


def add(number):
    return lambda x: x + number


def attempts(*names, **others):
    """Implementations that add their place among the names, 1 for the first, and `others`."""
    return {name: add(selection.NAMES.index(name) + 1) for name in names} | others


@pytest.fixture
def machine(monkeypatch):
    """Pretends that the platform is another, and that named implementations cannot run there."""

    def pretend(backend, **reasons):
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        monkeypatch.setattr(
            selection,
            "implementations",
            lambda: tuple(
                Implementation(name, name not in reasons, reasons.get(name, ""))
                for name in selection.NAMES
            ),
        )
        # the branch for the pretended platform
        program = {"gpu": "cuda"}.get(backend, backend)
        monkeypatch.setattr(
            jax.lax,
            "platform_dependent",
            lambda *args, default, **branches: branches.get(program, default)(*args),
        )

    return pretend


@pytest.mark.parametrize(
    ("backend", "order"),
    [
        ("gpu", ["triton", "xla", "batched", "ragged_dot"]),
        ("tpu", ["xla", "batched", "ragged_dot"]),
        ("cpu", ["xla", "batched", "blocks"]),
        ("another", ["xla", "batched", "blocks"]),
    ],
)
def test_order_on_each_platform(machine, backend, order):
    machine(backend)
    asked = []

    def decline_as(name):
        def attempt(x):
            asked.append(name)
            raise NotImplementedError

        return attempt

    with pytest.raises(NotImplementedError, match=r"none of xla, triton, .* can do this operation"):
        selection.run({name: decline_as(name) for name in selection.NAMES}, None, 0)
    assert asked == order


@pytest.mark.parametrize(("backend", "name"), [("gpu", "triton"), ("tpu", "xla"), ("cpu", "xla")])
def test_the_first_of_the_order_runs(machine, backend, name):
    machine(backend)
    every = attempts(*selection.NAMES)
    assert selection.run(every, None, 0) == selection.run(every, name, 0)


def test_what_declines_falls_through(machine):
    machine("gpu")
    assert selection.run(attempts("xla", triton=declines), None, 0) == 1
    assert selection.run(attempts("batched", xla=declines, triton=declines), None, 0) == 4


def test_what_cannot_run_is_not_tried(machine):
    machine("gpu", triton="jax_triton not installed")
    assert selection.run(attempts("xla", "triton"), None, 0) == 1


def test_what_is_not_there_is_not_tried(machine):
    machine("gpu")
    assert selection.run(attempts("batched"), None, 0) == 4


@pytest.mark.parametrize("name", selection.NAMES)
def test_a_name_overrules_the_order(machine, name):
    machine("gpu")
    every = attempts(*selection.NAMES)
    assert selection.run(every, name, 0) == selection.NAMES.index(name) + 1


def test_a_name_is_not_replaced(machine):
    machine("gpu")
    with pytest.raises(NotImplementedError, match="not these sizes"):
        selection.run(attempts("xla", triton=declines), "triton", 0)


def test_other_errors_are_not_a_decline(machine):
    machine("gpu")

    def broken(x):
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        selection.run(attempts("xla", triton=broken), None, 0)


def test_arguments_are_trees():
    def total(tree, x):
        return tree["a"] + tree["b"][0] + x

    tree = {"a": jnp.ones(2), "b": (jnp.ones(2), None)}
    assert selection.run({"xla": total}, None, tree, 1.0).tolist() == [3, 3]


@pytest.mark.parametrize("others", [("xla",), ("batched",)])
def test_a_program_for_another_platform_holds_what_runs_there(monkeypatch, others):
    monkeypatch.setattr(selection, "implementations", lambda: (Implementation("triton", True, ""),))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    every = attempts("triton", *others)
    run = jax.jit(lambda x: selection.run(every, None, x))
    assert run(0) == every[others[0]](0)  # compiled for this CPU after all


@pytest.mark.parametrize("name", ["cuda", "XLA", ""])
def test_unknown_names_are_told_the_known(name):
    with pytest.raises(ValueError) as error:
        selection.run(attempts("xla"), name, 0)
    known = ", ".join(selection.NAMES)
    assert str(error.value) == (
        f"implementation must be None or one of {known}, got implementation={name!r}."
    )


def test_a_name_without_an_attempt():
    with pytest.raises(NotImplementedError, match=r"pallas_tpu cannot do this operation\."):
        selection.run(attempts("xla"), "pallas_tpu", 0)


def test_a_name_that_cannot_run_says_why(machine):
    machine("gpu", triton="jax_triton not installed")
    with pytest.raises(NotImplementedError, match=r"triton: jax_triton not installed\."):
        selection.run(attempts("xla", "triton"), "triton", 0)


def test_pallas_needs_a_tpu():
    if jax.default_backend() == "tpu":
        pytest.skip("this is a TPU")
    with pytest.raises(NotImplementedError, match=r"pallas_tpu: .* is \w+, not tpu\."):
        selection.run(attempts("xla", "pallas_tpu"), "pallas_tpu", 0)


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


def test_a_kernel_beside_what_only_runs_everywhere_else(machine):
    machine("gpu")
    assert selection.run(attempts("triton", "ragged_dot"), None, 0) in (2, 6)


@pytest.mark.parametrize("name", ["capacity", "block_size", "num_experts"])
def test_sizes_beyond_int32_are_refused(name):
    sizes = {"num_experts": 2, "capacity": None, "block_size": None} | {name: 2**40}
    with pytest.raises(ValueError, match=f"{name}={2**40}"):
        layout.check_layout(0, 1, **sizes)
