"""The error of pretrained weights."""

from calmoe_jax._errors import UserError


class PretrainedError(UserError):
    """Pretrained weights cannot be used; the message says which, why and what to do."""
