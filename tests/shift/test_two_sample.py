"""The permutation test of the routing configuration: level, power, what moved, an oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import calmoe_jax as cm

pytestmark = pytest.mark.exhaustive

SIZE = 60
shift_test = jax.jit(
    cm.shift.configuration_shift_test, static_argnames=("num_clusters", "num_permutations")
)


def draw(key, size=SIZE, *, load=0.0, sharpness=1.0, disagreement=1.0):
    """Configurations with a chosen load, confidence and disagreement."""
    common, own, gate = jax.random.split(key, 3)
    base = jax.random.normal(common, (size, 1, 3))
    logits = sharpness * base + disagreement * jax.random.normal(own, (size, 2, 3))
    gates = jax.random.normal(gate, (size, 2)) + load * jnp.array([[1.0, -1.0]])
    return cm.configuration(jax.nn.log_softmax(logits), jax.nn.softmax(gates))


@jax.jit
def p_values(keys, load, sharpness, disagreement):
    def one(key):
        held_out, targets, own = jax.random.split(key, 3)
        shifted = draw(
            targets, SIZE + 20, load=load, sharpness=sharpness, disagreement=disagreement
        )
        return cm.shift.configuration_shift_test(own, draw(held_out), shifted, num_permutations=99)

    return jax.lax.map(one, keys, batch_size=50)


KEYS = jax.random.split(jax.random.key(0), 400).reshape(4, 100)


@pytest.mark.exhaustive
def test_it_holds_its_level():
    found = jax.tree.map(
        lambda *x: jnp.concatenate(x), *(p_values(keys, 0.0, 1.0, 1.0) for keys in KEYS)
    )
    rejected = np.mean(np.asarray(found.p_value) <= 0.05)
    # 400 runs: two standard errors are .022
    assert 0.02 <= rejected <= 0.08
    assert (found.p_value <= jnp.minimum(jnp.minimum(found.load, found.confidence), 1)).all()


@pytest.mark.parametrize(
    ("shift", "moved"),
    [({"load": 0.5}, "load"), ({"sharpness": 2.5}, "confidence"), ({"disagreement": 2.0}, "all")],
)
def test_it_detects_shifts(shift, moved):
    shift = {"load": 0.0, "sharpness": 1.0, "disagreement": 1.0} | shift
    found = p_values(KEYS[0], *shift.values())
    assert np.mean(np.asarray(found.p_value) <= 0.05) > 0.8
    if moved != "all":
        assert np.mean(np.asarray(getattr(found, moved)) <= 0.05) > 0.8
    if moved == "load":
        assert np.mean(np.asarray(found.confidence) <= 0.05) < 0.2


def whiten(rows):
    rows = np.asarray(rows, np.float64)
    off = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    values, vectors = np.linalg.eigh(off.T @ off / len(off))
    kept = values > 1e-6 * values[-1]
    return off @ vectors[:, kept] / np.sqrt(values[kept])


@pytest.mark.parametrize("clustered", [pytest.param(False, marks=pytest.mark.exhaustive), True])
def test_p_values_equal_a_loop_over_the_same_relabellings(clustered):
    """Clusters of several sizes, and four numbers that no example has."""
    key, times = jax.random.key(3), 59
    rng = np.random.RandomState(0)
    clusters, number = np.arange(55), 55
    if clustered:
        own, other = np.minimum(rng.geometric(0.2, (2, 30)), 12)
        clusters, number = np.concatenate([own, 12 + other[:25]]), 29
    sides = [draw(jax.random.key(1), 30), draw(jax.random.key(2), 25, load=0.3)]
    given = {"clusters": jnp.asarray(clusters), "num_clusters": number} if clustered else {}
    found = shift_test(key, *sides, num_permutations=times, **given)
    both = jax.tree.map(lambda a, b: np.concatenate([a, b]), *sides)
    c, d = both.confidence[:, None], np.maximum(both.disagreement, 0)[:, None]
    groups = [
        np.concatenate([both.routing_weights, both.routing_entropy[:, None]], axis=1),
        np.concatenate([c, c**2, both.entropy[:, None], both.expert_confidences], axis=1),
        np.concatenate([d, np.sqrt(d)], axis=1),
    ]
    labellings = [np.arange(55) >= 30]
    for one in jax.random.split(key, times):
        drawn = np.asarray(jax.random.uniform(one, (number,)))
        there = np.isin(np.arange(number), clusters)
        order = np.argsort(np.where(there, drawn, np.inf))
        chosen = order[: len(set(clusters[30:]))]
        labellings.append(np.isin(clusters, chosen))
    shares = []
    for group in groups:
        rows = whiten(group)
        values = np.array(
            [np.sum((rows[s].mean(axis=0) - rows[~s].mean(axis=0)) ** 2) for s in labellings]
        )
        shares.append([np.mean(values >= v * (1 - 1e-4)) for v in values])
    shares = np.array(shares)
    least = shares.min(axis=0)
    expected = [np.mean(least <= s[0] + 1e-9) for s in shares]
    np.testing.assert_allclose([*found[1:]], expected, atol=1e-6)
    ordered = least + shares.mean(axis=0) / (2 * len(least))
    np.testing.assert_allclose(found.p_value, np.mean(ordered <= ordered[0] + 1e-9), atol=1e-6)
    assert found.p_value <= min(expected) + 1e-6


@pytest.mark.exhaustive
def test_clusters_are_relabelled_whole():
    """Copies of an example do not add evidence."""
    held_out, targets = draw(jax.random.key(1), 25), draw(jax.random.key(2), 20)
    alone = shift_test(jax.random.key(0), held_out, targets, num_permutations=199)
    copies = [jax.tree.map(lambda x: jnp.repeat(x, 8, axis=0), x) for x in (held_out, targets)]
    clusters = jnp.repeat(jnp.arange(45), 8)
    together = shift_test(
        jax.random.key(0), *copies, clusters=clusters, num_clusters=45, num_permutations=199
    )
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_allclose(a, b, atol=0.011)
    fooled = shift_test(jax.random.key(0), *copies, num_permutations=199)
    assert fooled.p_value <= alone.p_value


def test_no_p_value_is_below_the_smallest():
    held_out = draw(jax.random.key(1), 30)
    targets = draw(jax.random.key(2), 30, load=9.0)  # as different as can be
    for own, other in ((1, 1), (2, 2), (2, 3)):
        clusters = jnp.concatenate([jnp.arange(30) % own, own + jnp.arange(30) % other])
        found = shift_test(
            jax.random.key(0), held_out, targets, clusters=clusters, num_clusters=5,
            num_permutations=399,
        )  # fmt: skip
        least = cm.shift.smallest_p_value(own, other)
        assert found.load >= 0.8 * least  # as far as 399 relabellings tell
    assert shift_test(jax.random.key(0), held_out, targets, num_permutations=399).load < 0.01


def test_masked_targets_do_not_matter():
    held_out, targets = draw(jax.random.key(1), 40), draw(jax.random.key(2), 30, load=0.3)
    clusters = jnp.arange(70)
    alone = shift_test(
        jax.random.key(0), held_out, targets, clusters=clusters, num_clusters=80,
        num_permutations=59,
    )  # fmt: skip
    padded = jax.tree.map(
        lambda x: jnp.concatenate([x, jnp.full((9, *x.shape[1:]), jnp.nan)]), targets
    )
    masked = shift_test(
        jax.random.key(0), held_out, padded, target_where=jnp.arange(39) < 30,
        clusters=jnp.concatenate([clusters, jnp.zeros(9, clusters.dtype)]), num_clusters=80,
        num_permutations=59,
    )  # fmt: skip
    for a, b in zip(alone, masked, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    nobody = shift_test(
        jax.random.key(0), held_out, padded, target_where=jnp.zeros(39, bool),
        clusters=jnp.concatenate([clusters, jnp.zeros(9, clusters.dtype)]), num_clusters=80,
        num_permutations=59,
    )  # fmt: skip
    assert jnp.isnan(nobody.p_value)


def test_under_hard_routing_disagreement_never_moves():
    def hard(key):
        config = draw(key)
        experts = jax.nn.log_softmax(jax.random.normal(key, (SIZE, 2, 3)))
        chosen = jax.nn.one_hot(jnp.argmax(config.routing_weights, axis=1), 2)
        return cm.configuration(experts, chosen)

    sides = hard(jax.random.key(0)), hard(jax.random.key(1))
    found = shift_test(jax.random.key(2), *sides, num_permutations=99)
    assert found.disagreement == 1
    assert 0 < found.p_value <= 1


def test_nan_and_empty_sides_are_nan():
    held_out = draw(jax.random.key(0))
    spoilt = held_out._replace(confidence=held_out.confidence.at[3].set(jnp.nan))
    empty = jax.tree.map(lambda x: x[:0], held_out)
    for targets in (spoilt, empty):
        found = shift_test(jax.random.key(1), held_out, targets, num_permutations=19)
        assert jnp.isnan(found.p_value)


def test_bad_input_is_named():
    sides = draw(jax.random.key(0)), draw(jax.random.key(1))
    with pytest.raises(ValueError, match="num_permutations must be at least 19"):
        cm.shift.configuration_shift_test(jax.random.key(0), *sides, num_permutations=5)
    with pytest.raises(ValueError, match="num_clusters must be given"):
        cm.shift.configuration_shift_test(
            jax.random.key(0), *sides, clusters=jnp.zeros(2 * SIZE, jnp.int32)
        )


@pytest.mark.parametrize("outside", [-1, 10, 2**31 - 1])
def test_a_cluster_out_of_range_gives_nan_where_it_counts(outside):
    held_out, targets = (draw(key, 40) for key in jax.random.split(jax.random.key(5)))
    clusters = jnp.arange(80) // 8
    options = {"num_clusters": 10, "num_permutations": 99}
    others = jnp.arange(40) != 39
    key = jax.random.key(6)
    bad = clusters.at[79].set(outside)
    found = shift_test(key, held_out, targets, clusters=bad, **options)
    assert all(jnp.isnan(x) for x in found)
    masked, clean = (
        shift_test(key, held_out, targets, clusters=x, target_where=others, **options)
        for x in (bad, clusters)
    )
    np.testing.assert_array_equal(masked, clean)
    assert not jnp.isnan(clean.p_value)


def test_statistics_far_from_0_are_tested_as_the_near():
    held_out, targets = (
        draw(key, 40, sharpness=s)
        for key, s in zip(jax.random.split(KEYS[0, 0]), (1.0, 1.6), strict=True)
    )
    key = jax.random.key(7)

    def moved(config, far):
        # the differences of the far numbers are exactly those of the near
        rough = (config.routing_weights * 16).round() / 16
        return config._replace(routing_weights=rough + far)

    near, far = (
        shift_test(key, moved(held_out, x), moved(targets, x), num_permutations=99)
        for x in (0.0, 2.0**17)
    )
    np.testing.assert_allclose(far, near, atol=1e-6)
