"""The first run's kept results, and what the main README says of them."""

import dataclasses
import json

import numpy as np
import pytest

from calmoe_jax.study.records import SHIFT_MEAN
from calmoe_jax.study.report import Summary
from experiments import first_run as command
from experiments.figures import first_run as figures

pytestmark = pytest.mark.exhaustive


def test_what_is_kept_comes_back(tmp_path):
    for name in ("portal", "digits"):
        (tmp_path / name / "plots").mkdir(parents=True)
        (tmp_path / name / "results.json").write_text(json.dumps({"task": name, "x": 0.1}))
    (tmp_path / "portal" / "plots" / command.PICTURE).write_bytes(b"picture")
    out = tmp_path / "out"
    command.keep(tmp_path, out)
    assert sorted(p.name for p in out.iterdir()) == [
        "digits.json.gz", "portal.json.gz", "reliability.png",
    ]  # fmt: skip
    first = {p.name: p.read_bytes() for p in out.iterdir()}
    command.keep(tmp_path, out)
    assert first == {p.name: p.read_bytes() for p in out.iterdir()}
    command.unpack("digits", tmp_path, out)
    assert json.loads((tmp_path / "results.json").read_text()) == {"task": "digits", "x": 0.1}


def test_nothing_is_kept_of_a_run_that_is_not_whole(tmp_path):
    (tmp_path / "portal").mkdir()
    (tmp_path / "portal" / "results.json").write_text("{}")
    with pytest.raises(FileNotFoundError):
        command.keep(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def altered(name, change):
    """The kept results of a task with each record changed."""
    results = figures.summary(name).results
    records = tuple(change(record) for record in results.records)
    return Summary(dataclasses.replace(results, records=records))


def setting(method, calibrator, kind, **values):
    """A change of the records of a method, calibrator and kind."""
    where = method, calibrator, kind
    return lambda r: (
        dataclasses.replace(r, **values) if (r.method, r.calibrator, r.kind) == where else r
    )


def test_errors_are_means_over_seeds_of_means_over_shifts():
    records = figures.summary("portal").results.records
    mean = np.mean(
        [r.ece for r in records if (r.method, r.calibrator, r.kind) == ("fgr", "none", "shift")]
    )
    assert f"fgr {mean:.3f}".replace("0.", ".") in figures.objectives(figures.summary("portal"))


@pytest.mark.parametrize(
    ("make", "change", "said"),
    [
        ("objectives", ("robust", "none", "shift", {"ece": 0.5}), "robust .500,"),
        ("objectives", ("robust", "none", "shift", {"confidence_gap": 0.1}), None),
        ("one_temperature", ("vanilla", "temperature", "shift", {"ece": 0.5}), "vanilla .500,"),
        ("calibrated_experts", ("vanilla", "per_expert", "id", {"ece": 0.5}), "ECE .500 in"),
        ("calibrated_experts", ("vanilla", "per_expert", "id", {"ece": 0.0}), None),
        ("portal_in_words", ("vanilla", "none", "id", {"accuracy": 0.99}), "falls by 27 points"),
        ("portal_in_words", ("vanilla", "none", "shift", {"ece": 0.2}), None),
        ("portal_in_words", ("mocae", "none", "shift", {"ece": 0.1}), None),
    ],
)
def test_words_follow_the_results(make, change, said):
    make = getattr(figures, make)
    other = altered("portal", setting(*change[:-1], **change[-1]))
    if said is None:
        with pytest.raises(ValueError, match="not so"):
            make(other)
    else:
        assert said not in make(figures.summary("portal"))
        assert said in make(other)


def test_a_difference_beyond_its_interval_is_not_called_none():
    results = figures.summary("portal").results
    comparisons = tuple(
        dataclasses.replace(c, low=0.01, high=0.02)
        if (c.method, c.calibrator, c.split, c.metric)
        == ("robust", "temperature", SHIFT_MEAN, "ece")
        else c
        for c in results.comparisons
    )
    other = Summary(dataclasses.replace(results, comparisons=comparisons))
    for make in (figures.one_temperature, figures.portal_in_words):
        with pytest.raises(ValueError, match="not so"):
            make(other)


def test_digits_follow_their_results():
    change = setting("vanilla", "safe", "shift", ece=0.0501)
    assert "without a label: .050." in " ".join(
        figures.digits_in_words(altered("digits", change)).split()
    )
    change = setting("vanilla", "temperature", "shift", ece=0.1)
    with pytest.raises(ValueError, match="not so"):
        figures.digits_in_words(altered("digits", change))


def test_lines_are_broken_and_indented():
    lines = figures.printed().split("\n")
    assert max(map(len, lines)) <= 96
    assert lines[0] == lines[-1] == "```"
    assert "Report: runs/digits/report.html" in lines
