"""Features of a data set by name."""

import difflib
from typing import Any

from calmoe_jax.data.errors import DataError


def feature_of(builder: Any, argument: str, name: str) -> Any:
    """A feature, or an error that names the argument and the nearest feature."""
    features = builder.info.features
    if name not in features:
        near = difflib.get_close_matches(name, list(features), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise DataError(
            f"{argument} must be a feature of {builder.name}, one of {', '.join(features)}, got "
            f"{argument}={name!r}.{hint}"
        )
    return features[name]
