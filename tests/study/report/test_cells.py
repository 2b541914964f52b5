"""Cells of tables: a mean, and its deviation over the seeds."""

from calmoe_jax.study.report.cells import spread_cell
from calmoe_jax.study.report.summary import Spread


def test_cells():
    assert spread_cell(None, "ece") == "–"
    assert spread_cell(Spread(0.12345, None), "ece") == "0.123"
    assert spread_cell(Spread(0.12345, None), "accuracy") == "12.3"
    cell = spread_cell(Spread(0.5, 0.25), "nll")
    assert cell == "0.500 <span class='std'>± 0.250</span>"
