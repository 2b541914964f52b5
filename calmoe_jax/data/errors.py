"""Errors of data."""

from calmoe_jax._errors import RunError, UserError


class DataError(UserError):
    """Data that cannot be used; the message says which, why and what to do."""


class MissingDataError(DataError):
    """A file, or a package needed to read it, is missing."""


class CorruptDataError(DataError):
    """Data cannot be read, or holds invalid values."""


class PreparationError(RunError):
    """A data set could not be brought; the message says why, and what remains of it."""
