"""What is written where: the rows of the table, their commits, and passages of the main README."""

from collections.abc import Callable
from functools import partial

from calmoe_jax.study.report import Summary
from experiments.figures import evidence, first_run, repair, theory
from experiments.repair_protocol import markdown

_THEORY: dict[str, tuple[str, Callable[[theory.Numbers], str]]] = {
    "theory-a": ("a", theory.hard_routing),
    "theory-b": ("b", theory.soft_routing),
    "theory-c": ("c", theory.disagreement),
    "theory-d": ("d", theory.worst_shift),
    "theory-e": ("e", theory.impropriety),
    "theory-f": ("f", theory.exact_premise),
    "theory-f-fitted": ("f", theory.fitted_experts),
}
_REPAIR: dict[str, Callable[[repair.Found], str]] = {
    "repair-frontier": repair.frontier,
    "repair-bounds": repair.bounds,
    "repair-fitted": repair.fitted_prior,
    "repair-control": repair.negative_control,
    "repair-simulated": repair.simulated,
}


def _of_theory(letter: str, make: Callable[[theory.Numbers], str]) -> str:
    return make(theory.numbers(letter))


def _of_repair(make: Callable[[repair.Found], str], path: str = repair.PATH) -> str:
    return make(repair.found(path))


def _of_run(make: Callable[[Summary], str], name: str = "portal") -> str:
    return make(first_run.summary(name))


# The number of a row, by the row's key.
ROWS: dict[str, Callable[[], str]] = {
    **{key: partial(_of_run, make) for key, make in first_run.ROWS.items()},
    **{key: partial(_of_repair, make) for key, make in _REPAIR.items()},
    "repair-images": partial(_of_repair, repair.images, repair.IMAGES),
    **{key: partial(_of_theory, letter, make) for key, (letter, make) in _THEORY.items()},
    "hard-or-soft": evidence.hard_or_soft,
    "hard-or-soft-drift": evidence.drift,
    "paper-cifar10h": partial(evidence.paper, "cifar10h-quick"),
    "paper-pacs": partial(evidence.paper, "pacs_sketch-quick"),
    "our-study": evidence.our_study,
}
# The commit of a row, where its results file names it; others stay as they are.
COMMITS: dict[str, Callable[[], str]] = {
    **dict.fromkeys(first_run.ROWS, first_run.commit),
    **{key: partial(theory.commit, letter) for key, (letter, _) in _THEORY.items()},
    "hard-or-soft": evidence.corruptions_commit,
    "hard-or-soft-drift": evidence.corruptions_commit,
    "paper-cifar10h": partial(evidence.paper_commit, "cifar10h-quick"),
    "paper-pacs": partial(evidence.paper_commit, "pacs_sketch-quick"),
    "our-study": evidence.our_study_commit,
}
# Whole lines of the main README, by the passage's key.
PASSAGES: dict[str, Callable[[], str]] = {
    "first-run": first_run.printed,
    "first-run-portal": partial(_of_run, first_run.portal_in_words),
    "first-run-digits": partial(_of_run, first_run.digits_in_words, "digits"),
    "repair-table": partial(_of_repair, markdown),
    "repair-bounds": partial(_of_repair, repair.bounds_in_words),
    "repair-images": partial(_of_repair, repair.images_in_words, repair.IMAGES),
}
