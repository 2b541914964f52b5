"""The file of results: round trips, and errors that name the field."""

import dataclasses
import json

import made_up_results
import pytest

from calmoe_jax.study import records

VOTES = ("human_nll", "human_brier", "human_ece")


def test_results_are_read_as_they_were_written(tmp_path):
    for results in (
        made_up_results.results(),
        made_up_results.results(methods=("single",), seeds=(3,)),
        made_up_results.results(methods=()),
    ):
        records.write_results(tmp_path / "results.json", results)
        assert records.read_results(tmp_path) == results


def test_the_layout_of_the_file(tmp_path):
    results = made_up_results.results()
    records.write_results(tmp_path / "results.json", results)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["schema"] == records.SCHEMA == 4
    assert list(content) == [
        "schema", "task", "config", "environment", "source", "splits", "methods", "reference",
        "records", "fits", "shifts", "comparisons", "reliability", "warnings",
    ]  # fmt: skip
    assert {name: list(content[name][0]) for name in (
        "records", "fits", "shifts", "comparisons", "reliability"
    )} == {
        "records": [
            "task", "method", "routing", "seed", "split", "kind", "calibrator", "n",
            "accuracy", "nll", "brier", "ece", "classwise_ece", "smooth_ece", "confidence_gap",
            "disagreement", "routing_entropy", "human_nll", "human_brier", "human_ece",
        ],
        "fits": ["method", "calibrator", "seed", "temperature", "converged", "at_bound"],
        "shifts": [
            "method", "split", "kind", "seed", "p_value", "load", "confidence", "disagreement",
            "effective_share", "balanced", "balance", "separability", "temperatures",
            "mean_confidence", "decision", "reason", "labels",
        ],
        "comparisons": [
            "method", "calibrator", "split", "metric", "value", "reference", "difference",
            "low", "high",
        ],
        "reliability": [
            "method", "calibrator", "split", "kind", "weight", "confidence", "residual",
        ],
    }  # fmt: skip
    absent = [r for r in content["records"] if r["method"] == "single"]
    assert all(r["disagreement"] is None for r in absent)
    unvoted = [r["human_ece"] for r in content["records"] if r["split"] == "late"]
    assert unvoted == [None] * len(unvoted)
    assert content["config"] == results.config
    assert isinstance(content["fits"][0]["temperature"], float)
    assert isinstance(content["fits"][2]["temperature"], list)


def test_files_of_schema_2_are_read(tmp_path):
    """Their calibrator `agreement` and their decisions keep their names."""
    now = made_up_results.results(calibrators=("none", "temperature", "agreement"))
    shifts = [dataclasses.replace(x, decision="cannot_repair") for x in now.shifts]
    now = dataclasses.replace(now, shifts=tuple(shifts))
    path = tmp_path / "results.json"
    records.write_results(path, now)
    content = json.loads(path.read_text()) | {"schema": 2}
    for shift in content["shifts"]:
        for name in ("balance", "mean_confidence", "labels"):
            del shift[name]
    forget_votes(content)
    path.write_text(json.dumps(content))
    unknown = {"balance": None, "mean_confidence": None, "labels": None}
    shifts = tuple(dataclasses.replace(x, **unknown) for x in now.shifts)
    assert records.read_results(tmp_path) == dataclasses.replace(unvoted(now), shifts=shifts)
    path.write_text(json.dumps(content | {"schema": 3}))
    with pytest.raises(records.ResultsError, match="balance is missing"):
        records.read_results(tmp_path)


def test_files_of_schema_3_are_read(tmp_path):
    """They knew no votes."""
    now = made_up_results.results()
    path = tmp_path / "results.json"
    records.write_results(path, now)
    content = forget_votes(json.loads(path.read_text()) | {"schema": 3})
    path.write_text(json.dumps(content))
    assert records.read_results(tmp_path) == unvoted(now)
    path.write_text(json.dumps(content | {"schema": 4}))
    with pytest.raises(records.ResultsError, match="human_nll is missing"):
        records.read_results(tmp_path)


def forget_votes(content):
    """What an earlier schema did not have of records."""
    for record in content["records"]:
        for name in VOTES:
            del record[name]
    return content


def unvoted(results):
    absent = dict.fromkeys(VOTES)
    lines = (dataclasses.replace(record, **absent) for record in results.records)
    return dataclasses.replace(results, records=tuple(lines))


def test_the_metrics_are_the_last_fields_of_a_record():
    assert records.METRICS == (
        "accuracy", "nll", "brier", "ece", "classwise_ece", "smooth_ece", "confidence_gap",
        "disagreement", "routing_entropy", "human_nll", "human_brier", "human_ece",
    )  # fmt: skip


def test_a_refused_result_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    records.write_results(path, made_up_results.results())
    before = path.read_bytes()
    wrong = dataclasses.replace(made_up_results.results(), config={"rate": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        records.write_results(path, wrong)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_results_that_cannot_be_read(tmp_path):
    with pytest.raises(records.ResultsError, match=r"there is no .*results.json\.$"):
        records.read_results(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(records.ResultsError, match="same `calmoe run` continues it"):
        records.read_results(tmp_path)
    path = tmp_path / "results.json"
    for content, message in (
        ("{", "is not JSON"),
        ("[]", "schema 2, 3 or 4, got schema=None"),
        ("{}", "schema 2, 3 or 4, got schema=None"),
        ('{"schema": 1}', "schema=1"),
        ('{"schema": 5}', "schema=5"),
        ('{"schema": 4}', r"results.json: task is missing\.$"),
        ('{"schema": 3}', r"results.json: task is missing\.$"),
        ('{"schema": 2}', r"results.json: task is missing\.$"),
        ('{"schema": 2, "shifts": [1]}', r"results.json: task is missing\.$"),
    ):
        path.write_text(content)
        with pytest.raises(records.ResultsError, match=message):
            records.read_results(tmp_path)
    records.write_results(path, made_up_results.results())
    content = json.loads(path.read_text())
    content["records"][3]["ece"] = "low"
    path.write_text(json.dumps(content))
    with pytest.raises(
        records.ResultsError, match=r"records\[3\]\.ece must be a finite number, got 'low'\."
    ):
        records.read_results(tmp_path)
    content["records"][3]["ece"] = 0.5
    content["splits"][0]["kind"] = "exam"
    path.write_text(json.dumps(content))
    with pytest.raises(records.ResultsError, match=r"splits\[0\]\.kind must be one of 'train'"):
        records.read_results(tmp_path)
