"""An oracle of the sparse layer: one token after the other, one expert after the other, float64."""

import math

import numpy as np
import references


def relu(columns):
    return np.maximum(columns, 0)


def gelu(columns):
    return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in columns])


def swiglu(columns):
    gate, value = np.split(columns, 2)
    return gate / (1 + np.exp(-gate)) * value


def mlp(token, params, e, act):
    """One expert, its biases left out where there are none."""
    w_in, w_out, b_in, b_out = (None if p is None else np.asarray(p, np.float64)[e] for p in params)
    inner = token @ w_in + (0 if b_in is None else b_in)
    return act(inner) @ w_out + (0 if b_out is None else b_out)


def slots_with_rows(ids, weights, where, num_experts, capacity):
    """`[tokens, k]`: which slots have a row, first come first served."""
    used, kept = [0] * num_experts, np.zeros(np.shape(ids), bool)
    for t, j in np.ndindex(*kept.shape):
        e = ids[t][j]
        if not where[t] or weights[t][j] == 0 or not 0 <= e < num_experts:
            continue
        kept[t, j] = capacity is None or used[e] < capacity
        used[e] += 1
    return kept, used


def sparse_layer(
    x, logits, params, bias=None, shared=None, where=None, *, k, act, scores="softmax",
    renormalize=True, num_groups=1, groups_per_token=1, scaling_factor=1.0, capacity=None,
):  # fmt: skip
    """Outputs, load, kept slots, and the sums of the statistics over the tokens that count."""
    x, logits = np.asarray(x, np.float64), np.asarray(logits, np.float64)
    tokens, experts = logits.shape
    where = np.ones(tokens, bool) if where is None else np.asarray(where)
    rows = [
        references.route_row(row, bias, k, scores, renormalize, num_groups, groups_per_token)
        if counts else (list(range(k)), [0.0] * k)
        for row, counts in zip(logits, where, strict=True)
    ]  # fmt: skip
    ids, weights = [r[0] for r in rows], [r[1] for r in rows]
    kept, load = slots_with_rows(ids, weights, where, experts, capacity)
    output = np.zeros((tokens, params[1].shape[2]))
    for t in np.flatnonzero(where):
        for j, e in enumerate(ids[t]):
            if kept[t, j]:
                output[t] += scaling_factor * weights[t][j] * mlp(x[t], params, e, act)
        for e in range(0 if shared is None else len(shared[0])):
            output[t] += mlp(x[t], shared, e, act)
    statistics = references.gate_statistics(logits[where], scores)
    return output, load, kept, statistics
