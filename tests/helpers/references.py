"""Oracles: the same quantities by plain loops over NumPy arrays in float64."""

import math

import numpy as np
import scipy.optimize
import scipy.special


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


def negative_log_likelihood(probs, labels):
    return -sum(math.log(row[y]) for row, y in zip(probs, labels, strict=True)) / len(labels)


def brier_score(probs, labels):
    total = 0.0
    for row, y in zip(probs, labels, strict=True):
        total += sum((p - (c == y)) ** 2 for c, p in enumerate(row))
    return total / len(labels)


def top_label(probs, labels):
    """Confidence, and whether the lowest of the most probable classes is the true one."""
    predicted = [max(range(len(row)), key=lambda c, row=row: (row[c], -c)) for row in probs]
    confidence = np.array([row[c] for row, c in zip(probs, predicted, strict=True)])
    return confidence, np.array([c == y for c, y in zip(predicted, labels, strict=True)])


def temperature(logits, labels, weights=None):
    """The optimum of the log loss over `log T`, by Brent's method."""
    logits = np.asarray(logits, np.float64)
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)

    def loss(log_t):
        log_probs = scipy.special.log_softmax(logits * math.exp(-log_t), axis=-1)
        return -np.dot(weights, log_probs[np.arange(len(labels)), labels])

    found = scipy.optimize.minimize_scalar(loss, bracket=(-1, 1), tol=1e-12)
    return math.exp(found.x)


def robust_gradient(losses, eta, detach):
    """`w`, or with the weights differentiated too `w (1 + eta (L - J))`."""
    value, w = robust(losses, eta)
    return w if detach else w * (1 + eta * (np.asarray(losses, np.float64) - value))


def robust_filtered_gradient(losses, relevant, eta, detach):
    gradient = np.full(len(losses), 1 / len(losses))
    chosen = np.flatnonzero(relevant)
    if not len(chosen):
        return 2 * gradient
    gradient[chosen] += robust_gradient(np.asarray(losses)[chosen], eta, detach)
    return gradient


# ITU-T T.81, tables K.1 and K.2, row by row.
LUMINANCE = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (
    *(17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99),
    *(24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99),
    *(99,) * 32,
)


def dct_basis():
    basis = np.zeros((8, 8))
    for u in range(8):
        for x in range(8):
            basis[u, x] = math.cos(math.pi * u * (2 * x + 1) / 16) * math.sqrt(
                1 / 8 if u == 0 else 1 / 4
            )
    return basis


def quantise_block(block, step):
    basis = dct_basis()
    return basis.T @ (np.round(basis @ block @ basis.T / step) * step) @ basis


def dct_filter(images, quality, quantise=quantise_block):
    """Loops over images, channels and blocks; colours by the equations that define them."""
    result = np.array(images, np.float64)
    count, height, width, channels = result.shape
    height, width = height // 8 * 8, width // 8 * 8
    for n in range(count):
        grey = result[n, :height, :width] * 255
        if channels == 3:
            red, green, blue = np.moveaxis(grey, -1, 0)
            y = 0.299 * red + 0.587 * green + 0.114 * blue
            grey = np.stack([y, 128 + (blue - y) / 1.772, 128 + (red - y) / 1.402], axis=-1)
        for c in range(channels):
            table = np.reshape(CHROMINANCE if c else LUMINANCE, (8, 8))
            step = np.maximum(1, table * (101 - quality[n]) / 50)
            for i in range(0, height, 8):
                for j in range(0, width, 8):
                    grey[i : i + 8, j : j + 8, c] = quantise(grey[i : i + 8, j : j + 8, c], step)
        if channels == 3:
            y, blueness, redness = np.moveaxis(grey, -1, 0)
            red, blue = y + 1.402 * (redness - 128), y + 1.772 * (blueness - 128)
            grey = np.stack([red, (y - 0.299 * red - 0.114 * blue) / 0.587, blue], axis=-1)
        result[n, :height, :width] = np.clip(grey / 255, 0, 1)
    return result


