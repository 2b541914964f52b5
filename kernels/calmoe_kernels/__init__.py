"""The kernels of `calmoe_jax`: a leaf package that does not import it."""

from calmoe_kernels.availability import Implementation as Implementation
from calmoe_kernels.availability import implementations as implementations
from calmoe_kernels.selection import Choice as Choice
from calmoe_kernels.selection import choices as choices
