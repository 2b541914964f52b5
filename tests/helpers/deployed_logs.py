"""Made-up logs of a deployed model whose confidence is too high on the targets, by how much known.

Labels follow a flattened aggregate, that of the targets flatter than that of the held-out examples,
so that the held-out temperature is not 1, and the gap between confidence and accuracy is known for
these very targets.
"""

import csv

import numpy as np

HELD_OUT, TARGETS, EXPERTS, CLASSES = 400, 500, 3, 4
_SHARPNESS = 0.7  # of the held-out labels
# Of the experts of `make_sharpened`.
SHARPNESS = np.array([4.0, 1.0, 1.0])


def make_deployed(*, seed=0, flatter=0.25, targets=TARGETS, alone=False, clusters=None):
    """Arrays of logs without labels of targets, and the labels of all examples."""
    rng = np.random.RandomState(seed)
    total = HELD_OUT + targets
    logits = 2.0 * rng.randn(total, EXPERTS, CLASSES)
    probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    weights = rng.dirichlet(np.ones(EXPERTS), total)
    mixed = np.einsum("nk,nkc->nc", weights, probs)
    is_target = np.arange(total) >= HELD_OUT
    true = mixed ** np.where(is_target, flatter, _SHARPNESS)[:, None]
    true /= true.sum(axis=1, keepdims=True)
    labels = (rng.rand(total)[:, None] > true.cumsum(axis=1)).sum(axis=1)
    if alone:
        arrays = {"probs": mixed.astype(np.float32)}
    else:
        arrays = {
            "expert_probs": probs.astype(np.float32),
            "routing_weights": weights.astype(np.float32),
        }
    arrays["labels"] = np.where(is_target, -1, labels)
    arrays["targets"] = is_target
    if clusters is not None:
        arrays["clusters"] = np.arange(total) // clusters
    return arrays, labels


def make_sharpened():
    """One expert has most of the weight, and the first is far sharper than its labels."""
    arrays, _ = make_deployed(flatter=1.0, targets=3000)
    rng = np.random.RandomState(5)
    chosen = rng.randint(len(SHARPNESS), size=len(arrays["labels"]))
    arrays["routing_weights"] = np.where(np.eye(3)[chosen] > 0, 0.96, 0.02).astype(np.float32)
    experts, weights = arrays["expert_probs"].astype(float), arrays["routing_weights"].astype(float)
    true = np.einsum("nk,nkc->nc", weights, experts)
    labels = (rng.rand(len(true))[:, None] > true.cumsum(axis=1)).sum(axis=1)
    sharp = experts ** SHARPNESS[:, None]
    arrays["expert_probs"] = (sharp / sharp.sum(axis=2, keepdims=True)).astype(np.float32)
    arrays["labels"] = labels
    return arrays, labels


def aggregate(arrays):
    """The aggregate of the logs, by plain NumPy."""
    if "probs" in arrays:
        return arrays["probs"].astype(float)
    return np.einsum(
        "nk,nkc->nc", arrays["routing_weights"].astype(float), arrays["expert_probs"].astype(float)
    )


def gap_at(arrays, labels, temperature, rows):
    """Mean confidence minus accuracy of some rows at a temperature, by plain NumPy."""
    scaled = np.log(aggregate(arrays)[rows]) / temperature
    probs = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    probs /= probs.sum(axis=1, keepdims=True)
    return probs.max(axis=1).mean() - (probs.argmax(axis=1) == labels[rows]).mean()


def rows_of(path):
    """The rows of a list of `calmoe label`."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def fill(path, labels, out, *, edit=None, starts=None):
    """Fills the labels in, edits the rows, and writes them."""
    rows = rows_of(path)
    for row in rows:
        start = 0 if starts is None else starts[row["file"]]
        row["label"] = str(labels[start + int(row["row"])])
    rows = rows if edit is None else edit(rows)
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return out
