"""The configuration of a run: frozen dataclasses that Python and the command line share.

Everything is checked on construction, before anything is written. No such object is passed into
the library: training passes plain numbers.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, Literal, get_args

import tyro

from calmoe_jax._checks import (
    check_at_least,
    check_choice,
    check_non_negative,
    check_positive,
    check_range,
)
from calmoe_jax._errors import UserError
from calmoe_jax.routing.kinds import ROUTING_KINDS, RoutingKind

Backbone = Literal["mlp", "resnet18", "vit", "distilbert"]
ViTSize = Literal["tiny", "S/32", "S/16", "B/32", "B/16"]
TextSize = Literal["tiny", "base"]
Stem = Literal["cifar", "imagenet"]
Pixels = Literal["unit", "imagenet", "symmetric"]

_MOST_SEEDS = 10_000

PAPER_METHODS = ("single", "vanilla", "mocae", "fgr", "robust", "robust_filtered", "fgr_robust")

# Found on `portal` (vanilla, 5 seeds, 30 epochs): with .01 most seeds leave one or two of four
# experts without examples, with .1 none does under hard routing and accuracy falls by at most .01.
_SPARSE_LOAD_BALANCING = 0.1
_SPARSE_Z_LOSS = 0.001
# The straight-through gradient is a likelihood ratio, at times huge: unclipped, accuracy is .77 to
# .79 there (with .1 above) instead of .80.
_HARD_CLIP_NORM = 1.0


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The classifier.

    Attributes:
        backbone: fully connected layers (mlp), for images ResNet-18 (resnet18) or a vision
            transformer (vit), for tokens of text DistilBERT (distilbert).
        width: width of the fully connected layers, or of the first stage.
        depth: number of fully connected layers.
        stages: stages of the ResNet, 1 to 4; by default 3, and 4 with the stem for ImageNet.
        stem: stem of the ResNet: for small images (cifar), or ImageNet's (imagenet).
        vit_size: size of the vision transformer; its patches (16, 32, tiny: 4 pixels) must divide
            the images, or image_size.
        text_size: size of the DistilBERT: base, or tiny (for tests).
        dropout: share of the numbers of DistilBERT's embeddings and of its MLPs' outputs that is
            dropped in training; .1 in the published model's.
        attention_dropout: share of its attention's weights that is; .1 there too.
        pretrained: safetensors file with the backbone's weights, as timm, torchvision or
            transformers name them; its sizes must be the published ones, for a vision transformer
            image_size too (mostly 224).
        image_size: height and width in pixels that images are resized to before the backbone;
            as they are by default.
        pixels: what pixels are standardised to: [0, 1] (unit), by ImageNet's means and deviations
            (imagenet), or to [-1, 1] (symmetric); by default what the pretrained weights were
            trained on, and unit without.
        experts: number of experts.
        expert_hidden: width of the experts' hidden layer; 0 for linear experts.
        router_hidden: width of the router's hidden layer.
        routing: dense, top_k, hard (straight-through) or hardened (trained dense).
        k: experts per example, for top_k.
    """

    backbone: Backbone = "mlp"
    width: int = 64
    depth: int = 2
    stages: int | None = None
    stem: Stem = "cifar"
    vit_size: ViTSize = "S/16"
    text_size: TextSize = "base"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    pretrained: str | None = None
    image_size: int | None = None
    pixels: Pixels | None = None
    experts: int = 4
    expert_hidden: int = 0
    router_hidden: int = 128
    routing: RoutingKind = "dense"
    k: int = 2

    def __post_init__(self) -> None:
        check_choice("backbone", self.backbone, get_args(Backbone))
        check_choice("vit_size", self.vit_size, get_args(ViTSize))
        check_choice("stem", self.stem, get_args(Stem))
        check_choice("text_size", self.text_size, get_args(TextSize))
        if self.pixels is not None:
            check_choice("pixels", self.pixels, get_args(Pixels))
        check_choice("routing", self.routing, ROUTING_KINDS)
        for name in ("width", "depth", "experts", "router_hidden", "k"):
            check_at_least(name, getattr(self, name), 1)
        check_at_least("expert_hidden", self.expert_hidden, 0)
        check_range("stages", self.stages, 1, 4)
        if self.image_size is not None:
            check_at_least("image_size", self.image_size, 1)
        if self.routing == "top_k" and self.k > self.experts:
            raise ValueError(f"k must be in [1, experts={self.experts}], got k={self.k}.")
        for name in ("dropout", "attention_dropout"):
            rate = getattr(self, name)
            check_range(name, rate, 0, 1 - 1e-6)
            if rate and self.backbone != "distilbert":
                raise ValueError(
                    f"{name} must be 0 for a backbone other than distilbert, got {name}={rate} and "
                    f"backbone={self.backbone!r}."
                )
        images = self.backbone in ("resnet18", "vit")
        if self.pretrained is not None and self.backbone == "mlp":
            raise ValueError(
                "pretrained must be for a backbone with published weights, got "
                f"pretrained={self.pretrained!r} and backbone={self.backbone!r}."
            )
        for name in ("image_size", "pixels"):
            if getattr(self, name) is not None and not images:
                raise ValueError(
                    f"{name} must be for a backbone for images, got "
                    f"{name}={getattr(self, name)!r} and backbone={self.backbone!r}."
                )

    @property
    def num_stages(self) -> int:
        """Stages of the ResNet, with the default that depends on the stem."""
        if self.stages is not None:
            return self.stages
        return 4 if self.stem == "imagenet" else 3


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Optimisation: AdamW with a cosine schedule, ERM first, then the method's objective.

    Attributes:
        epochs: passes over the training split.
        warmup_epochs: epochs of ERM before the objective; two fifths of all epochs by default.
        batch_size: examples per step; the full split if it is smaller.
        learning_rate: learning rate at the start of the cosine.
        weight_decay: decoupled weight decay of every parameter.
        eta: inverse temperature of the adversary.
        regret_threshold: regret threshold of Robust Filtered, in nats.
        disagreement_threshold: disagreement threshold of Robust Filtered.
        filter_share: share of a batch's images that FGR filters (at least one).
        effective_fraction: perplexity of Radius Robust's weights over the batch size.
        adversary_decay: decay of the running partition of Cross-batch Robust, less than 1.
        clip_norm: largest norm of the gradient; 0 for no limit; 1 for hard routing and no limit
            otherwise by default.
        load_balancing: coefficient of the load-balancing loss; .1 for top_k and hard routing
            and 0 otherwise by default.
        z_loss: coefficient of the router z-loss; .001 for top_k and hard routing and 0 otherwise
            by default.
        checkpoint_every: epochs between checkpoints.
        parts: parts that a batch is computed in, to save memory; the loss is the whole batch's.
        skip_non_finite: steps in a row that may be left out because their gradient is not finite;
            0 ends the run at the first.
    """

    epochs: int = 50
    warmup_epochs: int | None = None
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    eta: float = 2.0
    regret_threshold: float = 1e-6
    disagreement_threshold: float = 0.01
    filter_share: float = 0.05
    effective_fraction: float = 0.5
    adversary_decay: float = 0.9
    clip_norm: float | None = None
    load_balancing: float | None = None
    z_loss: float | None = None
    checkpoint_every: int = 10
    parts: int = 1
    skip_non_finite: int = 0

    def __post_init__(self) -> None:
        check_at_least("skip_non_finite", self.skip_non_finite, 0)
        for name in ("epochs", "batch_size", "checkpoint_every", "parts"):
            check_at_least(name, getattr(self, name), 1)
        for name in ("learning_rate", "eta"):
            check_positive(name, getattr(self, name))
        for name in ("weight_decay", "regret_threshold", "disagreement_threshold"):
            check_non_negative(name, getattr(self, name))
        for name in ("clip_norm", "load_balancing", "z_loss"):
            check_non_negative(name, getattr(self, name))
        check_range("filter_share", self.filter_share, 0, 1)
        check_positive("effective_fraction", self.effective_fraction)
        check_range("effective_fraction", self.effective_fraction, 0, 1)
        check_range("adversary_decay", self.adversary_decay, 0, 1 - 1e-6)
        check_range("warmup_epochs", self.warmup_epochs, 0, self.epochs)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A run: a task, methods, seeds, and how to train.

    Attributes:
        task: one of `calmoe tasks`, an npz file, or module:function (see `calmoe_jax.data`).
        methods: rows of the results.
        seeds: number of seeds.
        first_seed: the seeds are this one and the following.
        model: the classifier.
        train: the optimisation.
    """

    task: tyro.conf.Positional[str] = "portal"
    methods: tuple[str, ...] = PAPER_METHODS
    seeds: int = 5
    first_seed: int = 42
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        check_at_least("seeds", self.seeds, 1)
        check_range("seeds", self.seeds, 1, _MOST_SEEDS)
        check_range("first_seed", self.first_seed, 0, 2**31 - 1 - self.seeds)

    @property
    def seed_numbers(self) -> tuple[int, ...]:
        """The seed numbers."""
        return tuple(range(self.first_seed, self.first_seed + self.seeds))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `config.json` holds them; of pretrained weights name and digest.

        Raises:
            UserError: if the file of pretrained weights cannot be read.
        """
        values = dataclasses.asdict(self)
        values["methods"] = list(self.methods)
        values["model"]["stages"] = self.model.num_stages
        if self.model.pretrained is not None:
            values["model"]["pretrained"] = _name_and_digest(Path(self.model.pretrained))
        return values


def _name_and_digest(path: Path) -> str:
    """The name of a file and of its content, so that it may lie elsewhere and not be replaced."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"pretrained={path} cannot be read: {error}.") from error
    return f"{path.name} sha256:{digest[:16]}"


def with_defaults(model: ModelConfig, train: TrainConfig) -> TrainConfig:
    """The training configuration with the defaults that depend on the routing filled in."""
    sparse = model.routing in ("top_k", "hard")
    defaults: dict[str, Any] = {
        "warmup_epochs": train.epochs * 2 // 5,
        "clip_norm": _HARD_CLIP_NORM if model.routing == "hard" else 0.0,
        "load_balancing": _SPARSE_LOAD_BALANCING if sparse else 0.0,
        "z_loss": _SPARSE_Z_LOSS if sparse else 0.0,
    }
    unset = {name: v for name, v in defaults.items() if getattr(train, name) is None}
    return dataclasses.replace(train, **unset)
