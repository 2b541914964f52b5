"""Numbers of the rows on repair, from `experiments/repair/protocol.json`."""

import textwrap
from typing import Any

from experiments.figures.words import fixed, listed, read, supported
from experiments.repair_protocol import NUMBERS

PATH = "experiments/repair/protocol.json"
IMAGES = "experiments/repair/images.json"
END_TO_END = "experiments/repair/end_to_end.json"
_WIDTH = 100
Found = dict[str, Any]


def found(path: str = PATH) -> Found:
    """What `experiments.repair_protocol` has found.

    Args:
        path: its results: of the five tasks, or of the colour images (`IMAGES`).
    """
    content: Found = read(path)
    return content


def _column(rows: Found, rule: str, name: str, numbers: tuple[int, ...] = NUMBERS) -> list[float]:
    return [rows[f"{rule} {number}"][name] for number in numbers]


def frontier(protocol: Found) -> str:
    """What each rule closes, and its greatest harm.

    Args:
        protocol: as from `found`.
    """
    rows = protocol["rows"]
    blind = "; ".join(
        f"{name} {fixed(rows[f'{name} 0']['closed'])}, "
        f"{fixed(rows[f'{name} 0']['harm'], sign=True)}"
        for name in ("safe", "bold")
    )
    first, *others = _column(rows, "certified", "harm")
    return (
        f"closed, greatest harm of a split: {blind}; certified with "
        f"{', '.join(map(str, NUMBERS[:-1]))}, {NUMBERS[-1]} labels "
        f"{listed(_column(rows, 'certified', 'closed'))}, at most {fixed(first, sign=True)} with "
        f"{NUMBERS[0]} and {fixed(max(others), 4, sign=True)} from {NUMBERS[1]} on; combined "
        f"{listed(_column(rows, 'combined', 'closed'))}, with "
        f"{listed(_column(rows, 'combined', 'harm'), sign=True)}"
    )


def bounds(protocol: Found) -> str:
    """How often a bound was ever above the gap.

    Args:
        protocol: as from `found`.
    """
    missed = protocol["missed"].values()
    shares = [kind["missed"] for line in missed for kind in line.values()]
    real, simulated = ({line[kind]["draws"] for line in missed} for kind in ("real", "simulated"))
    said = (
        f"a lower bound was ever above the gap in {100 * min(shares):.0f} to "
        f"{100 * max(shares):.0f} % of {max(real):,} draws on real and {max(simulated):,} on "
        "simulated targets for each number of labels"
    )
    return (
        supported(said, len(real) == len(simulated) == 1)
        + f" ({supported('10 % allowed', max(shares) <= 0.1)})"
    )


def fitted_prior(protocol: Found) -> str:
    """The combined rule with a prior fitted to simulated shifts.

    Args:
        protocol: as from `found`.
    """
    rows, numbers = protocol["rows"], NUMBERS[1:]
    where = {rows[f"fitted {number}"]["harmed"] for number in numbers}
    return (
        f"{', '.join(map(str, numbers))} labels: "
        f"{listed(_column(rows, 'fitted', 'closed', numbers))}; harm "
        f"{listed(_column(rows, 'fitted', 'harm', numbers), sign=True)} ("
        + supported("fashion_c's hard subset", where == {"fashion_c/ambiguous"})
        + "): the shipped constants were set on the tasks themselves"
    )


def negative_control(protocol: Found) -> str:
    """Errors where labels were replaced.

    Args:
        protocol: as from `found`.
    """
    rows = protocol["rows"]
    safe, bold, few, many = (
        fixed(rows[name]["control"], 2)
        for name in ("safe 0", "bold 0", "certified 25", "certified 200")
    )
    return (
        f"ECE over that of the temperature in distribution: safe {safe}, bold {bold}; certified "
        f"{few} with 25 labels, {many} with 200"
    )


def simulated(protocol: Found) -> str:
    """The greatest harm on simulated shifts.

    Args:
        protocol: as from `found`.
    """
    rows = protocol["rows"]
    safe, certified, combined, estimate = (
        rows[name] for name in ("safe 0", "certified 200", "combined 200", "estimate 200")
    )
    greatest = max(_column(rows, "certified", "simulated_harm"))

    def harm(row: Found) -> str:
        return fixed(row["simulated_harm"], sign=True)

    return (
        f"greatest: safe {harm(safe)} ("
        + supported(
            "newsgroups faded to a quarter",
            safe["simulated_harmed"].startswith("newsgroups/faded to 0.25"),
        )
        + "), "
        + supported(f"certified {harm(certified)}", certified["simulated_harm"] == greatest)
        + f", combined {harm(combined)} with 200 labels, the unbiased estimate itself "
        f"{harm(estimate)} ("
        + supported(
            "portal faded to a half", estimate["simulated_harmed"].startswith("portal/faded to 0.5")
        )
        + ": of overlapping classes one temperature with the right mean is not the one of least "
        "error)"
    )


