"""The commit that results name."""

import re


def short_commit(whole: str | None) -> str:
    """A commit's first seven digits.

    Args:
        whole: as results files name what they were made with.

    Raises:
        ValueError: if there was none, or the checkout had changes, so that it names no results.
    """
    if whole is None or not re.fullmatch("[0-9a-f]{40}", whole):
        raise ValueError(f"commit must be one without changes, got {whole}.")
    return whole[:7]
