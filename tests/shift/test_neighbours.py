"""Support by labelled neighbours against loops, and the accuracy estimated from it."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import calmoe_jax as cm

pytestmark = pytest.mark.exhaustive

CLASSES = 3


def draw(size, seed=0, dimensions=4):
    """Coordinates around a direction for each class, labels, and predictions that often agree."""
    rng = np.random.RandomState(seed)
    labels = rng.randint(CLASSES, size=size)
    points = 2 * np.eye(dimensions)[labels] + rng.randn(size, dimensions)
    predicted = np.where(rng.rand(size) < 0.8, labels, rng.randint(CLASSES, size=size))
    return points.astype(np.float32), predicted, labels


def support_by_loops(points, predicted, references, labels, clusters, own, counted, k):
    """`own`: clusters of the references, or None."""
    shares = np.full(len(points), np.nan)
    for i in range(len(points)):
        cosines = []
        for j in range(len(references)):
            if own is None or own[j] != clusters[i]:
                lengths = np.linalg.norm(points[i]) * np.linalg.norm(references[j])
                cosines.append((-points[i] @ references[j] / lengths, j))
        nearest = [j for _, j in sorted(cosines)[:k]]
        shares[i] = np.mean([labels[j] == predicted[i] for j in nearest])
    kept = shares[counted]
    sums = [np.sum((kept - kept.mean())[clusters[counted] == c]) for c in set(clusters[counted])]
    error = math.sqrt(np.sum(np.square(sums)) * len(sums) / (len(sums) - 1)) / len(kept)
    chance = sum(np.mean(predicted[counted] == c) * np.mean(labels == c) for c in range(CLASSES))
    return kept.mean(), chance, error


@functools.partial(jax.jit, static_argnames=("num_neighbours", "num_clusters"))
def support(points, predicted, references, labels, num_neighbours=7, **options):
    return cm.shift.neighbour_support(
        points, predicted, references, labels, num_classes=CLASSES,
        num_neighbours=num_neighbours, **options,
    )  # fmt: skip


def arrays(size, seed=0):
    points, predicted, labels = draw(size, seed)
    return jnp.asarray(points), jnp.asarray(predicted, jnp.int32), jnp.asarray(labels, jnp.int32)


@pytest.mark.parametrize("k", [1, 7, 500])
def test_support_equals_a_loop(k):
    points, predicted, _ = draw(300, 1)  # more than a batch
    references, _, labels = draw(90)
    clusters = np.random.RandomState(2).randint(40, size=300)
    counted = np.arange(300) % 5 != 0
    found = support(
        *map(jnp.asarray, (points, predicted, references, labels)), num_neighbours=k,
        clusters=jnp.asarray(clusters), num_clusters=40, where=jnp.asarray(counted),
    )  # fmt: skip
    expected = support_by_loops(
        points, predicted, references, labels, clusters, None, counted, min(k, 90)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_no_example_is_supported_by_its_own_cluster():
    points, predicted, labels = draw(120)
    clusters = np.arange(120) // 3
    every = np.ones(120, bool)
    given = [jnp.asarray(x) for x in (points, predicted, points, labels)]
    found = support(
        *given, clusters=jnp.asarray(clusters), num_clusters=40,
        reference_clusters=jnp.asarray(clusters),
    )  # fmt: skip
    expected = support_by_loops(points, predicted, points, labels, clusters, clusters, every, 7)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    alone = jnp.arange(120)
    itself = support(*given, clusters=alone, num_clusters=120, num_neighbours=1)
    right = np.mean(predicted == labels)
    np.testing.assert_allclose(itself.value, right, rtol=1e-6)  # each is its own neighbour
    others = support(
        *given, clusters=alone, num_clusters=120, reference_clusters=alone, num_neighbours=1
    )
    assert others.value < itself.value
    one = jnp.zeros(120, jnp.int32)
    nobody = support(*given, clusters=one, num_clusters=1, reference_clusters=one)
    assert jnp.isnan(nobody.value)
    together = support(*given, clusters=one, num_clusters=1)
    assert together.standard_error == jnp.inf


def test_references_that_do_not_count_are_as_if_they_were_not_there():
    points, predicted, _ = arrays(60, 1)
    references, _, labels = arrays(90)
    counted = np.arange(90) % 3 > 0
    spoiled = references.at[~counted].set(jnp.nan), labels.at[~counted].set(-7)
    found = support(points, predicted, *spoiled, reference_where=jnp.asarray(counted))
    expected = support(points, predicted, references[counted], labels[counted])
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    shares = cm.shift.neighbour_shares(
        points, predicted, *spoiled, reference_where=jnp.asarray(counted), num_neighbours=7
    )
    np.testing.assert_allclose(jnp.mean(shares), found.value, rtol=1e-6)
    nobody = support(points, predicted, references, labels, reference_where=jnp.zeros(90, bool))
    assert jnp.isnan(nobody.value)


def test_independent_examples_have_the_error_of_a_mean():
    given = (*arrays(200, 1)[:2], *(arrays(90)[i] for i in (0, 2)))
    plain = support(*given)
    numbered = support(*given, clusters=jnp.arange(200), num_clusters=200)
    for a, b in zip(plain, numbered, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_only_directions_matter(scale):
    points, predicted, _ = arrays(50, 1)
    references, _, labels = arrays(90)
    expected = support(points, predicted, references, labels)
    found = support(points * scale, predicted, references * scale, labels)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    order = np.random.RandomState(0).permutation(90)
    shuffled = support(points, predicted, references[order], labels[order])
    np.testing.assert_allclose(shuffled.value, expected.value, rtol=1e-6)


def test_ties_go_to_the_earlier_reference():
    points, references = jnp.array([[1.0, 0.0], [0.0, 0.0]]), jnp.ones((4, 2))
    labels = jnp.array([2, 2, 0, 0])
    found = support(points, jnp.array([2, 2]), references, labels, num_neighbours=2)
    assert found.value == 1


def test_what_does_not_count_may_be_anything():
    points, predicted, _ = arrays(60, 1)
    references, _, labels = arrays(90)
    counted = jnp.arange(60) != 3
    expected = support(points, predicted, references, labels, where=counted)
    given = points.at[3].set(jnp.nan), predicted.at[3].set(99)
    found = support(*given, references, labels, where=counted)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert jnp.isnan(support(*given, references, labels).value)
    assert jnp.isnan(support(points, predicted, references.at[0, 0].set(jnp.nan), labels).value)
    for label in (-1, CLASSES):
        assert jnp.isnan(support(points, predicted, references, labels.at[0].set(label)).value)
    nothing = support(points, predicted, references, labels, where=jnp.zeros(60, bool))
    assert jnp.isnan(nothing.value)
    for empty in (
        support(points[:0], predicted[:0], references, labels),
        support(points, predicted, references[:0], labels[:0]),
    ):
        assert jnp.isnan(empty.value)


def test_transforms_agree():
    points, predicted, _ = arrays(40, 1)
    references, _, labels = arrays(30)
    eager = cm.shift.neighbour_support(points, predicted, references, labels, num_classes=CLASSES)
    stacked = jnp.stack([points, points[::-1]])
    mapped = jax.jit(
        jax.vmap(lambda p: support(p, predicted, references, labels, num_neighbours=15))
    )(stacked)
    single = support(points, predicted, references, labels, num_neighbours=15)
    for a, b, many in zip(eager, single, mapped, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
        np.testing.assert_allclose(many[0], b, rtol=1e-6)
    rough = support(points.astype(jnp.bfloat16), predicted, references, labels)
    assert rough.value.dtype == jnp.float32


def of(value, chance=0.25, error=0.0):
    return cm.shift.NeighbourSupport(*(jnp.asarray(x) for x in (value, chance, error)))


def test_the_accuracy_follows_the_support():
    accuracy = jnp.asarray(0.9)

    def estimate(held_out, targets):
        return float(cm.shift.neighbour_accuracy(held_out, targets, accuracy))

    whole = of(0.85)
    np.testing.assert_allclose(estimate(whole, whole), 0.9, rtol=1e-6)
    np.testing.assert_allclose(estimate(whole, of(0.95)), 0.9, rtol=1e-6)  # never better
    nu = (0.55 - 0.2) / 0.6
    np.testing.assert_allclose(
        estimate(whole, of(0.55, 0.2)), 0.2 + 0.7 * nu ** (1 + 5 * (1 - nu)), rtol=1e-5
    )
    np.testing.assert_allclose(estimate(whole, of(0.1)), 0.25, rtol=1e-6)  # below chance
    nu = (0.3 + 2 * 0.05) / 0.6  # hypot(.03, .04)
    np.testing.assert_allclose(
        estimate(of(0.85, error=0.03), of(0.55, error=0.04)),
        0.25 + 0.65 * nu ** (1 + 5 * (1 - nu)),
        rtol=1e-5,
    )
    np.testing.assert_allclose(estimate(whole, of(0.3, error=math.inf)), 0.9, rtol=1e-6)
    falling = [estimate(whole, of(x)) for x in np.linspace(0.85, 0.25, 20)]
    assert (np.diff(falling) < 0).all()
    for silent in (of(0.25), of(0.2), of(math.nan)):
        assert math.isnan(estimate(silent, whole))
    assert math.isnan(estimate(whole, of(math.nan)))


def test_growth_and_margin_of_the_accuracy():
    whole, part, accuracy = of(0.85, error=0.03), of(0.55, error=0.04), jnp.asarray(0.9)
    plain = cm.shift.neighbour_accuracy(whole, part, accuracy, growth=0.0, margin=0.0)
    np.testing.assert_allclose(plain, 0.25 + 0.65 * (0.3 / 0.6), rtol=1e-6)
    # of one cluster alone the error is infinite; without a margin that does not matter
    single = cm.shift.neighbour_accuracy(
        whole, of(0.55, error=math.inf), accuracy, growth=0.0, margin=0.0
    )
    np.testing.assert_allclose(single, plain, rtol=1e-6)
    nu = (0.3 + 0.05) / 0.6
    found = cm.shift.neighbour_accuracy(whole, part, accuracy, growth=2.0, margin=1.0)
    np.testing.assert_allclose(found, 0.25 + 0.65 * nu ** (1 + 2 * (1 - nu)), rtol=1e-6)
    for options in ({"growth": -1.0}, {"margin": -0.5}):
        (name, value), *_ = options.items()
        with pytest.raises(ValueError, match=f"{name} must be non-negative.*{value}"):
            cm.shift.neighbour_accuracy(whole, part, accuracy, **options)


def test_it_sees_predictions_that_are_no_longer_right():
    """The classifier trusts two coordinates, which fail; neighbours see two more."""
    rng = np.random.RandomState(0)

    def sample(size, noise):
        labels = rng.randint(2, size=size)
        signal = np.eye(2)[labels]
        trusted = signal + noise * rng.randn(size, 2)
        points = np.concatenate([trusted, signal + 0.4 * rng.randn(size, 2)], axis=1)
        chosen = jnp.asarray(trusted.argmax(axis=1), jnp.int32)
        return jnp.asarray(points, jnp.float32), labels, chosen

    references, labels, predicted = sample(1500, 0.4)
    given = references, jnp.asarray(labels, jnp.int32)
    alone = jnp.arange(1500)
    held_out = cm.shift.neighbour_support(
        references, predicted, *given, num_classes=2, clusters=alone, num_clusters=1500,
        reference_clusters=alone,
    )  # fmt: skip
    accuracy = np.mean(predicted == labels)
    found = []
    for noise in (0.4, 0.7, 1.2):
        points, truth, chosen = sample(1500, noise)
        borne = cm.shift.neighbour_support(points, chosen, *given, num_classes=2)
        estimate = cm.shift.neighbour_accuracy(held_out, borne, jnp.asarray(accuracy, jnp.float32))
        found.append((float(estimate), np.mean(chosen == truth)))
    estimates, truths = zip(*found, strict=True)
    assert truths[0] - truths[2] > 0.2
    np.testing.assert_allclose(estimates, truths, atol=0.1)
    assert estimates[0] > truths[0] - 0.02
    assert estimates[0] - estimates[2] > (truths[0] - truths[2]) / 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, "num_classes must be at least 2"),
        ({"num_neighbours": 0}, "num_neighbours must be at least 1"),
        ({"num_clusters": 3}, "must be given together, got num_clusters alone"),
        ({"clusters": jnp.arange(4)}, "must be given together, got clusters alone"),
        ({"reference_clusters": jnp.arange(4)}, "must be given with clusters"),
    ],
)
def test_bad_options(options, message):
    zeros = jnp.zeros(4, jnp.int32)
    with pytest.raises(ValueError, match=message):
        cm.shift.neighbour_support(
            jnp.ones((4, 2)), zeros, jnp.ones((4, 2)), zeros, **{"num_classes": 2} | options
        )


def test_bad_shapes_and_labels(unchecked):
    zeros = jnp.zeros(4, jnp.int32)
    with pytest.raises(ValueError, match="references must have"):
        cm.shift.neighbour_support(jnp.ones((4, 2)), zeros, jnp.ones((4, 3)), zeros, num_classes=2)
    with pytest.raises(TypeError, match="labels must be of integers"):
        cm.shift.neighbour_support(
            jnp.ones((4, 2)), zeros, jnp.ones((4, 2)), jnp.zeros(4), num_classes=2
        )
