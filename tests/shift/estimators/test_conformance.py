"""Laws that every estimator of accuracy obeys."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import assert_devices_agree
from evidence import CLASSES, draw, map_rows

import calmoe_jax as cm
from calmoe_jax.shift.estimators import ESTIMATORS, Evidence

HELD_OUT, TARGETS = 120, 96
# Folds are by position: another order of the examples makes others.
IN_FOLDS = {"density_ratio", "separability", "confidence_conditional_by_peers"}
BOUNDS = {"disagreeing_critics"}
NEEDS = {
    "seed_agreement": ("peers",),
    "confidence_conditional": ("peers", "coordinates"),
    "confidence_conditional_by_peers": ("peers", "coordinates"),
    **dict.fromkeys(
        ("neighbours", "density_ratio", "separability", "disagreeing_critics"), ("coordinates",)
    ),
}

every_estimator = pytest.mark.parametrize("name", sorted(ESTIMATORS))


@functools.cache
def compiled(name):
    return jax.jit(ESTIMATORS[name])


@functools.cache
def samples(seed=0):
    """Held-out evidence, labels, and targets that are less sure and look a little different."""
    held_out, labels = draw(HELD_OUT, seed)
    targets, _ = draw(TARGETS, seed + 1, sharpness=1.2, noise=0.6, offset=0.2)
    return held_out, labels, targets


def agree(found, expected, tolerance=1e-5):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance)


@every_estimator
def test_without_a_shift_the_estimate_is_the_accuracy(name):
    held_out, labels = draw(1200, 3)
    targets, own = draw(1200, 4)
    accuracy = float(jnp.mean(jnp.argmax(targets.log_probs, axis=-1) == own))
    found = compiled(name)(held_out, labels, targets).accuracy
    if name in BOUNDS:
        assert accuracy - 0.25 < found < accuracy
    else:
        assert abs(found - accuracy) < 0.04


@pytest.mark.exhaustive
@every_estimator
def test_targets_on_which_nothing_is_sure_have_a_lower_estimate(name):
    held_out, labels = draw(HELD_OUT)
    same, _ = draw(TARGETS, 1)
    unsure, _ = draw(TARGETS, 1, sharpness=0.2, noise=2.0)
    rng = np.random.RandomState(5)
    elsewhere = jnp.asarray(3 * rng.randn(*unsure.coordinates.shape) - 1, jnp.float32)
    before = compiled(name)(held_out, labels, same).accuracy
    after = compiled(name)(held_out, labels, unsure._replace(coordinates=elsewhere)).accuracy
    assert 0 <= after < before - 0.1


@pytest.mark.exhaustive
@every_estimator
def test_the_order_of_examples_does_not_matter(name):
    held_out, labels, targets = samples()
    expected = compiled(name)(held_out, labels, targets)
    first, second = (np.random.RandomState(i).permutation(n) for i, n in ((0, 120), (1, 96)))
    found = compiled(name)(
        map_rows(lambda x: x[first], held_out),
        labels[first],
        map_rows(lambda x: x[second], targets),
    )
    agree(found, expected, 0.05 if name in IN_FOLDS else 1e-5)


@pytest.mark.exhaustive
@every_estimator
def test_the_names_of_classes_do_not_matter(name):
    held_out, labels, targets = samples()
    order = jnp.array([2, 0, 1])

    def renamed(evidence):
        return evidence._replace(
            log_probs=evidence.log_probs[:, order], peers=evidence.peers[..., order]
        )

    found = compiled(name)(renamed(held_out), jnp.argsort(order)[labels], renamed(targets))
    agree(found, compiled(name)(held_out, labels, targets))


@pytest.mark.exhaustive
@every_estimator
def test_logits_are_as_good_as_log_probabilities(name):
    held_out, labels, targets = samples()

    def moved(evidence):
        by = jnp.linspace(-5, 5, len(evidence.log_probs))
        return evidence._replace(
            log_probs=evidence.log_probs + by[:, None], peers=evidence.peers - by[None, :, None]
        )

    found = compiled(name)(moved(held_out), labels, moved(targets))
    agree(found, compiled(name)(held_out, labels, targets), 1e-4)


@every_estimator
def test_examples_that_do_not_count_are_as_if_they_were_not_there(name):
    held_out, labels, targets = samples()
    masks = [np.random.RandomState(i).rand(n) < 0.7 for i, n in ((0, 120), (1, 96))]
    spoiled = [
        map_rows(lambda x, m=m: x.at[~m].set(jnp.nan), e)._replace(where=jnp.asarray(m))
        for e, m in zip((held_out, targets), masks, strict=True)
    ]
    found = compiled(name)(spoiled[0], labels.at[~masks[0]].set(-3), spoiled[1])
    kept = [
        map_rows(lambda x, m=m: x[m], e) for e, m in zip((held_out, targets), masks, strict=True)
    ]
    agree(found, compiled(name)(kept[0], labels[masks[0]], kept[1]))


@pytest.mark.exhaustive
@every_estimator
def test_seeds_and_splits_at_once_are_a_loop(name):
    several = [samples(seed) for seed in (0, 10, 20)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *several)
    found = jax.jit(jax.vmap(ESTIMATORS[name]))(*stacked)
    for i, one in enumerate(several):
        expected = compiled(name)(*one)
        agree([x[i] for x in found], expected)
    splits = jax.tree.map(lambda *x: jnp.stack(x), *(s[2] for s in several))
    held_out, labels, _ = several[0]
    found = jax.jit(jax.vmap(ESTIMATORS[name], in_axes=(None, None, 0)))(held_out, labels, splits)
    agree([x[2] for x in found], compiled(name)(held_out, labels, several[2][2]))


@pytest.mark.exhaustive
@every_estimator
def test_compiled_or_not(name):
    agree(ESTIMATORS[name](*samples()), compiled(name)(*samples()))


@every_estimator
def test_devices_give_what_one_gives(name):
    held_out, labels, targets = samples()
    where = [jnp.arange(n) % 5 < 3 + jnp.arange(n) // 50 for n in (HELD_OUT, TARGETS)]

    def with_rows_first(log_probs, peers, coordinates, where):
        return Evidence(log_probs, jnp.moveaxis(peers, 1, 0), coordinates, where)

    def estimate(held_out, labels, targets, axis_name=None):
        return ESTIMATORS[name](
            with_rows_first(*held_out), labels, with_rows_first(*targets), axis_name=axis_name
        )

    parts = [
        (e.log_probs, jnp.moveaxis(e.peers, 0, 1), e.coordinates, w)
        for e, w in zip((held_out, targets), where, strict=True)
    ]
    assert_devices_agree(estimate, parts[0], labels, parts[1], rtol=1e-4, atol=1e-4)


@every_estimator
def test_what_is_not_known_is_reported(name):
    held_out, labels, targets = samples()
    call = compiled(name)
    fields = ("log_probs", *NEEDS.get(name, ()))
    for field in fields:
        for i, evidence in enumerate((held_out, targets)):
            array = getattr(evidence, field)
            spoiled = evidence._replace(**{field: array.at[..., 3, 1].set(jnp.nan)})
            given = (spoiled, labels, targets) if i == 0 else (held_out, labels, spoiled)
            assert jnp.isnan(jnp.stack(call(*given))).all(), (field, i)
    for label in (-1, CLASSES):
        assert jnp.isnan(jnp.stack(call(held_out, labels.at[5].set(label), targets))).all()
    for i, evidence in enumerate((held_out, targets)):
        nothing = evidence._replace(where=jnp.zeros(len(evidence.log_probs), bool))
        given = (nothing, labels, targets) if i == 0 else (held_out, labels, nothing)
        assert jnp.isnan(jnp.stack(call(*given))).all()


@pytest.mark.exhaustive
@every_estimator
def test_no_examples_at_all(name):
    held_out, labels, targets = samples()
    nobody = map_rows(lambda x: x[:0], targets)
    assert jnp.isnan(jnp.stack(compiled(name)(held_out, labels, nobody))).all()
    nothing = map_rows(lambda x: x[:0], held_out)
    assert jnp.isnan(jnp.stack(compiled(name)(nothing, labels[:0], targets))).all()


@pytest.mark.parametrize("name", sorted(NEEDS))
@pytest.mark.every_case
def test_missing_evidence_is_named(name):
    held_out, labels, targets = samples()
    for field in NEEDS[name]:
        without = targets._replace(**{field: None})
        with pytest.raises(ValueError, match=rf"targets\.{field} must be given"):
            ESTIMATORS[name](held_out, labels, without)
        without = held_out._replace(**{field: None})
        with pytest.raises(ValueError, match=rf"held_out\.{field} must be given"):
            ESTIMATORS[name](without, labels, targets)


@pytest.mark.every_case
@every_estimator
def test_only_what_is_needed_is_needed(name):
    held_out, labels, targets = samples()
    absent = {"peers", "coordinates"} - set(NEEDS.get(name, ()))
    without = [e._replace(**dict.fromkeys(absent)) for e in (held_out, targets)]
    shapes = jax.eval_shape(ESTIMATORS[name], without[0], labels, without[1])
    assert [x.shape for x in shapes] == [(), ()]


@pytest.mark.exhaustive
@every_estimator
def test_sizes_that_do_not_match(name):
    held_out, labels, targets = samples()
    estimator = ESTIMATORS[name]
    with pytest.raises(ValueError, match="labels must have the held-out examples=120"):
        estimator(held_out, labels[:-1], targets)
    fewer = targets._replace(log_probs=targets.log_probs[:, :2], peers=targets.peers[..., :2])
    with pytest.raises(ValueError, match=r"targets\.log_probs must have the held-out classes=3"):
        estimator(held_out, labels, fewer)
    with pytest.raises(ValueError, match=r"targets\.where must have the axes"):
        estimator(held_out, labels, targets._replace(where=jnp.ones(5, bool)))
    for field, axis in (("peers", 0), ("coordinates", 1)):
        if field in NEEDS.get(name, ()):
            other = jnp.take(getattr(targets, field), jnp.arange(1), axis=axis)
            with pytest.raises(ValueError, match=rf"targets\.{field} must have the held-out"):
                estimator(held_out, labels, targets._replace(**{field: other}))


def test_the_mapping_names_the_public_functions():
    for name, estimator in ESTIMATORS.items():
        assert getattr(cm.shift.estimators, name) is estimator
