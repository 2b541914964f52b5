"""`portal`: splits that do not leak, and the published table."""

import csv
import gzip
import io
from importlib import resources

import numpy as np


def test_portal_is_split_by_survey_period(portal):
    early = [set(s.clusters.tolist()) for s in portal.splits[:3]]
    assert not early[0] & early[1]
    assert not early[0] & early[2]
    assert not early[1] & early[2]
    shifts = [s for s in portal.splits if s.kind == "shift"]
    assert [len(s) for s in shifts] == [3731, 5284, 4841]  # rows of the published table by years
    everything = sum(len(s) for s in portal.splits if s.kind != "hard")
    assert everything == 27459
    # a survey lasts at most a few weeks: far more periods than years, far fewer than rows
    assert 25 * 9 < len({c for s in portal.splits for c in s.clusters.tolist()}) < 350
    assert len(portal.classes) == 11
    assert "Chaetodipus baileyi" not in portal.classes


def test_portal_features_are_scaled_and_finite(portal):
    train = portal.train.inputs
    assert train.dtype == np.float32
    assert np.abs(train[:, :2].mean(axis=0)).max() < 0.2
    assert np.abs(train[:, :2].std(axis=0) - 1).max() < 0.2
    assert (train[:, 5:].sum(axis=1) == 1).all()


def test_the_embedded_table_equals_the_published_one(shared_data):
    with gzip.open(shared_data / "portal" / "surveys.csv.gz", "rt") as file:
        rows = [
            r for r in csv.DictReader(file)
            if r["taxa"] == "Rodent" and r["sex"] and r["hindfoot_length"] and r["weight"]
        ]  # fmt: skip
    packaged = (resources.files("calmoe_jax.data.embedded") / "portal.csv.gz").read_bytes()
    ours = list(csv.DictReader(io.StringIO(gzip.decompress(packaged).decode())))
    assert len(ours) == len(rows) == 30676
    for a, b in zip(ours, rows, strict=True):
        date = f"{int(b['year']):04d}-{int(b['month']):02d}-{int(b['day']):02d}"
        assert (a["date"], a["species"], a["sex"], a["plot_type"]) == (
            date, b["species_id"], b["sex"], b["plot_type"],
        )  # fmt: skip
        assert float(a["weight_g"]) == float(b["weight"])
        assert float(a["hindfoot_mm"]) == float(b["hindfoot_length"])
