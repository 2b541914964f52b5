"""Plots of calibration: their content, and that no texts overlap."""

import doctest
import io
import itertools

import jax
import jax.numpy as jnp
import matplotlib.pyplot
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex

import calmoe_jax as cm
from calmoe_jax.calibration.diagrams import ReliabilityCurve, StatisticGap, reliability_curve
from calmoe_jax.drawing import diagrams
from calmoe_jax.drawing.diagrams import (
    draw_confidences,
    draw_expert_diagrams,
    draw_gaps,
    draw_method_comparison,
    draw_reliability_diagram,
)

METHODS = ["vanilla", "temperature", "configuration-balanced", "per expert", "oracle"]


def curve(seed=0, bins=15, empty=()):
    rng = np.random.RandomState(seed)
    confidence = (np.arange(bins) + rng.rand(bins)) / bins
    accuracy = np.clip(confidence + 0.2 * rng.randn(bins), 0, 1)
    share = rng.dirichlet(np.ones(bins))
    share[list(empty)] = 0
    holes = np.where(share == 0, np.nan, 1)
    low, high = np.maximum(accuracy - 0.1, 0), np.minimum(accuracy + 0.1, 1)
    parts = confidence * holes, accuracy * holes, low * holes, high * holes, share / share.sum()
    return ReliabilityCurve(*(jnp.asarray(x, jnp.float32) for x in parts))


def batch(number, unused=()):
    curves = [curve(k) for k in range(number)]
    for k in unused:
        nothing = jnp.full(15, jnp.nan)
        curves[k] = ReliabilityCurve(*[nothing] * 4, jnp.full(15, jnp.nan))
    return jax.tree.map(lambda *xs: jnp.stack(xs), *curves)


def gap(seed=0, groups=10, empty=()):
    rng = np.random.RandomState(seed)
    holes = np.where(np.isin(np.arange(groups), empty), np.nan, 1)
    parts = np.sort(rng.gamma(1, size=groups)) * holes, 0.1 * rng.randn(groups) * holes
    error = np.where(np.arange(groups) == 1, np.nan, 0.02) * holes
    return StatisticGap(
        *(jnp.asarray(x, jnp.float32) for x in (*parts, error, np.full(groups, 1 / groups)))
    )


def gaps(number):
    names = METHODS[:number]
    return {
        statistic: {name: gap(7 * i + j) for j, name in enumerate(names)}
        for i, statistic in enumerate(("routing entropy, nats", "root of disagreement"))
    }


FIGURES = {
    "one": lambda: draw_reliability_diagram(curve(), title="vanilla, under shift"),
    "one with holes": lambda: draw_reliability_diagram(curve(1, 20, empty=range(0, 20, 2))),
    "one expert": lambda: draw_expert_diagrams(batch(1), jnp.ones(1)),
    "four experts": lambda: draw_expert_diagrams(batch(4), jnp.full(4, 0.25), title="views"),
    "seven experts": lambda: draw_expert_diagrams(batch(7, unused=[6]), jnp.full(7, 0.1)),
    "gaps": lambda: draw_gaps(gaps(4)),
    "one gap": lambda: draw_gaps({"routing entropy, nats": {"vanilla": gap(0, empty=[3, 4])}}),
    "two methods": lambda: draw_method_comparison({n: curve(i) for i, n in enumerate("ab")}),
    "five methods": lambda: draw_method_comparison(
        {name: curve(i) for i, name in enumerate(METHODS)}
    ),
}


@pytest.fixture(scope="module")
def drawn():
    figures = {name: draw() for name, draw in FIGURES.items()}
    for figure in figures.values():
        FigureCanvasAgg(figure).draw()
    return figures


def boxes(figure):
    """What is written: titles, labels, legends, words in the axes."""
    axes = [ax for ax in figure.axes if ax.get_visible()]
    written = [t for ax in axes for t in (ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts)]
    written += [t for t in figure.texts if t.get_text()]
    found = [(t.get_text(), t.get_window_extent()) for t in written if t.get_text()]
    return found + [("legend", legend.get_window_extent()) for legend in figure.legends]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", FIGURES)
