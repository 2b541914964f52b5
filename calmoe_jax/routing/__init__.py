"""Gate logits to experts and weights, with the statistics and losses of a gate."""

from calmoe_jax.routing.kinds import Routing as Routing
from calmoe_jax.routing.kinds import dense_routing as dense_routing
from calmoe_jax.routing.kinds import gate_probabilities as gate_probabilities
from calmoe_jax.routing.kinds import hard_routing as hard_routing
from calmoe_jax.routing.kinds import routing_weights as routing_weights
from calmoe_jax.routing.kinds import straight_through_weights as straight_through_weights
from calmoe_jax.routing.kinds import top_k_routing as top_k_routing
from calmoe_jax.routing.losses import load_balancing_loss as load_balancing_loss
from calmoe_jax.routing.losses import router_z_loss as router_z_loss
from calmoe_jax.routing.statistics import GateStatistics as GateStatistics
from calmoe_jax.routing.statistics import expert_importance as expert_importance
from calmoe_jax.routing.statistics import expert_load as expert_load
from calmoe_jax.routing.statistics import gate_statistics as gate_statistics
