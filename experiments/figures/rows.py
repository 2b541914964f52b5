"""What is written where: the rows of the table, their commits, and passages of the main README."""

from collections.abc import Callable
from functools import partial

from calmoe_jax.study.report import Summary
from experiments.figures import evidence, first_run, repair, rules, study, theory, words
from experiments.our_study.comparing import read_rows
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


_RULES: dict[str, tuple[str, Callable[[rules.Found], str]]] = {
    "rules-modes": (rules.WITHOUT, rules.modes),
    "rules-unseen": (rules.WITHOUT, rules.unseen),
    "rules-hard": (rules.WITHOUT, rules.hard_subsets),
    "rules-others": (rules.WITHOUT, rules.others),
    "rules-chosen": (rules.CHOSEN, rules.chosen),
    "rules-theorem": (rules.THEOREM, rules.theorem),
}


def _of_rules(path: str, make: Callable[[rules.Found], str]) -> str:
    return make(words.read(path))


def _colour_images() -> str:
    return repair.images_in_words(repair.found(repair.IMAGES), repair.found(repair.END_TO_END))


# The number of a row, by the row's key.
ROWS: dict[str, Callable[[], str]] = {
    **{key: partial(_of_run, make) for key, make in first_run.ROWS.items()},
    **{key: partial(_of_rules, path, make) for key, (path, make) in _RULES.items()},
    **{key: partial(_of_repair, make) for key, make in _REPAIR.items()},
    "repair-images": partial(_of_repair, repair.images, repair.IMAGES),
    "repair-end-to-end": partial(_of_repair, repair.end_to_end, repair.END_TO_END),
    **{key: partial(_of_theory, letter, make) for key, (letter, make) in _THEORY.items()},
    "hard-or-soft": evidence.hard_or_soft,
    "hard-or-soft-drift": evidence.drift,
    "paper-cifar10h": partial(evidence.paper, "cifar10h"),
    "paper-pacs": partial(evidence.paper, "pacs_sketch"),
    "our-study": evidence.our_study,
}
# The commit of a row, as its results file names it.
COMMITS: dict[str, Callable[[], str]] = {
    **dict.fromkeys(first_run.ROWS, first_run.commit),
    **{key: partial(words.commit_of, path) for key, (path, _) in _RULES.items()},
    **{key: partial(theory.commit, letter) for key, (letter, _) in _THEORY.items()},
    **dict.fromkeys(_REPAIR, partial(words.commit_of, repair.PATH)),
    "repair-images": partial(words.commit_of, repair.IMAGES),
    "repair-end-to-end": partial(words.commit_of, repair.END_TO_END),
    "hard-or-soft": partial(words.commit_of, evidence.CORRUPTIONS),
    "hard-or-soft-drift": partial(words.commit_of, evidence.CORRUPTIONS),
    "paper-cifar10h": partial(words.commit_of, evidence.PAPER.format("cifar10h")),
    "paper-pacs": partial(words.commit_of, evidence.PAPER.format("pacs_sketch")),
    "our-study": evidence.our_study_commit,
}
# Whole lines of the page with the table, by the passage's key, and of the main README.
PASSAGES_OF_TABLE: dict[str, Callable[[], str]] = {"memory": evidence.memory}
PASSAGES: dict[str, Callable[[], str]] = {
    "first-run": first_run.printed,
    "first-run-portal": partial(_of_run, first_run.portal_in_words),
    "first-run-digits": partial(_of_run, first_run.digits_in_words, "digits"),
    "our-study": lambda: study.in_words(
        read_rows(words.ROOT / "experiments" / "our_study"), first_run.summary("digits")
    ),
    "repair-table": partial(_of_repair, markdown),
    "repair-bounds": partial(_of_repair, repair.bounds_in_words),
    "repair-images": _colour_images,
}