def _one_shift(protocol: Found, where: str = "") -> str:
    """What the rules do where sketches are the one shift; where safe harms most, if said."""
    rows = protocol["rows"]
    safe, bold = rows["safe 0"], rows["bold 0"]
    shares = [kind["missed"] for line in protocol["missed"].values() for kind in line.values()]
    only = supported("sketches", list(safe["by_task"]) == ["pacs_sketch"])
    known = rows.get("exact gap")
    exact = f", the exact gap {fixed(known['closed'])}" if known else ""
    return (
        f"closed on {only}, the one shift: safe {fixed(safe['closed'])}, bold "
        f"{fixed(bold['closed'])}; certified {listed(_column(rows, 'certified', 'closed'))} with "
        f"{', '.join(map(str, NUMBERS[:-1]))}, {NUMBERS[-1]} labels, combined "
        f"{listed(_column(rows, 'combined', 'closed'))}{exact}; greatest harm of a real split: "
        f"safe {fixed(safe['harm'], sign=True)}, bold {fixed(bold['harm'], sign=True)}, certified "
        f"{fixed(max(_column(rows, 'certified', 'harm')), sign=True)}, combined "
        f"{listed(_column(rows, 'combined', 'harm'), sign=True)}; of a simulated shift: safe "
        f"{fixed(safe['simulated_harm'], sign=True)}{where}, bold "
        f"{fixed(bold['simulated_harm'], sign=True)}; a lower bound was ever above the "
        f"gap in {100 * min(shares):.1f} to {100 * max(shares):.1f} % of the draws"
    )


def images(protocol: Found) -> str:
    """What the rules do on features of colour images.

    Args:
        protocol: as from `found`, of `IMAGES`.
    """
    safe = protocol["rows"]["safe 0"]
    supported("safe harms as little", max(safe["harm"], safe["simulated_harm"]) <= 0.01)
    supported("but closes less", safe["closed"] < 0.5)
    where = safe["simulated_harmed"].replace("/", ", ").rpartition(" (")[0]
    return _one_shift(protocol, f" ({where})")


def end_to_end(protocol: Found) -> str:
    """What they do where networks are trained on the images themselves.

    Args:
        protocol: as from `found`, of `END_TO_END`.
    """
    safe = protocol["rows"]["safe 0"]
    harms = max(safe["harm"], safe["simulated_harm"])
    supported("safe closes most of the gap", safe["closed"] > 0.5)
    supported("safe harms nothing", harms <= 0.001)
    return _one_shift(protocol)


def images_in_words(of_features: Found, of_images: Found) -> str:
    """The main README's sentences on colour images.

    Args:
        of_features: as from `found`, of `IMAGES`.
        of_images: of `END_TO_END`.
    """
    (safe, certified), (trained, labelled) = (
        (found["rows"]["safe 0"], found["rows"]["certified 50"])
        for found in (of_features, of_images)
    )
    most = max(trained["harm"], trained["simulated_harm"])
    exact = of_images["rows"]["exact gap"]
    sentence = (
        "On PACS, small ResNets trained with their mixtures: safe closed "
        f"{100 * trained['closed']:.0f} % of the sketches' gap, certified with 50 labels "
        f"{100 * labelled['closed']:.0f} % (the exact gap between confidence and accuracy would "
        f"close {100 * exact['closed']:.0f} %), and safe harmed no split and no simulated shift by "
        f"more than {fixed(most, 4, sign=True)}. On features of frozen ResNets in place of images "
        f"(CIFAR-10H, PACS) "
        + supported("safe closed less", safe["closed"] < trained["closed"])
        + f", {100 * safe['closed']:.0f} %, and harmed no split and no simulated shift by more "
        f"than {fixed(max(safe['harm'], safe['simulated_harm']), 4, sign=True)}; certified with 50 "
        f"labels closed {100 * certified['closed']:.0f} %."
    )
    return textwrap.fill(sentence, _WIDTH)


def bounds_in_words(protocol: Found) -> str:
    """The main README's sentence on the bounds.

    Args:
        protocol: as from `found`.
    """
    real = [line["real"] for line in protocol["missed"].values()]
    made = [line["simulated"] for line in protocol["missed"].values()]
    most = max(x["missed"] for x in (*real, *made))
    sentence = (
        f"A lower bound was ever above the gap in at most {100 * most:.0f} % of "
        f"{real[0]['draws']:,} draws on real and {made[0]['draws']:,} on simulated targets for "
        f"each number of labels; {supported('10 % are allowed', most <= 0.1)}."
    )
    return textwrap.fill(sentence, _WIDTH)
