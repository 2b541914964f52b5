"""Calibrators: fitted on held-out examples, applied to others.

    fit = fit_temperature(logits, labels)           # or vector_scaling, matrix_scaling, dirichlet,
    probs = apply_temperature(fit, other_logits)    # ensemble_temperature, classwise_isotonic
    fit_platt(score, outcome)                       # of one event: or beta, histogram_binning,
                                                    # isotonic
    fit_expert_temperatures(expert_logits, labels, routing_weights=r)  # every expert on its view
    fit_gate_temperature(gate_logits, expert_logits, labels)           # for the router

A fit is a NamedTuple of parameters with a certificate (`converged`, `at_bound`, `residual`,
`num_steps`) if it comes from an iterative method, and passes through `jax.jit` and `jax.vmap`. All
are fitted under both too, but the isotonic ones, which run on the host; `pool_adjacent_violators`
is isotonic regression under both.
"""

from calmoe_jax.calibration.calibrators.beta import BetaFit as BetaFit
from calmoe_jax.calibration.calibrators.beta import apply_beta as apply_beta
from calmoe_jax.calibration.calibrators.beta import fit_beta as fit_beta
from calmoe_jax.calibration.calibrators.dirichlet import MatrixFit as MatrixFit
from calmoe_jax.calibration.calibrators.dirichlet import apply_dirichlet as apply_dirichlet
from calmoe_jax.calibration.calibrators.dirichlet import (
    apply_matrix_scaling as apply_matrix_scaling,
)
from calmoe_jax.calibration.calibrators.dirichlet import fit_dirichlet as fit_dirichlet
from calmoe_jax.calibration.calibrators.dirichlet import fit_matrix_scaling as fit_matrix_scaling
from calmoe_jax.calibration.calibrators.ensemble import EnsembleFit as EnsembleFit
from calmoe_jax.calibration.calibrators.ensemble import (
    apply_ensemble_temperature as apply_ensemble_temperature,
)
from calmoe_jax.calibration.calibrators.ensemble import (
    fit_ensemble_temperature as fit_ensemble_temperature,
)
from calmoe_jax.calibration.calibrators.expert_temperatures import (
    apply_expert_temperatures as apply_expert_temperatures,
)
from calmoe_jax.calibration.calibrators.expert_temperatures import (
    fit_expert_temperatures as fit_expert_temperatures,
)
from calmoe_jax.calibration.calibrators.gate import GateTemperatureFit as GateTemperatureFit
from calmoe_jax.calibration.calibrators.gate import apply_gate_temperature as apply_gate_temperature
from calmoe_jax.calibration.calibrators.gate import fit_gate_temperature as fit_gate_temperature
from calmoe_jax.calibration.calibrators.histogram import HistogramFit as HistogramFit
from calmoe_jax.calibration.calibrators.histogram import (
    apply_histogram_binning as apply_histogram_binning,
)
from calmoe_jax.calibration.calibrators.histogram import (
    fit_histogram_binning as fit_histogram_binning,
)
from calmoe_jax.calibration.calibrators.isotonic import IsotonicFit as IsotonicFit
from calmoe_jax.calibration.calibrators.isotonic import (
    apply_classwise_isotonic as apply_classwise_isotonic,
)
from calmoe_jax.calibration.calibrators.isotonic import apply_isotonic as apply_isotonic
from calmoe_jax.calibration.calibrators.isotonic import (
    fit_classwise_isotonic as fit_classwise_isotonic,
)
from calmoe_jax.calibration.calibrators.isotonic import fit_isotonic as fit_isotonic
from calmoe_jax.calibration.calibrators.platt import PlattFit as PlattFit
from calmoe_jax.calibration.calibrators.platt import apply_platt as apply_platt
from calmoe_jax.calibration.calibrators.platt import fit_platt as fit_platt
from calmoe_jax.calibration.calibrators.pooling import (
    pool_adjacent_violators as pool_adjacent_violators,
)
from calmoe_jax.calibration.calibrators.temperature import TemperatureFit as TemperatureFit
from calmoe_jax.calibration.calibrators.temperature import apply_temperature as apply_temperature
from calmoe_jax.calibration.calibrators.temperature import fit_temperature as fit_temperature
from calmoe_jax.calibration.calibrators.temperature import scale_log_probs as scale_log_probs
from calmoe_jax.calibration.calibrators.vector import VectorFit as VectorFit
from calmoe_jax.calibration.calibrators.vector import apply_vector_scaling as apply_vector_scaling
from calmoe_jax.calibration.calibrators.vector import fit_vector_scaling as fit_vector_scaling
