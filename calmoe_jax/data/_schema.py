"""The form of an example: a tree of arrays as plain JSON, and as bytes of fixed length."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from calmoe_jax.data.errors import CorruptDataError, DataError

LABEL = np.dtype("<i4")
_KINDS = "biuf"


@dataclass(frozen=True)
class Form:
    """Shapes and dtypes of one example's inputs.

    Attributes:
        spec: a `jax.ShapeDtypeStruct` for each array.
    """

    spec: PyTree

    @property
    def size(self) -> int:
        """Bytes of an example with its label."""
        return sum(map(_bytes_of, jax.tree.leaves(self.spec))) + LABEL.itemsize

    def encode(self, inputs: PyTree, label: int) -> bytes:
        """The bytes of all arrays in the order of `jax.tree.leaves`, then those of the label."""
        leaves = [_little(np.asarray(leaf)).tobytes() for leaf in jax.tree.leaves(inputs)]
        return b"".join([*leaves, np.asarray(label, LABEL).tobytes()])

    def decode(self, record: bytes) -> dict[str, Any]:
        """The example of the bytes: `{"inputs": ..., "label": ...}`; its arrays are read-only."""
        leaves, start = [], 0
        for leaf in jax.tree.leaves(self.spec):
            stored = leaf.dtype.newbyteorder("<")
            values = np.frombuffer(record, stored, count=math.prod(leaf.shape), offset=start)
            leaves.append(values.astype(leaf.dtype, copy=False).reshape(leaf.shape))
            start += _bytes_of(leaf)
        label = int(np.frombuffer(record, LABEL, count=1, offset=start)[0])
        inputs = jax.tree.unflatten(jax.tree.structure(self.spec), leaves)
        return {"inputs": inputs, "label": label}

    def to_json(self) -> Any:
        """The form in words that JSON has."""
        return _to_json(self.spec)


def form_of(inputs: PyTree, where: str) -> Form:
    """The form of an example.

    Args:
        inputs: its arrays, in dicts, lists and tuples.
        where: what errors call it.

    Raises:
        DataError: for another container, a key that is no text, no array at all, or an array of
            other things than bools, integers and floats.
    """
    form = Form(_checked(inputs, where))
    if not jax.tree.leaves(form.spec):
        raise DataError(f"{where} must hold an array, got {inputs!r:.60}.")
    return form


def form_from_json(found: Any, where: str) -> Form:
    """The form that `Form.to_json` wrote.

    Args:
        found: what JSON holds.
        where: what errors call it.

    Raises:
        CorruptDataError: if it is none.
    """
    try:
        return form_of(_from_json(found), where)
    except (AttributeError, DataError, KeyError, TypeError, ValueError) as error:
        raise CorruptDataError(f"{where} must be a form of inputs, got {found!r:.60}.") from error


def _bytes_of(leaf: jax.ShapeDtypeStruct) -> int:
    return int(math.prod(leaf.shape)) * leaf.dtype.itemsize


def _little(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _checked(tree: Any, where: str) -> Any:
    if type(tree) is dict:
        strange = [key for key in tree if not isinstance(key, str)]
        if strange:
            raise DataError(f"{where} must have texts as keys, got {strange[0]!r}.")
        return {key: _checked(value, f"{where}[{key!r}]") for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(_checked(value, f"{where}[{i}]") for i, value in enumerate(tree))
    if not isinstance(tree, np.ndarray | np.generic | jax.ShapeDtypeStruct):
        raise DataError(
            f"{where} must be a NumPy array, or a dict, list or tuple of such, got "
            f"{type(tree).__name__}."
        )
    if tree.dtype.kind not in _KINDS or not tree.dtype.isnative:
        raise DataError(
            f"{where} must be of bools, integers or floats in this machine's byte order, got "
            f"{tree.dtype}."
        )
    return jax.ShapeDtypeStruct(tree.shape, tree.dtype)


def _to_json(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {"dict": {key: _to_json(value) for key, value in tree.items()}}
    if isinstance(tree, list | tuple):
        return {type(tree).__name__: [_to_json(value) for value in tree]}
    return {"shape": list(tree.shape), "dtype": tree.dtype.name}


def _from_json(found: Any) -> Any:
    if "dict" in found:
        return {key: _from_json(value) for key, value in found["dict"].items()}
    for kind in (list, tuple):
        if kind.__name__ in found:
            return kind(_from_json(value) for value in found[kind.__name__])
    return jax.ShapeDtypeStruct(tuple(map(int, found["shape"])), np.dtype(found["dtype"]))
