"""Findings, gates and the page: sentences that follow from the numbers of an audit."""

import html.parser
import json
from dataclasses import replace

import numpy as np
import pytest
from audit_logs import CLASSES, SIZE, TARGETS, make, write

import calmoe_jax as cm
from calmoe_jax._errors import UserError
from calmoe_jax.audit import as_logs, audit, describe_audit
from calmoe_jax.audit.findings import GATES, Limits, findings, gates, interval, number, unknowns
from calmoe_jax.audit.page import audit_page
from calmoe_jax.audit.pictures import draw_audit, draw_targets
from calmoe_jax.audit.results import (
    Audit,
    Change,
    Disagreement,
    Estimate,
    HeldOutAudit,
    Scores,
    ShiftAudit,
    TargetsAudit,
)
from calmoe_jax.cli import main
from calmoe_jax.drawing.elements import capitalised
from calmoe_jax.shift.repair import MODES

TOTAL = SIZE + TARGETS
VOID = {"meta", "img", "hr", "br"}


def aggregate_of(arrays):
    return np.einsum("nk,nkc->nc", arrays["routing_weights"], arrays["expert_probs"])


def scores(at=0.5):
    values = (Estimate(at, at - 0.125, at + 0.125) for _ in range(4))
    return Scores(*values, ece=0.25, debiased_ece=Estimate(0.2, 0.1, 0.3))


