"""The READMEs have the figures of the committed results, and other results give others."""

import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest

from calmoe_jax.shift import repair as library
from experiments.commits import short_commit
from experiments.figures import __main__ as command
from experiments.figures import evidence, first_run, pictures, repair, study, theory, words
from experiments.figures.rows import COMMITS, PASSAGES, ROWS
from experiments.our_study.comparing import read_rows

ROOT = Path(__file__).parents[2]
PROTOCOL = json.loads((ROOT / "experiments" / "repair" / "protocol.json").read_text())


@pytest.mark.parametrize("path", [command.TABLE, command.MAIN], ids=["table", "main"])
def test_the_readmes_have_the_figures_of_the_results(path):
    assert path.read_text() == command.written()[path]


def test_every_row_has_five_columns():
    lines = [x for x in command.TABLE.read_text().split("\n") if x.startswith("|")]
    assert {x.count("|") - x.count("\\|") for x in lines} == {command.COLUMNS + 1}
    assert lines[0] == "| claim | command | number | commit | minutes |"
    for line in lines[2:]:
        assert re.match(r"\| [^|]* <!-- [a-z0-9-]+ --> \|", line.replace("\\|", "")), line


def table(*rows):
    return "\n".join(["before", "| a | b | c | d | e |", "|---|---|---|---|---|", *rows, "after"])


def test_rows_are_written_by_their_key():
    text = table(
        "| one <!-- x-1 --> | do | old | abc | 5 |",
        "| not known | do | 1 | def | – |",
        "| two <!-- y --> | do \\| that | old | abc | 5 |",
    )
    makers = {"x-1": lambda: "new", "y": lambda: r"1 \2"}
    found = command.with_rows(text, makers, {"y": lambda: "1234567"})
    assert found == table(
        "| one <!-- x-1 --> | do | new | abc | 5 |",
        "| not known | do | 1 | def | – |",
        "| two <!-- y --> | do \\| that | 1 \\2 | 1234567 | 5 |",
    )
    assert command.with_rows(found, makers, {"y": lambda: "1234567"}) == found


@pytest.mark.every_case
@pytest.mark.parametrize(
    ("rows", "number", "message"),
    [
        ([], "1", "each key"),
        (["| one <!-- x --> | b | c | d | e |"] * 2, "1", "each key"),
        (["| a <!-- x --> | b | c | d | e |", "| a <!-- y --> | b | c | d | e |"], "1", "each key"),
        (["| one <!-- x --> | b | c | d |"], "1", "row x must have 5 cells, got 4"),
        (["| one <!-- x --> | b | c | d | e |"], "1 | 2", "one line"),
        (["| one <!-- x --> | b | c | d | e |"], "1\n2", "one line"),
    ],
)
def test_bad_tables(rows, number, message):
    with pytest.raises(ValueError, match=message):
        command.with_rows(table(*rows), {"x": lambda: number}, {})


def test_passages_are_written_between_their_key_and_the_end():
    text = "a\n<!-- x -->\nold\nlines\n<!-- end -->\n\n<!-- y -->\n<!-- end -->\nb <!-- z --> c"
    makers = {"x": lambda: r"\1 | new", "y": lambda: "1\n2"}
    found = command.with_passages(text, makers)
    assert found == (
        "a\n<!-- x -->\n\\1 | new\n<!-- end -->\n\n<!-- y -->\n1\n2\n<!-- end -->\nb <!-- z --> c"
    )
    assert command.with_passages(found, makers) == found
    for known in ({"x": makers["x"]}, {**makers, "w": makers["x"]}):
        with pytest.raises(ValueError, match="each key"):
            command.with_passages(text, known)


def test_the_command_writes_what_differs_alone(tmp_path, monkeypatch, capsys):
    paths = {}
    for name in ("TABLE", "MAIN"):
        path = tmp_path / name
        path.write_text(getattr(command, name).read_text())
        monkeypatch.setattr(command, name, path)
        paths[name] = path
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(command, "draw", lambda: ["x.png"])
    monkeypatch.setattr("sys.argv", ["figures"])
    right = paths["TABLE"].read_text()
    assert ".261" in right
    paths["TABLE"].write_text(right.replace(".261", ".262").replace("de2db61", "0000000"))
    command.main()
    assert capsys.readouterr().out == "TABLE: written\nMAIN: as it was\nx.png: drawn\n"
    assert paths["TABLE"].read_text() == right


