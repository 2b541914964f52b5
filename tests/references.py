"""Oracles: the same quantities by plain loops over NumPy arrays in float64."""

import math

import numpy as np


def softmax(x):
    x = np.asarray(x, np.float64)
    shifted = np.exp(x - x.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def top_k_row(logits, k, renormalize=True):
    """Expert indices and weights of one token, with ties to the lower index."""
    order = sorted(range(len(logits)), key=lambda e: (-float(logits[e]), e))[:k]
    scores = [math.exp(logits[e] - max(logits)) for e in range(len(logits))]
    total = sum(scores[e] for e in order) if renormalize else sum(scores)
    return order, [scores[e] / total for e in order]


def load_balancing_loss(gate_probs, expert_indices):
    experts = gate_probs.shape[1]
    slots = np.zeros(experts)
    for row in expert_indices:
        for e in row:
            slots[e] += 1
    share = slots / slots.sum()
    return experts * sum(share[e] * gate_probs[:, e].mean() for e in range(experts))


def mix(expert_probs, weights):
    tokens, experts, classes = expert_probs.shape
    result = np.zeros((tokens, classes))
    for t in range(tokens):
        for e in range(experts):
            for c in range(classes):
                result[t, c] += weights[t, e] * expert_probs[t, e, c]
    return result


def disagreement(expert_probs, weights):
    aggregate = mix(expert_probs, weights)
    tokens, experts, _ = expert_probs.shape
    return np.array(
        [
            sum(
                weights[t, e] * np.sum((expert_probs[t, e] - aggregate[t]) ** 2)
                for e in range(experts)
            )
            for t in range(tokens)
        ]
    )


def entropy(p):
    return -sum(x * math.log(x) for x in p if x > 0)


def robust(losses, eta):
    w = softmax(eta * np.asarray(losses, np.float64))
    return float(np.dot(w, losses)), w


def robust_filtered(losses, relevant, eta):
    losses = np.asarray(losses, np.float64)
    mean = losses.mean()
    if not np.any(relevant):
        return 2 * mean
    return mean + robust(losses[np.asarray(relevant)], eta)[0]


def calibration_error(confidence, outcome, weights=None, num_bins=15):
    """Bins [lo, hi) with the last one closed, as numpy.histogram has them."""
    weights = np.ones(len(confidence)) if weights is None else weights
    total = 0.0
    for b in range(num_bins):
        low, high = b / num_bins, (b + 1) / num_bins
        inside = [
            i for i, p in enumerate(confidence) if low <= p < high or (b == num_bins - 1 and p == 1)
        ]
        total += abs(sum(weights[i] * (confidence[i] - outcome[i]) for i in inside))
    return total / sum(weights)


def soft_binned_error(confidence, outcome, num_bins=15, bin_temperature=0.01):
    centres = [(j + 0.5) / num_bins for j in range(num_bins)]
    c = np.array(
        [softmax([-((p - x) ** 2) / bin_temperature for x in centres]) for p in confidence]
    )
    total = 0.0
    for j in range(num_bins):
        size = c[:, j].sum()
        gap = np.dot(c[:, j], outcome) / size - np.dot(c[:, j], confidence) / size
        total += size / len(confidence) * gap**2
    return math.sqrt(total)


def smooth_error(confidence, outcome, bandwidth, grid=4000):
    """Mean absolute smoothed residual with a reflected Gaussian, by direct summation."""
    t = (np.arange(grid) + 0.5) / grid
    residual = np.zeros(grid)
    for p, y in zip(confidence, outcome, strict=True):
        images = [2 * m + s * p for m in range(-3, 4) for s in (1, -1)]
        for image in images:
            residual += (p - y) * np.exp(-0.5 * ((t - image) / bandwidth) ** 2)
    residual /= len(confidence) * bandwidth * math.sqrt(2 * math.pi)
    return np.abs(residual).mean()


def central_difference(f, x, step=1e-6):
    x = np.asarray(x, np.float64)
    gradient = np.zeros_like(x)
    for i in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[i] += step
        down[i] -= step
        gradient[i] = (f(up) - f(down)) / (2 * step)
    return gradient
