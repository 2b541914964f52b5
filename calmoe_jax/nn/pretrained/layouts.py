"""Which tensors of a published model make which parameter of a backbone.

The names are those of timm and torchvision for ResNet-18 (they agree), of each of both for vision
transformers, and of transformers for DistilBERT.
"""

from collections.abc import Iterable
from typing import NamedTuple

from flax import nnx

from calmoe_jax.nn.backbones import IMAGENET_PIXELS, SYMMETRIC_PIXELS, PixelScale, ResNet18, ViT
from calmoe_jax.nn.backbones.distilbert import DistilBERT
from calmoe_jax.nn.pretrained.rules import (
    CONVOLUTION,
    LINEAR,
    SAME,
    WITH_BATCH,
    WITH_BATCH_AND_TOKEN,
    Source,
    of_blocks,
    one,
    patches,
)


class Layout(NamedTuple):
    """Where a backbone's parameters are in a file.

    Attributes:
        name: whose names they are, and of which model.
        sources: tensors of each parameter and batch statistic, by its path.
        left_out: how the names of tensors begin that belong to no backbone: classifier heads.
        counters: how the names of tensors end that are counts or constants.
        pixels: what the published weights want pixels standardised by; `None` for text.
        published: how to build the published model.
    """

    name: str
    sources: dict[str, Source]
    left_out: tuple[str, ...]
    counters: tuple[str, ...]
    pixels: PixelScale | None
    published: str


def layout_of(backbone: nnx.Module, names: Iterable[str]) -> Layout:
    """The layout of a backbone's weights in a file with these names.

    Raises:
        ValueError: if there are no published weights for such a backbone.
    """
    if isinstance(backbone, ResNet18):
        return _resnet(backbone)
    if isinstance(backbone, ViT) and not backbone.is_sparse:
        torchvision = any(name.startswith(("conv_proj.", "encoder.")) for name in names)
        return _torchvision_vit(backbone) if torchvision else _timm_vit(backbone)
    if isinstance(backbone, DistilBERT):
        prefixed = any(name.startswith("distilbert.") for name in names)
        return _distilbert(backbone, "distilbert." if prefixed else "")
    raise ValueError(
        "backbone must be a ResNet18, a ViT without sparse layers or a DistilBERT, got "
        f"{type(backbone).__name__}."
    )


def _resnet(backbone: ResNet18) -> Layout:
    sources: dict[str, Source] = {}

    def convolution(ours: str, theirs: str) -> None:
        sources[f"{ours}.kernel"] = one(f"{theirs}.weight", CONVOLUTION)

    def norm(ours: str, theirs: str) -> None:
        sources[f"{ours}.scale"] = one(f"{theirs}.weight")
        sources[f"{ours}.bias"] = one(f"{theirs}.bias")
        sources[f"{ours}.mean"] = one(f"{theirs}.running_mean")
        sources[f"{ours}.var"] = one(f"{theirs}.running_var")

    convolution("stem", "conv1")
    norm("norm", "bn1")
    for number, block in enumerate(backbone.blocks):
        ours, theirs = f"blocks.{number}", f"layer{number // 2 + 1}.{number % 2}"
        for i in (1, 2):
            convolution(f"{ours}.conv{i}", f"{theirs}.conv{i}")
            norm(f"{ours}.norm{i}", f"{theirs}.bn{i}")
        if block.projects:
            convolution(f"{ours}.shortcut", f"{theirs}.downsample.0")
            norm(f"{ours}.shortcut_norm", f"{theirs}.downsample.1")
    return Layout(
        "ResNet-18 of timm and torchvision", sources, ("fc.",), (".num_batches_tracked",),
        IMAGENET_PIXELS, 'ResNet18(3, stages=4, width=64, stem="imagenet")',
    )  # fmt: skip


def _timm_vit(backbone: ViT) -> Layout:
    sources = _vit(
        backbone, first="cls_token", positions="pos_embed", projection="patch_embed.proj",
        norm="norm", block="blocks.{}.", norms=("norm1", "norm2"), inputs="attn.qkv.",
        output="attn.proj", inner="mlp.fc1", outer="mlp.fc2",
    )  # fmt: skip
    return Layout(
        "vision transformer of timm", sources, ("head.",), (), SYMMETRIC_PIXELS, _PUBLISHED_VIT
    )


