"""The experiment on coverage: its problems have the error that they should, and it runs."""

import sys

import numpy as np
import pytest

from experiments import interval_coverage

pytestmark = pytest.mark.exhaustive


@pytest.mark.parametrize("spread", interval_coverage.SPREADS)
def test_gaps_have_the_size_and_keep_accuracies_in_range(spread, monkeypatch):
    rng = np.random.RandomState(0)
    bins = interval_coverage.BINS
    share, level = np.full(bins, 1 / bins), (np.arange(bins) + 0.5) / bins
    gaps = interval_coverage.make_gaps(rng, spread, share, level, 0.03)
    np.testing.assert_allclose(share @ np.abs(gaps), 0.03, rtol=0.011)
    edges = np.arange(bins + 1) / bins
    assert ((edges[1:] - gaps <= 1 + 1e-9) & (edges[:-1] - gaps >= -1e-9)).all()


@pytest.mark.exhaustive
def test_a_small_run(monkeypatch, capsys):
    monkeypatch.setattr(interval_coverage, "POPULATION", 3000)
    monkeypatch.setattr(interval_coverage, "SIZES", (60,))
    monkeypatch.setattr(interval_coverage, "ERRORS", (0.05,))
    monkeypatch.setattr(sys, "argv", ["coverage", "--problems", "4", "--replicates", "20"])
    interval_coverage.main()
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["interval", "n", "truth", "cover", "above", "below", "width"]
    assert len(lines) == 4 + 4 + 2 + 4
    for line in lines:
        cover, above, below, _ = map(float, line.split()[-4:])
        assert cover + above + below == pytest.approx(100, abs=0.2)
