"""Calibrated mixture-of-experts classifiers under distribution shift, in JAX.

The pure core: arrays in, arrays and NamedTuples out, under `jit`, `vmap`, `grad`, `pmap` and
`shard_map`. The top level has the names of a sparse layer and of a mixture of experts; the rest is
in namespaces: `calibration`, `reweighting`, `shift`, `fgr`, `moe`. Models are in `calmoe_jax.nn`,
data in `calmoe_jax.data`, training in `calmoe_jax.training`; importing this package imports none
of them.

Every function holds its arrays to the axes and kinds of numbers of its signature, also under `jit`:
`ValueError` for another shape, `TypeError` for another kind. It takes NumPy arrays and lists too.
"""

import importlib as _importlib
import typing as _typing

from calmoe_jax import fgr as fgr
from calmoe_jax import moe as moe
from calmoe_jax import reweighting as reweighting
from calmoe_jax._export import register_named_tuples as _register_named_tuples
from calmoe_jax.mixture import Configuration as Configuration
from calmoe_jax.mixture import MixtureLosses as MixtureLosses
from calmoe_jax.mixture import configuration as configuration
from calmoe_jax.mixture import mix as mix
from calmoe_jax.mixture import mix_log_probs as mix_log_probs
from calmoe_jax.mixture import mixture_losses as mixture_losses
from calmoe_jax.moe import DispatchPlan as DispatchPlan
from calmoe_jax.moe import ExpertParams as ExpertParams
from calmoe_jax.moe import Routed as Routed
from calmoe_jax.moe import combine as combine
from calmoe_jax.moe import dispatch as dispatch
from calmoe_jax.moe import expert_capacity as expert_capacity
from calmoe_jax.moe import expert_mlp as expert_mlp
from calmoe_jax.moe import grouped_matmul as grouped_matmul
from calmoe_jax.moe import plan_dispatch as plan_dispatch
from calmoe_jax.moe import route as route
from calmoe_jax.moe import sparse_layer as sparse_layer
from calmoe_jax.reweighting import erm_loss as erm_loss
from calmoe_jax.reweighting import robust_filtered_loss as robust_filtered_loss
from calmoe_jax.reweighting import robust_loss as robust_loss
from calmoe_jax.routing import Routing as Routing
from calmoe_jax.routing import dense_routing as dense_routing
from calmoe_jax.routing import expert_load as expert_load
from calmoe_jax.routing import gate_probabilities as gate_probabilities
from calmoe_jax.routing import hard_routing as hard_routing
from calmoe_jax.routing import load_balancing_loss as load_balancing_loss
from calmoe_jax.routing import router_z_loss as router_z_loss
from calmoe_jax.routing import routing_weights as routing_weights
from calmoe_jax.routing import straight_through_weights as straight_through_weights
from calmoe_jax.routing import top_k_routing as top_k_routing

if _typing.TYPE_CHECKING:
    from calmoe_jax import audit as audit
    from calmoe_jax import calibration as calibration
    from calmoe_jax import shift as shift

_register_named_tuples(
    *(f"calmoe_jax.{name}" for name in ("routing", "mixture", "moe", "reweighting"))
)

# The largest namespaces are imported when they are first used.
_LATER = ("audit", "calibration", "shift")


def __getattr__(name: str) -> _typing.Any:
    if name in _LATER:
        return _importlib.import_module(f"calmoe_jax.{name}")
    raise AttributeError(f"module 'calmoe_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