def test_texts_do_not_overlap(name, drawn):
    figure = drawn[name]
    for (a, first), (b, second) in itertools.combinations(boxes(figure), 2):
        assert not first.overlaps(second), f"{a!r} and {b!r}"
    panels = [ax.get_window_extent() for ax in figure.axes if ax.get_visible()]
    for first, second in itertools.combinations(panels, 2):
        assert not first.overlaps(second)
    for legend in figure.legends:
        for panel in panels:
            assert not legend.get_window_extent().overlaps(panel)
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            ticks = [t.get_window_extent() for t in axis.get_ticklabels() if t.get_visible()]
            for first, second in itertools.pairwise(box for box in ticks if box.width > 0):
                assert not first.overlaps(second)


@pytest.mark.parametrize("name", FIGURES)
def test_panels_are_square_with_histograms_below(name, drawn):
    for ax in drawn[name].axes:
        if (
            ax.get_ylabel().startswith("accuracy")
            or "calibrated" in (ax.get_legend_handles_labels()[1])
        ):
            box = ax.get_window_extent()
            assert abs(box.width - box.height) < 1e-6 * box.width
            assert ax.get_xlim() == ax.get_ylim() == (0, 1)
            for foot in ax.get_shared_x_axes().get_siblings(ax):
                assert abs(foot.get_window_extent().x0 - box.x0) < 1e-6
                assert abs(foot.get_window_extent().x1 - box.x1) < 1e-6


@pytest.mark.parametrize("name", FIGURES)
def test_a_picture_is_a_file_that_shows_everything(name, drawn):
    files = []
    for figure in (drawn[name], FIGURES[name]()):
        file = io.BytesIO()
        figure.savefig(file, format="png", bbox_inches="tight", metadata={"Software": None})
        files.append(file.getvalue())
    assert files[0] == files[1]
    assert files[0][:4] == b"\x89PNG"


def test_no_state_of_pyplot_is_left(drawn):
    before = dict(matplotlib.rcParams)
    draw_gaps(gaps(2))
    assert matplotlib.pyplot.get_fignums() == []
    assert dict(matplotlib.rcParams) == before


def lines_of(ax):
    return [line for line in ax.lines if len(line.get_xdata()) > 2]


@pytest.mark.parametrize("name", ["gaps", "five methods"])
def test_lines_differ_in_shape_and_colour(name, drawn):
    lines = [line for line in lines_of(drawn[name].axes[0]) if line.get_linestyle() != "None"]
    assert len(lines) == (4 if name == "gaps" else 5)
    for look in ("get_marker", "get_color"):
        seen = [getattr(line, look)() for line in lines]
        assert len({to_hex(x) if look == "get_color" else x for x in seen}) == len(lines)
    assert len({line.get_linestyle() for line in lines}) == 4


def test_what_is_drawn_is_the_curve():
    given = curve(2, empty=[0, 7])
    figure = draw_reliability_diagram(given, title="t")
    ax, foot = figure.axes
    held = np.asarray(given.share) > 0
    (line,) = lines_of(ax)
    np.testing.assert_allclose(line.get_xdata(), given.confidence[held])
    np.testing.assert_allclose(line.get_ydata(), given.accuracy[held])
    (bands,) = (c for c in ax.collections if isinstance(c, LineCollection))
    ends = np.array(bands.get_segments())
    np.testing.assert_allclose(ends[:, 0, 1], given.low[held])
    np.testing.assert_allclose(ends[:, 1, 1], given.high[held])
    assert ends.min() >= 0
    assert ends.max() <= 1
    np.testing.assert_allclose([bar.get_height() for bar in foot.patches], given.share[held])
    error = np.nansum(given.share * jnp.abs(given.confidence - given.accuracy))
    assert ax.get_title() == f"t\nECE {error:.3f}"


def test_the_error_in_the_title_is_that_of_the_bins():
    rng = np.random.RandomState(0)
    bins = jax.jit(cm.calibration.reliability_bins)(
        jnp.asarray(rng.rand(50), jnp.float32), jnp.asarray(rng.rand(50) < 0.5)
    )
    figure = draw_reliability_diagram(jax.jit(reliability_curve)(bins))
    assert figure.axes[0].get_title() == f"ECE {float(cm.calibration.calibration_error(bins)):.3f}"


