"""The page: well formed, self-contained, escaped, and nothing is left out."""

import dataclasses
import re
from html.parser import HTMLParser

import made_up_results
import numpy as np
import pytest

from calmoe_jax.shift.repair import MODES
from calmoe_jax.study.report import page, write_report
from calmoe_jax.study.report.repairs import OF_TARGETS

EMPTY = {"meta", "img", "hr"}


class Parsed(HTMLParser):
    """Tags are closed in order; the text of every cell is kept."""

    def __init__(self, text):
        super().__init__()
        self.open, self.cells, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag in ("td", "th"):
            self.cells.append("")
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A function from results to the page's text; pictures are small and drawn elsewhere."""
    monkeypatch.setattr(page, "draw_all", lambda summary: {"tradeoff": b"\x89PNG"})
    return lambda *runs: write_report(runs, tmp_path).read_text()


def test_every_method_and_split_is_shown(written):
    results = made_up_results.results()
    parsed = Parsed(written(results))
    for method in results.methods:
        assert method.title in parsed.cells
        assert f"{method.title}: " in parsed.text
    for split in results.splits[2:]:
        assert split.name in parsed.cells
    for title in ("accuracy, %", "NLL, nats", "smooth ECE", "routing entropy, nats"):
        assert title in parsed.text
    for heading in ("Difference from vanilla: ECE", "Fitted temperatures", "Environment"):
        assert heading in parsed.text
    text = parsed.text
    assert text.index("Verdicts") < text.index("At a glance") < text.index("Every figure")
    assert (
        "2 seeds, 4 epochs, 3 experts, top_k routing. Trained on 900 examples, temperatures fitted "
        "on 100 held out from training, tested on 200 of the same distribution, on 200 shifted "
        "ones, on 50 hard ones, on 70 in other parts of the test split. Data: made up." in text
    )


def test_scores_against_votes_are_shown_where_there_are_votes(written):
    results = made_up_results.results(seeds=(1,))
    parsed = Parsed(written(results))
    assert "Against people's votes" in parsed.text
    for split in ("test", "ambiguous", "easy"):
        assert f"{split}: NLL, nats" in parsed.cells
    assert not any(cell.startswith(("late: ", "early: ")) for cell in parsed.cells)
    for record in results.records:
        if record.calibrator not in OF_TARGETS and record.human_ece is not None:
            for name in ("human_nll", "human_brier", "human_ece"):
                assert f"{getattr(record, name):.3f}" in parsed.cells
    shifts = [s for s in made_up_results.SPLITS if s.kind in ("train", "shift")]
    unvoted = Parsed(written(made_up_results.results(splits=shifts)))
    assert "Against people's votes" not in unvoted.text


def test_every_number_of_a_metric_is_in_its_table(written):
    results = made_up_results.results(seeds=(1,))
    cells = Parsed(written(results)).cells
    for record in results.records:
        if record.calibrator not in OF_TARGETS:  # those have the mean over shifts alone
            assert f"{record.brier:.3f}" in cells
            assert f"{100 * record.accuracy:.1f}" in cells


def test_the_page_is_self_contained(tmp_path):
    text = write_report([made_up_results.results()], tmp_path).read_text()
    for forbidden in ("http://", "https://", "<script", "<link", "url("):
        assert forbidden not in text
    assert text.count("data:image/png;base64,") == 3
    assert {p.name for p in (tmp_path / "plots").iterdir()} == {
        "tradeoff.png", "along_the_shift.png", "reliability.png",
    }  # fmt: skip


def test_what_a_user_names_is_escaped(written):
    nasty = "<b>bold</b> & \"co\" 'x'"
    splits = [dataclasses.replace(s, name=f"{s.name} {nasty}") for s in made_up_results.SPLITS]
    results = made_up_results.results(
        task=nasty, titles=dict.fromkeys(made_up_results.METHODS, nasty), splits=splits
    )
    results = dataclasses.replace(results, source=nasty, warnings=(nasty,))
    text = written(results)
    parsed = Parsed(text)
    assert "bold" not in parsed.open
    assert "<b>bold" not in text
    assert nasty in parsed.cells
    assert f"late {nasty}" in parsed.cells
    assert f"Data: {nasty}." in parsed.text


