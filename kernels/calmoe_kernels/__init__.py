"""Kernels behind `calmoe_jax`: a leaf package that imports nothing of it."""

from calmoe_kernels.availability import Implementation as Implementation
from calmoe_kernels.availability import implementations as implementations
from calmoe_kernels.selection import Choice as Choice
from calmoe_kernels.selection import choices as choices
