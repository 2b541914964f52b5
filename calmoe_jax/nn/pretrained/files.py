"""Tensors of a safetensors file."""

from pathlib import Path

import numpy as np

from calmoe_jax.nn.pretrained.errors import PretrainedError


def read_tensors(path: Path | str) -> dict[str, np.ndarray]:
    """Reads all tensors of a safetensors file.

    Args:
        path: the file.

    Returns:
        Arrays by name, with the dtypes of the file.

    Raises:
        PretrainedError: if the package safetensors is missing, or the file is missing or damaged.

    Example:
        >>> tensors = read_tensors("resnet18.safetensors")  # doctest: +SKIP
        >>> tensors["conv1.weight"].shape  # doctest: +SKIP
        (64, 3, 7, 7)
    """
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError as error:
        raise PretrainedError(
            "the package safetensors is needed for pretrained weights: "
            "pip install 'calmoe_jax[text]'."
        ) from error
    if not Path(path).is_file():
        raise PretrainedError(f"pretrained weights must be a safetensors file, {path} is none.")
    try:
        tensors: dict[str, np.ndarray] = load_file(path)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise PretrainedError(f"{path} cannot be read as a safetensors file: {error}.") from error
    return tensors
