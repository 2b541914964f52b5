"""A sparse layer of experts and its parts: plan, dispatch, products, combine, gate losses."""

from calmoe_jax.moe.dispatch import combine as combine
from calmoe_jax.moe.dispatch import dispatch as dispatch
from calmoe_jax.moe.dispatch import gather_slots as gather_slots
from calmoe_jax.moe.experts import HIDDEN_NAME as HIDDEN_NAME
from calmoe_jax.moe.experts import ExpertParams as ExpertParams
from calmoe_jax.moe.experts import expert_linear as expert_linear
from calmoe_jax.moe.experts import expert_mlp as expert_mlp
from calmoe_jax.moe.experts import shared_mlp as shared_mlp
from calmoe_jax.moe.layer import ROWS_NAME as ROWS_NAME
from calmoe_jax.moe.layer import SparseOutput as SparseOutput
from calmoe_jax.moe.layer import sparse_layer as sparse_layer
from calmoe_jax.moe.losses import load_balancing_loss as load_balancing_loss
from calmoe_jax.moe.losses import router_z_loss as router_z_loss
from calmoe_jax.moe.matmul import check_groups as check_groups
from calmoe_jax.moe.matmul import grouped_matmul as grouped_matmul
from calmoe_jax.moe.matmul import preferred_block_size as preferred_block_size
from calmoe_jax.moe.plan import PLAN_NAME as PLAN_NAME
from calmoe_jax.moe.plan import DispatchPlan as DispatchPlan
from calmoe_jax.moe.plan import check_plan as check_plan
from calmoe_jax.moe.plan import expert_capacity as expert_capacity
from calmoe_jax.moe.plan import plan_dispatch as plan_dispatch
from calmoe_jax.moe.route import ROUTING_NAME as ROUTING_NAME
from calmoe_jax.moe.route import Routed as Routed
from calmoe_jax.moe.route import route as route
from calmoe_jax.moe.selection_bias import update_selection_bias as update_selection_bias
