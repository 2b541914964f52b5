"""The page: well formed, self-contained, escaped, and nothing is left out."""

import dataclasses
from html.parser import HTMLParser

import made_up_results
import pytest

from calmoe_jax.study.report import page, write_report

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
        "ones, on 50 hard ones. Data: made up." in text
    )


def test_every_number_of_a_metric_is_in_its_table(written):
    results = made_up_results.results(seeds=(1,))
    cells = Parsed(written(results)).cells
    for record in results.records:
        if record.calibrator != "neighbours":  # those have the mean over shifts alone
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
        dataclasses.replace(x, decision="cannot_repair") if x.seed == 2 else x
        for x in results.shifts
    ]
    cells = Parsed(written(dataclasses.replace(results, shifts=tuple(shifts)))).cells
    assert cells.count("keep (2), cannot repair (1)") == 4
