"""`calmoe monitor`: a deployed model along time."""

import json

import numpy as np
import pytest
from audit_logs import write
from deployed_logs import CLASSES, EXPERTS, fill, gap_at

from calmoe_jax._errors import UserError
from calmoe_jax.audit import Logs, read_logs
from calmoe_jax.audit.monitoring import monitor
from calmoe_jax.audit.periods import periods_of
from calmoe_jax.audit.shift_along_time import look_for_shift, spent_level
from calmoe_jax.cli import main
from calmoe_jax.drawing.along_time import Moment, draw_along_time
from calmoe_jax.drawing.style import png

HELD_OUT, DAYS, A_DAY, LABELLED = 500, 6, 250, 60
SHIFTED = 3  # from this day on


def make_days(seed=0, *, shifted=SHIFTED):
    """Logs of a week, sharper and flatter in truth from a day on; and the labels of all."""
    rng = np.random.RandomState(seed)
    day = np.concatenate([np.full(HELD_OUT, -1), np.repeat(np.arange(DAYS), A_DAY)])
    moved = day >= shifted
    total = len(day)
    logits = rng.randn(total, EXPERTS, CLASSES) * np.where(moved, 3.0, 2.0)[:, None, None]
    probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    weights = rng.dirichlet(np.ones(EXPERTS), total)
    true = np.einsum("nk,nkc->nc", weights, probs) ** np.where(moved, 0.3, 1.0)[:, None]
    true /= true.sum(axis=1, keepdims=True)
    labels = (rng.rand(total)[:, None] > true.cumsum(axis=1)).sum(axis=1)
    known = np.zeros(total, bool)
    for each in range(1, DAYS):  # of the first day no label is known
        known[rng.choice(np.flatnonzero(day == each), LABELLED, replace=False)] = True
    start = np.datetime64("2026-03-01T00:00:00", "us")
    arrays = {
        "expert_probs": probs.astype(np.float32),
        "routing_weights": weights.astype(np.float32),
        "labels": np.where(known | (day < 0), labels, -1),
        "targets": day >= 0,
        "time": start
        + day.astype("timedelta64[D]")
        + rng.randint(0, 86_400, total).astype("timedelta64[s]"),
    }
    return arrays, labels, day


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("monitor")


@pytest.fixture(scope="module")
def followed(folder):
    arrays, labels, day = make_days()
    path, out = write(folder, arrays), folder / "out"
    assert main(["monitor", str(path), "--out", str(out)]) == 0
    return arrays, labels, day, path, json.loads((out / "monitor.json").read_text())


