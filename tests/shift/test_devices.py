"""Estimates and tests on examples that are sharded over devices against one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import assert_devices_agree
from dispatching import exhaustive

import calmoe_jax as cm

SIZE = 28  # seven a device: folds by position on the device alone would differ


def draw(seed=0):
    rng = np.random.RandomState(seed)
    rows = jnp.asarray(rng.randn(SIZE, 3), jnp.float32)
    where = jnp.asarray(np.arange(SIZE) % 7 < np.arange(SIZE) // 7 * 2 + 1)
    return rows, rows[::-1] + 0.5, where


def configurations(rows):
    experts = jax.nn.log_softmax(jnp.stack([rows, 2 * rows[:, ::-1]], axis=1))
    return cm.configuration(experts, jax.nn.softmax(rows[:, :2]))


def classes(rows):
    return jnp.argmax(rows, axis=-1)


# Numbers of targets on several devices.
DRAWN = jnp.array([3, 26, 11, 17, 0, -1])
# All that count, of every device, in another order.
DRAWN_OF_MANY = jnp.array([22, 7, 24, 0, 14, 8, 21, 16, 23, 9, 15, 25, -1, 26])


def labelled(a, b, w, axis_name=None):
    """A repair with labels, peers and coordinates, by draws of targets on several devices."""
    del w
    evidence = [
        cm.shift.estimators.Evidence(2 * x, jnp.stack([x + 0.4, 0.5 * x - x**2]), x) for x in (a, b)
    ]
    # targets are wrong on one side of a line
    off = jnp.where(b[:, :1] > 0.3, jnp.roll(b, 1, axis=1), b)
    truth = [classes(x).astype(jnp.int32) for x in (a, off)]
    guess = cm.shift.few_labels.correctness_model(
        evidence[0], truth[0], evidence[1], num_neighbours=3, axis_name=axis_name
    )
    return cm.shift.repair_with_labels(
        evidence[0],
        truth[0],
        evidence[1],
        truth[1],
        DRAWN,
        correctness=guess,
        weights=1 + jax.nn.sigmoid(a[:, 0]),
        chances=jax.nn.sigmoid(b[:, 1]),
        axis_name=axis_name,
    )


def refitted(a, b, w, axis_name=None):
    """A refit to draws of targets on several devices; targets are wrong on one side of a line."""

    def sample(rows, sharpness):
        experts = jnp.stack([2 * rows, sharpness * rows[:, ::-1]], axis=1)
        return cm.shift.repair.Sample(jax.nn.log_softmax(experts), jax.nn.softmax(2 * rows[:, :2]))

    off = jnp.where(b[:, :1] > 0.3, jnp.roll(b, 1, axis=1), b)
    return cm.shift.repair.refit_with_labels(
        sample(a, 1.0), classes(a).astype(jnp.int32), sample(b, 4.0),
        classes(off).astype(jnp.int32), DRAWN_OF_MANY, temperature=jnp.array(1.0),
        target_where=w, chances=jax.nn.sigmoid(b[:, 1]), tolerance=2.0, axis_name=axis_name,
    )  # fmt: skip


FUNCTIONS = {
    "repair_with_labels": labelled,
    "refit_with_labels": refitted,
    "label_chances": lambda a, b, w, axis_name=None: cm.shift.few_labels.label_chances(
        jax.nn.sigmoid(a[:, 0]), where=w, weights=jax.nn.sigmoid(b[:, 0]), axis_name=axis_name
    ),
    "draw_units": lambda a, b, w, axis_name=None: cm.shift.few_labels.draw_units(
        jax.random.key(3), jax.nn.sigmoid(a[:, 0]), num_draws=9, axis_name=axis_name
    ),
    "confidence_gap_sequence": lambda a, b, w, axis_name=None: (
        cm.shift.few_labels.confidence_gap_sequence(
            jax.nn.sigmoid(a[:, 0]), (b[:, 0] > 0.3).astype(a.dtype), jnp.array([2, 0, 6]),
            correctness=jax.nn.sigmoid(a[:, 1]), weights=jax.nn.sigmoid(b[:, 1]), where=w,
            # clusters that go over devices
            units=jnp.floor(jnp.abs(a[:, 2]) * 5).astype(jnp.int32) % 7, num_units=7,
            chances=jnp.arange(1.0, 8), axis_name=axis_name,
        )
    ),
    "chance_corrected_agreement": lambda a, b, w, axis_name=None: (
        cm.shift.chance_corrected_agreement(
            jnp.stack([classes(a), classes(a + 0.3 * b)]), num_classes=3, where=w,
            axis_name=axis_name,
        )
    ),
    "mean_confidence": lambda a, b, w, axis_name=None: cm.shift.mean_confidence(
        a, 1.5, where=w, axis_name=axis_name
    ),
    "match_confidence": lambda a, b, w, axis_name=None: cm.shift.match_confidence(
        a, 0.6, where=w, axis_name=axis_name
    ),
    "average_threshold_accuracy": lambda a, b, w, axis_name=None: (
        cm.shift.average_threshold_accuracy(
            jax.nn.sigmoid(a[:, 0]), a[:, 1] > -0.5, jax.nn.sigmoid(b[:, 0]), target_where=w,
            axis_name=axis_name,
        )
    ),
    "separability": lambda a, b, w, axis_name=None: cm.shift.separability(
        a, b, target_where=w, axis_name=axis_name
    ),
    "configuration_balance": lambda a, b, w, axis_name=None: cm.shift.configuration_balance(
        a, b, target_where=w, axis_name=axis_name
    )._replace(num_steps=jnp.zeros(()), duality_gap=jnp.zeros(()), residual=jnp.zeros(())),
    "neighbour_support": lambda a, b, w, axis_name=None: cm.shift.neighbour_support(
        b, classes(b), a, classes(a), num_classes=3, where=w, num_neighbours=3,
        axis_name=axis_name,
    ),
    "configuration_shift_test": lambda a, b, w, axis_name=None: cm.shift.configuration_shift_test(
        jax.random.key(0), configurations(a), configurations(b), target_where=w,
        num_permutations=39, axis_name=axis_name,
    ),
}  # fmt: skip


def test_a_refit_on_devices_deploys_something():
    """What is never chosen would agree whatever the devices see."""
    found = refitted(*draw())
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    assert found.chosen >= 0
    assert abs(found.temperature - 1) + jnp.abs(found.expert_temperatures - 1).sum() > 0.1


BY_DEFAULT = (
    "repair_with_labels",
    "refit_with_labels",
    "separability",
    "configuration_shift_test",
    "neighbour_support",
)


def test_what_labels_show_on_devices_is_a_number():
    """NaN would agree with NaN."""
    found = labelled(*draw())
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    assert found.lower < found.upper
    assert found.combined > 1.1  # a search over all devices' targets
    assert found.num_labels == 5


@pytest.mark.parametrize(
    "name", [*BY_DEFAULT, *exhaustive(*sorted(set(FUNCTIONS) - {*BY_DEFAULT}))]
)
def test_devices_give_what_one_gives(name):
    assert_devices_agree(FUNCTIONS[name], *draw(), rtol=1e-4, atol=1e-5)


def test_neighbours_and_clusters_of_other_devices_are_seen():
    rows, _, where = draw()
    clusters = jnp.arange(SIZE) // 4  # across devices

    def support(rows, clusters, where, axis_name=None):
        return cm.shift.neighbour_support(
            rows, classes(rows), rows, classes(rows + 0.2), num_classes=3, num_neighbours=3,
            clusters=clusters, num_clusters=7, reference_clusters=clusters, where=where,
            axis_name=axis_name,
        )  # fmt: skip

    assert_devices_agree(support, rows, clusters, where)

    def tested(rows, targets, clusters, axis_name=None):
        return cm.shift.configuration_shift_test(
            jax.random.key(0), configurations(rows), configurations(targets),
            clusters=jnp.concatenate([clusters, 7 + clusters]), num_clusters=14,
            num_permutations=39, axis_name=axis_name,
        )  # fmt: skip

    assert_devices_agree(tested, rows, rows[::-1] + 0.5, clusters)


ROWS, WRONG = jnp.ones((4, 2)), jnp.ones((4, 1), bool)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("where", lambda w: cm.shift.chance_corrected_agreement(
            jnp.zeros((2, 4), int), num_classes=2, where=w)),
        ("where", lambda w: cm.shift.mean_confidence(ROWS, 1.0, where=w)),
        ("where", lambda w: cm.shift.match_confidence(ROWS, 0.6, where=w)),
        ("target_where", lambda w: cm.shift.average_threshold_accuracy(
            ROWS[:, 0], ROWS[:, 0], ROWS[:, 0], target_where=w)),
        ("target_where", lambda w: cm.shift.separability(ROWS, ROWS, target_where=w)),
        ("where", lambda w: cm.shift.configuration_balance(ROWS, ROWS, where=w)),
        ("target_where", lambda w: cm.shift.configuration_balance(ROWS, ROWS, target_where=w)),
        ("where", lambda w: cm.shift.neighbour_support(
            ROWS, jnp.zeros(4, int), ROWS, jnp.zeros(4, int), num_classes=2, where=w)),
        ("target_where", lambda w: cm.shift.configuration_shift_test(
            jax.random.key(0), *[configurations(jnp.ones((4, 3)))] * 2, target_where=w)),
    ],
)  # fmt: skip
def test_a_mask_has_the_shape_of_what_it_masks(name, call, unchecked):
    for wrong in (WRONG, jnp.ones(3, bool)):
        with pytest.raises(ValueError, match=rf"{name} must have the (axes|shape)"):
            call(wrong)