def test_keys_and_commits():
    assert set(COMMITS) == set(ROWS)
    one = r"[0-9a-f]{7}"
    several = rf"{one} \([a-z0-9_, ]+\)(, {one} \([a-z0-9_, ]+\))+"
    assert all(re.fullmatch(f"{one}|{several}", make()) for make in COMMITS.values())
    assert len(PASSAGES) == 7
    assert short_commit("0123456789" * 4) == "0123456"
    for bad in (None, "0123456789" * 4 + "+", "0123456"):
        with pytest.raises(ValueError, match="without changes"):
            short_commit(bad)


@pytest.mark.parametrize(
    ("value", "kwargs", "text"),
    [
        (0.0624, {}, ".062"), (-0.0153, {}, "-.015"), (-0.0002, {}, ".000"), (1.5, {}, "1.500"),
        (0.00137, {"digits": 4, "sign": True}, "+.0014"), (-0.2, {"sign": True}, "-.200"),
        (0.998, {"digits": 2}, "1.00"), (0, {"sign": True}, "+.000"),
    ],
)  # fmt: skip
@pytest.mark.every_case
def test_fixed(value, kwargs, text):
    assert words.fixed(value, **kwargs) == text


def test_other_notations():
    assert [words.short(x) for x in (0, 0.1, 0.16, -0.25, 10, 0.0001)] == [
        "0", ".1", ".16", "-.25", "10", "0",
    ]  # fmt: skip
    assert [words.at_most(x) for x in (5.8e-12, 1e-7, 3.02e-8, 9.4e-5, 0.0201)] == [
        "6e-12", "1e-7", "4e-8", "1e-4", "3e-2",
    ]  # fmt: skip
    assert words.listed([0.1, 0.02], 2, sign=True) == "+.10, +.02"
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite"):
            words.fixed(value)
    with pytest.raises(ValueError, match=r"not so: the sky"):
        words.supported("the sky", False)


def test_pictures_are_of_their_results():
    assert set(pictures.kept()) == set(pictures.PICTURES)
    assert pictures.stale(pictures.kept()) == []


def test_a_picture_of_other_results_is_found_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "ROOT", tmp_path)
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(pictures, "STAMPS", tmp_path / "pictures.json")
    source = [b"1"]
    of = {
        n: pictures.Picture(lambda: source[0], lambda n=n: n.encode()) for n in ("a.png", "b.png")
    }
    monkeypatch.setattr(pictures, "PICTURES", of)
    assert pictures.stale(pictures.kept()) == ["a.png", "b.png"]
    assert command.draw() == ["a.png", "b.png"]
    assert command.draw() == []
    (tmp_path / "a.png").write_bytes(b"drawn by hand")
    assert pictures.stale(pictures.kept()) == ["a.png"]
    assert command.draw() == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"a.png"
    source[0] = b"2"
    assert pictures.stale(pictures.kept()) == ["a.png", "b.png"]


def changed(content, path, value):
    content = copy.deepcopy(content)
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    assert inner[path[-1]] != value
    inner[path[-1]] = value
    return content


NOT_SO = [
    (theory.hard_routing, "a", ("shifts", "confident examples", "errors", 3), "1/9"),
    (theory.soft_routing, "b", ("softened", "soft", 3), "1/9"),
    (theory.soft_routing, "b", ("balancing", "balanced_frequency_at_0.8"), "7/10"),
    (theory.disagreement, "c",
     ("trained", "digits", "vector", 1, "other", "classwise_error"), 0.001),
    (theory.worst_shift, "d", ("two", "formula", 2), 0.5),
    (theory.exact_premise, "f", ("routings", "hard", "exact_premise", "errors", 1, "error"), 0.01),
    (theory.fitted_experts, "f",
     ("routings", "dense", "errors", "calibrated experts", "being wrong", 3, "error"), 0.4),
]  # fmt: skip


@pytest.mark.every_case
@pytest.mark.parametrize(("make", "letter", "path", "value"), NOT_SO)
def test_theory_says_nothing_that_its_results_do_not(make, letter, path, value):
    with pytest.raises(ValueError, match="not so"):
        make(changed(theory.numbers(letter), path, value))


def test_the_words_on_our_study_are_borne_out():
    """Other errors of one combination on one task: other words, or none."""
    rows = read_rows(ROOT / "experiments" / "our_study")
    digits = first_run.summary("digits")
    said = study.in_words(rows, digits)

    def other(task, method, calibrator, kind, error, metric="ece"):
        return [
            r._replace(metrics={**r.metrics, metric: np.full(3, error)})
            if (r.task, r.combination, r.kind) == (task, ("dense", method, calibrator), kind)
            else r
            for r in rows
        ]

    found = study.in_words(other("portal", "robust", "none", "shift", 0.99), digits)
    assert found != said
    assert "(+.954 on `portal`)" in found
    for wrong in (
        other("sentiment", "robust", "none", "shift", 0.99),  # it does not help there
        other("portal", "robust", "none", "shift", 0.0),  # it does no harm there
        other("portal", "vanilla", "per_expert", "id", 9.0, "confidence_gap"),  # more sure
        other("portal", "vanilla", "per_expert", "shift", 9.0),  # worse on average
    ):
        with pytest.raises(ValueError, match="not so"):
            study.in_words(wrong, digits)