def test_every_day_is_followed_and_the_shift_found(followed, folder):
    arrays, labels, day, _, found = followed
    periods = found["periods"]
    assert [one["period"] for one in periods] == [f"2026-03-0{i + 1}" for i in range(DAYS)]
    assert [one["targets"] for one in periods] == [A_DAY] * DAYS
    assert [one["shift"]["shifted"] for one in periods] == [i >= SHIFTED for i in range(DAYS)]
    temperature = found["held_out"]["temperature"]
    for i, one in enumerate(periods):
        rows = np.flatnonzero(day == i)
        truth = gap_at(arrays, labels, temperature, rows)
        accuracy = one["mean_confidence"] - truth
        band = one["accuracy"]
        assert band["low"] < accuracy < band["high"] or i == 0
        assert band["low"] <= band["value"] <= band["high"]
        assert one["labels"] == (0 if i == 0 else LABELLED)
        if i == 0:
            assert band["by"] == "label-free"
            assert one["gap"]["lower"] is None
            assert one["gap"]["pooled"]["mean"] is not None
        else:
            assert band["by"] == "labels"
            assert one["gap"]["lower"] < truth < one["gap"]["upper"]
    late = [one["gap"]["lower"] for one in periods[SHIFTED:]]
    assert max(late) > 0.02
    assert (folder / "out" / "monitor.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_is_short(followed, folder, capsys):
    path = followed[3]
    assert main(["monitor", str(path), "--out", str(folder / "table"), "--every", "month"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.split("\n\n")[1].splitlines()[:2])) <= 105
    assert "2026-03" in out
    assert "uniformly at random" in out


def test_a_period_for_each_file(followed, folder):
    """Without a time; the same numbers as by days."""
    arrays, _, day, _, found = followed
    rest = {name: x for name, x in arrays.items() if name != "time"}
    files = [
        str(write(folder, {k: x[day == i] for k, x in rest.items()}, f"day{i}.npz"))
        for i in range(-1, DAYS)
    ]
    again = monitor(read_logs(files))
    assert [one["period"] for one in again["periods"]] == files[1:]
    for one, other in zip(again["periods"], found["periods"], strict=True):
        assert one["shift"] == other["shift"]
        np.testing.assert_allclose(one["mean_confidence"], other["mean_confidence"], rtol=1e-6)
        assert one["labels"] == other["labels"]


def test_labels_of_a_list_belong_to_its_period(followed, folder, capsys):
    arrays, labels, day, _, found = followed
    blind = arrays | {"labels": np.where(arrays["targets"], -1, labels)}
    del blind["time"]
    files = [
        str(write(folder, {k: x[day == i] for k, x in blind.items()}, f"blind{i}.npz"))
        for i in range(-1, 4)
    ]
    asks = []
    for i in (1, 3):
        ask = folder / f"ask{i}.csv"
        options = ["--budget", "70", "--out", str(ask)]
        assert main(["label", files[0], files[i + 1], *options]) == 0
        starts = {name: int(np.argmax(day == j)) for j, name in enumerate(files, start=-1)}
        asks.append(str(fill(ask, labels, ask, starts=starts)))
    out = folder / "lists"
    assert main(["monitor", *files, "--labels", *asks, "--out", str(out)]) == 0
    again = json.loads((out / "monitor.json").read_text())["periods"]
    assert [one["labels"] for one in again] == [0, 70, 0, 70]
    assert "assumed" not in capsys.readouterr().out
    for i in (1, 3):
        truth = gap_at(arrays, labels, found["held_out"]["temperature"], np.flatnonzero(day == i))
        assert again[i]["gap"]["lower"] < truth < again[i]["gap"]["upper"]
    both = folder / "both.csv"
    assert main(["label", *files, "--budget", "70", "--out", str(both)]) == 0
    assert main(["monitor", *files, "--labels", str(both), "--out", str(out)]) == 2
    assert "both.csv must be drawn from the targets of one period" in capsys.readouterr().err


def test_the_aggregate_alone_is_not_tested_for_a_shift(followed, folder):
    arrays = followed[0]
    mixed = np.einsum("nk,nkc->nc", arrays["routing_weights"], arrays["expert_probs"])
    rest = {name: arrays[name] for name in ("labels", "targets", "time")}
    path = write(folder, rest | {"probs": mixed}, "alone.npz")
    assert main(["monitor", str(path), "--out", str(folder / "alone"), "--every", "week"]) == 0
    found = json.loads((folder / "alone" / "monitor.json").read_text())
    assert all(one["shift"]["p_value"] is None for one in found["periods"])
    assert not any(one["shift"]["shifted"] for one in found["periods"])
    # 1 March 2026 is a Sunday
    assert [one["period"] for one in found["periods"]] == ["2026-02-23", "2026-03-02"]


def test_the_levels_of_all_looks_sum_to_the_level():
    shares = [spent_level(0.05, k) for k in range(1, 20_000)]
    assert sum(shares) < 0.05
    np.testing.assert_allclose(sum(shares) + 0.05 * 30 / 20_029, 0.05, rtol=1e-9)
    np.testing.assert_allclose(sum(shares[:30]), 0.025, rtol=1e-9)
    assert np.all(np.diff(shares) < 0)


def test_without_a_shift_p_values_are_uniform_or_larger(followed):
    """Of halves of the held-out examples."""
    logs = read_logs(followed[3])
    rng = np.random.default_rng(0)
    p_values = []
    for _ in range(20):
        mixed = rng.permutation(HELD_OUT)
        found = look_for_shift(logs, np.sort(mixed[:250]), np.sort(mixed[250:]), look=1, level=0.05)
        assert not found.shifted
        p_values.append(found.p_value)
    assert np.mean(np.array(p_values) <= 0.2) <= 0.4
    assert np.mean(p_values) > 0.35


def test_periods_of_numbers():
    def logs(size=5, **others):
        times = np.arange(size, dtype=float) if size > 5 else np.array([0.0, 9, 19, 10, 10])
        own = {
            "routing_weights": np.ones((size, 1), np.float32),
            "expert_probs": np.full((size, 1, 2), 0.5, np.float32),
            "labels": np.zeros(size, int),
            "targets": np.arange(size) > 0,
            "clusters": np.arange(size),
            "where": np.arange(size) != 3,
            "time": times,
            "files": (("one", size),),
        }
        return Logs(**own | others)

    found = periods_of(logs(), "10")
    assert [(one.name, one.rows.tolist()) for one in found] == [("0", [1]), ("10", [2, 4])]
    for every, message in (
        ("auto", "must be a number for a time of numbers"),
        ("day", "without dates"),
        ("file", "are of one file"),
        ("ten", "above 0, got every=ten"),
        ("-1", "above 0, got every=-1"),
    ):
        with pytest.raises(UserError, match=message):
            periods_of(logs(), every)
    with pytest.raises(UserError, match="at most 2,000 periods"):
        periods_of(logs(3000), "0.5")
    with pytest.raises(UserError, match="must not be a number without a time"):
        periods_of(logs(time=None), "5")
    with pytest.raises(UserError, match="no targets"):
        periods_of(logs(targets=np.zeros(5, bool)), "file")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--every", "ten"), "--every must be auto, file, day, week, month or a number"),
        (("--level", "1"), "--level must be in (0, 1), got --level=1.0"),
        (("--alarm", "0"), "--alarm must be in (0, 1), got --alarm=0.0"),
    ],
)
def test_wrong_usage_ends_with_2_and_writes_nothing(followed, folder, capsys, options, message):
    out = folder / "wrong"
    assert main(["monitor", str(followed[3]), "--out", str(out), *options]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_pictures_of_what_is_not_known():
    nan = float("nan")
    blind = Moment("day_$1", 0.9, 0.8, 0.75, 0.85, 0, nan, nan, nan, nan, 0.01)
    figure = draw_along_time([blind] * 40, held_out_confidence=0.9, held_out_accuracy=0.9)
    words = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert words == ["no labels: the gap is not known", "no routing in the logs: not tested"]
    assert len(figure.axes[2].get_xticks()) <= 16
    png(figure)
    with pytest.raises(ValueError, match="at least one period"):
        draw_along_time([], held_out_confidence=0.9, held_out_accuracy=0.9)
