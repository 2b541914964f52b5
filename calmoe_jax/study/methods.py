"""Methods: an objective of training and the calibration that follows it."""

import difflib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from calmoe_jax.nn.network import Network
from calmoe_jax.study.config import TrainConfig
from calmoe_jax.training import Objective, objectives


class Method(NamedTuple):
    """A row of the results: an objective with a name, and what is done after training.

    Attributes:
        name: name in results and on the command line.
        objective: objective to minimise after the warm-up.
        title: title in reports; the name by default.
        summary: a one-line description.
        training: name of the training; methods that share one are trained once. The name of the
            method by default.
        network: the method's own classifier; the study's by default.
        expert_temperatures: whether every expert is temperature-scaled on the calibration split,
            on all of its examples with equal weight, as part of the method (MoCaE).

    Example:
        >>> from calmoe_jax.training import objectives
        >>> method = Method("gentle", objectives.robust(eta=0.5), title="Gentle Robust")
    """

    name: str
    objective: Objective
    title: str = ""
    summary: str = ""
    training: str = ""
    network: Network | None = None
    expert_temperatures: bool = False


class MethodEntry(NamedTuple):
    """A method of this library before its hyper-parameters are known.

    Attributes:
        title: title in reports.
        summary: a one-line description.
        objective: makes the objective of a training configuration.
        training: name of the training that it shares; its own by default.
        single: whether it trains one classifier instead of a mixture.
        expert_temperatures: see `Method`.
    """

    title: str
    summary: str
    objective: Callable[[TrainConfig], Objective]
    training: str = ""
    single: bool = False
    expert_temperatures: bool = False


def _erm(_: TrainConfig) -> Objective:
    return objectives.erm()


def _robust(train: TrainConfig) -> Objective:
    return objectives.robust(eta=train.eta)


def _robust_released(train: TrainConfig) -> Objective:
    return objectives.robust(eta=train.eta, detach=False)


def _filtered(train: TrainConfig, *, detach: bool = True) -> Objective:
    return objectives.robust_filtered(
        eta=train.eta,
        regret_threshold=train.regret_threshold,
        disagreement_threshold=train.disagreement_threshold,
        detach=detach,
    )


def _rectified(of: Callable[[TrainConfig], Objective]) -> Callable[[TrainConfig], Objective]:
    return lambda train: objectives.rectified(of(train), filter_share=train.filter_share)


METHODS: dict[str, MethodEntry] = {
    "single": MethodEntry("Single classifier", "one classifier, mean log loss", _erm, single=True),
    "vanilla": MethodEntry("Vanilla MoE", "mixture of experts, mean log loss", _erm),
    "mocae": MethodEntry(
        "MoCaE",
        "vanilla, every expert temperature-scaled before mixing",
        _erm,
        training="vanilla",
        expert_temperatures=True,
    ),
    "fgr": MethodEntry(
        "FGR", "frequency filter, and no gradient step against calibration", _rectified(_erm)
    ),
    "robust": MethodEntry("Robust MoE", "losses reweighted by an entropic adversary", _robust),
    "robust_filtered": MethodEntry(
        "Robust Filtered",
        "mean loss plus the adversary on routing-relevant examples",
        _filtered,
    ),
    "fgr_robust": MethodEntry("FGR + Robust", "FGR on the robust objective", _rectified(_robust)),
    "robust_released": MethodEntry(
        "Robust MoE (released form)",
        "as robust, with the gradient through the adversary's weights",
        _robust_released,
    ),
    "robust_filtered_released": MethodEntry(
        "Robust Filtered (released form)",
        "as robust_filtered, with the gradient through the adversary's weights",
        lambda train: _filtered(train, detach=False),
    ),
    "fgr_robust_released": MethodEntry(
        "FGR + Robust (released form)",
        "as fgr_robust, with the gradient through the adversary's weights",
        _rectified(_robust_released),
    ),
    "balanced_robust": MethodEntry(
        "Balanced Robust",
        "robust, with the shares of classes and experts and mean confidence and entropy kept",
        lambda train: objectives.balanced_robust(eta=train.eta),
    ),
    "configuration_robust": MethodEntry(
        "Configuration Robust",
        "an adversary that sees routing configurations and no labels",
        lambda train: objectives.configuration_robust(eta=train.eta),
    ),
    "radius_robust": MethodEntry(
        "Radius Robust",
        "robust, with a given effective share of the examples instead of a given eta",
        lambda train: objectives.radius_robust(effective_fraction=train.effective_fraction),
    ),
    "cross_batch_robust": MethodEntry(
        "Cross-batch Robust",
        "robust against the data set instead of each batch",
        lambda train: objectives.cross_batch_robust(eta=train.eta, decay=train.adversary_decay),
    ),
}


def check_method_names(names: Sequence[str]) -> None:
    """Raises `ValueError` for a name that is not among the methods of this library."""
    for name in names:
        if name not in METHODS:
            near = difflib.get_close_matches(name, METHODS, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ValueError(f"methods must be among {', '.join(METHODS)}, got {name!r}.{hint}")


@lru_cache(maxsize=64)
def build_method(name: str, train: TrainConfig, single_network: Network | None) -> Method:
    """A method of this library with its hyper-parameters.

    Args:
        name: one of `METHODS`.
        train: with its defaults filled in.
        single_network: the classifier of methods without a mixture.

    Returns:
        The method; the same object for the same arguments, so that compiled programs are shared.
    """
    entry = METHODS[name]
    return Method(
        name=name,
        objective=shared_objective(entry.objective, train),
        title=entry.title,
        summary=entry.summary,
        training=entry.training or name,
        network=single_network if entry.single else None,
        expert_temperatures=entry.expert_temperatures,
    )


@lru_cache(maxsize=64)
def shared_objective(make: Callable[[TrainConfig], Objective], train: TrainConfig) -> Objective:
    """An objective with the losses of the gate; the same object for the same arguments.

    Args:
        make: makes the objective.
        train: with its defaults filled in.
    """
    return objectives.with_gate_losses(
        make(train), load_balancing=train.load_balancing or 0.0, z_loss=train.z_loss or 0.0
    )


def warm_up_objective(train: TrainConfig) -> Objective:
    """The objective of the warm-up of every training: the mean loss, as in vanilla.

    Args:
        train: with its defaults filled in.
    """
    return shared_objective(_erm, train)
