"""Triton kernels from gate logits to experts, weights and counts, and their backward.

Each program takes consecutive tokens, chooses their experts, and numbers its slots within each
expert; `triton/route.py` launches them.

The choice is `k` rounds of a maximum and a least index over 32-bit integers ordered as the logits
are: GPUs reduce integers across a warp in one instruction, and the smallest integer, to which no
number maps, marks chosen entries, so that even `-inf` is chosen at most once.
"""

import triton
import triton.language as tl

_TAKEN = tl.constexpr(-2147483648)


@triton.jit
def _key(x):
    """Integers in the order of floats; no number maps to the smallest integer."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _first_largest(key, index, END: tl.constexpr):
    """In each row, the smallest index of the largest key."""
    largest = tl.max(key, 1)
    return tl.min(tl.where(key == largest[:, None], index[None, :], END), 1)


@triton.jit
def _clean(raw, real):
    """Logits with unroutable rows and -0 set to 0, which rows are routable, and the largest."""
    largest = tl.max(tl.where(raw == raw, raw, float("inf")), 1)
    routable = (largest > float("-inf")) & (largest < float("inf"))
    logits = tl.where(routable[:, None], raw, 0.0)
    logits = tl.where(logits == 0.0, 0.0, logits)
    logits = tl.where(real[None, :], logits, float("-inf"))
    return logits, routable, tl.where(routable, largest, 0.0)


@triton.jit
def _log_sigmoid(x):
    return tl.minimum(x, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def _scores(logits, largest, sum_of_exps, SIGMOID: tl.constexpr):
    """Logs of the scores, and the scores divided by their sum over the experts."""
    if SIGMOID:
        log_scores = _log_sigmoid(logits)
        peak = tl.max(log_scores, 1)
        probs = tl.exp(log_scores - peak[:, None])
        probs = probs / tl.sum(probs, 1)[:, None]
    else:
        log_scores = logits
        probs = tl.exp(logits - largest[:, None]) / sum_of_exps[:, None]
    return log_scores, probs


@triton.jit
def _weights(picked, log_sum, SIGMOID: tl.constexpr, RENORMALIZE: tl.constexpr):
    """Weights of the chosen experts, whose scores' logs are given."""
    if RENORMALIZE:
        weight = tl.exp(picked - tl.max(picked, 1)[:, None])
        weight = weight / tl.sum(weight, 1)[:, None]
    else:
        if SIGMOID:
            weight = tl.exp(picked)
        else:
            weight = tl.exp(picked - log_sum[:, None])
    return weight


@triton.jit
def _comparable(values, logits, weighable, e, E: tl.constexpr):
    """Values with -inf for masked experts, and 0 for -0 and for rows that get no weights."""
    values = tl.where(logits == float("-inf"), float("-inf"), values)
    values = tl.where(weighable[:, None] | (e >= E)[None, :], values, 0.0)
    return tl.where(values == 0.0, 0.0, values)


@triton.jit
def _logits_of(gate_logits, t, live, e, E: tl.constexpr):
    """Logits of some tokens in float32; -inf beyond the experts."""
    cell = t.to(tl.int64)[:, None] * E + e[None, :]
    mask = live[:, None] & (e < E)[None, :]
    return tl.load(gate_logits + cell, mask=mask, other=float("-inf")).to(tl.float32)


@triton.jit
def _counted(where, t, live, MASKED: tl.constexpr):
    """Which of some tokens count; the others are read as -inf, and so are unroutable."""
    if MASKED:
        live = live & (tl.load(where + t, mask=live, other=0) != 0)
    return live


@triton.jit
def _bias(selection_bias, e, E: tl.constexpr):
    """The bias of each expert, and whether all are finite."""
    bias = tl.load(selection_bias + e, mask=e < E, other=0)
    return bias, tl.sum(tl.where(tl.abs(bias) < float("inf"), 0, 1), 0) == 0


@triton.jit
def _best(key, e, kk, K: tl.constexpr, KP: tl.constexpr, EP: tl.constexpr, BT: tl.constexpr):
    """Indices of the `K` largest keys of each row, and the keys without them."""
    index = tl.zeros((BT, KP), tl.int32)
    for j in range(K):
        chosen = _first_largest(key, e, EP)
        key = tl.where(e[None, :] == chosen[:, None], _TAKEN, key)
        index = tl.where(kk[None, :] == j, chosen[:, None], index)
    return key, index