@pytest.fixture(scope="module")
def made_up():
    """An audit of shifted targets, a third of which have labels."""
    held_out = HeldOutAudit(
        n=SIZE, experts=3, classes=CLASSES, clusters=SIZE, scores=scores(),
        expert_ece=[0.1, None, 0.3], expert_mean_ece=0.2, load=[0.5, 0.0, 0.5],
        router_confidence=0.6,
        disagreement=Disagreement(0.1, 0.2, -0.1, 0.01, [0.0] * 3, [0.01] * 3),
        temperature=1.25, temperature_converged=True, impossible_labels=0, impossible_as=None,
    )  # fmt: skip
    temperatures = {"temperature": 1.25, "safe": 1.375, "configuration_balanced": 1.5}
    confidence = {
        "none": 0.875,
        "temperature": 0.844,
        "safe": 0.812,
        "configuration_balanced": 0.751,
    }
    nothing = Change(Estimate(0.0, -0.1, 0.1), Estimate(0.0, -0.1, 0.1))
    return Audit(
        held_out,
        ShiftAudit(
            0.001,
            0.5,
            0.001,
            0.002,
            0.4,
            True,
            "96 effective of 240",
            0.3,
            "lower_confidence",
            "safe lowers it",
            300,
        ),
        TargetsAudit(TARGETS, TARGETS // 3, TARGETS, temperatures, confidence, [SIZE, TARGETS]),
        {name: scores(0.25) for name in ("none", *temperatures)},
        dict.fromkeys(temperatures, nothing),
    )


@pytest.fixture(scope="module")
def shifted():
    """Targets that are sharper; a third of them have labels."""
    arrays = make(sharper=3.0)
    arrays["labels"][SIZE:][np.arange(TARGETS) % 3 > 0] = -1
    logs = as_logs(arrays)
    return logs, audit(logs)


@pytest.fixture(scope="module")
def alone():
    arrays = make(sharper=3.0)
    columns = {"probs": aggregate_of(arrays), "labels": arrays["labels"]}
    columns["labels"][SIZE:] = -1
    logs = as_logs(columns)
    return logs, audit(logs)


class Checker(html.parser.HTMLParser):
    """Tags that close in order, and what refers to something else."""

    def __init__(self):
        super().__init__()
        self.open, self.texts, self.references, self.tags = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [v for k, v in attributes if k in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def check_page(page):
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert all(x.startswith("data:image/png;base64,") for x in checker.references)
    assert not {"script", "link"} & set(checker.tags)
    text = " ".join(checker.texts)
    assert "nan" not in text.lower().replace("nand", "")
    assert "None" not in text
    return text, checker


def page_of(found, pictures, names=()):
    limits = Limits()
    judged = gates(found, names, limits)
    page = audit_page(
        found, pictures, files=["<logs>.npz"], command="calmoe audit '<logs>.npz'", limits=limits,
        judged=judged,
    )  # fmt: skip
    return check_page(page)


PICTURES = ("reliability", "experts", "gaps", "confidence", "targets")


def check_contents(found, pictures):
    text, checker = page_of(found, pictures, names=GATES)
    assert checker.tags.count("img") == 5
    for words in (
        "240 labelled held-out examples, 3 experts, 4 classes. 180 targets; 60 of them have",
        "The routing configuration of the targets shifts.", "Gates",
        "targets with labels, configuration balanced", "targets with labels, safe", "expert 2",
        "load of the experts", "mean confidence of the targets", found.shift.balance,
        MODES["safe"].rests_on, *(words for x in MODES.values() for words in x[2:]),
        "Brier score against as it is", "What is not known", "120 of 180 targets have no label",
        "calmoe audit '<logs>.npz'", "jax 0.", "Every example counts as independent",
    ):  # fmt: skip
        assert words in text, words
    # the verdict comes first
    assert text.index("Findings") < text.index("Scores") < text.index("Temperatures, by rule")
    for name, value in found.targets.temperatures.items():
        assert f"{value:.3f}" in text, name
        assert f"{found.targets.mean_confidence[name]:.3f}" in text, name
    assert capitalised(found.shift.reason) in text


def test_a_page_holds_everything(made_up):
    check_contents(made_up, dict.fromkeys(PICTURES, b"a picture"))


@pytest.mark.exhaustive
def test_a_page_of_logs_holds_everything(shifted):
    logs, found = shifted
    pictures = draw_audit(logs) | draw_targets(logs, found, ["neighbours"])
    assert set(pictures) == set(PICTURES)
    check_contents(found, pictures)


def test_warnings_and_what_is_left_out_are_on_the_page(made_up):
    text, _ = page_of(replace(made_up, notes=("3 rows were <odd>",), left_out=7), {})
    assert "Warnings" in text
    assert "3 rows were <odd>." in text
    assert "7 examples left out" in text
    assert "Warnings" not in page_of(made_up, {})[0]


@pytest.mark.exhaustive
def test_the_page_of_the_aggregate_alone_says_what_is_missing(alone):
    logs, found = alone
    pictures = draw_audit(logs) | draw_targets(logs, found, ["neighbours"])
    text, _ = page_of(found, pictures)
    assert set(pictures) == {"reliability", "confidence"}
    assert "cannot be known without routing_weights and expert_probs" in text
    assert "not known: none has a label" in text
    assert "Experts" not in text
    assert "Does the routing configuration shift?" not in text
    assert found.shift is None
    held_out = found.held_out
    assert (held_out.experts, held_out.expert_ece, held_out.disagreement) == (None, None, None)
    assert "configuration_balanced" not in found.targets.temperatures
    assert "Verdict: none: with the aggregate alone" in describe_audit(found)
    json.dumps(found.to_json(), allow_nan=False)
    for gate in gates(found, ("shift", "harm"), Limits()):
        assert gate.fails is None


@pytest.mark.exhaustive
def test_the_aggregate_alone_has_the_scores_of_the_mixture(alone):
    arrays = make(sharper=3.0)
    arrays["labels"][SIZE:] = -1
    whole = audit(as_logs(arrays)).held_out
    for name in ("accuracy", "brier_score", "debiased_ece", "confidence_gap"):
        a, b = (getattr(x.scores, name) for x in (alone[1].held_out, whole))
        np.testing.assert_allclose(
            [a.value, a.low, a.high], [b.value, b.low, b.high], atol=2e-4, err_msg=name
        )
    np.testing.assert_allclose(alone[1].held_out.temperature, whole.temperature, rtol=1e-3)


def brier(probs, labels, temperature):
    scaled = probs ** (1 / temperature)
    scaled /= scaled.sum(axis=1, keepdims=True)
    return np.square(scaled - np.eye(CLASSES)[labels]).sum(axis=1)


@pytest.mark.exhaustive
def test_changes_are_paired_differences_of_brier_scores(shifted):
    logs, found = shifted
    probs = np.asarray(cm.mix(logs.expert_probs, logs.routing_weights), np.float64)
    rows = logs.targets & (logs.labels >= 0)
    temperatures = found.targets.temperatures
    for name, value in temperatures.items():
        after = brier(probs[rows], logs.labels[rows], value)
        for change, before in (
            (found.targets_changed[name].from_none, 1.0),
            (found.targets_changed[name].from_temperature, temperatures["temperature"]),
        ):
            expected = after - brier(probs[rows], logs.labels[rows], before)
            np.testing.assert_allclose(change.value, expected.mean(), atol=1e-5)
            if abs(value - before) > 1e-3:
                width = 3.92 * expected.std() / np.sqrt(rows.sum())
                np.testing.assert_allclose(change.high - change.low, width, rtol=0.25)


@pytest.mark.exhaustive
def test_labels_drawn_unequally_count_in_inverse_proportion(shifted):
    logs, found = shifted
    rows = logs.targets & (logs.labels >= 0)
    drawn = np.where(np.arange(TOTAL) % 2, 0.9, 0.1)
    weighted = audit(logs._replace(drawn_probability=np.where(rows, drawn, np.nan)))
    right = (
        np.asarray(cm.mix(logs.expert_probs, logs.routing_weights)).argmax(axis=1) == logs.labels
    )
    expected = np.average(right[rows], weights=1 / drawn[rows])
    accuracy = weighted.targets_scored["none"].accuracy
    np.testing.assert_allclose(accuracy.value, expected, rtol=1e-5)
    plain = found.targets_scored["none"].accuracy
    assert accuracy.high - accuracy.low > plain.high - plain.low
    # equal ones change nothing
    equal = audit(logs._replace(drawn_probability=np.where(rows, 0.3, np.nan)))
    np.testing.assert_allclose(equal.targets_scored["none"].ece, found.targets_scored["none"].ece)


@pytest.mark.exhaustive
def test_soft_labels_are_scored_in_expectation():
    arrays = make()
    arrays["labels"][SIZE:] = -1
    mixed = aggregate_of(arrays)
    soft = {n: x for n, x in arrays.items() if n != "labels"}
    found = audit(as_logs(soft | {"label_probs": np.where(arrays["targets"][:, None], 0, mixed)}))
    scores = found.held_out.scores
    confidence = mixed[:SIZE].max(axis=1)
    np.testing.assert_allclose(scores.accuracy.value, confidence.mean(), rtol=1e-5)
    np.testing.assert_allclose(scores.confidence_gap.value, 0, atol=1e-6)
    np.testing.assert_allclose(scores.ece, 0, atol=1e-6)
    np.testing.assert_allclose(found.held_out.temperature, 1, atol=1e-3)
    entropy = -(mixed[:SIZE] * np.log(mixed[:SIZE])).sum(axis=1).mean()
    np.testing.assert_allclose(scores.negative_log_likelihood.value, entropy, rtol=1e-5)
    # one-hot ones are classes
    classes = audit(as_logs(arrays))
    one_hot = np.eye(CLASSES)[arrays["labels"]] * (arrays["labels"] >= 0)[:, None]
    certain = audit(as_logs(soft | {"label_probs": one_hot}))
    assert certain.held_out.expert_ece == classes.held_out.expert_ece
    for name in ("accuracy", "brier_score", "negative_log_likelihood"):
        a, b = (getattr(x.held_out.scores, name).value for x in (certain, classes))
        np.testing.assert_allclose(a, b, rtol=1e-5)
    np.testing.assert_allclose(
        certain.held_out.temperature, classes.held_out.temperature, rtol=1e-4
    )


def edited(found, **changes):
    """An audit with other numbers."""
    ece, p_value, harm = (changes.get(x) for x in ("ece", "p_value", "harm"))
    if ece:
        scores = replace(found.held_out.scores, debiased_ece=Estimate(*ece))
        found = replace(found, held_out=replace(found.held_out, scores=scores))
    if "p_value" in changes:
        found = replace(found, shift=replace(found.shift, p_value=p_value))
    if harm:
        pair = Change(*(Estimate(*x) for x in harm))
        found = replace(found, targets_changed=found.targets_changed | {"safe": pair})
    return found


LESS, MORE = (-0.02, -0.03, -0.01), (0.02, 0.01, 0.03)
UNKNOWN = (0.02, None, None)


@pytest.mark.every_case
@pytest.mark.parametrize(
    ("gate", "changes", "fails"),
    [
        ("shift", {"p_value": 0.049}, True),
        ("shift", {"p_value": 0.05}, False),
        ("shift", {"p_value": None}, None),
        ("uncalibrated", {"ece": (0.05, 0.021, 0.06)}, True),
        ("uncalibrated", {"ece": (0.05, 0.02, 0.06)}, False),
        ("uncalibrated", {"ece": UNKNOWN}, None),
        ("harm", {"harm": (LESS, LESS)}, False),
        ("harm", {"harm": (MORE, LESS)}, True),
        ("harm", {"harm": (LESS, MORE)}, True),
        ("harm", {"harm": ((0.02, -0.01, 0.03), LESS)}, False),
        ("harm", {"harm": (UNKNOWN, LESS)}, None),
    ],
)
def test_gates(made_up, gate, changes, fails):
    judged = gates(edited(made_up, **changes), [gate, gate], Limits())
    assert [(x.name, x.fails) for x in judged] == [(gate, fails)]
    assert judged[0].reason


def test_gates_without_what_they_judge(made_up):
    found = replace(made_up, shift=None, targets=None, targets_scored=None, targets_changed=None)
    assert {g.fails for g in gates(found, ("shift", "harm"), Limits())} == {None}
    with pytest.raises(UserError, match=r"repair must be one of temperature, .*, got repair=magic"):
        gates(made_up, ("harm",), Limits(repair="magic"))
    strict = gates(made_up, GATES, Limits(level=1e-9, tolerance=0.9))
    assert [g.fails for g in strict][:2] == [False, False]


@pytest.mark.every_case
@pytest.mark.parametrize(
    ("changes", "tones"),
    [
        ({"ece": (0.05, 0.03, 0.06), "p_value": 0.01, "harm": (MORE, LESS)}, "worse worse worse"),
        ({"ece": (0.0, 0.0, 0.01), "p_value": 0.5, "harm": (LESS, LESS)}, "better same better"),
        ({"ece": (0.02, 0.0, 0.1), "p_value": None, "harm": (LESS, MORE)}, "mixed mixed worse"),
        ({"ece": UNKNOWN, "harm": ((0.0, -1.0, 1.0), (0.0, -1.0, 1.0))}, "reference worse same"),
    ],
)
def test_tones_of_findings(made_up, changes, tones):
    items = findings(edited(made_up, **changes), Limits())
    assert " ".join(x.tone for i, x in enumerate(items) if i not in (2, 3)) == tones
    assert all(x.headline.endswith(".") for x in items)


@pytest.mark.parametrize(
    ("decision", "tone", "words"),
    [
        ("keep", "same", "keep the temperature"),
        ("lower_confidence", "mixed", "lower the confidence"),
        ("label_some", "mixed", "Label some targets"),
    ],
)
def test_the_verdict_is_a_finding(made_up, decision, tone, words):
    found = replace(made_up, shift=replace(made_up.shift, decision=decision))
    finding = findings(found, Limits())[2]
    assert words in finding.headline
    assert finding.tone == tone
    assert finding.detail == f"safe lowers it. {MODES['safe'].measured}"
    assert MODES["safe"].cannot_know not in " ".join(unknowns(found))
    blind = replace(found.targets, labelled=0)
    assert MODES["safe"].cannot_know in " ".join(unknowns(replace(found, targets=blind)))


def test_what_is_not_known(made_up):
    found = made_up
    held_out = replace(
        found.held_out, clusters=9, temperature_converged=False, impossible_labels=3,
        impossible_as=1e-3,
    )  # fmt: skip
    lines = " ".join(unknowns(replace(found, held_out=held_out)))
    assert "independent" not in lines
    assert "No finite temperature" in lines
    assert (
        "3 labels had probability 0; where a temperature is fitted they count as 1.0e-03" in lines
    )
    rests = replace(found.targets, rests_on=[100, 50], labelled=TARGETS)
    lines = " ".join(unknowns(replace(found, targets=rests)))
    assert "rest on 100 held-out examples and 50 targets" in lines
    assert "have no label" not in lines
    assert "There are no targets" in unknowns(replace(found, targets=None))[0]


def test_numbers_in_words():
    assert number(None, ".3f") == "unknown"
    assert number(-1e-9, "+.3f") == "+0.000"
    assert number(-0.5, "+.3f") == "-0.500"
    assert interval(Estimate(0.5, None, None)) == "0.500"
    assert interval(Estimate(0.5, 0.25, 0.75), "+", 2) == "+0.50 (+0.25 to +0.75)"


@pytest.mark.exhaustive
def test_the_command_ends_with_3_once_everything_is_written(tmp_path, capsys, shifted):
    arrays = make(sharper=3.0)
    arrays["labels"][SIZE:][np.arange(TARGETS) % 3 > 0] = -1
    halves = [slice(None, None, 2), slice(1, None, 2)]
    files = [write(tmp_path, {n: x[s] for n, x in arrays.items()}, f"{i}.npz")
             for i, s in enumerate(halves)]  # fmt: skip
    out, page = tmp_path / "deep" / "found.json", tmp_path / "pages" / "audit.html"
    command = ["audit", *map(str, files), "--out", str(out), "--report", str(page)]
    command += ["--fail-on", "uncalibrated", "shift"]
    assert main(command) == 3
    printed = capsys.readouterr()
    assert "Gate shift fails: the test for a shift" in printed.out
    assert "Gate uncalibrated" in printed.out
    assert printed.err.splitlines()[-1].startswith("calmoe: gate shift fails: ")
    judged = {gate["name"]: gate["fails"] for gate in json.loads(out.read_text())["gates"]}
    assert judged["shift"] is True
    text, _ = check_page(page.read_text())
    assert " ".join(["calmoe", *command]) in text


@pytest.mark.exhaustive
def test_a_gate_that_cannot_be_judged_ends_with_2(tmp_path, capsys):
    arrays = make(sharper=3.0)
    columns = {
        "probs": aggregate_of(arrays),
        "labels": np.where(arrays["targets"], -1, arrays["labels"]),
    }
    path = write(tmp_path, {"p": columns["probs"], "labels": columns["labels"]})
    out = tmp_path / "found.json"
    command = ["audit", str(path), "--columns", "probs=p", "--out", str(out), "--fail-on", "shift"]
    assert main(command) == 2
    assert (
        "gate shift cannot be judged: the logs hold the aggregate alone" in capsys.readouterr().err
    )
    assert json.loads(out.read_text())["gates"][0]["fails"] is None
