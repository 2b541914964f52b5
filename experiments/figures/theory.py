"""Numbers of the rows on theory, from `experiments/theory/results.json`."""

from fractions import Fraction as F
from typing import Any

from experiments.commits import short_commit
from experiments.figures.words import at_most, fixed, listed, read, short, supported
from experiments.theory import paired

PATH = "experiments/theory/results.json"
Numbers = dict[str, Any]


def numbers(letter: str) -> Numbers:
    """What a letter of `experiments.theory` has found.

    Args:
        letter: of a to f.
    """
    found: Numbers = read(PATH)["parts"][letter]["numbers"]
    return found


def commit(letter: str) -> str:
    """The commit that a letter was computed at, seven digits.

    Args:
        letter: of a to f.
    """
    return short_commit(read(PATH)["parts"][letter]["made_with"]["commit"])


def hard_routing(found: Numbers) -> str:
    """Row (a).

    Args:
        found: by `hard_routing.compute`.
    """
    shifts = found["shifts"]
    kept = [shift["errors"] for shift in shifts.values() if shift["keeps"]]
    harmless = all(F(x) == 0 for errors in kept for x in errors)
    largest = {name: short(F(shift["errors"][-1])) for name, shift in shifts.items()}
    covariance = found["covariance"]
    return (
        supported(
            "four shifts of experts, classes, confidence and unrelated inputs: error 0",
            len(kept) == 4 and harmless,
        )
        + f"; favouring what is right {found['factors'][-1]}-fold: "
        f"{largest['examples that are right']}; the covariance is the change in "
        f"{covariance['equal']} of {covariance['slices']} slices. It breaks as well where S leaves "
        f"out the predicted class ({largest['a class, where S leaves it out']}), where what an "
        f"expert that was not selected says moves ({largest['what the other expert says']}), and "
        "where experts are calibrated only together "
        f"({largest['an expert, calibrated on average only']})"
    )


def soft_routing(found: Numbers) -> str:
    """Row (b).

    Args:
        found: by `soft_routing.compute`.
    """
    shares = [F(x) for x in found["shares"]]
    softened, balancing, last = (
        found[name] for name in ("softened", "balancing", "active_calibrated")
    )
    errors = zip(shares, map(F, softened["soft"]), strict=True)
    slopes = {error / share for share, error in errors if share}
    level = F(4, 5)
    off = max(abs(F(x) - level) for x in balancing["frequency_at_0.8"])
    hard = [short(max(map(F, lines["hard"]))) for lines in (softened, balancing)]
    source, target = (short(F(last["soft"][k])) for k in (0, -1))
    return (
        supported(f"router softened on a share v: {short(max(slopes))} v", len(slopes) == 1)
        + "; balanced configurations moved: level .8 from "
        + supported("exact", F(balancing["balanced_frequency_at_0.8"]) == level)
        + f" to off by {short(off)}; experts calibrated without the router's weights: {source} at "
        f"the source, {target} after the shift. Hard routing of the same: {', '.join(hard)}, and "
        f"{short(F(last['hard'][-1]))} in the last, whose shift moves labels within S"
    )


def disagreement(found: Numbers) -> str:
    """Row (c).

    Args:
        found: by `disagreement.compute`.
    """
    exact, top = found["exact"], found["exact"]["top_label"]
    held = min(exact["identity_holds"], exact["bound_holds"])
    trained = found["trained"].values()

    def lines(calibrator: str, *where: str) -> list[dict[str, float]]:
        return [one[half] for kinds in trained for one in kinds[calibrator] for half in where]

    def largest(some: list[dict[str, float]]) -> str:
        return fixed(max(abs(x["residual"]) / x["standard_error"] for x in some), 1)

    def reach(some: list[dict[str, float]]) -> str:
        residuals = [x["residual"] for x in some]
        return f"{fixed(min(residuals))} to {fixed(max(residuals))}"

    fitted, unseen = lines("vector", "fitted"), lines("vector", "other")
    scaled = lines("temperature", "fitted", "other")

    others = [one["other"] for kinds in trained for some in kinds.values() for one in some]
    above = sum(x["classwise_error"] > 2 * x["disagreement"] for x in others)
    return (
        f"identity and bound in {held} of {exact['populations']} random populations; top-label "
        f"error {top['error']} with disagreement {top['disagreement']}, so no bound there. "
        f"Trained: with vector scaling the residual is within {largest(fitted)} standard errors of "
        f"0 on the examples that were fitted, and {reach(unseen)} (up to {largest(unseen)} "
        "standard errors) on others, as fits to few examples are too sure; with temperatures "
        f"{reach(scaled)} on both (up to {largest(scaled)}): one number cannot calibrate an expert "
        "on its view. "
        + supported(
            f"All {above} errors on other examples are above the bound", above == len(others)
        )
    )