OTHERWISE = [
    (theory.hard_routing, "a", ("covariance", "equal"), 7, "in 7 of 480 slices"),
    (theory.soft_routing, "b", ("active_calibrated", "soft", -1), "1/3", "source, .333 after"),
    (theory.soft_routing, "b", ("balancing", "hard", 4), "1/50", ": 0, .02, and .08"),
    (theory.disagreement, "c", ("exact", "bound_holds"), 59, "in 59 of 60 random"),
    (theory.disagreement, "c", ("trained", "portal", "temperature", 0, "fitted", "residual"), -0.5,
     "temperatures -.500 to .022 on both (up to 113."),
    (theory.worst_shift, "d", ("twelve", "searched", 3), 0.5, "a general solver's to 5e-1 "),
    (theory.impropriety, "e", ("networks", "tilt, n = 8", "largest_difference"), 0.3,
     "within .011, .009, .300, .001"),
    (theory.exact_premise, "f", ("routings", "top-2", "exact_premise", "errors", 3, "error"), 0.5,
     "top-2 .043, .500"),
    (theory.fitted_experts, "f", ("routings", "dense", "errors", "calibrated experts",
     "learnt direction in S", 3, "radius"), 1.26, "dense .008, .062 (1.3)"),
    (theory.fitted_experts, "f", ("differences", "calibrated experts", 2, "less", "dense", "high"),
     -0.001, "in 1 of 6 and worse in 0 ("),
]  # fmt: skip


@pytest.mark.every_case
@pytest.mark.parametrize(("make", "letter", "path", "value", "said"), OTHERWISE)
def test_theory_says_other_numbers_of_other_results(make, letter, path, value, said):
    assert said not in make(theory.numbers(letter))
    assert said in make(changed(theory.numbers(letter), path, value))


REPAIR = [
    (repair.frontier, ("rows", "combined 50", "closed"), 0.5, "combined .735, .807, .500,"),
    (repair.frontier, ("rows", "certified 100", "harm"), 0.5, "and +.5000 from 25 on"),
    (repair.bounds, ("missed", "50", "simulated", "missed"), 0.01, "in 1 to 8 % of 15,660"),
    (repair.bounds, ("missed", "50", "simulated", "missed"), 0.11, None),
    (repair.bounds, ("missed", "50", "real", "draws"), 4, None),
    (repair.fitted_prior, ("rows", "fitted 25", "harm"), 0.5, "harm +.500, +.023"),
    (repair.fitted_prior, ("rows", "fitted 25", "harmed"), "portal/test", None),
    (repair.negative_control, ("rows", "bold 0", "control"), 0.5, "bold .50;"),
    (repair.simulated, ("rows", "combined 200", "simulated_harm"), 0.5, "combined +.500"),
    (repair.simulated, ("rows", "certified 10", "simulated_harm"), 0.5, None),
    (repair.simulated, ("rows", "safe 0", "simulated_harmed"), "portal/x", None),
    (repair.simulated, ("rows", "estimate 200", "simulated_harmed"), "portal/x", None),
    (repair.bounds_in_words, ("missed", "50", "simulated", "missed"), 0.09, "at most 9 % of"),
    (repair.bounds_in_words, ("missed", "50", "simulated", "missed"), 0.2, None),
]


REPAIR_OF_IMAGES = [
    (repair.images, ("rows", "certified 50", "closed"), 0.9, ".541, .900,"),
    (repair.images, ("rows", "safe 0", "simulated_harm"), 0.0089, "simulated shift: safe +.009 ("),
    (repair.images, ("rows", "safe 0", "simulated_harm"), 0.9, None),
    (repair.images, ("rows", "safe 0", "closed"), 0.9, None),
    (repair.images, ("rows", "safe 0", "simulated_harmed"), "a/none (1)", "safe +.005 (a, none)"),
    (repair.images, ("rows", "safe 0", "by_task"), {"cifar10h": 0.1}, None),
]


@pytest.mark.every_case
@pytest.mark.parametrize(("make", "path", "value", "said"), REPAIR_OF_IMAGES)
def test_repair_of_images_follows_its_results(make, path, value, said):
    found = repair.found(repair.IMAGES)
    other = changed(found, path, value)
    if said is None:
        with pytest.raises(ValueError, match="not so"):
            make(other)
    else:
        assert said not in " ".join(make(found).split())
        assert said in " ".join(make(other).split())


