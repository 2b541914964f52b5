"""Features of texts: TF-IDF and its leading directions, from the training texts alone."""

import re

import numpy as np
import pytest
from texts import babble, of_texts

from calmoe_jax import data
from calmoe_jax.data.local import text


def weights_by_loop(texts, vocabulary, frequencies, count):
    rows = []
    for words in (re.findall(r"\w\w+|[^\w\s]+", t.lower()) for t in texts):
        row = np.zeros(len(vocabulary))
        for i, word in enumerate(vocabulary):
            times = words.count(word)
            if times:
                row[i] = (1 + np.log(times)) * (1 + np.log((1 + count) / (1 + frequencies[i])))
        rows.append(row / max(np.linalg.norm(row), 1e-30))
    return np.array(rows)


def test_features_equal_a_loop_and_a_full_singular_value_decomposition():
    # no more words than singular vectors are sought, so that the randomised method is exact
    rng = np.random.RandomState(0)
    vocabulary = sorted([f"w{i:03d}" for i in range(130)] + [":)", "!!!"])
    texts = [" ".join(rng.choice(vocabulary, 12)) for _ in range(300)]
    texts += [f"a rare{i // 2}, W000" for i in range(5)]  # two texts do not make a word known
    others = ["W000 w001 w001 :)", "unknown", "", "w002?w003 !!!"]
    bags = [set(re.findall(r"\w\w+|[^\w\s]+", t.lower())) for t in texts]
    known = sorted([*vocabulary, ","])
    frequencies = [sum(word in bag for bag in bags) for word in known]
    weights = weights_by_loop(texts, known, frequencies, len(texts))
    basis = np.linalg.svd(weights, full_matrices=False)[2][:128]
    for vector in basis:
        vector *= np.sign(vector[np.abs(vector).argmax()])
    unit = np.sqrt(np.mean(np.sum((weights @ basis.T) ** 2, axis=1)))
    train, other = text.with_features(
        of_texts("train", texts), (of_texts("other", others),), where="nowhere"
    )
    np.testing.assert_allclose(train.inputs, weights @ basis.T / unit, atol=2e-6)
    expected = weights_by_loop(others, known, frequencies, len(texts)) @ basis.T / unit
    np.testing.assert_allclose(other.inputs, expected, atol=2e-6)
    assert not other.inputs[1:3].any()
    assert np.mean(np.sum(train.inputs.astype(float) ** 2, axis=1)) == pytest.approx(1, rel=1e-5)


def test_the_directions_are_nearly_the_best_ones():
    rng = np.random.RandomState(0)
    texts = [babble(rng, f"t{i % 5}") for i in range(400)]
    bags = [set(t.split()) for t in texts]
    frequencies = {w: sum(w in bag for bag in bags) for w in sorted(set.union(*bags))}
    known = [w for w, texts_with in frequencies.items() if texts_with >= 3]
    assert len(known) > 300  # many more than 128: the randomised method is not exact
    weights = weights_by_loop(texts, known, [frequencies[w] for w in known], len(texts))
    best = np.linalg.svd(weights, compute_uv=False)[:128]
    train, same = text.with_features(
        of_texts("train", texts), (of_texts("same", texts),), where="nowhere"
    )
    assert (train.inputs == same.inputs).all()
    strength = np.linalg.norm(train.inputs, axis=0)
    np.testing.assert_allclose(
        strength / np.linalg.norm(strength), best / np.linalg.norm(best), rtol=0.06
    )


def test_the_sign_of_a_direction_does_not_depend_on_the_solver(monkeypatch):
    import sklearn.decomposition

    class Flipped(sklearn.decomposition.TruncatedSVD):
        def fit(self, x):
            super().fit(x)
            self.components_ = self.components_ * np.where(np.arange(128) % 3, 1, -1)[:, None]
            return self

    rng = np.random.RandomState(0)
    texts = of_texts("train", [babble(rng, f"t{i % 5}") for i in range(200)])
    (ours,) = text.with_features(texts, (), where="nowhere")
    monkeypatch.setattr(sklearn.decomposition, "TruncatedSVD", Flipped)
    (flipped,) = text.with_features(texts, (), where="nowhere")
    assert (ours.inputs == flipped.inputs).all()


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["one two three"] * 200, "200 texts and 3 words"),
        (["", " "] * 100, "200 texts and 0 words"),
        ([f"word{i}" for i in range(200)], "200 texts and 0 words"),
        (["one two"], "1 texts and 0 words"),
        ([" ".join(f"word{i}" for i in range(300))] * 128, "128 texts and 300 words"),
    ],
)
def test_too_few_words_name_the_file(texts, message):
    with pytest.raises(data.CorruptDataError, match=rf"^some/file: more than 128 .*{message}"):
        text.with_features(of_texts("train", texts), (), where="some/file")
