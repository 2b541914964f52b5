"""Every objective of this library, each a few lines over the losses of `calmoe_jax.reweighting`.

erm()                                    # the mean loss; also the warm-up of the others
robust(eta=2.0), robust_filtered(eta=2.0)
balanced_robust(eta=2.0), configuration_robust(eta=2.0)
radius_robust(effective_fraction=0.5), cross_batch_robust(eta=2.0)
with_gate_losses(objective, load_balancing=0.1, z_loss=0.001)   # added to any of them
with_layer_losses(objective, importance=0.005, load=0.005)         # for sparse backbones
rectified(objective)                     # FGR on any of them
"""

from calmoe_jax.training.objectives.adversaries import balanced_robust as balanced_robust
from calmoe_jax.training.objectives.adversaries import configuration_robust as configuration_robust
from calmoe_jax.training.objectives.adversaries import cross_batch_robust as cross_batch_robust
from calmoe_jax.training.objectives.adversaries import radius_robust as radius_robust
from calmoe_jax.training.objectives.gate import with_gate_losses as with_gate_losses
from calmoe_jax.training.objectives.gate import with_layer_losses as with_layer_losses
from calmoe_jax.training.objectives.mean import erm as erm
from calmoe_jax.training.objectives.rectified import filter_some as filter_some
from calmoe_jax.training.objectives.rectified import rectified as rectified
from calmoe_jax.training.objectives.rectified import (
    soft_calibration_error as soft_calibration_error,
)
from calmoe_jax.training.objectives.robust import robust as robust
from calmoe_jax.training.objectives.robust import robust_filtered as robust_filtered
