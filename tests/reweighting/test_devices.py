"""Losses, signals and adversaries of examples on several devices against one device."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import assert_devices_agree
from dispatching import exhaustive

import calmoe_jax as cm

rw = cm.reweighting
# An odd number of examples a device: folds by position on the device alone would differ.
SIZE = 28


def draw(seed=0):
    rng = np.random.RandomState(seed)
    losses = jnp.asarray(rng.gamma(1.0, size=SIZE), jnp.float32)
    features = jnp.asarray(rng.randn(SIZE, 3) * [1, 10, 0.1] + [0, 5, 0], jnp.float32)
    where = jnp.asarray(np.arange(SIZE) % 7 < np.arange(SIZE) // 7 * 2 + 1)  # 1, 3, 5 and 7
    return losses.at[3].add(2.0), features, where


FUNCTIONS = {
    "configuration_signal": lambda x, f, w, axis_name=None: rw.configuration_signal(
        x, f, where=w, axis_name=axis_name
    ),
    "configuration_robust_loss": lambda x, f, w, axis_name=None: rw.configuration_robust_loss(
        x, f, eta=2.0, where=w, axis_name=axis_name
    ),
    "calibration_witness": lambda x, f, w, axis_name=None: rw.calibration_witness(
        jnp.exp(-x), x < 0.7, where=w, num_folds=3, axis_name=axis_name
    ),
    "balanced_robust_loss": lambda x, f, w, axis_name=None: rw.balanced_robust_loss(
        x, f, eta=1.0, where=w, axis_name=axis_name
    ),
    "radius_robust_loss": lambda x, f, w, axis_name=None: rw.radius_robust_loss(
        x, radius=0.2, where=w, axis_name=axis_name
    ),
    "cross_batch_tilt": lambda x, f, w, axis_name=None: (
        (adversary := rw.cross_batch_tilt(eta=1.0, num_strata=2)).update(
            x, adversary.init(), (f[:, 0] > 0).astype(jnp.int32), w, axis_name=axis_name
        )
    ),
    "group_dro": lambda x, f, w, axis_name=None: (
        (adversary := rw.group_dro(num_groups=2, step_size=1.0)).update(
            x, (f[:, 0] > 0).astype(jnp.int32), adversary.init(), w, axis_name=axis_name
        )
    ),
}  # fmt: skip


BY_DEFAULT = ("cross_batch_tilt", "group_dro", "configuration_signal")


@pytest.mark.parametrize(
    "name", [*BY_DEFAULT, *exhaustive(*sorted(set(FUNCTIONS) - {*BY_DEFAULT}))]
)
def test_devices_give_what_one_gives(name):
    assert_devices_agree(FUNCTIONS[name], *draw(), rtol=1e-4, atol=1e-5)


def test_folds_are_by_position_among_all_examples():
    """Not by position on the device: seven examples each make the two differ."""
    losses, features, _ = draw()
    one = rw.configuration_signal(losses, features)
    alone = jnp.concatenate(
        [rw.configuration_signal(losses[i : i + 7], features[i : i + 7]) for i in range(0, 28, 7)]
    )
    assert jnp.abs(one - alone).max() > 0.1
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.P("d")
    whole = jax.shard_map(
        partial(rw.configuration_signal, axis_name="d"), mesh=mesh, in_specs=(spec, spec),
        out_specs=spec,
    )  # fmt: skip
    np.testing.assert_allclose(jax.jit(whole)(losses, features), one, rtol=1e-4, atol=1e-5)


def test_what_does_not_count_moves_no_signal_and_no_memory():
    losses, _, where = draw()
    confidence, correct = jnp.exp(-losses), losses < 0.7
    spoilt = jnp.where(where, confidence, jnp.nan)
    found = rw.calibration_witness(spoilt, correct, where=where)
    assert (found[~where] == 0).all()
    assert jnp.isfinite(found).all()
    first = jnp.arange(SIZE) < 20  # positions stay
    np.testing.assert_allclose(
        rw.calibration_witness(confidence, correct, where=first)[:20],
        rw.calibration_witness(confidence[:20], correct[:20]), rtol=1e-5, atol=1e-7,
    )  # fmt: skip
    adversary = rw.cross_batch_tilt(eta=1.0)
    masked, state = adversary.update(
        jnp.where(first, losses, jnp.nan), adversary.init(), None, first
    )
    alone, other = adversary.update(losses[:20], adversary.init())
    np.testing.assert_allclose(masked[:20], alone, rtol=1e-5)
    assert (masked[20:] == -jnp.inf).all()
    np.testing.assert_allclose(state.log_partition, other.log_partition, rtol=1e-5)


LOSSES, COLUMNS, WRONG = jnp.ones(4), jnp.ones((4, 2)), jnp.ones((4, 1), bool)


@pytest.mark.parametrize(
    "call",
    [
        lambda w: rw.erm_loss(LOSSES, where=w),
        lambda w: rw.robust_loss(LOSSES, eta=1.0, where=w),
        lambda w: rw.robust_filtered_loss(LOSSES, jnp.ones(4, bool), eta=1.0, where=w),
        lambda w: rw.configuration_robust_loss(LOSSES, COLUMNS, eta=1.0, where=w),
        lambda w: rw.balanced_robust_loss(LOSSES, COLUMNS, eta=1.0, where=w),
        lambda w: rw.radius_robust_loss(LOSSES, radius=0.1, where=w),
        lambda w: rw.configuration_signal(LOSSES, COLUMNS, where=w),
        lambda w: rw.calibration_witness(LOSSES, LOSSES, where=w),
        lambda w: rw.tilted_log_weights(LOSSES, eta=1.0, where=w),
        lambda w: rw.entropy_balance(LOSSES, eta=1.0, where=w),
        lambda w: rw.kl_penalty(LOSSES, eta=1.0, where=w),
        lambda w: rw.kl_ball(LOSSES, radius=0.1, where=w),
        lambda w: rw.chi_square_ball(LOSSES, radius=0.1, where=w),
        lambda w: rw.cvar(LOSSES, alpha=0.5, where=w),
        lambda w: (a := rw.cross_batch_tilt(eta=1.0)).update(LOSSES, a.init(), None, w),
        lambda w: (a := rw.group_dro(num_groups=1, step_size=1.0)).update(
            LOSSES, jnp.zeros(4, jnp.int32), a.init(), w
        ),
    ],
)  # fmt: skip
def test_a_mask_has_the_shape_of_what_it_masks(call, unchecked):
    for wrong in (WRONG, jnp.ones(3, bool), jnp.ones((), bool)):
        with pytest.raises(ValueError, match=r"where must have the (axes|shape)"):
            call(wrong)
    with pytest.raises(ValueError, match=r"relevant must have the axes .*=4 as in "):
        rw.robust_filtered_loss(LOSSES, WRONG, eta=1.0)
