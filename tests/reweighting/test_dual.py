"""Moments of tilted examples against sums in float64, for every implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calmoe_kernels.xla import dual
from calmoe_kernels.xla.dual import Columns


def functions(implementation):
    if implementation == "xla":
        return dual.moments, dual.means
    from calmoe_kernels.triton import dual as gpu

    return gpu.moments, gpu.means


def problem(size, width, seed=0, *, far=0.0):
    rng = np.random.RandomState(seed)
    rows = rng.randn(size, width) * np.linspace(0.5, 2, width) + far
    centre, scale = far + 0.1 * rng.randn(width), rng.uniform(0.5, 2, width)
    scores, slopes = 3 * rng.randn(size), 0.5 * rng.randn(width)
    columns = Columns(*(jnp.asarray(x, jnp.float32) for x in (rows, centre, scale)))
    return columns, jnp.asarray(scores, jnp.float32), jnp.asarray(slopes, jnp.float32)


def by_hand(columns, scores, slopes):
    rows, centre, scale, scores, slopes = (
        np.asarray(x, np.float64) for x in (*columns, scores, slopes)
    )
    a = (rows - centre) / scale
    z = scores - a @ slopes
    counted = ~np.isneginf(scores)
    w = np.exp(z - z.max())
    total = w.sum()
    return (
        z.max() + np.log(total),
        w @ a / total,
        (a * w[:, None]).T @ a / total,
        (-(a @ slopes))[counted].max(),
    )


@pytest.mark.parametrize("far", [0.0, 30.0])
@pytest.mark.parametrize(
    ("size", "width"), [(1, 1), (7, 3), (1000, 16), (20011, 5), (65536, 2), (3000, 50)]
)
def test_moments_equal_sums_in_float64(size, width, far, implementation):
    given = problem(size, width, far=far)
    wanted = by_hand(*given)
    for function in functions(implementation):
        got = jax.jit(function)(*given)
        assert (got.second is None) == (function.__name__ == "means")
        for value, exact in zip(got, wanted, strict=True):
            if value is not None:
                np.testing.assert_allclose(value, exact, rtol=2e-5, atol=2e-5 * (1 + far / 10))


def test_programs_that_work_through_many_tiles(implementation, monkeypatch):
    if implementation == "xla":
        monkeypatch.setattr(dual, "_BLOCK", 64)
    else:
        from calmoe_kernels.triton import dual as gpu
        from calmoe_kernels.triton.configs import DualConfig

        monkeypatch.setattr(gpu, "dual_config", lambda size, width: DualConfig(32, 5, 4))
    columns, scores, slopes = problem(1000, 4)
    for ordered in (jnp.sort(scores), -jnp.sort(-scores)):  # a peak that rises, and that does not
        wanted = by_hand(columns, ordered, slopes)
        for function in functions(implementation):
            for value, exact in zip(function(columns, ordered, slopes), wanted, strict=True):
                if value is not None:
                    np.testing.assert_allclose(value, exact, rtol=2e-5, atol=2e-5)


def test_examples_that_do_not_count(implementation):
    columns, scores, slopes = problem(500, 4)
    some = np.random.RandomState(1).rand(500) < 0.3
    masked = jnp.where(some, scores, -jnp.inf)
    cut = columns._replace(rows=columns.rows[some])
    for function in functions(implementation):
        got, wanted = function(columns, masked, slopes), function(cut, scores[some], slopes)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), got, wanted
        )
        nothing = function(columns, jnp.full(500, -jnp.inf), slopes)
        assert nothing.log_sum == -jnp.inf
        assert nothing.reach == -jnp.inf
        assert (nothing.mean == 0).all()


def test_large_scores_and_nan(implementation):
    columns, scores, slopes = problem(3000, 4)
    for function in functions(implementation):
        for offset in (1e30, -1e30):
            got = function(columns, jnp.full(3000, offset), slopes)
            assert jnp.isfinite(got.log_sum)
            assert jnp.isfinite(got.mean).all()
        assert jnp.isnan(function(columns, scores.at[2500].set(jnp.nan), slopes).log_sum)


def test_merged_parts_are_the_whole():
    columns, scores, slopes = problem(900, 5)
    parts = [
        dual.moments(columns._replace(rows=columns.rows[some]), scores[some], slopes)
        for some in (slice(0, 0), slice(0, 123), slice(123, 900))
    ]
    merged = dual.merge(dual.merge(parts[0], parts[1]), parts[2])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        merged,
        dual.moments(columns, scores, slopes),
    )


def test_sums_of_many_examples_lose_no_digits():
    rows = jnp.ones((1_048_573, 1)).at[::2].set(-1.0)  # a prime number of them
    for size in (1_048_573, 1_048_572):
        total = dual.weighted_sum(jnp.full(size, 0.1), rows[:size], jnp.full(1, 3.0))
        exact = np.float32(0.1) * (np.asarray(rows[:size], np.float64) - 3).sum()
        np.testing.assert_allclose(total[0], exact, rtol=1e-6)


@pytest.mark.parametrize("centre", [0.0, 1.9, 2.1, 15.0, 300.0, 1e6])
def test_means_keep_their_digits_wherever_the_centre_is(centre):
    size = 100_000
    rng = np.random.RandomState(0)
    rows = (centre + rng.standard_normal((size, 3))).astype(np.float32)
    scores = rng.standard_normal(size).astype(np.float32)
    columns = dual.Columns(jnp.asarray(rows), jnp.full(3, np.float32(centre)), jnp.ones(3))
    weights = np.exp(scores.astype(np.float64))
    off = rows.astype(np.float64) - np.float64(np.float32(centre))
    got = jax.jit(dual.means)(columns, jnp.asarray(scores), jnp.zeros(3)).mean
    # 1e-6 is the residual that a solve aims at
    np.testing.assert_allclose(got, weights @ off / weights.sum(), atol=1e-6)
    total = jax.jit(dual.standard_sum)(jnp.asarray(weights / weights.sum(), jnp.float32), columns)
    np.testing.assert_allclose(total, weights @ off / weights.sum(), atol=1e-6)
    slopes = jnp.array([1.0, -0.5, 0.25])
    moved = jax.jit(dual.shifts)(columns, slopes)
    np.testing.assert_allclose(moved, -off @ np.asarray(slopes, np.float64), atol=1e-5)


def test_columns_in_standard_units(implementation):
    columns, scores, slopes = problem(500, 4)
    rows = Columns((columns.rows - columns.centre[None]) / columns.scale[None])
    for function in functions(implementation):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=5e-6),
            function(rows, scores, slopes), function(columns, scores, slopes),
        )  # fmt: skip


def test_recentred_moments_are_those_of_moved_columns(implementation):
    columns, scores, slopes = problem(500, 4)
    shift = jnp.array([0.3, -0.2, 0.0, 1.0])
    moved = columns._replace(centre=columns.centre + shift * columns.scale)
    for function in functions(implementation):
        got = dual.recentre(function(columns, scores, slopes), shift, slopes)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=5e-6),
            got, function(moved, scores, slopes),
        )  # fmt: skip


def test_triton_declines_what_it_has_no_kernel_for(implementation):
    if implementation == "xla":
        pytest.skip("XLA takes everything")
    moments, _ = functions(implementation)
    columns, scores, slopes = problem(10, 3)
    with pytest.raises(NotImplementedError, match="dtype bfloat16"):
        moments(columns._replace(rows=columns.rows.astype("bfloat16")), scores, slopes)
    with pytest.raises(NotImplementedError, match="1 to 64 columns"):
        moments(*problem(10, 65))
    with pytest.raises(NotImplementedError, match="0 examples"):
        moments(columns._replace(rows=columns.rows[:0]), scores[:0], slopes)