def worst_shift(found: Numbers) -> str:
    """Row (d).

    Args:
        found: by `worst_shift.compute`.
    """
    radii = [F(x) for x in found["radii"]]
    two = found["two"]
    last = F(two["last_exact_radius"])
    place = radii.index(last)

    def apart(key: str) -> float:
        return max(
            abs(x - y)
            for name in ("two", "twelve")
            for x, y in zip(found[name]["exact"], found[name][key], strict=True)
        )

    attained = all(
        abs(x - y) < 1e-9
        for x, y in zip(two["exact"][: place + 1], two["formula"][: place + 1], strict=True)
    )
    return (
        f"equal to a general solver's to {at_most(apart('searched'))} and to `chi_square_ball` to "
        f"{at_most(apart('library'))}; "
        + supported(f"the formula is attained up to rho = {float(last):g}", attained)
        + f" of the two configurations of (b) ({short(two['exact'][place])}), and "
        f"{short(two['formula'][-1])} for a true {short(two['exact'][-1])} at rho = "
        f"{float(radii[-1]):g}"
    )


def impropriety(found: Numbers) -> str:
    """Row (e).

    Args:
        found: by `impropriety.compute`.
    """
    truth = next(x for x in found["binary"][str(found["eta"])] if x["truth"] == 0.9)
    batches = found["one_input_of_0.9"]
    away = {name: line["largest_difference"] for name, line in found["networks"].items()}
    of_batches = [away[f"tilt, n = {size}"] for size in batches]
    return (
        f"of .9 and eta {found['eta']:g}: {fixed(truth['closed'])} ("
        f"{fixed(truth['through_weights'])} with the gradient through the weights); on batches of "
        f"{', '.join(batches)}: {listed(batches.values())}. Networks come within "
        f"{listed(of_batches)} of the curve; with weights of the configuration within "
        f"{fixed(away['weights of S, n = 128'])} of the truth"
    )


def exact_premise(found: Numbers) -> str:
    """First row of (f).

    Args:
        found: by `demonstration.compute`.
    """
    errors = {
        name: [x["error"] for x in lines["exact_premise"]["errors"]]
        for name, lines in found["routings"].items()
    }
    soft = "; ".join(f"{name} {listed(errors[name][::3])}" for name in ("dense", "top-2"))
    hard = max(errors["hard"])
    return (
        f"sum of classwise errors, before and at the largest shift: {soft}; "
        + supported("hard 0, 0", hard < 1e-6)
        + f" (to {at_most(hard)})"
    )


def fitted_experts(found: Numbers) -> str:
    """Second row of (f).

    Args:
        found: by `demonstration.compute`.
    """
    errors = {
        name: lines["errors"]["calibrated experts"] for name, lines in found["routings"].items()
    }
    moved = {name: lines["learnt direction in S"] for name, lines in errors.items()}
    each = "; ".join(
        f"{name} {listed((x[0]['error'], x[-1]['error']))} ({x[-1]['radius']:.1f})"
        for name, x in moved.items()
    )
    wrong = min(lines["being wrong"][-1]["error"] for lines in errors.values())
    lines, further = found["differences"].values()
    radii = ", ".join(f"{line['radius']:g}" for line in lines)
    pairs = "; ".join(
        f"less {name} {', '.join(_thousandths(line['less'][name]) for line in lines)}"
        for name in lines[0]["less"]
    )
    better, worse, of = paired.beyond(lines)
    also = paired.beyond(further)
    return (
        "ECE at the source, and where S moves to where confidence errs (chi-square radius): "
        f"{each}. In pairs, at radii {radii}, squared error of hard in thousandths, {pairs}: hard "
        f"is better beyond the interval in {better} of {of} and worse in {worse} (with one "
        f"temperature besides in {also[0]} and {also[1]}). "
        + supported("Favouring wrong examples breaks all alike: above .5", wrong > 0.5)
    )


def _thousandths(less: dict[str, float]) -> str:
    """A difference and its interval: `-2.4 [-7.2, +2.6]`."""
    value, low, high = (
        fixed(1000 * less[name], 1, sign=True) for name in ("difference", "low", "high")
    )
    return f"{value} [{low}, {high}]"
