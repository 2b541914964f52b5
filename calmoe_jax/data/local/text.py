"""Texts to features: TF-IDF and its leading directions, fitted on the training texts only.

A text becomes the weights of its words and runs of punctuation (":)" is one; sublinear counts times
inverse document frequency, of Euclidean length 1) and then its coordinates on the 128 leading right
singular vectors of the training texts' weights (latent semantic analysis; Deerwester et al. 1990).
The sign of a singular vector is arbitrary: here its largest entry is positive. All coordinates are
divided by one number, the root mean square length of the training texts, so that a typical text has
length 1 and the first directions keep the largest variance. With coordinates of size 1,
eleven times as long, the vanilla mixture is three points less accurate on the tweets of
`sentiment`, and no more accurate on `newsgroups`.

The same texts give the same features on every run. The singular vectors of another BLAS differ in
their last digits; features are rounded to a millionth, which hides that except for numbers close to
an edge of the rounding. Labels, splits and clusters are the same everywhere.
"""

import dataclasses

import numpy as np

from calmoe_jax.data.errors import CorruptDataError
from calmoe_jax.data.task import Split

DIMENSIONS = 128
_VOCABULARY = 20_000
_LEAST_TEXTS = 3  # words of fewer training texts are left out
_WORDS = r"\w\w+|[^\w\s]+"
_POWER_ITERATIONS = 3


def with_features(train: Split, others: tuple[Split, ...], *, where: str) -> tuple[Split, ...]:
    """Replaces texts by features, `train` first.

    Args:
        train: the training split; its `inputs` are texts. The only one that is learned from.
        others: the other splits, of texts too.
        where: the file that the texts are from, for errors.

    Returns:
        The same splits with `[n, 128]` float32 inputs. A text with no known word is all zeros.

    Raises:
        CorruptDataError: if the training texts have too few different words.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(
        max_features=_VOCABULARY,
        sublinear_tf=True,
        min_df=_LEAST_TEXTS,
        token_pattern=_WORDS,
    )
    try:
        weights = words.fit_transform(train.inputs)
    except ValueError:  # no word at all, or none that is frequent enough
        weights = np.zeros((len(train), 0))
    if min(weights.shape) <= DIMENSIONS:
        raise CorruptDataError(
            f"{where}: more than {DIMENSIONS} training texts and as many words that occur in "
            f"{_LEAST_TEXTS} of them are needed, got {weights.shape[0]} texts and "
            f"{weights.shape[1]} words."
        )
    directions = TruncatedSVD(DIMENSIONS, n_iter=_POWER_ITERATIONS, random_state=0).fit(weights)
    basis = directions.components_.T
    basis = basis * np.sign(basis[np.abs(basis).argmax(axis=0), np.arange(DIMENSIONS)])
    unit = np.sqrt(np.mean(np.sum(np.square(weights @ basis), axis=1)))

    def featured(split: Split) -> Split:
        features = words.transform(split.inputs) @ (basis / unit)
        return dataclasses.replace(split, inputs=np.round(features, 6).astype(np.float32))

    return tuple(featured(split) for split in (train, *others))
