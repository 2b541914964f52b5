"""Estimators of the accuracy of a model on unlabelled examples, all with one signature.

    estimator(held_out, labels, targets, *, axis_name=None, **constants) -> AccuracyEstimate

`held_out` and `targets` are `Evidence`: what a model shows on labelled examples, and on unlabelled
ones. An estimator of your own is a function of this kind. Each is a pure function under `jax.jit`;
`jax.vmap` maps it over seeds and over splits of one size, filled up and masked by `Evidence.where`;
`axis_name` is a device axis that the examples are sharded over.

    needs            estimators
    log_probs        average_threshold, difference_of_confidences, optimal_transport, nuclear_norm,
                     mano
    coordinates      neighbours, density_ratio, separability, disagreeing_critics (a lower bound)
    peers            seed_agreement
    both             confidence_conditional, confidence_conditional_by_peers

Without labels accuracy on a target is not identified: a shift and a hard subset can look alike in
everything that is seen here, and every estimate is misled by one of them. Standard errors are those
of a finite number of independent examples, not of that.
"""

from types import MappingProxyType as _MappingProxyType

from calmoe_jax._export import register_named_tuples as _register_named_tuples
from calmoe_jax.shift.estimators.conditional import ConditionalDrop as ConditionalDrop
from calmoe_jax.shift.estimators.conditional import conditional_drop as conditional_drop
from calmoe_jax.shift.estimators.conditional import confidence_conditional as confidence_conditional
from calmoe_jax.shift.estimators.conditional import (
    confidence_conditional_by_peers as confidence_conditional_by_peers,
)
from calmoe_jax.shift.estimators.confidence import average_threshold as average_threshold
from calmoe_jax.shift.estimators.confidence import (
    difference_of_confidences as difference_of_confidences,
)
from calmoe_jax.shift.estimators.critics import disagreeing_critics as disagreeing_critics
from calmoe_jax.shift.estimators.density_ratio import density_ratio as density_ratio
from calmoe_jax.shift.estimators.evidence import AccuracyEstimate as AccuracyEstimate
from calmoe_jax.shift.estimators.evidence import Estimator as Estimator
from calmoe_jax.shift.estimators.evidence import Evidence as Evidence
from calmoe_jax.shift.estimators.neighbours import neighbours as neighbours
from calmoe_jax.shift.estimators.seeds import seed_agreement as seed_agreement
from calmoe_jax.shift.estimators.separability import separability as separability
from calmoe_jax.shift.estimators.spread import mano as mano
from calmoe_jax.shift.estimators.spread import nuclear_norm as nuclear_norm
from calmoe_jax.shift.estimators.transport import optimal_transport as optimal_transport

ESTIMATORS = _MappingProxyType(
    {
        estimator.__name__: estimator
        for estimator in (
            average_threshold,
            difference_of_confidences,
            seed_agreement,
            neighbours,
            confidence_conditional,
            confidence_conditional_by_peers,
            optimal_transport,
            nuclear_norm,
            mano,
            density_ratio,
            separability,
            disagreeing_critics,
        )
    }
)

_register_named_tuples(__name__)
