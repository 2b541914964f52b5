"""The networks and the optimiser of a configuration."""

import math
from collections.abc import Mapping
from functools import lru_cache

import jax
import numpy as np
import optax
from flax import nnx
from jaxtyping import PyTree

from calmoe_jax.nn import (
    DISTILBERT_SIZES,
    IMAGENET_PIXELS,
    MLP,
    SYMMETRIC_PIXELS,
    VIT_SIZES,
    DistilBERT,
    MoEClassifier,
    Network,
    PretrainedError,
    Resized,
    ResNet18,
    SingleClassifier,
    Standardized,
    ViT,
    from_nnx,
    load_pretrained,
    read_tensors,
)
from calmoe_jax.nn.classifiers import Backbone
from calmoe_jax.study.config import ModelConfig, TrainConfig


def build_network(
    config: ModelConfig, inputs: PyTree, *, single: bool, num_classes: int
) -> Network:
    """Builds the classifier of a configuration for a task's inputs.

    Args:
        config: the classifier's configuration.
        inputs: examples; only their shape is used. One array, or for texts `{"ids", "mask"}`, as
            `calmoe_jax.data.load_tokenizer` makes them.
        single: one classifier instead of a mixture; the backbone starts from the same weights.
        num_classes: number of classes.

    Returns:
        A `Network`; the same object for the same shapes, so that compiled programs are shared.

    Raises:
        ValueError: if the backbone is for images or texts and the inputs are not, or of a size (by
            themselves, or resized) that its patches do not divide, or too long.
        PretrainedError: if the pretrained weights cannot be read, or are not the backbone's.
    """
    if config.backbone == "distilbert":
        return _build(config, single, _text_shape(inputs), num_classes)
    if not isinstance(inputs, np.ndarray | jax.Array):
        raise ValueError(
            "network must be given for inputs that are not one array, got a "
            f"{type(inputs).__name__} and backbone={config.backbone!r}."
        )
    return _build(config, single, inputs.shape[1:], num_classes)


def _text_shape(inputs: PyTree) -> tuple[int, ...]:
    """The shape of one text's tokens."""
    if not (isinstance(inputs, dict) and inputs.keys() == {"ids", "mask"}):
        raise ValueError(
            "backbone must be another for inputs that are not ids and mask of tokens, got "
            "backbone='distilbert' and inputs that are "
            + (f"a dict of {sorted(inputs)}." if isinstance(inputs, dict) else "one array.")
        )
    shape: tuple[int, ...] = inputs["ids"].shape[1:]
    return shape


@lru_cache(maxsize=16)
def _build(
    config: ModelConfig, single: bool, input_shape: tuple[int, ...], num_classes: int
) -> Network:
    _check_inputs(config, input_shape)
    # read once, not at each call of `make`
    weights = None if config.pretrained is None else read_tensors(config.pretrained)

    def make(rngs: nnx.Rngs) -> MoEClassifier | SingleClassifier:
        backbone = _backbone(config, input_shape, weights, rngs)
        if single:
            return SingleClassifier(backbone, num_classes, rngs=rngs)
        return MoEClassifier(
            backbone,
            num_classes,
            num_experts=config.experts,
            routing_kind=config.routing,
            k=config.k,
            router_hidden=config.router_hidden,
            expert_hidden=config.expert_hidden,
            rngs=rngs,
        )

    try:
        return from_nnx(make)
    except PretrainedError as error:
        raise PretrainedError(f"pretrained={config.pretrained}: {error}") from error


def _check_inputs(config: ModelConfig, input_shape: tuple[int, ...]) -> None:
    """Raises `ValueError` where the backbone does not take inputs of this shape."""
    if config.backbone == "distilbert":
        longest = DISTILBERT_SIZES[config.text_size].max_length
        if input_shape[0] > longest:
            raise ValueError(
                f"text_size must have at least {input_shape[0]} positions for these texts, got "
                f"text_size={config.text_size!r}, with {longest}."
            )
        return
    if config.backbone != "mlp" and len(input_shape) != 3:
        raise ValueError(
            "backbone must be mlp for inputs that are not images, got "
            f"backbone={config.backbone!r} and inputs of shape {input_shape}."
        )
    if config.backbone != "vit":
        return
    patch = VIT_SIZES[config.vit_size].patch_size
    if config.image_size is not None:
        if config.image_size % patch:
            raise ValueError(
                f"image_size must be a multiple of {patch}, the side of the patches of "
                f"vit_size={config.vit_size!r}, got image_size={config.image_size}."
            )
    elif any(size % patch for size in input_shape[:2]):
        raise ValueError(
            "vit_size must have patches that divide the images of shape "
            f"{input_shape}, got vit_size={config.vit_size!r}, with patches of {patch} x {patch}."
        )


def _backbone(
    config: ModelConfig,
    input_shape: tuple[int, ...],
    weights: Mapping[str, np.ndarray] | None,
    rngs: nnx.Rngs,
) -> Backbone:
    """The backbone, with pretrained weights if there are any, and on the images they expect."""
    side = config.image_size
    image_shape = input_shape if side is None else (side, side, input_shape[-1])
    backbone: MLP | ResNet18 | ViT | DistilBERT
    if config.backbone == "mlp":
        hidden = (config.width,) * config.depth
        backbone = MLP(math.prod(input_shape), hidden, rngs=rngs)
    elif config.backbone == "resnet18":
        backbone = ResNet18(
            input_shape[-1],
            stages=config.num_stages,
            width=config.width,
            stem=config.stem,
            rngs=rngs,
        )
    elif config.backbone == "vit":
        backbone = ViT.of_size(config.vit_size, image_shape, rngs=rngs)
    else:
        backbone = DistilBERT.of_size(
            config.text_size,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            rngs=rngs,
        )
    scale = None if weights is None else load_pretrained(backbone, weights).pixels
    if config.pixels is not None:
        scale = {"unit": None, "imagenet": IMAGENET_PIXELS, "symmetric": SYMMETRIC_PIXELS}[
            config.pixels
        ]
    scaled = backbone if scale is None else Standardized(backbone, scale)
    return scaled if side is None else Resized(scaled, side)


@lru_cache(maxsize=16)
def build_optimizer(train: TrainConfig, num_examples: int) -> optax.GradientTransformation:
    """AdamW with a cosine schedule; clips gradients and skips those not finite if configured.

    Args:
        train: with its defaults filled in.
        num_examples: number of training examples.
    """
    steps = num_examples // min(train.batch_size, num_examples) * train.epochs
    schedule = optax.cosine_decay_schedule(train.learning_rate, steps)
    adamw = optax.adamw(schedule, weight_decay=train.weight_decay)
    if train.clip_norm:
        adamw = optax.chain(optax.clip_by_global_norm(train.clip_norm), adamw)
    if train.skip_non_finite:
        return optax.apply_if_finite(adamw, train.skip_non_finite)
    return adamw
