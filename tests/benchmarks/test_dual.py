"""The benchmark of duals: its rivals agree, and it reports and checks its bounds."""

import json

import numpy as np
import pytest
from benchmarking import quick_turns

from benchmarks import dual

SMALL = dual.Problem(300, 4, shift=0.1, eta=1.0, batch=2, scipy=1e-9)


def test_the_rivals_agree():
    given = dual.make(SMALL)
    signal, off = dual.standardise(given)
    left, right = (dual.solve_all(f, 1.0, signal, off) for f in (dual.by_scipy, dual.by_numpy))
    np.testing.assert_allclose(left.log_weights, right.log_weights, atol=1e-4)
    solution = dual.ours(SMALL)(*given)
    np.testing.assert_allclose(solution.log_weights[0], right.log_weights, atol=1e-4)
    assert max(left.residual, right.residual) < 1e-5


@pytest.mark.parametrize(("least", "code"), [(1e-9, 0), (1e9, 1)])
def test_it_runs_writes_and_checks(tmp_path, monkeypatch, capsys, least, code):
    monkeypatch.setitem(dual.PROBLEMS, "tiny", SMALL._replace(scipy=least))
    monkeypatch.setattr(dual, "time_in_turns", quick_turns)
    out = tmp_path / "dual.json"
    arguments = dual.parse(["--problems", "tiny", "--check", "--out", str(out)])
    assert dual.run(arguments) == code
    names = {figure["name"] for figure in json.loads(out.read_text())["figures"]}
    assert {"tiny: residual", "tiny: scipy / ours", "tiny: numpy / ours"} <= names
    assert capsys.readouterr().out.splitlines()[-1].startswith("FAILED" if code else "ok")
