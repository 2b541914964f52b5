"""Problems of dispatch: well formed, and with the load that they name."""

import jax
import numpy as np
import pytest
from benchmarking import SMALL

from benchmarks.problems import LOADS, PROBLEMS, Problem, cut, make_inputs
from benchmarks.rivals import NAIVE


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=lambda p: p.name)
def test_problems_are_well_formed(problem):
    assert PROBLEMS[problem.name] is problem
    assert 1 <= problem.k <= problem.experts
    assert problem.load in LOADS
    assert problem.experts % problem.num_groups == 0
    assert problem.rows == problem.tokens * problem.k < 2**31
    narrow = cut(problem)
    assert (narrow.tokens, narrow.d) == (min(problem.tokens, 8192), min(problem.d, 512))
    shapes = jax.eval_shape(lambda: make_inputs(problem))
    assert shapes.logits.shape == (problem.tokens, problem.experts)
    assert shapes.outputs.shape == shapes.d_rows.shape == (problem.rows, problem.d)
    assert shapes.x.dtype == problem.x_dtype
    assert shapes.logits.dtype == problem.logits_dtype


@pytest.mark.parametrize("load", LOADS)
def test_loads_are_what_they_are_called_and_no_two_logits_of_a_row_tie(load):
    problem = Problem("some", 512, 4, 16, 2, load=load)
    inputs = make_inputs(problem)
    ordered = np.sort(np.asarray(inputs.logits), axis=1)
    assert np.diff(ordered, axis=1).min() > 0.9 / (64 * 16)
    sizes = np.asarray(NAIVE.route(problem, inputs.logits, None)[2].group_sizes)
    assert sizes.sum() == 1024
    largest = {"balanced": (64, 100), "zipf": (200, 500), "one_expert": (512, 512)}[load]
    assert largest[0] <= sizes.max() <= largest[1]
    assert len(np.unique(np.asarray(inputs.outputs, np.float32), axis=0)) == problem.rows


def test_an_unknown_load_is_refused():
    with pytest.raises(ValueError, match="load must be one of balanced, zipf, one_expert, got"):
        make_inputs(SMALL._replace(load="odd"))
