"""The methods by name: what is trained, with which objective, and what happens afterwards."""

from typing import Literal, NamedTuple

from calmoe_jax._checks import check_at_least


class Recipe(NamedTuple):
    """What training needs to know of a method. Methods with one recipe share one training.

    Attributes:
        name: also the name of its checkpoints.
        single: one classifier instead of a mixture.
        objective: of the losses of a batch.
        detach: whether the adversary's weights are constants for the gradient.
        rectified: whether FGR's filter and gradient rectification are on.
    """

    name: str
    single: bool = False
    objective: Literal[
        "erm", "robust", "robust_filtered", "balanced_robust", "configuration_robust",
        "radius_robust", "cross_batch_robust",
    ] = "erm"  # fmt: skip
    detach: bool = True
    rectified: bool = False

    def warm_up(self) -> "Recipe":
        """The recipe of the epochs before the objective: mean log loss, the same for all."""
        return Recipe("single", single=True) if self.single else Recipe("vanilla")


class Method(NamedTuple):
    """A row of the results.

    Attributes:
        title: how a person calls it.
        summary: one line for people.
        recipe: how it is trained.
        expert_temperatures: whether every expert is temperature-scaled on the calibration split,
            on all of its examples alike, as part of the method (MoCaE).
    """

    title: str
    summary: str
    recipe: Recipe
    expert_temperatures: bool = False


_VANILLA = Recipe("vanilla")

METHODS: dict[str, Method] = {
    "single": Method(
        "Single classifier", "one classifier, mean log loss", Recipe("single", single=True)
    ),
    "vanilla": Method("Vanilla MoE", "mixture of experts, mean log loss", _VANILLA),
    "mocae": Method(
        "MoCaE", "vanilla, every expert temperature-scaled before mixing", _VANILLA, True
    ),
    "fgr": Method(
        "FGR",
        "frequency filter, and no gradient step against calibration",
        Recipe("fgr", rectified=True),
    ),
    "robust": Method(
        "Robust MoE",
        "losses reweighted by an entropic adversary",
        Recipe("robust", objective="robust"),
    ),
    "robust_filtered": Method(
        "Robust Filtered",
        "mean loss plus the adversary on routing-relevant examples",
        Recipe("robust_filtered", objective="robust_filtered"),
    ),
    "fgr_robust": Method(
        "FGR + Robust",
        "FGR on the robust objective",
        Recipe("fgr_robust", objective="robust", rectified=True),
    ),
    "robust_released": Method(
        "Robust MoE (released form)",
        "as robust, with the gradient through the adversary's weights",
        Recipe("robust_released", objective="robust", detach=False),
    ),
    "robust_filtered_released": Method(
        "Robust Filtered (released form)",
        "as robust_filtered, with the gradient through the adversary's weights",
        Recipe("robust_filtered_released", objective="robust_filtered", detach=False),
    ),
    "fgr_robust_released": Method(
        "FGR + Robust (released form)",
        "as fgr_robust, with the gradient through the adversary's weights",
        Recipe("fgr_robust_released", objective="robust", detach=False, rectified=True),
    ),
    "balanced_robust": Method(
        "Balanced Robust",
        "robust, with the shares of classes and experts and mean confidence and entropy kept",
        Recipe("balanced_robust", objective="balanced_robust"),
    ),
    "configuration_robust": Method(
        "Configuration Robust",
        "an adversary that sees routing configurations and no labels",
        Recipe("configuration_robust", objective="configuration_robust"),
    ),
    "radius_robust": Method(
        "Radius Robust",
        "robust, with a given effective share of the examples instead of a given eta",
        Recipe("radius_robust", objective="radius_robust"),
    ),
    "cross_batch_robust": Method(
        "Cross-batch Robust",
        "robust against the data set instead of each batch",
        Recipe("cross_batch_robust", objective="cross_batch_robust"),
    ),
}

PAPER_METHODS = (
    "single",
    "vanilla",
    "mocae",
    "fgr",
    "robust",
    "robust_filtered",
    "fgr_robust",
)


def recipes_of(methods: tuple[str, ...]) -> tuple[Recipe, ...]:
    """The trainings that the methods need, each once, in the methods' order."""
    check_at_least("the number of methods", len(methods), 1)
    return tuple(dict.fromkeys(METHODS[name].recipe for name in methods))