@triton.jit
def _in_best_groups(
    values,
    e,
    E: tl.constexpr,
    EP: tl.constexpr,
    BT: tl.constexpr,
    GROUPS: tl.constexpr,
    GP: tl.constexpr,
    CHOSEN_GROUPS: tl.constexpr,
):
    """The values of the experts in the best groups, and -inf for the others."""
    SIZE: tl.constexpr = E // GROUPS
    g = tl.arange(0, GP)
    worth = tl.full((BT, GP), float("-inf"), tl.float32)
    group_of = e // SIZE
    for group in range(GROUPS):
        own = tl.where(group_of[None, :] == group, values, float("-inf"))
        best = tl.max(own, 1)
        first = tl.min(tl.where(own == best[:, None], e[None, :], EP), 1)
        second = tl.max(tl.where(e[None, :] == first[:, None], float("-inf"), own), 1)
        total = tl.where(second == float("-inf"), best, best + second)
        worth = tl.where(g[None, :] == group, total[:, None], worth)
    key = tl.where(g[None, :] < GROUPS, _key(worth), _TAKEN)
    kept = tl.zeros((BT, EP), tl.int1)
    for _ in range(CHOSEN_GROUPS):
        chosen = _first_largest(key, g, GP)
        key = tl.where(g[None, :] == chosen[:, None], _TAKEN, key)
        kept = kept | (group_of[None, :] == chosen[:, None])
    return tl.where(kept, values, float("-inf"))


@triton.jit
def _defined(values, defined, counted):
    """Values of tokens: NaN where they are not defined, 0 where the token does not count."""
    values = tl.where(defined[:, None], values, float("nan"))
    return tl.where(counted[:, None], values, 0.0)


@triton.jit
def _numbers(taken, scores, picked, weight, index, count):
    """Numbers of slots within their experts, -1 for those of weight 0, and the others' experts."""
    # an expert that was taken has weight 0 if its score is below that of all with another weight
    least = tl.min(tl.where(weight != 0.0, picked, float("inf")), 1)
    taken = (taken & (scores >= least[:, None])).to(tl.int32)
    number = tl.gather(tl.cumsum(taken, 0) - taken + count[None, :], index, 1)
    return tl.where(weight == 0.0, -1, number), taken


@triton.jit
def choose_kernel(
    gate_logits,
    selection_bias,
    where,
    num_tokens,
    expert_indices,
    combine_weights,
    numbers,
    counts,
    log_sums,
    prob_sums,
    unroutable,
    E: tl.constexpr,
    EP: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    BT: tl.constexpr,
    TILES: tl.constexpr,
    SIGMOID: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    BIASED: tl.constexpr,
    MASKED: tl.constexpr,
    GROUPS: tl.constexpr,
    GP: tl.constexpr,
    CHOSEN_GROUPS: tl.constexpr,
):
    """Experts, weights and statistics of a program's tokens, and the numbers of their slots.

    The number of a slot that is absent from the plan is -1.
    """
    program = tl.program_id(0)
    e = tl.arange(0, EP)
    kk = tl.arange(0, KP)
    real = e < E
    count = tl.zeros((EP,), tl.int32)
    prob_sum = tl.zeros((EP,), tl.float32)
    bad = 0
    if BIASED:
        bias, bias_is_finite = _bias(selection_bias, e, E)
    for tile in range(TILES):
        t = (program * TILES + tile) * BT + tl.arange(0, BT)
        live = t < num_tokens
        counted = _counted(where, t, live, MASKED)
        raw = _logits_of(gate_logits, t, counted, e, E)
        logits, routable, largest = _clean(raw, real)
        sum_of_exps = tl.sum(tl.exp(logits - largest[:, None]), 1)
        log_sum = tl.log(sum_of_exps) + largest
        log_scores, probs = _scores(logits, largest, sum_of_exps, SIGMOID)
        prob_sum += tl.sum(_defined(probs, routable, counted), 0)
        bad += tl.sum(tl.where(counted & ~routable, 1, 0), 0)
        log_sum_or_nan = tl.where(routable, log_sum, float("nan"))
        tl.store(log_sums + t, tl.where(counted, log_sum_or_nan, 0.0), mask=live)

        weighable = routable
        values = logits
        if BIASED or GROUPS > 1:
            values = _weights(log_scores, log_sum, SIGMOID, False)
            if BIASED:
                values = values + bias[None, :]
                weighable = routable & bias_is_finite
            values = _comparable(values, logits, weighable, e, E)
            if GROUPS > 1:
                values = _in_best_groups(values, e, E, EP, BT, GROUPS, GP, CHOSEN_GROUPS)
        key = tl.where(real[None, :], _key(values), _TAKEN)
        key, index = _best(key, e, kk, K, KP, EP, BT)

        used = kk[None, :] < K
        weighed = log_scores
        if GROUPS > 1:
            weighed = tl.where(values == float("-inf"), float("-inf"), log_scores)
        taken = (key == _TAKEN) & real[None, :] & counted[:, None]
        picked = tl.where(used, tl.gather(weighed, index, 1), float("-inf"))
        weight = _weights(picked, log_sum, SIGMOID, RENORMALIZE)
        weight = _defined(weight, weighable, counted)
        number, taken = _numbers(taken, weighed, picked, weight, index, count)
        count += tl.sum(taken, 0)
        slot = t.to(tl.int64)[:, None] * K + kk[None, :]
        mask = live[:, None] & used
        tl.store(expert_indices + slot, index, mask=mask)
        tl.store(combine_weights + slot, weight, mask=mask)
        tl.store(numbers + slot, number, mask=mask)
    row = program.to(tl.int64) * E + e
    tl.store(counts + row, count, mask=real)
    tl.store(prob_sums + row, prob_sum, mask=real)
    tl.store(unroutable + program, bad)


