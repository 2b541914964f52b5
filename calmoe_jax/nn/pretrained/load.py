"""Published weights into a backbone: all of them, or an error and the backbone as it was."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from calmoe_jax.nn.backbones import PixelScale
from calmoe_jax.nn.pretrained.errors import PretrainedError
from calmoe_jax.nn.pretrained.files import read_tensors
from calmoe_jax.nn.pretrained.layouts import Layout, layout_of

_SHOWN = 4  # names of each kind in an error
# Published torchvision files have the names that its modules had when they were trained.
_RENAMED = {".mlp.linear_1.": ".mlp.0.", ".mlp.linear_2.": ".mlp.3."}


class Loaded(NamedTuple):
    """What was read into a backbone.

    Attributes:
        layout: whose names the tensors had.
        left_out: names of tensors that are not the backbone's: classifier heads, and counts.
        pixels: what the published weights want pixels in [0, 1] standardised by (see
            `Standardized`): ImageNet's means and deviations, and for timm's names of vision
            transformers 1/2 and 1/2, as `vit_base_patch16_224` has them (others of timm's
            differ); `None` for text.
    """

    layout: str
    left_out: tuple[str, ...]
    pixels: PixelScale | None


def load_pretrained(backbone: nnx.Module, weights: Path | str | Mapping[str, np.ndarray]) -> Loaded:
    """Replaces the parameters and batch statistics of a backbone by published ones.

    Everything is checked first; after an error the backbone is as it was. Tensors of float16 or
    bfloat16 become the backbone's dtype.

    Args:
        backbone: a `ResNet18` or `ViT` for weights of timm or torchvision, or a `DistilBERT` for
            those of transformers, of the same sizes.
        weights: a safetensors file, or its tensors by name (as `read_tensors` gives).

    Returns:
        A `Loaded`.

    Raises:
        PretrainedError: if the file cannot be read, or tensors are missing, surplus, of another
            shape, no floats, or not finite.
        ValueError: if there are no published weights for such a backbone.

    Example:
        >>> net = ResNet18(3, stem="imagenet", rngs=nnx.Rngs(0))
        >>> load_pretrained(net, "resnet18.safetensors").left_out[-2:]  # doctest: +SKIP
        ('fc.bias', 'fc.weight')
    """
    given = weights if isinstance(weights, Mapping) else read_tensors(weights)
    tensors = {_current(name): tensor for name, tensor in given.items()}
    layout = layout_of(backbone, tensors)
    state = nnx.state(backbone, (nnx.Param, nnx.BatchStat))
    variables = {".".join(map(str, path)): v for path, v in nnx.to_flat_state(state)}
    assert variables.keys() == layout.sources.keys(), "a layout names every parameter, and no other"
    place = "the weights" if isinstance(weights, Mapping) else str(weights)
    left_out = _check(place, layout, variables, tensors)
    values = {path: source.value(tensors) for path, source in layout.sources.items()}
    for path, variable in variables.items():  # the backbone's own, not copies
        variable.set_value(jnp.asarray(values[path], variable.get_value().dtype))
    return Loaded(layout.name, left_out, layout.pixels)


def _current(name: str) -> str:
    for old, new in _RENAMED.items():
        name = name.replace(old, new)
    return name


def _check(
    place: str, layout: Layout, variables: dict[str, Any], tensors: dict[str, np.ndarray]
) -> tuple[str, ...]:
    """The names that are left out; raises where the others are not the backbone's."""
    wanted = {
        name: source.shape(variables[path].get_value().shape)
        for path, source in layout.sources.items()
        for parts in source.names
        for name in parts
    }
    others = sorted(tensors.keys() - wanted.keys())
    left_out = [n for n in others if n.startswith(layout.left_out) or n.endswith(layout.counters)]
    there = sorted(wanted.keys() & tensors.keys())
    shapes = [
        f"{name} {list(tensors[name].shape)} instead of {list(wanted[name])}"
        for name in there
        if tensors[name].shape != wanted[name]
    ]
    faults = {
        "missing": sorted(wanted.keys() - tensors.keys()),
        "surplus": sorted(set(others) - set(left_out)),
        "of another shape": shapes,
    }
    if not any(faults.values()):
        # a look at the numbers only where they can be ours
        floats = [n for n in there if jnp.issubdtype(tensors[n].dtype, jnp.floating)]
        faults["not floats"] = sorted(set(there) - set(floats))
        faults["not finite"] = [n for n in floats if not _is_finite(tensors[n])]
    if any(faults.values()):
        said = "; ".join(f"{kind}: {_some(names)}" for kind, names in faults.items() if names)
        raise PretrainedError(
            f"{place} must hold the tensors of this backbone, as {layout.name} names them, got "
            f"{said}. The published model is {layout.published}."
        )
    return tuple(left_out)


def _is_finite(tensor: np.ndarray) -> bool:
    return bool(np.isfinite(np.asarray(tensor, np.float32)).all())


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
