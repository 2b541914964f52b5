"""A mask has exactly the shape of what it masks: no broadcasting."""

import jax.numpy as jnp
import pytest

import calmoe_jax as cm

GATE = jnp.zeros((32, 4))
ROUTING = cm.top_k_routing(GATE, k=2)
PROBS = cm.gate_probabilities(GATE)


@pytest.mark.parametrize("shape", [(32, 1), (1,), (31,), ()])
@pytest.mark.parametrize(
    "call",
    [
        lambda where: cm.expert_load(ROUTING, num_experts=4, where=where),
        lambda where: cm.routing.expert_importance(PROBS, where=where),
        lambda where: cm.load_balancing_loss(PROBS, ROUTING, where=where),
        lambda where: cm.router_z_loss(GATE, where=where),
        lambda where: cm.calibration.accuracy(PROBS, jnp.zeros(32, jnp.int32), where=where),
    ],
)
def test_masks_of_another_shape_are_refused(unchecked, call, shape):
    with pytest.raises(ValueError, match=r"where must have the axes .*=\(?32"):
        call(jnp.ones(shape, bool))


def test_weights_of_another_shape_are_refused(unchecked):
    labels = jnp.zeros(32, jnp.int32)
    with pytest.raises(ValueError, match=r"weights must have the axes .*=32"):
        cm.calibration.expected_calibration_error(PROBS, labels, weights=jnp.ones(1))