@triton.jit
def choose_backward_kernel(
    gate_logits,
    expert_indices,
    to_weights,
    to_log_sums,
    to_prob_sums,
    weighable,
    where,
    num_tokens,
    to_logits,
    E: tl.constexpr,
    EP: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    BT: tl.constexpr,
    SIGMOID: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Gradient to the logits, from those to weights, log sums and summed probabilities."""
    e = tl.arange(0, EP)
    kk = tl.arange(0, KP)
    real = e < E
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    live = t < num_tokens
    used = (kk < K)[None, :]
    cell = t.to(tl.int64)[:, None] * E + e[None, :]
    raw = _logits_of(gate_logits, t, _counted(where, t, live, MASKED), e, E)
    logits, routable, largest = _clean(raw, real)
    gate = tl.exp(logits - largest[:, None])
    sum_of_exps = tl.sum(gate, 1)
    gate = gate / sum_of_exps[:, None]
    probs = gate
    log_scores = logits
    if SIGMOID:
        log_scores = _log_sigmoid(logits)
        probs = tl.exp(log_scores - tl.max(log_scores, 1)[:, None])
        probs = probs / tl.sum(probs, 1)[:, None]
    to_mean = tl.load(to_prob_sums + e, mask=real, other=0).to(tl.float32)[None, :]
    gradient = probs * (to_mean - tl.sum(probs * to_mean, 1)[:, None])

    slot = t.to(tl.int64)[:, None] * K + kk[None, :]
    index = tl.load(expert_indices + slot, mask=live[:, None] & used, other=0)
    weight_cotangent = tl.load(to_weights + slot, mask=live[:, None] & used, other=0)
    # exactly 0 where a surplus slot holds an expert that could not be chosen
    chosen = tl.load(weighable + slot, mask=live[:, None] & used, other=0) > 0
    picked = tl.where(chosen, tl.gather(log_scores, index, 1), float("-inf"))
    if RENORMALIZE:
        peak = tl.max(picked, 1)
        weight = tl.exp(picked - tl.where(peak == float("-inf"), 0.0, peak)[:, None])
        total = tl.sum(weight, 1)
        weight = weight / tl.where(total == 0.0, 1.0, total)[:, None]
    else:
        if SIGMOID:
            weight = tl.exp(picked)
        else:
            weight = tl.exp(picked - (tl.log(sum_of_exps) + largest)[:, None])
    pulled = tl.where(chosen, weight * weight_cotangent, 0.0)
    if RENORMALIZE:
        pulled = pulled - weight * tl.sum(pulled, 1)[:, None]
    else:
        if not SIGMOID:
            gradient = gradient - probs * tl.sum(pulled, 1)[:, None]
    for j in range(K):
        column = kk[None, :] == j
        expert = tl.sum(tl.where(column, index, 0), 1)
        value = tl.sum(tl.where(column, pulled, 0.0), 1)
        gradient += tl.where(e[None, :] == expert[:, None], value[:, None], 0.0)
    if SIGMOID:
        gradient = gradient * tl.where(logits == float("-inf"), 0.0, tl.exp(_log_sigmoid(-logits)))
    log_sum_cotangent = tl.load(to_log_sums + t, mask=live, other=0)
    gradient += gate * log_sum_cotangent[:, None]
    gradient = tl.where(routable[:, None], gradient, 0.0)
    tl.store(
        to_logits + cell,
        gradient.to(to_logits.dtype.element_ty),
        mask=live[:, None] & real[None, :],
    )
