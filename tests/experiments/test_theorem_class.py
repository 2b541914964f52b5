"""The experiment on exact reweightings: its tilts, a small run, and predictions that need none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experimenting import run_small

from calmoe_jax.data import Split, Task
from calmoe_jax.shift import repair
from experiments import theorem_class

pytestmark = pytest.mark.exhaustive


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_tilts_have_the_given_effective_share(share):
    values = np.random.RandomState(0).randn(300)
    weights = np.exp(theorem_class.tilt_to_share(values, share))
    np.testing.assert_allclose(weights.sum() ** 2 / (weights**2).sum() / 300, share, rtol=1e-6)
    assert np.corrcoef(weights, values)[0, 1] > 0.3


@pytest.mark.exhaustive
def test_every_partition_is_compared_under_every_tilt():
    rng = np.random.RandomState(0)
    logits = jnp.asarray(rng.randn(2, 300, 3, 4), jnp.float32)
    weights = jax.nn.softmax(jnp.asarray(rng.randn(2, 300, 3), jnp.float32))
    sample = repair.Sample(jax.nn.log_softmax(logits), weights)
    probs = np.asarray(jnp.einsum("ne,nec->nc", weights[0], jnp.exp(sample.expert_log_probs[0])))
    labels = np.array([rng.choice(4, p=p / p.sum()) for p in probs])
    clusters = np.arange(300) // 2
    nothing = Split("", "train", np.zeros((0, 1)), np.zeros(0, int), np.zeros(0, int), "")
    task = Task("t", tuple("abcd"), nothing, nothing, (), "")
    lines = theorem_class.measure(
        task, sample, labels, clusters, partitions=2, share=0.5, num_replicates=8
    )
    assert len(lines) == 2 * 2 * len(theorem_class.TILTS)
    assert {(x["seed"], x["partition"]) for x in lines} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert len({x["plain"] for x in lines}) == len(lines)  # no partition is another's
    of_first = [x for x in lines if x["found"] and x["seed"] == 0]
    assert len(of_first) >= 4
    for line in of_first:  # labels were drawn from these predictions: there is nothing to repair
        assert abs(line["rebalanced"]) < 5 * line["rebalanced_error"] < 5


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_small_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(theorem_class, "NUM_REPLICATES", 3)
    found = run_small(theorem_class, tmp_path, monkeypatch, "--partitions", "1")["tasks"]
    assert len(found["portal"]) == 2 * len(theorem_class.TILTS)
    assert {line["tilt"] for line in found["portal"]} == set(theorem_class.TILTS)
    printed = capsys.readouterr().out
    assert all(f"\nportal, {tilt}" in printed for tilt in theorem_class.TILTS)
    assert "within two standard errors of the oracle: rebalanced" in printed