def test_experts_share_axes_and_show_their_loads(drawn):
    figure = drawn["seven experts"]
    tops, feet = figure.axes[::2], figure.axes[1::2]
    assert len(tops) == 7
    assert [ax.get_title().split("\n")[0] for ax in tops][:2] == [
        "expert 0: load 10.0 %", "expert 1: load 10.0 %",
    ]  # fmt: skip
    assert len({foot.get_ylim() for foot in feet}) == 1
    assert [t.get_text() for t in tops[6].texts] == ["no load"]
    assert "ECE" not in tops[6].get_title()
    named = draw_expert_diagrams(batch(2), jnp.array([0.75, 0.25]), names=["text", "image"])
    assert named.axes[2].get_title().startswith("image: load 25.0 %")


def test_gaps_are_drawn_with_their_intervals():
    given = gap(0, empty=[3])
    figure = draw_gaps({"routing entropy": {"vanilla": given}})
    (ax,) = figure.axes
    held = np.isfinite(np.asarray(given.gap))
    line = lines_of(ax)[0]
    np.testing.assert_allclose(line.get_xdata(), given.statistic[held])
    np.testing.assert_allclose(line.get_ydata(), given.gap[held])
    (bars,) = (c for c in ax.collections if isinstance(c, LineCollection))
    ends = np.array(bars.get_segments())[:, :, 1]
    half = 1.96 * np.nan_to_num(given.standard_error[held])
    np.testing.assert_allclose(ends[:, 1] - ends[:, 0], 2 * half, atol=1e-6)
    low, high = ax.get_ylim()
    assert low == -high
    assert ends.min() > low
    assert ends.max() < high
    left, right = ax.get_xlim()
    assert left < np.nanmin(given.statistic)
    assert right > np.nanmax(given.statistic)


def test_hard_routing_has_one_group_and_is_drawn():
    nan = jnp.full(5, jnp.nan)
    one = StatisticGap(nan.at[2].set(0), nan.at[2].set(0.1), nan.at[2].set(0.02), jnp.ones(5) / 5)
    figure = draw_gaps({"disagreement": {"hard": one}})
    left, right = figure.axes[0].get_xlim()
    assert left < 0 < right
    nothing = draw_gaps({"disagreement": {"none": StatisticGap(nan, nan, nan, nan)}})
    FigureCanvasAgg(nothing).draw()


def test_what_cannot_be_drawn_is_named():
    with pytest.raises(ValueError, match=r"curve must have the one axis \(bins\)"):
        draw_reliability_diagram(batch(2))
    with pytest.raises(ValueError, match=r"curves must have the axes \(experts, bins\)"):
        draw_expert_diagrams(curve(), jnp.ones(1))
    with pytest.raises(ValueError, match="load must have the 2 experts"):
        draw_expert_diagrams(batch(2), jnp.ones(3))
    with pytest.raises(ValueError, match="names must have the 2 experts"):
        draw_expert_diagrams(batch(2), jnp.ones(2), names=["a"])
    with pytest.raises(ValueError, match="gaps must hold a statistic"):
        draw_gaps({})
    with pytest.raises(ValueError, match="gaps must hold a statistic"):
        draw_gaps({"disagreement": {}})
    with pytest.raises(ValueError, match="curves must hold at least one model"):
        draw_method_comparison({})


@pytest.mark.exhaustive
def test_the_examples_run():
    names = {"jax": jax, "jnp": jnp, **vars(cm.calibration)}
    found = doctest.testmod(diagrams, extraglobs=names)
    assert found.attempted > 0
    assert found.failed == 0


def test_confidences_are_steps_of_their_shares():
    shares = {"held out": np.array([0.25, 0.75]), "targets": np.array([0.5, 0.5])}
    figure = draw_confidences(shares)
    (ax,) = figure.axes
    assert [patch.get_label() for patch in ax.patches] == list(shares)
    for patch, values in zip(ax.patches, shares.values(), strict=True):
        np.testing.assert_array_equal(patch.get_data().values, values)
        np.testing.assert_array_equal(patch.get_data().edges, [0, 0.5, 1])
    assert len({(p.get_edgecolor(), p.get_linestyle()) for p in ax.patches}) == 2
    for wrong in ({}, {"a": [1.0], "b": [0.5, 0.5]}):
        with pytest.raises(ValueError, match="the same bins"):
            draw_confidences(wrong)
