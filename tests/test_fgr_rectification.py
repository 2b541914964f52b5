"""The rectified gradient is the closest one that does not oppose the calibration gradient."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import calmoe_jax as cm


class Layer(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


def tree(seed, scale=1.0):
    rng = np.random.RandomState(seed)

    def leaf(*shape):
        return jnp.asarray(rng.randn(*shape) * scale, jnp.float32)

    return {
        "layers": (Layer(leaf(3, 4), leaf(4)), {"deep": [leaf(2, 1, 2), leaf()]}),
        "nothing": None,
        "empty": leaf(0, 3),
    }


def flat(gradient):
    return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(gradient)])


rectify = jax.jit(cm.fgr.rectify_gradient)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_is_the_closest_gradient_without_conflict(scale):
    conflicts = 0
    for seed in range(20):
        main, calibration = tree(seed), tree(seed + 100, scale)
        result = rectify(main, calibration)
        assert jax.tree.structure(result) == jax.tree.structure(main)
        g, c, found = flat(main), flat(calibration), flat(result)
        assert found @ c >= -1e-5 * np.linalg.norm(g) * np.linalg.norm(c)
        if g @ c >= 0:
            np.testing.assert_array_equal(found, g)
        else:
            conflicts += 1
            amount = np.linalg.lstsq(c[:, None] / scale, g, rcond=None)[0] / scale
            np.testing.assert_allclose(found, g - amount * c, rtol=1e-5, atol=1e-5)
            assert abs(found @ c) <= 1e-5 * np.linalg.norm(g) * np.linalg.norm(c)
    assert 5 <= conflicts <= 15


def test_an_opposed_gradient_vanishes():
    main = tree(0)
    opposed = jax.tree.map(lambda x: -3 * x, main)
    np.testing.assert_allclose(flat(rectify(main, opposed)), 0, atol=1e-6)
    np.testing.assert_array_equal(flat(rectify(main, main)), flat(main))
    again = rectify(rectify(main, tree(101)), tree(101))
    np.testing.assert_allclose(flat(again), flat(rectify(main, tree(101))), atol=1e-6)


def test_no_calibration_gradient_changes_nothing():
    main = tree(0)
    nothing = jax.tree.map(jnp.zeros_like, main)
    np.testing.assert_array_equal(flat(rectify(main, nothing)), flat(main))
    assert rectify({}, {}) == {}
    vanishing = flat(rectify(nothing, main))
    np.testing.assert_array_equal(vanishing, 0)


@pytest.mark.parametrize("poisoned", ["main", "calibration"])
def test_nan_and_infinity_are_not_hidden(poisoned):
    given = {"main": tree(0), "calibration": tree(1)}
    given[poisoned]["layers"][1]["deep"][1] = jnp.float32(jnp.nan)
    assert np.isnan(flat(rectify(**given))).all()
    for infinite in (jnp.inf, -jnp.inf):
        given[poisoned]["layers"][1]["deep"][1] = jnp.float32(infinite)
        assert not np.isfinite(flat(rectify(**given))).all()


def test_dtypes_are_those_of_the_main_gradient():
    main = {
        "low": jnp.array([1.0, -2.0], jnp.bfloat16),
        "half": jnp.array([0.5], jnp.float16),
        "full": jnp.array([1.5, -1.0], jnp.float32),
    }
    calibration = {
        "low": jnp.array([1.0, 4.0], jnp.float32),
        "half": jnp.array([-2.0], jnp.bfloat16),
        "full": jnp.array([0.0, 3.0], jnp.bfloat16),
    }
    result = rectify(main, calibration)
    assert jax.tree.map(lambda x: x.dtype, result) == jax.tree.map(lambda x: x.dtype, main)
    g, c = flat(main), flat(calibration)
    np.testing.assert_allclose(flat(result), g - g @ c / (c @ c) * c, rtol=2**-7)
    # bfloat16 has no 1001
    many = jnp.ones(1001, jnp.bfloat16)
    result = rectify({"w": many, "b": jnp.float32(0)}, {"w": -many, "b": jnp.float32(1000)})
    np.testing.assert_allclose(result["b"], 1001e3 / (1e6 + 1001), rtol=1e-5)


def test_transforms_agree():
    main, calibration = tree(0), tree(101)
    jitted, eager = rectify(main, calibration), cm.fgr.rectify_gradient(main, calibration)
    np.testing.assert_allclose(flat(jitted), flat(eager), atol=1e-6)
    pairs = [(tree(seed), tree(seed + 100)) for seed in range(4)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *pairs)
    mapped = jax.jit(jax.vmap(cm.fgr.rectify_gradient))(*stacked)
    for i, pair in enumerate(pairs):
        one = jax.tree.map(lambda x, i=i: x[i], mapped)
        np.testing.assert_allclose(flat(one), flat(rectify(*pair)), atol=1e-6)


def test_trees_must_match():
    main = tree(0)
    other = {"layers": main["layers"]}
    with pytest.raises(ValueError, match="calibration must have the structure of main"):
        cm.fgr.rectify_gradient(main, other)
    with pytest.raises(ValueError, match="calibration must have the structure of main"):
        cm.fgr.rectify_gradient(Layer(jnp.ones(1), jnp.ones(1)), (jnp.ones(1), jnp.ones(1)))
    with pytest.raises(ValueError, match=r"got a leaf of shape \(4,\) where main has \(3,\)"):
        cm.fgr.rectify_gradient({"w": jnp.ones(3)}, {"w": jnp.ones(4)})
    with pytest.raises(ValueError, match=r"got a leaf of shape \(1, 3\) where main has \(3,\)"):
        cm.fgr.rectify_gradient({"w": jnp.ones(3)}, {"w": jnp.ones((1, 3))})


@pytest.mark.parametrize("scale", [1e-30, 1e-19, 1e19, 1e30])
def test_the_calibration_gradient_may_have_any_scale(scale):
    result = cm.fgr.rectify_gradient(
        {"w": jnp.array([1.0, -1.0])}, {"w": jnp.array([0.0, scale], jnp.float32)}
    )
    np.testing.assert_allclose(result["w"], [1.0, 0.0], atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_leaves_of_several_dtypes(dtype):
    """Each leaf comes back in its dtype, without a promotion that is not asked for."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        main = {"a": jnp.array([1.0, -1.0], dtype), "b": jnp.array([2.0], jnp.float32)}
        opposed = {"a": jnp.array([0.0, 2.0], dtype), "b": jnp.array([-1.0], jnp.float32)}
        found = cm.fgr.rectify_gradient(main, opposed)
        assert [x.dtype for x in jax.tree.leaves(found)] == [dtype, jnp.float32]
        # <g, c> = -4 and |c|^2 = 5
        np.testing.assert_allclose(found["a"].astype(float), [1, 0.6], rtol=4e-3)
        np.testing.assert_allclose(found["b"], [1.2], rtol=1e-6)
