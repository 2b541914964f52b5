"""What can be wrong with data."""

from calmoe_jax._errors import UserError


class DataError(UserError):
    """Data that cannot be used; the message says which, why and what to do."""


class MissingDataError(DataError):
    """A file, or a package to read it with, is not there."""


class CorruptDataError(DataError):
    """Data is there but cannot be read, or holds what it must not."""
