"""Loops and laws for grouped products, the same for every implementation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import shard_map
from dispatching import exhaustive
from jax.experimental import checkify
from jax.sharding import PartitionSpec

import calmoe_jax as cm

jitted = jax.jit(cm.grouped_matmul, static_argnames="implementation")


def normal(seed, *shape):
    return jnp.asarray(np.random.RandomState(seed).randn(*shape), jnp.float32)


def loop(x, w, sizes, offsets):
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    result = np.zeros((len(x), w.shape[2]))
    for e, (size, offset) in enumerate(zip(sizes, offsets, strict=True)):
        for r in range(offset, offset + size):
            result[r] = x[r] @ w[e]
    return result


def loop_gradients(x, w, sizes, offsets, cotangent):
    x, w, cotangent = (np.asarray(a, np.float64) for a in (x, w, cotangent))
    to_x, to_w = np.zeros(x.shape), np.zeros(w.shape)
    for e, (size, offset) in enumerate(zip(sizes, offsets, strict=True)):
        for r in range(offset, offset + size):
            to_x[r] = w[e] @ cotangent[r]
            to_w[e] += np.outer(x[r], cotangent[r])
    return to_x, to_w


def with_gradients(call, x, w, cotangent):
    def both(x, w, cotangent):
        y, pull_back = jax.vjp(call, x, w)
        return y, pull_back(cotangent)

    return jax.jit(both)(x, w, cotangent)


def starts(sizes):
    return np.cumsum(sizes) - np.array(sizes)


# sizes, offsets (None: one after the other), rows, d, f, promises
LAYOUTS = {
    "skewed": ([3, 0, 5, 1], None, 9, 7, 5, {}),
    "rows left": ([2, 1], None, 20, 3, 4, {}),
    "gaps": ([1, 0, 4], [2, 5, 5], 12, 16, 33, {}),
    "first empty": ([0, 0, 4], None, 4, 2, 2, {}),
    "one row": ([1], None, 1, 1, 1, {}),
    "all empty": ([0, 0], None, 6, 4, 4, {}),
    "no rows": ([0, 0], None, 0, 4, 3, {}),
    "all to one": ([0, 150, 0], None, 150, 20, 18, {}),
    "blocks": ([40, 1, 0, 33], [0, 64, 96, 96], 192, 20, 40, {"block_size": 32}),
    "capacity": ([4, 0, 2], [0, 5, 10], 15, 8, 8, {"capacity": 5}),
}


@pytest.fixture(
    params=[
        "skewed", "gaps", "all empty", "no rows", "all to one", "blocks", "capacity",
        *exhaustive("rows left", "first empty", "one row"),
    ]
)  # fmt: skip
def layout(request):
    sizes, offsets, rows, d, f, promises = LAYOUTS[request.param]
    x, w = normal(0, rows, d), normal(1, len(sizes), d, f)
    own = starts(sizes) if offsets is None else np.array(offsets)
    given = None if offsets is None else jnp.asarray(own, jnp.int32)
    call = partial(
        cm.grouped_matmul,
        group_sizes=jnp.asarray(sizes, jnp.int32), group_offsets=given, **promises,
    )  # fmt: skip
    return x, w, sizes, own, lambda x, w, implementation: call(x, w, implementation=implementation)


def check(layout, implementation):
    x, w, sizes, offsets, call = layout
    cotangent = normal(2, x.shape[0], w.shape[2])
    y, gradients = with_gradients(partial(call, implementation=implementation), x, w, cotangent)
    np.testing.assert_allclose(y, loop(x, w, sizes, offsets), rtol=1e-5, atol=2e-5)
    expected = loop_gradients(x, w, sizes, offsets, cotangent)
    for got, want in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)


def test_products_and_gradients_equal_loops(layout, product):
    check(layout, product)


@pytest.mark.parametrize("layout", ["blocks", "capacity"], indirect=True)
def test_what_none_picks_equals_loops(layout):
    check(layout, None)


@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
def test_the_form_that_xla_chooses_and_its_block_size(backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)

    def text(implementation, capacity=None):
        offsets = None if capacity is None else OFFSETS
        call = partial(cm.grouped_matmul, capacity=capacity, implementation=implementation)
        return jax.jit(call).lower(X, W, SIZES, offsets).as_text()

    looped = backend == "cpu"
    assert text("xla") == text("blocks" if looped else "ragged_dot")
    assert text("xla", capacity=3) == text("batched", capacity=3)
    assert text(None) == text("xla")  # nothing was measured
    preferred = cm.moe.preferred_block_size
    for implementation in ("xla", None):
        assert preferred(implementation=implementation) == (64 if looped else None)
        assert preferred(implementation=implementation, capacity=3) is None
    assert preferred(implementation="blocks") == 64
    assert preferred(implementation="ragged_dot") is None
    assert preferred(implementation="triton") is None


def test_batched_equals_loops_where_a_capacity_is_promised():
    sizes, offsets, rows, d, f, promises = LAYOUTS["capacity"]
    x, w = normal(3, rows, d), normal(4, 3, d, f)
    call = partial(
        cm.grouped_matmul, group_sizes=jnp.array(sizes), group_offsets=jnp.array(offsets),
        implementation="batched", **promises,
    )  # fmt: skip
    cotangent = normal(5, rows, f)
    y, gradients = with_gradients(call, x, w, cotangent)
    np.testing.assert_allclose(y, loop(x, w, sizes, offsets), rtol=1e-5, atol=1e-5)
    expected = loop_gradients(x, w, sizes, offsets, cotangent)
    for got, want in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)


def test_rows_of_no_group_do_not_matter(product):
    x, w, sizes = normal(6, 9, 4), normal(7, 2, 4, 3), jnp.array([3, 2])
    offsets = jnp.array([1, 6])
    poison = x.at[jnp.array([0, 4, 5, 8])].set(jnp.nan)

    @jax.jit
    def gradients(x):
        y, pull_back = jax.vjp(
            lambda x, w: cm.grouped_matmul(x, w, sizes, offsets, implementation=product),
            x, w,
        )  # fmt: skip
        return y, *pull_back(jnp.ones_like(y))

    for clean, got in zip(gradients(x), gradients(poison), strict=True):
        np.testing.assert_array_equal(clean, got)
        assert np.isfinite(got).all()


@pytest.mark.parametrize(
    ("dtype", "wanted"), [(jnp.bfloat16, jnp.float32), (jnp.float32, jnp.bfloat16)]
)
def test_the_result_may_be_of_another_dtype(dtype, wanted, product):
    x = jnp.asarray(np.random.RandomState(0).randn(5, 7), dtype)
    w = jnp.asarray(np.random.RandomState(1).randn(2, 7, 3), dtype)
    sizes = jnp.array([2, 3])

    def call(x, w):
        return cm.grouped_matmul(x, w, sizes, preferred_element_type=wanted, implementation=product)

    y, gradients = with_gradients(call, x, w, jnp.ones((5, 3), wanted))
    assert y.dtype == wanted
    exact = np.concatenate([np.asarray(x[:2], float) @ np.asarray(w[0], float),
                            np.asarray(x[2:], float) @ np.asarray(w[1], float)])  # fmt: skip
    # float32 sums of bfloat16 numbers are nearly exact; a bfloat16 result is rounded once
    tolerance = 1e-6 if wanted == jnp.float32 else 2.0**-8
    np.testing.assert_allclose(np.asarray(y, float), exact, rtol=tolerance, atol=tolerance)
    assert {g.dtype for g in gradients} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sums_of_coarse_numbers_are_in_float32(dtype, product):
    # 1 + 300 terms of 2^-9: lost one by one in bfloat16, and in float16 if the sum were large
    x = jnp.full((2, 512), 2.0**-9, dtype).at[:, 0].set(1)
    y = jitted(x, jnp.ones((1, 512, 1), dtype), jnp.array([2]), implementation=product)
    assert y.dtype == dtype
    np.testing.assert_allclose(np.asarray(y, np.float32), 1 + 511 / 512, rtol=2**-8)


def test_jit_equals_eager(product):
    x, w, sizes = normal(8, 10, 4), normal(9, 2, 4, 5), jnp.array([3, 4])
    np.testing.assert_allclose(
        jitted(x, w, sizes, implementation=product),
        cm.grouped_matmul(x, w, sizes, implementation=product), rtol=1e-5, atol=1e-5,
    )  # fmt: skip


@pytest.mark.exhaustive
def test_vmap_and_scan_are_loops(product):
    x, w = normal(8, 3, 10, 4), normal(9, 2, 4, 5)
    sizes = jnp.array([[3, 4], [0, 10], [10, 0]])

    @jax.jit
    def gradient(x, sizes):
        def loss(x, w):
            y = cm.grouped_matmul(x, w, sizes, implementation=product)
            return jnp.sum(jnp.sin(y))

        return jax.grad(loss, argnums=(0, 1))(x, w)

    one_by_one = [gradient(a, s) for a, s in zip(x, sizes, strict=True)]
    for mapped in (
        jax.jit(jax.vmap(gradient))(x, sizes),
        jax.lax.map(lambda args: gradient(*args), (x, sizes)),
    ):
        for i, single in enumerate(one_by_one):
            for got, want in zip(mapped, single, strict=True):
                np.testing.assert_allclose(got[i], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("check_vma", [True, False])
def test_shared_matrices_get_the_sum_of_the_devices_gradients(check_vma, mesh, product):
    n = mesh.size
    x, w = normal(10, n * 6, 4), normal(11, 3, 4, 5)
    sizes = jnp.asarray(np.random.RandomState(12).multinomial(6, [1 / 3] * 3, n), jnp.int32)

    def local(x, w, sizes):
        y = cm.grouped_matmul(x, w, sizes[0], implementation=product)
        return jnp.sum(jnp.sin(y))[None]

    spec = PartitionSpec("d")
    mapped = shard_map(
        local, mesh=mesh, in_specs=(spec, PartitionSpec(), spec), out_specs=spec,
        check_vma=check_vma,
    )  # fmt: skip
    got = jax.jit(jax.grad(lambda x, w: jnp.sum(mapped(x, w, sizes)), argnums=(0, 1)))(x, w)
    alone = jax.jit(jax.grad(lambda x, w, sizes: local(x, w, sizes)[0], argnums=(0, 1)))
    parts = [alone(x[i * 6 : i * 6 + 6], w, sizes[i : i + 1]) for i in range(n)]
    np.testing.assert_allclose(got[0], np.concatenate([p[0] for p in parts]), atol=1e-5)
    np.testing.assert_allclose(got[1], sum(np.asarray(p[1]) for p in parts), atol=1e-5)


def test_permuted_experts_permute_rows_and_gradients():
    x, w, sizes = normal(13, 12, 3), normal(14, 3, 3, 4), np.array([5, 3, 4])
    order = np.array([2, 0, 1])
    rows = np.concatenate([np.arange(starts(sizes)[e], starts(sizes)[e] + sizes[e]) for e in order])
    y = jitted(x, w, jnp.asarray(sizes))
    permuted = jitted(x[rows], w[order], jnp.asarray(sizes[order]))
    np.testing.assert_allclose(permuted, y[rows], rtol=1e-6)


@pytest.mark.parametrize(
    ("sizes", "offsets"), [([3, 4], None), ([2, -1], None), ([3, 2], [0, 2]), ([1, 1], [0, 6])]
)
def test_checkify_reports_groups_that_do_not_fit(sizes, offsets):
    x, w = jnp.ones((6, 2)), jnp.ones((2, 2, 2))
    given = None if offsets is None else jnp.array(offsets)

    def f(sizes):
        cm.moe.check_groups(sizes, given, num_rows=6)
        return cm.grouped_matmul(x, w, sizes, given)

    error, _ = checkify.checkify(jax.jit(f), errors=checkify.user_checks)(jnp.array(sizes))
    assert "group_sizes" in error.get()


def test_groups_beyond_the_rows_touch_no_other_memory(product):
    x, w = normal(15, 6, 2), normal(16, 2, 2, 3)
    y = jitted(x, w, jnp.array([3, 40]), implementation=product)
    np.testing.assert_allclose(y[:3], x[:3] @ w[0], rtol=1e-5, atol=1e-6)


X, W, SIZES = jnp.ones((6, 2)), jnp.ones((2, 2, 3)), jnp.array([3, 3])
OFFSETS = jnp.array([0, 3])


@pytest.mark.parametrize(
    ("error", "words", "call"),
    [
        (TypeError, "preferred_element_type must be",
         lambda: cm.grouped_matmul(X, W, SIZES, preferred_element_type=jnp.int32)),
        (TypeError, "w must have the dtype",
         lambda: cm.grouped_matmul(X, W.astype("bfloat16"), SIZES)),
        (ValueError, r"w must have the axes .* d=2 as in x, got w.shape=\(2, 5, 3\)",
         lambda: cm.grouped_matmul(X, jnp.ones((2, 5, 3)), SIZES)),
        (ValueError, "block_size=4", lambda: cm.grouped_matmul(X, W, SIZES, OFFSETS, block_size=4)),
        (ValueError, "capacity=2", lambda: cm.grouped_matmul(X, W, SIZES, OFFSETS, capacity=2)),
        (ValueError, "at most one of block_size and capacity",
         lambda: cm.grouped_matmul(X, W, SIZES, OFFSETS, capacity=3, block_size=3)),
        (ValueError, "group_offsets must be given",
         lambda: cm.grouped_matmul(X, W, SIZES, block_size=3)),
        (ValueError, "implementation='cuda'",
         lambda: cm.grouped_matmul(X, W, SIZES, implementation="cuda")),
        (NotImplementedError, "batched",
         lambda: cm.grouped_matmul(X, W, SIZES, implementation="batched")),
    ],
    ids=["result", "dtype", "d", "block", "capacity", "both", "promise", "name", "batched"],
)  # fmt: skip
def test_bad_input(error, words, call, unchecked):
    with pytest.raises(error, match=words):
        jax.eval_shape(call)