@pytest.mark.parametrize(
    "changes",
    [
        {"splits": [s for s in made_up_results.SPLITS if s.kind != "shift"]},
        {"splits": [s for s in made_up_results.SPLITS if s.kind in ("train", "hard")]},
        {"splits": []},
        {"seeds": (3,)},
        {"methods": ("mine",)},
        {"methods": ("single",)},
        {"methods": ("vanilla",)},
        {"methods": ()},
        {"calibrators": ("none",)},
        {"calibrators": ("mine", "none")},
        {"calibrators": ("neighbours",)},
        {"reference": "mine"},
        {"titles": {}},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_a_page_is_written_whatever_is_missing(written, changes):
    results = made_up_results.results(**changes)
    parsed = Parsed(written(results))
    assert "Verdicts" in parsed.text
    assert "nan" not in parsed.text
    assert "None" not in parsed.text
    bare = dataclasses.replace(
        results, config={}, fits=(), shifts=(), comparisons=(), reliability=(), warnings=()
    )
    parsed = Parsed(written(bare))
    assert "Repair without labels" not in parsed.text
    assert "Fitted temperatures" not in parsed.text
    assert "epochs" not in parsed.text


def test_several_runs_make_one_page(written, tmp_path):
    runs = [made_up_results.results(), made_up_results.results(task="../my data.npz")]
    assert written(*runs).count("<h2>Verdicts</h2>") == 2
    assert {p.name for p in (tmp_path / "plots").iterdir()} == {
        "1_made_up_tradeoff.png", "2_.._my_data.npz_tradeoff.png",
    }  # fmt: skip


def test_experts_without_statistics_have_dashes(written):
    cells = Parsed(written(made_up_results.results(methods=("single",)))).cells
    assert cells.count("–") >= 2 * 3 * 4  # metrics, calibrators, splits


def test_decisions_are_counted(written):
    results = made_up_results.results(methods=("mine",), seeds=(1, 2, 3))
    shifts = [
        dataclasses.replace(x, decision="label_some", labels=300) if x.seed == 2 else x
        for x in results.shifts
    ]
    parsed = Parsed(written(dataclasses.replace(results, shifts=tuple(shifts))))
    assert parsed.cells.count("keep (2), label some (1)") == 5
    # over the two shifted splits alone
    assert "decisions, by split and seed: keep (4), label some (2)." in parsed.text


def mean_over_shifts(results, method, calibrator, value):
    values = {}
    for record in results.records:
        if (record.method, record.calibrator, record.kind) == (method, calibrator, "shift"):
            values.setdefault(record.seed, []).append(value(record))
    return np.mean([np.mean(x) for x in values.values()])


def tables_of(text):
    """By title: for each row its cells, without their deviations."""
    found = {}
    for title, body in re.findall(r"<h3>(.*?)</h3>(.*?)</table>", text, re.DOTALL):
        rows = re.findall(r"<tr.*?>(.*?)</tr>", body, re.DOTALL)
        cells = [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
        found[title] = {row[0]: [re.sub(r" ?<.*", "", x) for x in row[1:]] for row in cells}
    return found


def test_the_verdicts_numbers_are_those_of_the_tables(written):
    results = made_up_results.results(methods=("mine", "vanilla"))
    text = written(results)
    tables = tables_of(text)
    ece, confidence = tables["ECE under shift"], tables["Mean confidence under shift"]
    for method in ("mine", "vanilla"):
        title = made_up_results.TITLES[method]
        (line,) = re.findall(rf"<li[^>]*>(?:<b>)?{title}: safe (.*?)</li>", text, re.DOTALL)
        line = re.sub("<.*?>", "", line)
        number = r"(\d\.\d{3})"
        before, after = re.search(rf"from {number} to {number}\.", line).groups()
        of_safe, of_temperature, bold, of_bold = re.search(
            rf"Its ECE under shift is {number}, with the temperature in distribution {number}; "
            rf"bold would bring the mean confidence to {number}, and the ECE to {number};",
            line,
        ).groups()
        at = {name: made_up_results.CALIBRATORS.index(name) for name in ("temperature", *MODES)}
        row = {name: (confidence[title][i], ece[title][i]) for name, i in at.items()}
        assert row["temperature"] == (before, of_temperature)
        assert row["safe"] == (after, of_safe)
        assert row["bold"] == (bold, of_bold)
        for name, (mean, error) in row.items():
            expected = mean_over_shifts(
                results, method, name, lambda x: x.accuracy + x.confidence_gap
            )
            assert mean == f"{expected:.3f}"
            assert error == f"{mean_over_shifts(results, method, name, lambda x: x.ece):.3f}"


def test_what_the_modes_rest_on_and_cannot_know_is_said(written):
    text = Parsed(written(made_up_results.results())).text
    for mode in MODES.values():
        for words in (mode.rests_on, mode.cannot_know, mode.measured):
            assert words in text


def test_a_run_of_the_earlier_rule_is_shown(written):
    """Nothing is said of modes that it did not have."""
    results = made_up_results.results(calibrators=("none", "temperature", "agreement"))
    shifts = [
        dataclasses.replace(x, decision="rebalance", mean_confidence=None, labels=None)
        for x in results.shifts
    ]
    parsed = Parsed(written(dataclasses.replace(results, shifts=tuple(shifts))))
    assert "agreement of neighbours and seeds (an earlier rule)" in parsed.cells
    assert "rebalance (2)" in parsed.cells
    assert "mean confidence under shift from" not in parsed.text
    assert "mean confidence under shift at" not in parsed.text
    figures = parsed.text.split("Every figure")[1]
    assert not re.search(r"\bagreement", figures)
