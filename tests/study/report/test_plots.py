"""Plots: which are drawn, and that every method is in them."""

import dataclasses

import made_up_results
import numpy as np
import pytest

from calmoe_jax.study.report import Summary, plots


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_every_picture_is_a_png():
    files = plots.draw_all(Summary(made_up_results.results()))
    assert list(files) == ["tradeoff", "along_the_shift", "reliability"]
    assert all(content.startswith(b"\x89PNG") for content in files.values())


def test_methods_are_named_as_they_are():
    titles = {"single": "_private", "vanilla": "costs 1$, not 2$", "mine": "<b> & \\frac"}
    summary = Summary(made_up_results.results(titles=titles, task="$x^$"))
    figures = [plots.draw_tradeoff(summary), plots.draw_along_the_shift(summary)]
    for figure in figures:
        assert legend_of(figure) == [" _private", r"costs 1\$, not 2\$", "<b> & \\frac"]
    titles = [ax.get_title() for ax in plots.draw_reliability(summary).axes[:3]]
    assert titles == [r"costs 1\$, not 2\$", " _private", "<b> & \\frac"]


@pytest.mark.parametrize("draw", [plots.draw_tradeoff, plots.draw_along_the_shift])
def test_more_methods_than_colours_differ(draw):
    names = tuple(f"method_{i}" for i in range(24))
    figure = draw(Summary(made_up_results.results(methods=names, seeds=(1,))))
    assert legend_of(figure) == list(names)
    handles, _ = figure.axes[0].get_legend_handles_labels()
    lines = [handle if draw is plots.draw_along_the_shift else handle[0] for handle in handles]
    looks = {(line.get_color(), line.get_marker()) for line in lines}
    assert len(looks) == len(names)


def test_points_are_at_the_records_means():
    results = made_up_results.results()
    summary = Summary(results)
    figure = plots.draw_along_the_shift(summary)
    (ax,) = figure.axes
    assert [t.get_text() for t in ax.get_xticklabels()] == ["in distribution", "early", "late"]
    for line, method in zip(ax.lines, summary.methods, strict=True):
        wanted = [
            np.mean([
                r.ece for r in results.records
                if (r.method, r.calibrator, r.split) == (method, "none", split)
            ])
            for split in ("test", "early", "late")
        ]  # fmt: skip
        np.testing.assert_allclose(line.get_ydata(), wanted)


def test_reliability_is_shown_for_the_reference_and_three_more():
    methods = ("a", "b", "c", "single", "d", "vanilla")
    figure = plots.draw_reliability(Summary(made_up_results.results(methods=methods)))
    assert len(figure.axes) == 8
    titles = [ax.get_title() for ax in figure.axes[:4]]
    assert titles == ["Vanilla MoE", "Single classifier", "a", "b"]


def test_what_cannot_be_drawn_is_left_out(monkeypatch):
    monkeypatch.setattr(plots, "png", lambda figure: b"")
    unordered = [dataclasses.replace(s, series=None) for s in made_up_results.SPLITS]
    files = plots.draw_all(Summary(made_up_results.results(splits=unordered)))
    assert set(files) == {"tradeoff", "reliability"}
    hard = [s for s in made_up_results.SPLITS if s.kind in ("train", "calibration", "hard")]
    assert plots.draw_all(Summary(made_up_results.results(splits=hard))) == {}
    assert plots.draw_all(Summary(made_up_results.results(methods=()))) == {}
    one_panel = [s for s in made_up_results.SPLITS if s.kind != "shift"]
    figure = plots.draw_tradeoff(Summary(made_up_results.results(splits=one_panel)))
    assert len(figure.axes) == 1
    bare = made_up_results.results(calibrators=("neighbours",))
    assert set(plots.draw_all(Summary(bare))) == {"tradeoff", "along_the_shift", "reliability"}
