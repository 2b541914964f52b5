"""Calibration: measure it, and repair it by temperature, of the whole or of every expert."""

from calmoe_jax.calibration.binning import ReliabilityBins as ReliabilityBins
from calmoe_jax.calibration.binning import binned_calibration_error as binned_calibration_error
from calmoe_jax.calibration.binning import reliability_bins as reliability_bins
from calmoe_jax.calibration.bootstrap import bootstrap_counts as bootstrap_counts
from calmoe_jax.calibration.metrics import accuracy as accuracy
from calmoe_jax.calibration.metrics import brier_score as brier_score
from calmoe_jax.calibration.metrics import (
    classwise_calibration_error as classwise_calibration_error,
)
from calmoe_jax.calibration.metrics import (
    classwise_calibration_errors as classwise_calibration_errors,
)
from calmoe_jax.calibration.metrics import confidence_gap as confidence_gap
from calmoe_jax.calibration.metrics import (
    expected_calibration_error as expected_calibration_error,
)
from calmoe_jax.calibration.metrics import negative_log_likelihood as negative_log_likelihood
from calmoe_jax.calibration.metrics import top_label as top_label
from calmoe_jax.calibration.metrics import top_label_bins as top_label_bins
from calmoe_jax.calibration.smooth import SmoothCalibrationError as SmoothCalibrationError
from calmoe_jax.calibration.smooth import smooth_calibration_error as smooth_calibration_error
from calmoe_jax.calibration.smooth import (
    soft_binned_calibration_error as soft_binned_calibration_error,
)
from calmoe_jax.calibration.temperature import TemperatureFit as TemperatureFit
from calmoe_jax.calibration.temperature import (
    apply_expert_temperatures as apply_expert_temperatures,
)
from calmoe_jax.calibration.temperature import apply_temperature as apply_temperature
from calmoe_jax.calibration.temperature import fit_expert_temperatures as fit_expert_temperatures
from calmoe_jax.calibration.temperature import fit_temperature as fit_temperature
from calmoe_jax.calibration.temperature import scale_log_probs as scale_log_probs
