"""The protocol of the repair: its fitted prior, its frontier by hand, populations kept whole."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from small import small_task

from experiments import repair_populations, repair_protocol
from experiments.paper import QUICK
from experiments.repair_populations import CONTROL, LOG_TEMPERATURES, Population

pytestmark = pytest.mark.exhaustive


def population(task="a", kind="shift", *, gap=0.3, safe=0.1, bold=0.3, simulated=False, size=200):
    """One model of confidence .9, whose error is its mean confidence less its accuracy."""
    confidence = np.full((1, size), 0.9)
    correct = (np.arange(size)[None] < round((0.9 - gap) * size)).astype(float)
    confidences = np.linspace(0.99, 0.3, len(LOG_TEMPERATURES))[None]
    inside = np.exp(np.interp(-0.9, -confidences[0], LOG_TEMPERATURES))[None]
    return Population(
        task,
        42,
        f"{kind} of {task}",
        kind,
        simulated,
        2,
        inside,
        confidence,
        correct,
        np.full((1, size), 0.7),
        np.array([safe]),
        np.array([bold]),
        np.abs(confidences - (0.9 - gap)),
        confidences,
        np.array([abs(gap)]),
    )


def test_errors_after_a_repair_are_what_is_left_of_the_gap():
    made = population(gap=0.3)
    found = made.errors_at(np.array([[0.0, 0.1, 0.3, 0.4, -0.2]]))
    np.testing.assert_allclose(found, [[0.3, 0.2, 0.0, 0.1, 0.3]], atol=5e-3)
    np.testing.assert_allclose(made.gap, 0.3)


def test_frontier_by_hand():
    populations = [
        population("a", gap=0.3),
        population("a", gap=0.1),
        population("b", gap=0.2),
        population("b", "hard", gap=0.0),
        population("b", "faded", gap=0.0, simulated=True),
        population("b", CONTROL, gap=0.4),
    ]
    found = repair_protocol.frontier(populations, [np.full((1, 2), 0.1)] * len(populations))
    # of task a the gaps .3 and .1 become .2 and 0, of task b .2 becomes .1
    np.testing.assert_allclose(found.closed, (0.1 + 0.1) / (0.2 + 0.2), atol=0.02)
    np.testing.assert_allclose(list(found.by_task.values()), [0.5, 0.5], atol=0.02)
    np.testing.assert_allclose((found.harm, found.simulated_harm), 0.1, atol=5e-3)
    assert (found.harmed, found.simulated_harmed) == ("b/hard of b", "b/faded of b")
    np.testing.assert_allclose(found.control, 0.75, atol=0.02)


def test_fitted_prior_finds_who_is_right():
    rng = np.random.RandomState(0)
    made = []
    for _ in range(300):
        safe, bold = rng.uniform(0, 0.4, 2)
        true = (safe if rng.rand() < 0.7 else bold) + 0.03 * rng.randn()
        made.append(
            population(gap=float(np.clip(true, -0.1, 0.6)), safe=safe, bold=bold, simulated=True)
        )
    prior = repair_protocol.fit_prior(made)
    np.testing.assert_allclose(prior.weights[:2], [0.7, 0.3], atol=0.12)
    np.testing.assert_allclose(prior.deviations[0], 0.03, atol=0.015)


def test_a_prior_never_sees_the_task_and_family_that_it_is_for(monkeypatch):
    seen = []
    monkeypatch.setattr(repair_protocol, "fit_prior", lambda some: seen.append(list(some)))
    made = [population(t, k, simulated=True) for t in "ab" for k in ("noise", "faded")]
    of = repair_protocol.priors([*made, population("a")])
    of(population("a"))
    of(population("a", "noise", simulated=True))
    assert [{(p.task, p.kind) for p in some} for some in seen] == [
        {("b", "noise"), ("b", "faded")},
        {("b", "faded")},
    ]


def test_draws_have_bounds_about_the_gap():
    found = repair_protocol.draw(population(gap=0.3), 50)
    assert found.estimate.shape == (1, repair_protocol.DRAWS)
    assert np.mean(found.lower) < 0.3 < np.mean(found.upper)
    np.testing.assert_allclose(np.mean(found.estimate), 0.3, atol=0.05)


def test_kept_populations_are_read_as_they_were(tmp_path):
    made = [population("a"), population("b", simulated=True)]
    path = tmp_path / "x" / "some.npz"
    first = repair_populations.kept(path, lambda: made)

    def never():
        raise AssertionError

    for found in (first, repair_populations.kept(path, never)):
        for one, other in zip(made, found, strict=True):
            for name, value in one._asdict().items():
                np.testing.assert_array_equal(getattr(other, name), value)
            assert isinstance(other.simulated, bool)


def test_readme_has_the_table_of_the_committed_results():
    root = Path(repair_protocol.__file__).parents[1]
    found = json.loads((root / "experiments" / "repair" / "protocol.json").read_text())
    assert repair_protocol.markdown(found) in (root / "README.md").read_text()


@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("end_to_end", [False, True])
def test_colour_images_alone_are_trained_on_end_to_end(tmp_path, monkeypatch, colours, end_to_end):
    images = np.zeros((60, 64, 64, colours), np.uint8)
    made = dataclasses.replace(small_task(), name="made")
    made = dataclasses.replace(
        made, train=dataclasses.replace(made.train, inputs=images[: len(made.train)])
    )
    seen = []

    def real(task, first_seed, runs, model, train):
        seen.append((first_seed, runs, model.backbone, train.epochs, task.name))
        return [population(task.name)]

    monkeypatch.setattr(repair_populations, "resolve_task", lambda name, data_dir: made)
    monkeypatch.setattr(repair_populations, "colour", lambda task: colours == 3)
    monkeypatch.setattr(repair_populations, "without_colour_images", lambda task, _: task)
    monkeypatch.setattr(repair_populations, "smaller", lambda task, images: task)
    for name in ("real_populations", "simulated_populations"):
        monkeypatch.setattr(repair_populations, name, real)
    for _ in range(2):  # the second time from the files
        found = repair_populations.gather(["made"], None, tmp_path, end_to_end=end_to_end)
        assert len(found) == 2 * len(repair_populations.SETS)
    assert len(seen) == len(found)
    trained = end_to_end and colours == 3
    assert {x[2] for x in seen} == {"resnet18" if trained else "mlp"}
    assert {x[3] == QUICK.epochs for x in seen} == {trained}
    assert all(("end-to-end" in x[1].name) == trained for x in seen)
    assert {x[0] for x in seen} == set(repair_populations.SETS)


def test_of_one_task_no_prior_is_fitted_to_others(monkeypatch):
    monkeypatch.setattr(repair_protocol, "NUMBERS", (10,))
    one, other = (
        [population(x), population(x, CONTROL)]
        + [population(x, kind, simulated=True) for kind in ("faded", "noise")]
        for x in ("a", "b")
    )
    found = repair_protocol.judge(one)["rows"]
    assert "fitted 10" not in found
    np.testing.assert_allclose(found["exact gap"]["closed"], 1, atol=0.02)
    two = [*one, *other]
    assert "fitted 10" in repair_protocol.judge(two)["rows"]
