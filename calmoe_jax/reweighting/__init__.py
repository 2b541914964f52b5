"""The adversary: weights over examples, and the objectives built on them."""

from calmoe_jax.reweighting.balance import BalanceSolution as BalanceSolution
from calmoe_jax.reweighting.balance import entropy_balance as entropy_balance
from calmoe_jax.reweighting.frequency import dct_filter as dct_filter
from calmoe_jax.reweighting.objectives import erm_loss as erm_loss
from calmoe_jax.reweighting.objectives import robust_filtered_loss as robust_filtered_loss
from calmoe_jax.reweighting.objectives import robust_loss as robust_loss
from calmoe_jax.reweighting.objectives import routing_relevance as routing_relevance
from calmoe_jax.reweighting.rectification import rectify_gradient as rectify_gradient
from calmoe_jax.reweighting.tilt import tilted_log_weights as tilted_log_weights
