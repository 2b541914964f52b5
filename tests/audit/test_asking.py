"""`calmoe label`: which targets to label."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from audit_logs import write
from deployed_logs import HELD_OUT, TARGETS, aggregate, make_deployed, rows_of

from calmoe_jax._errors import UserError
from calmoe_jax.audit import ask_for_labels, evidence, read_logs
from calmoe_jax.audit.asking import draw_probabilities, inclusion_probabilities, units_of
from calmoe_jax.cli import main
from calmoe_jax.shift.few_labels import draw_units, labels_needed

BUDGET = 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("label")


@pytest.fixture(scope="module")
def asked(folder):
    arrays, labels = make_deployed()
    path = write(folder, arrays)
    assert main(["label", str(path), "--budget", str(BUDGET), "--out", str(folder / "a.csv")]) == 0
    return arrays, labels, path, rows_of(folder / "a.csv")


def test_the_list_is_of_targets_with_what_the_logs_predict(asked):
    arrays, _, _, rows = asked
    assert [int(row["order"]) for row in rows] == list(range(1, BUDGET + 1))
    at = [int(row["row"]) for row in rows]
    assert len(set(at)) == BUDGET
    assert min(at) >= HELD_OUT
    probs = aggregate(arrays)[at]
    assert [int(row["predicted"]) for row in rows] == probs.argmax(axis=1).tolist()
    confidence = [float(row["confidence"]) for row in rows]
    np.testing.assert_allclose(confidence, probs.max(axis=1), atol=2e-6)
    assert all(row["label"] == "" for row in rows)


def test_probabilities_are_those_of_a_loop(asked):
    """Of each draw among what is left, in proportion to the chances."""
    _, _, path, rows = asked
    logs = read_logs(path)
    known = evidence.held_out(logs)
    people = evidence.population(logs, known, np.flatnonzero(logs.targets))
    chances = units_of(logs, people, whole_clusters=False).chances.copy()
    for row in rows:
        unit = int(row["row"]) - HELD_OUT
        np.testing.assert_allclose(float(row["probability"]), chances[unit] / chances.sum(), 1e-6)
        chances[unit] = 0


def test_seeds_differ_and_repeat(asked, folder):
    _, _, path, rows = asked
    tables = []
    for seed in ("0", "1"):
        out = folder / f"seed{seed}.csv"
        main(["label", str(path), "--budget", str(BUDGET), "--seed", seed, "--out", str(out)])
        tables.append(rows_of(out))
    assert tables[0] == rows
    assert {r["row"] for r in tables[1]} != {r["row"] for r in rows}


@pytest.mark.parametrize("number", [8, 25])
def test_inclusion_probabilities_are_those_of_many_draws(number):
    chances = np.random.RandomState(0).dirichlet(np.ones(60))
    found = inclusion_probabilities(chances, number)
    np.testing.assert_allclose(found.sum(), number, rtol=1e-9)
    times = 4000
    draw = jax.vmap(lambda key: draw_units(key, jnp.asarray(chances), num_draws=number))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(0), times)))
    share = np.bincount(drawn.ravel(), minlength=60) / times
    np.testing.assert_allclose(found, share, atol=0.035)
    assert np.all(inclusion_probabilities(chances, 60) == 1)


def test_probabilities_of_all_draws_of_a_few_units_sum_to_one():
    chances = np.array([0.5, 0.3, 0.2])
    orders = [(a, b) for a in range(3) for b in range(3) if a != b]
    total = sum(np.prod(draw_probabilities(chances, np.array(order))) for order in orders)
    np.testing.assert_allclose(total, 1, rtol=1e-12)


def test_whole_clusters_are_drawn_whole(folder):
    arrays, _ = make_deployed(clusters=5)
    logs = read_logs(write(folder, arrays, "clusters.npz"))
    found = ask_for_labels(logs, budget=7, whole_clusters=True)
    assert (found.num_units, found.num_targets) == (7, 35)
    (folder / "clusters.csv").write_text(found.table)
    rows = rows_of(folder / "clusters.csv")
    for order in range(1, 8):
        own = [row for row in rows if int(row["order"]) == order]
        assert len({row["cluster"] for row in own}) == len({row["probability"] for row in own}) == 1
        assert len({int(row["row"]) // 5 for row in own}) == 1
        assert len(own) == 5


def test_several_files_are_named(folder):
    arrays, _ = make_deployed()
    first, second = (
        write(folder, {name: x[part] for name, x in arrays.items()}, name)
        for name, part in (("one.npz", slice(0, 600)), ("two.npz", slice(600, None)))
    )
    both = ask_for_labels(read_logs([first, second]), budget=BUDGET)
    one = ask_for_labels(read_logs(write(folder, arrays, "all.npz")), budget=BUDGET)
    (folder / "both.csv").write_text(both.table)
    (folder / "one.csv").write_text(one.table)
    starts = {str(first): 0, str(second): 600}
    found = [starts[row["file"]] + int(row["row"]) for row in rows_of(folder / "both.csv")]
    assert found == [int(row["row"]) for row in rows_of(folder / "one.csv")]


def test_targets_with_a_label_are_left_out_and_said(folder, capsys):
    arrays, labels = make_deployed()
    arrays["labels"][HELD_OUT : HELD_OUT + 100] = labels[HELD_OUT : HELD_OUT + 100]
    path = write(folder, arrays, "some.npz")
    out = folder / "some.csv"
    assert main(["label", str(path), "--budget", "1000", "--out", str(out)]) == 0
    rows = rows_of(out)
    assert len(rows) == TARGETS - 100
    assert all(int(row["row"]) >= HELD_OUT + 100 for row in rows)
    assert all(float(row["inclusion_probability"]) == 1 for row in rows)
    words = capsys.readouterr().out
    assert "100 targets have a label already" in words
    assert "fewer targets than the budget of 1,000" in words
    assert f"{labels_needed(0.2):,} for a gap of 0.2" in words
    arrays["labels"] = labels
    with pytest.raises(UserError, match="no target without a label"):
        ask_for_labels(read_logs(write(folder, arrays, "none.npz")), budget=3)


def test_the_aggregate_alone_will_do(folder):
    arrays, _ = make_deployed(alone=True)
    found = ask_for_labels(read_logs(write(folder, arrays, "alone.npz")), budget=BUDGET)
    assert found.num_units == BUDGET
    assert "neighbours" not in found.guessed_by


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--budget", "0"), "--budget must be at least 1, got --budget=0"),
        (("--seed", "-1"), "--seed must be in"),
        (("--columns", "labels"), "--columns must be pairs"),
    ],
)
def test_wrong_usage_ends_with_2_and_writes_nothing(asked, folder, capsys, options, message):
    out = folder / "wrong.csv"
    assert main(["label", str(asked[2]), "--out", str(out), *options]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