def test_images_end_to_end_follow_their_results():
    found = repair.found(repair.END_TO_END)
    other = changed(found, ("rows", "certified 50", "closed"), 0.123)
    assert ", .123," in repair.end_to_end(other)
    for name, value in (("harm", 0.0011), ("simulated_harm", 0.0011), ("closed", 0.49)):
        with pytest.raises(ValueError, match="not so"):
            repair.end_to_end(changed(found, ("rows", "safe 0", name), value))


def test_the_sentences_on_images_follow_both_results():
    both = [repair.found(path) for path in (repair.IMAGES, repair.END_TO_END)]
    for place, (path, value, said) in enumerate(
        (
            (("rows", "safe 0", "closed"), 0.47, "safe closed less, 47 %, and harmed"),
            (("rows", "safe 0", "simulated_harm"), 0.19, "no simulated shift by more than +.1900"),
        )
    ):
        other = [changed(x, path, value) if i == place else x for i, x in enumerate(both)]
        assert said not in " ".join(repair.images_in_words(*both).split())
        assert said in " ".join(repair.images_in_words(*other).split())


@pytest.mark.every_case
@pytest.mark.parametrize(("make", "path", "value", "said"), REPAIR)
def test_repair_follows_its_results(make, path, value, said):
    other = changed(PROTOCOL, path, value)
    if said is None:
        with pytest.raises(ValueError, match="not so"):
            make(other)
    else:
        assert said not in make(PROTOCOL)
        assert said in make(other)


def test_the_protocol_has_as_many_populations_as_the_row_says():
    row = next(x for x in command.TABLE.read_text().split("\n") if "<!-- repair-frontier -->" in x)
    splits, made = (int(re.search(x, row)[1]) for x in ("(\\d+) splits", "(\\d+) simulated"))
    assert PROTOCOL["populations"] == 3 * (splits + made)
    assert PROTOCOL["missed"]["10"]["real"]["draws"] == 3 * splits * 5 * 12


@pytest.mark.every_case
@pytest.mark.parametrize("name", library.MODES)
def test_the_words_on_a_mode_have_the_figures_of_the_protocol(name):
    row = PROTOCOL["rows"][f"{name} 0"]
    figures = [f"{row['closed']:.0%}"]
    if name == "safe":
        for tasks in (("digits16", "fashion_c"), ("newsgroups", "sentiment")):
            figures.append(f"{sum(row['by_task'][x] for x in tasks) / 2:.0%}")
    figures += [f"{row[x]:+.3f}".replace("0.", ".") for x in ("harm", "simulated_harm")]
    said = re.findall(r"\+\.\d+|\d+ %", library.MODES[name].measured)
    assert [x.replace(" ", "") for x in said] == figures


@pytest.mark.every_case
@pytest.mark.parametrize("name", ["cifar10h", "pacs_sketch"])
@pytest.mark.parametrize(
    ("method", "calibrator", "ends", "said"),
    [
        ("fgr_robust", "none", (-0.1, 0.01), "cut the error as trained"),
        ("robust_filtered_released", "none", (-0.1, 0.01), "cut the error as trained"),
        ("robust_released", "temperature", (0.01, 0.02), "with a temperature these are worse"),
        ("robust", "temperature", (-0.02, -0.01), "with a temperature these are better"),
        ("robust", "safe", (-0.02, -0.01), "once repaired these are better"),
    ],
)
def test_what_the_rows_say_of_the_papers_study_is_borne_out(
    monkeypatch, name, method, calibrator, ends, said
):
    found = evidence.read(evidence.PAPER.format(name))
    target = evidence.paper_study.target_of(found)
    assert "robust_released" in evidence.paper(name)
    monkeypatch.setattr(evidence, "read", lambda path: found)
    for c in found["intervals"]:
        if (c["method"], c["calibrator"], c["split"]) == (method, calibrator, target):
            c["low"], c["high"] = ends
    with pytest.raises(ValueError, match=f"not so: .*{said}"):
        evidence.paper(name)


def test_a_calibrated_robust_mixture_would_change_the_rows_words(monkeypatch):
    found = evidence.read(evidence.PAPER.format("cifar10h"))
    for row in found["rows"]:
        if (row["method"], row["split"], row["calibrator"]) == ("robust", "test", "none"):
            row["ece"] = [0.01] * 3
    monkeypatch.setattr(evidence, "read", lambda path: found)
    with pytest.raises(ValueError, match="not so: in distribution"):
        evidence.paper("cifar10h")
