"""The indices of an exchange of as many rows as there are, against a simulation in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dispatching import exhaustive
from exchanging import (
    E,
    agree,
    mesh_of,
    over,
    problem,
    ragged_all_to_all,
    with_gradients,
)

import calmoe_jax as cm
from calmoe_jax.moe import exchange_ragged, expert_mlp, ragged_is_supported, shared_mlp
from calmoe_jax.moe.ragged_chunks import ragged_chunks, without_cut_rows


@functools.partial(jax.jit, static_argnames="num_rows")
def of_all(sizes, *, num_rows):
    devices = jnp.arange(sizes.shape[0])
    return jax.vmap(lambda d: ragged_chunks(sizes, d, num_rows=num_rows))(devices)


def sizes_of(seed, devices, own):
    """Rows of each expert on each device, with empty ones, and one that gets a device's all."""
    sizes = np.random.RandomState(seed).randint(0, 5, (devices, devices * own)).astype(np.int32)
    sizes[:, 1] = 0
    sizes[-1, :own] = 0
    sizes[0] = 0
    sizes[0, -1] = 12
    return sizes


def simulated(sizes, num_rows):
    """Received rows of each device as (source, row there), their experts, and rows kept."""
    devices, all_experts = sizes.shape
    own = all_experts // devices
    received = [[] for _ in range(devices)]
    found = [[] for _ in range(devices)]
    kept = np.zeros_like(sizes)
    for source in range(devices):
        row = 0
        for e in range(all_experts):
            target = e // own
            for _ in range(sizes[source, e]):
                if len(received[target]) < num_rows:
                    received[target].append((source, row))
                    found[target].append(e % own)
                    kept[source, e] += 1
                row += 1
    return received, found, kept


def exchange(operands, chunks, num_rows):
    """What every device receives, by the definition of `lax.ragged_all_to_all`."""
    count = len(operands)
    results = [[None] * num_rows for _ in range(count)]
    for source in range(count):
        for target in range(count):
            offset, size, there = (int(f[source, target]) for f in chunks[:3])
            assert size == chunks.received[target, source]
            assert 0 <= there <= there + size <= num_rows
            assert 0 <= offset <= offset + size <= len(operands[source])
            for i in range(size):
                assert results[target][there + i] is None
                results[target][there + i] = operands[source][offset + i]
    return results


@pytest.mark.parametrize(
    ("devices", "own", "num_rows"),
    [(4, 2, 1000), (4, 2, 13), *exhaustive((2, 3, 9), (3, 1, 1), (8, 2, 20), (1, 3, 4))],
)
def test_rows_go_where_the_loop_puts_them(devices, own, num_rows):
    sizes = sizes_of(devices, devices, own)
    received, found, kept = simulated(sizes, num_rows)
    chunks = jax.tree.map(np.asarray, of_all(sizes, num_rows=num_rows))
    rows = [[(s, row) for row in range(total)] for s, total in enumerate(sizes.sum(axis=1))]
    there = exchange(rows, chunks.there, num_rows)
    for d in range(devices):
        padding = [None] * (num_rows - len(received[d]))
        assert there[d] == received[d] + padding
        assert chunks.experts[d].tolist() == found[d] + [own] * len(padding)
    np.testing.assert_array_equal(chunks.group_sizes, kept)
    assert (kept.sum() < sizes.sum()) == (num_rows < 1000)
    back = exchange(there, chunks.back, max(map(len, rows)))
    for s, own_rows in enumerate(rows):
        came = {row for target in received for source, row in target if source == s}
        assert back[s][: len(own_rows)] == [r if r[1] in came else None for r in own_rows]


def test_a_plan_without_cut_rows():
    indices = np.random.RandomState(0).randint(-1, 4, (12, 2)).astype(np.int32)
    plan = cm.plan_dispatch(indices, num_experts=4)
    left = jnp.maximum(plan.group_sizes - jnp.array([2, 0, 100, 1]), 0)
    cut = jax.tree.map(np.asarray, jax.jit(without_cut_rows)(plan, jnp.asarray(indices), left))
    used = [0] * 4
    for (t, j), e in np.ndenumerate(indices):
        has_row = 0 <= e < 4 and used[e] < left[e]
        row = int(plan.positions[t, j])
        assert cut.positions[t, j] == (row if has_row else 24)
        if 0 <= e < 4:
            assert cut.slot_indices[row] == (2 * t + j if has_row else 24)
            used[e] += 1
    assert cut.load.tolist() == plan.load.tolist()
    assert (cut.load - cut.group_sizes).sum() == cut.dropped.sum() - (indices < 0).sum()


@pytest.fixture
def emulated(monkeypatch):
    """`lax.ragged_all_to_all` runs on no CPU."""
    monkeypatch.setattr(exchange_ragged, "ragged_all_to_all", ragged_all_to_all)
    monkeypatch.setattr(exchange_ragged, "ragged_all_to_all_runs", lambda: True)


def kept_slots(indices, devices, num_rows):
    """Which slots of all devices' tokens a loop over them keeps."""
    kept = np.zeros(indices.shape, bool)
    parts = np.split(np.arange(len(indices)), devices)
    sizes = np.stack([np.bincount(indices[part].reshape(-1), minlength=E) for part in parts])
    left = simulated(sizes, num_rows)[2]
    for part, rows in zip(parts, left, strict=True):
        for t in part:
            for j, e in enumerate(indices[t]):
                kept[t, j] = rows[e] > 0
                rows[e] -= kept[t, j]
    return kept


def of_slots(kept, arrays, where):
    """The layer on one device without some slots."""
    x, logits, params, bias, shared = arrays
    routed = cm.route(logits, bias, where=where, k=2)
    weights = jnp.where(kept, routed.routing.combine_weights, 0)
    plan = cm.plan_dispatch(routed.routing.expert_indices, weights, num_experts=E)
    outputs = expert_mlp(cm.dispatch(x, plan), plan, params)
    output = cm.combine(outputs, plan, weights) + shared_mlp(x, shared)
    log_sums = jnp.sum(routed.statistics.logsumexp)
    return output, routed.plan.load, jnp.sum(~kept), log_sums


@pytest.mark.exhaustive
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("kind", ["skewed", *exhaustive("random")])
def test_a_small_buffer_drops_what_the_loop_cuts(kind):
    arrays, where = problem(kind)
    num_rows = 18  # 0.75 times the 24 slots of a device
    indices = jax.jit(functools.partial(cm.route, k=2))(*arrays[1::2]).routing.expert_indices
    kept = kept_slots(np.asarray(indices), 2, num_rows)
    assert 0 < (~kept).sum() < kept.size
    layer = over(mesh_of("2"), exchange="ragged", k=2, buffer_factor=0.75)
    found = with_gradients(layer)(arrays, where)
    wanted = with_gradients(functools.partial(of_slots, jnp.asarray(kept)))(arrays, where)
    agree(found, wanted)


def test_support_is_probed():
    if jax.default_backend() != "cpu":
        pytest.skip("what it is elsewhere depends on the devices")
    assert not ragged_is_supported()
    assert not jax.jit(lambda x: x + int(ragged_is_supported()))(0)  # also while tracing
    layer = over(mesh_of("4"), exchange="ragged", k=2)
    with pytest.raises(
        NotImplementedError, match=r"not run on .* cpu devices; use exchange='ring'"
    ):
        jax.eval_shape(layer, *problem("random"))