def _torchvision_vit(backbone: ViT) -> Layout:
    sources = _vit(
        backbone, first="class_token", positions="encoder.pos_embedding", projection="conv_proj",
        norm="encoder.ln", block="encoder.layers.encoder_layer_{}.", norms=("ln_1", "ln_2"),
        inputs="self_attention.in_proj_", output="self_attention.out_proj", inner="mlp.0",
        outer="mlp.3",
    )  # fmt: skip
    return Layout(
        "vision transformer of torchvision", sources, ("heads.",), (), IMAGENET_PIXELS,
        _PUBLISHED_VIT,
    )  # fmt: skip


_PUBLISHED_VIT = 'ViT.of_size("B/16", (224, 224, 3))'


def _vit(
    backbone: ViT,
    *,
    first: str,
    positions: str,
    projection: str,
    norm: str,
    block: str,
    norms: tuple[str, str],
    inputs: str,
    output: str,
    inner: str,
    outer: str,
) -> dict[str, Source]:
    """The sources of a vision transformer, for the names of one of both."""
    depth = backbone.transformer.number
    cut = patches(backbone.patch_size, backbone.image_shape[-1])
    ours = "transformer.blocks."
    sources = {
        "class_token": one(first, WITH_BATCH_AND_TOKEN),
        "positions": one(positions, WITH_BATCH),
        "patches.kernel": one(f"{projection}.weight", cut),
        "patches.bias": one(f"{projection}.bias"),
        "transformer.norm.scale": one(f"{norm}.weight"),
        "transformer.norm.bias": one(f"{norm}.bias"),
        f"{ours}attention.inputs.kernel": of_blocks(depth, [f"{block}{inputs}weight"], LINEAR),
        f"{ours}attention.inputs.bias": of_blocks(depth, [f"{block}{inputs}bias"]),
    }
    linear = {"attention.output": output, "mlp.inner": inner, "mlp.outer": outer}
    normed = dict(zip(("norm1", "norm2"), norms, strict=True))
    return sources | _of_blocks(depth, block, linear, normed)


def _of_blocks(
    depth: int, block: str, linear: dict[str, str], norms: dict[str, str]
) -> dict[str, Source]:
    """The sources of linear maps and normalisations in all blocks; names theirs by ours."""
    sources = {}
    for kind, names in (("kernel", linear), ("scale", norms)):
        rule = LINEAR if kind == "kernel" else SAME
        for ours, theirs in names.items():
            path = f"transformer.blocks.{ours}"
            sources[f"{path}.{kind}"] = of_blocks(depth, [f"{block}{theirs}.weight"], rule)
            sources[f"{path}.bias"] = of_blocks(depth, [f"{block}{theirs}.bias"])
    return sources


def _distilbert(backbone: DistilBERT, prefix: str) -> Layout:
    depth, embeddings = backbone.transformer.number, f"{prefix}embeddings."
    block = f"{prefix}transformer.layer.{{}}."
    queries_keys_values = [f"{block}attention.{name}_lin." for name in "qkv"]
    ours = "transformer.blocks.attention.inputs."
    sources = {
        "vocabulary": one(f"{embeddings}word_embeddings.weight"),
        "positions": one(f"{embeddings}position_embeddings.weight"),
        "norm.scale": one(f"{embeddings}LayerNorm.weight"),
        "norm.bias": one(f"{embeddings}LayerNorm.bias"),
        f"{ours}kernel": of_blocks(depth, [f"{p}weight" for p in queries_keys_values], LINEAR),
        f"{ours}bias": of_blocks(depth, [f"{p}bias" for p in queries_keys_values]),
    } | _of_blocks(
        depth,
        block,
        {"attention.output": "attention.out_lin", "mlp.inner": "ffn.lin1", "mlp.outer": "ffn.lin2"},
        {"norm1": "sa_layer_norm", "norm2": "output_layer_norm"},
    )
    heads = (
        "pre_classifier.", "classifier.", "qa_outputs.", "vocab_transform.", "vocab_layer_norm.",
        "vocab_projector.",
    )  # fmt: skip
    return Layout(
        "DistilBERT of transformers", sources, heads, ("embeddings.position_ids",), None,
        'DistilBERT.of_size("base")',
    )  # fmt: skip