def route_row(logits, bias, k, scores, renormalize, num_groups, groups_per_token):
    """Expert indices and weights of one token."""
    experts = len(logits)
    g = [float(x) for x in logits]
    b = [0.0] * experts if bias is None else [float(x) for x in bias]
    unroutable = any(math.isnan(x) or x == math.inf for x in g) or max(g) == -math.inf
    if unroutable or not all(math.isfinite(x) for x in b):
        return list(range(k)), [math.nan] * k
    if scores == "softmax":
        total = sum(math.exp(x - max(g)) for x in g)
        s = [math.exp(x - max(g)) / total for x in g]
    else:
        s = [float(scipy.special.expit(x)) for x in g]
    allowed = [e for e in range(experts) if g[e] > -math.inf]
    if num_groups > 1:
        size = experts // num_groups
        worth = {}
        for e in allowed:
            worth.setdefault(e // size, []).append(s[e] + b[e])
        worth = {group: sum(sorted(values)[-2:]) for group, values in worth.items()}
        best = sorted(worth, key=lambda group: (-worth[group], group))[:groups_per_token]
        allowed = [e for e in allowed if e // size in best]
    chosen = sorted(allowed, key=lambda e: (-(s[e] + b[e]), e))[:k]
    total = sum(s[e] for e in chosen) if renormalize else 1.0
    surplus = [e for e in range(experts) if e not in chosen][: k - len(chosen)]
    return chosen + surplus, [s[e] / total for e in chosen] + [0.0] * len(surplus)


def gate_statistics(logits, scores):
    """Mean gate probabilities, logsumexp of each token, number of unroutable tokens."""
    logits = np.asarray(logits, np.float64)
    tokens, experts = logits.shape
    mean, log_sums, unroutable = np.zeros(experts), np.full(tokens, np.nan), 0
    for t, g in enumerate(logits):
        if np.isnan(g).any() or (g == np.inf).any() or (g == -np.inf).all():
            unroutable += 1
            mean += np.nan
            continue
        s = np.exp(g - g.max()) if scores == "softmax" else scipy.special.expit(g)
        mean += s / s.sum() / tokens
        log_sums[t] = math.log(sum(math.exp(x - g.max()) for x in g)) + g.max()
    return mean, log_sums, unroutable


def plan(expert_indices, num_experts, capacity, block_size):
    """`(positions, slot_indices, group_sizes, group_offsets, load)`, slot by slot."""
    expert_indices = np.asarray(expert_indices)
    members = [[] for _ in range(num_experts)]
    for slot, e in enumerate(expert_indices.reshape(-1).tolist()):
        if 0 <= e < num_experts:
            members[e].append(slot)
    slots = expert_indices.size
    rows = slots
    if capacity is not None:
        rows = num_experts * capacity
    elif block_size is not None:
        rows = most_padded_rows(slots, num_experts, block_size)
    positions, slot_indices = np.full(slots, rows), np.full(rows, slots)
    sizes, offsets, start = [], [], 0
    for e, group in enumerate(members):
        if capacity is not None:
            start, group = e * capacity, group[:capacity]
        while block_size is not None and start % block_size:
            start += 1
        offsets.append(start)
        sizes.append(len(group))
        for slot in group:
            positions[slot], slot_indices[start] = start, slot
            start += 1
    load = [len(group) for group in members]
    return positions.reshape(expert_indices.shape), slot_indices, sizes, offsets, load


def most_padded_rows(slots, num_experts, block_size):
    """One slot for each expert that can have one; of the rest every `block_size` fill a block."""
    busy = min(num_experts, slots)
    return busy * block_size + (slots - busy) // block_size * block_size


def one_hot_plan(positions, rows):
    """`[tokens, k, rows]`: 1 where a slot lies in a row."""
    positions = np.asarray(positions)
    result = np.zeros((*positions.shape, rows))
    for t, j in np.ndindex(*positions.shape):
        if 0 <= positions[t, j] < rows:
            result[t, j, positions[t, j]] = 1
    return result


def entropy_balance(signal, constraints, targets, eta, weights=None, ridge=0.0):
    """Log weights of `max <w, s> - KL(w || q) / eta` with `A^T w = b`, by scipy on the primal.

    The ridge is on deviations in base standard deviations; 0 for exact balance.
    """
    s, a = np.asarray(signal, np.float64), np.asarray(constraints, np.float64)
    q = np.ones(len(s)) if weights is None else np.asarray(weights, np.float64)
    q = q / q.sum()
    b = q @ a if targets is None else np.asarray(targets, np.float64)
    spread = np.sqrt(q @ (a - q @ a) ** 2)
    off = (a - b) / np.where(spread > 0, spread, 1)

    def penalised(w):
        w = np.maximum(w, 1e-300)
        miss = off.T @ w
        value = w @ s - np.sum(w * np.log(w / q)) / eta
        slope = s - (np.log(w / q) + 1) / eta
        if ridge:
            value -= miss @ miss / (2 * ridge)
            slope = slope - off @ miss / ridge
        return -value, -slope

    rules = [{"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(len(w))}]
    if not ridge:
        rules.append({"type": "eq", "fun": lambda w: off.T @ w, "jac": lambda w: off.T})
    found = scipy.optimize.minimize(
        penalised, q, jac=True, bounds=[(1e-14, 1)] * len(s), constraints=rules, method="SLSQP",
        options={"maxiter": 1000, "ftol": 1e-15},
    )  # fmt: skip
    return np.log(found.x), -found.fun


def balancing_dual(signal, constraints, targets, eta, weights=None):
    """The same by BFGS on the dual, to the last digits."""
    s, a = np.asarray(signal, np.float64), np.asarray(constraints, np.float64)
    q = np.ones(len(s)) if weights is None else np.asarray(weights, np.float64)
    q = q / q.sum()
    b = q @ a if targets is None else np.asarray(targets, np.float64)
    off = (a - b) / np.sqrt(q @ (a - q @ a) ** 2)

    def dual(v):
        z = np.log(q) + eta * s - off @ v
        log_sum = scipy.special.logsumexp(z)
        w = np.exp(z - log_sum)
        mean = off.T @ w
        return log_sum, -mean, (off * w[:, None]).T @ off - np.outer(mean, mean)

    v = np.zeros(a.shape[1])
    for _ in range(200):
        value, gradient, hessian = dual(v)
        step = np.linalg.lstsq(hessian, gradient, rcond=1e-12)[0]
        size = 1.0
        while dual(v - size * step)[0] > value + 1e-15 and size > 1e-10:
            size /= 2
        v = v - size * step
    z = np.log(q) + eta * s - off @ v
    return z - scipy.special.logsumexp(z)
