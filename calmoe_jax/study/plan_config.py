"""The configuration of a plan, that Python and the command line share."""

import dataclasses
from typing import Literal

from calmoe_jax._checks import check_at_least, check_positive


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """What is planned.

    Attributes:
        model: a vision transformer by its size (S/16, B/16, S/32, B/32, tiny), or resnet18.
        image: height and width of the images, in pixels.
        classes: number of classes.
        experts: experts of each sparse layer of a transformer; 0 for none.
        k: experts per token.
        capacity_factor: capacity of an expert as a multiple of its fair share.
        heads: experts of the mixture on top.
        exchange: how tokens and experts meet: all_to_all, ring or ragged.
        expert_shards: devices that share the experts; as many as possible by default.
        batch: examples of a step, on all devices together.
        objective: what is minimised: a method that `calmoe run` trains.
        dtype: dtype of the computation.
        remat: what is kept for the gradient: all (none), or the blocks' inputs (block).
    """

    model: str = "B/16"
    image: int = 224
    classes: int = 1000
    experts: int = 32
    k: int = 2
    capacity_factor: float = 1.05
    heads: int = 4
    exchange: Literal["all_to_all", "ring", "ragged"] = "all_to_all"
    expert_shards: int | None = None
    batch: int = 4096
    objective: str = "robust"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    remat: Literal["none", "block"] = "none"

    def __post_init__(self) -> None:
        for name in ("image", "k", "heads", "batch"):
            check_at_least(name, getattr(self, name), 1)
        check_at_least("classes", self.classes, 2)
        check_at_least("experts", self.experts, 0)
        check_positive("capacity_factor", self.capacity_factor)
        if self.expert_shards is not None:
            check_at_least("expert_shards", self.expert_shards, 1)

    @property
    def is_sparse(self) -> bool:
        """Whether the backbone has sparse layers."""
        return self.experts > 0 and self.model != "resnet18"
