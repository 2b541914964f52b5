"""Made-up logs of a mixture of experts, as a file holds them."""

import numpy as np

SIZE, TARGETS, EXPERTS, CLASSES = 240, 180, 3, 4


def make(*, sharper=1.0, seed=0):
    """Held-out logs whose labels follow the aggregate, and targets that are sharper or not."""
    rng = np.random.RandomState(seed)
    total = SIZE + TARGETS
    scale = np.where(np.arange(total) < SIZE, 1.0, sharper)[:, None, None]
    logits = 1.5 * scale * rng.randn(total, EXPERTS, CLASSES)
    probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    weights = rng.dirichlet(np.ones(EXPERTS), total)
    mixed = np.einsum("nk,nkc->nc", weights, probs)
    labels = (rng.rand(total)[:, None] > mixed.cumsum(axis=1)).sum(axis=1)
    return {
        "routing_weights": weights.astype(np.float32),
        "expert_probs": probs.astype(np.float32),
        "labels": labels.astype(np.int64),
        "targets": np.arange(total) >= SIZE,
    }


def write(folder, arrays, name="logs.npz"):
    """Writes them to a file; returns its path."""
    path = folder / name
    np.savez(path, **arrays)
    return path
