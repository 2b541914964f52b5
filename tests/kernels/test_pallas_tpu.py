"""The top-k kernel for TPU: emulated against `jax.lax.top_k`, lowered, and compiled for v5e."""

import doctest
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dispatching import exhaustive
from jax.sharding import AxisType, PartitionSpec

from calmoe_jax import routing
from calmoe_jax.moe import route
from calmoe_jax.routing._top_k import choose as pick
from calmoe_kernels import selection
from calmoe_kernels.availability import Implementation
from calmoe_kernels.pallas_tpu import top_k as tpu

DATA = PartitionSpec("data")


def top_k(rows, k):
    return jax.jit(partial(tpu.top_k, k=k, interpret=True))(rows)


# experts, k, tokens
SIZES = [
    (1, 1, 1), (3, 2, 1000), (3, 3, 128), (8, 2, 17), (60, 8, 1000), (60, 60, 17),
    (128, 8, 1000), (384, 8, 1000),
    *exhaustive(
        (1, 1, 128), (3, 1, 17), (8, 1, 1000), (8, 2, 1), (8, 2, 128), (8, 8, 1000),
        (60, 1, 128), (60, 2, 1), (60, 8, 17), (128, 1, 1), (128, 2, 128), (128, 8, 17),
        (128, 128, 1), (384, 1, 17), (384, 2, 128),
    ),
]  # fmt: skip


def rows_of(tokens, experts, seed=0):
    """Rows with ties and `-inf`; some are all `-inf`, some hold one number."""
    random = np.random.RandomState(seed)
    rows = random.randn(tokens, experts).round(1).astype(np.float32) + 0.0
    rows[random.rand(tokens, experts) < 0.2] = -np.inf
    rows[1::5] = -np.inf
    rows[1::10, experts // 2] = 1.5
    return rows


@pytest.fixture
def rolled(monkeypatch):
    """Unrolled loops are what takes time here: XLA compiles each of their steps for the CPU."""
    monkeypatch.setattr(tpu, "_UNROLLED_ROWS", 8)


def assert_same_bits(result, expected):
    for x, y in zip(result, expected, strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x).view(np.int32), np.asarray(y).view(np.int32))


@pytest.mark.usefixtures("rolled")
@pytest.mark.parametrize(("experts", "k", "tokens"), SIZES)
def test_equals_lax_top_k(experts, k, tokens):
    rows = jnp.asarray(rows_of(tokens, experts, seed=experts + tokens))
    assert_same_bits(top_k(rows, k), jax.lax.top_k(rows, k))


@pytest.mark.parametrize(("experts", "k", "tokens"), [(3, 2, 17), (60, 8, 1000)])
def test_equals_lax_top_k_unrolled(experts, k, tokens):
    rows = jnp.asarray(rows_of(tokens, experts))
    assert_same_bits(top_k(rows, k), jax.lax.top_k(rows, k))


@pytest.mark.parametrize("experts", [1, 3, 8, 60, 128, 384, 4096])
def test_no_tokens(experts):
    for k in {1, min(8, experts), experts}:
        rows = jnp.zeros((0, experts))
        assert_same_bits(top_k(rows, k), jax.lax.top_k(rows, k))


@pytest.mark.usefixtures("rolled")
def test_rows_without_order():
    """Every entry is taken once: all of them, and as many as are asked for."""
    rows = jnp.concatenate([jnp.full((9, 60), value) for value in (-jnp.inf, 0.0, -3.0, jnp.inf)])
    for k in (8, 60):
        indices = top_k(rows, k)[1]
        np.testing.assert_array_equal(indices, np.tile(np.arange(k), (36, 1)))


@pytest.mark.usefixtures("rolled")
def test_extreme_numbers():
    largest, tiny = np.finfo(np.float32).max, np.float32(1e-45)
    row = [-np.inf, -largest, np.inf, tiny, 0.0, -tiny, largest, -np.inf, 2 * tiny, 0.0, -1.0, 1.0]
    rows = jnp.stack([jnp.roll(jnp.asarray(row, jnp.float32), i) for i in range(len(row))])
    assert_same_bits(top_k(rows, len(row)), jax.lax.top_k(rows, len(row)))


@pytest.mark.usefixtures("rolled")
def test_nan_makes_no_index_invalid():
    rows = rows_of(40, 13)
    rows[::3, ::4] = np.nan
    rows[::4, ::5] = np.array(-1, np.int32).view(np.float32)
    rows[-1] = np.nan
    indices = np.asarray(top_k(jnp.asarray(rows), 13)[1])
    assert indices.min() >= 0
    assert indices.max() < 13


def test_many_blocks_and_a_loop_over_rows(monkeypatch):
    """Blocks of 256 lanes, the last of 128; three iterations over rows and a remainder."""
    monkeypatch.setattr(tpu, "_MOST_LANES", 256)
    monkeypatch.setattr(tpu, "_UNROLLED_ROWS", 16)
    rows = jnp.asarray(rows_of(600, 50))
    assert_same_bits(top_k(rows, 5), jax.lax.top_k(rows, 5))


def test_blocks_fit_into_memory():
    assert tpu._block_lanes(8, 1) == tpu._block_lanes(384, 8) == 512
    assert tpu._block_lanes(4096, 8) == 256
    assert tpu._block_lanes(4096, 4096) == 128
    with pytest.raises(NotImplementedError, match="fast memory"):
        top_k(jnp.zeros((1, 4097)), 4097)


def test_what_it_refuses():
    with pytest.raises(ValueError, match=r"k must be in \[1, experts=3\], got k=0"):
        top_k(jnp.zeros((2, 3)), 0)
    with pytest.raises(ValueError, match="got k=4"):
        top_k(jnp.zeros((2, 3)), 4)
    with pytest.raises(NotImplementedError, match="bfloat16"):
        top_k(jnp.zeros((2, 3), jnp.bfloat16), 1)


def test_example():
    names = {"jnp": jnp, "top_k": tpu.top_k}
    example = doctest.DocTestParser().get_doctest(tpu.top_k.__doc__, names, "top_k", None, 0)
    report = []
    assert doctest.DocTestRunner().run(example, out=report.append).failed == 0, "".join(report)


@pytest.mark.usefixtures("rolled")
def test_vmap_and_scan():
    rows = jnp.asarray(rows_of(120, 13)).reshape(2, 3, 20, 13)
    choose = partial(top_k, k=3)
    expected = jax.lax.top_k(rows, 3)
    assert_same_bits(jax.vmap(jax.vmap(choose))(rows), expected)
    assert_same_bits(jax.jit(jax.vmap(choose, in_axes=1))(rows[0].swapaxes(0, 1)),
                     [x[0] for x in expected])  # fmt: skip
    scanned = jax.jit(lambda rows: jax.lax.scan(lambda _, x: (None, choose(x)), None, rows)[1])
    assert_same_bits(scanned(rows[0]), [x[0] for x in expected])


@pytest.mark.usefixtures("rolled")
def test_64_bits():
    rows = jnp.asarray(rows_of(20, 13))
    expected = jax.lax.top_k(rows, 3)
    with jax.enable_x64(True):
        assert_same_bits(jax.jit(partial(top_k, k=3))(rows), expected)
        with pytest.raises(NotImplementedError, match="float64"):
            top_k(jnp.zeros((2, 3), jnp.float64), 1)


def sharded(choose, out_specs=DATA, **settings):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    return jax.shard_map(choose, mesh=mesh, in_specs=DATA, out_specs=out_specs, **settings)


@pytest.mark.usefixtures("rolled")
def test_shard_map():
    """Emulation does not know what varies across devices; a lowered kernel does (below)."""
    rows = jnp.asarray(rows_of(68, 13))
    result = jax.jit(sharded(partial(top_k, k=3), check_vma=False))(rows)
    assert_same_bits(result, jax.lax.top_k(rows, 3))


ROUTERS = [
    {},
    {"renormalize": False},
    {"scores": "sigmoid", "bias": True, "num_groups": 4, "groups_per_token": 2},
]


@pytest.mark.usefixtures("rolled")
@pytest.mark.parametrize("choice", ROUTERS, ids=str)
def test_routing_by_it(choice):
    logits = rows_of(50, 12)
    logits[7, 3], logits[8, 4] = np.nan, np.inf
    logits = jnp.asarray(logits)
    settings = {"k": 3, "scores": "softmax", "renormalize": True, "num_groups": 1}
    settings |= {"groups_per_token": 1, **choice}
    bias = jnp.linspace(-0.2, 0.2, 12) if settings.pop("bias", False) else None

    def by(choose):
        def weigh(logits):
            routed = routing.Routing(*pick(choose, logits, bias, **settings))
            weights = routed.combine_weights * jnp.arange(1.0, 4.0)[None]
            return jnp.where(jnp.isfinite(weights), weights, 0).sum(), routed

        return jax.jit(jax.grad(weigh, has_aux=True))(logits)

    (gradient, routed), (expected_gradient, expected) = by(top_k), by(jax.lax.top_k)
    assert routed.expert_indices.dtype == jnp.int32
    np.testing.assert_array_equal(routed.expert_indices, expected.expert_indices)
    np.testing.assert_array_equal(routed.combine_weights, expected.combine_weights)
    np.testing.assert_array_equal(gradient, expected_gradient)
    assert not np.asarray(jnp.nan_to_num(gradient) == 0).all()


@pytest.mark.usefixtures("rolled")
def test_route_by_it(monkeypatch):
    """All of `route`, as on a TPU."""
    logits = jnp.asarray(rows_of(40, 12), jnp.bfloat16)

    def routed_by(name):
        return jax.jit(partial(route, k=3, block_size=8, implementation=name))(logits)

    expected = routed_by("xla")
    here = [Implementation(name, True, "") for name in selection.NAMES]
    monkeypatch.setattr(selection, "implementations", lambda: here)
    monkeypatch.setattr(tpu, "top_k", partial(tpu.top_k, interpret=True))
    result = routed_by("pallas_tpu")
    jax.tree.map(np.testing.assert_array_equal, result, expected)


def lowered_for_tpu(f, *shape):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.jit(f).trace(x).lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.parametrize(
    ("wrap", "shape"),
    [
        (lambda f: f, (1000, 60)),
        (lambda f: f, (17, 8)),
        (lambda f: f, (300, 4096)),
        (jax.vmap, (5, 30, 60)),
        (sharded, (400, 60)),
    ],
    ids=["one", "small", "large", "vmap", "shard_map"],
)
def test_lowers_for_tpu(wrap, shape):
    kernel = wrap(lambda rows: tpu.top_k(rows, 8))
    assert "tpu_custom_call" in lowered_for_tpu(kernel, *shape)
    with jax.enable_x64(True):
        assert "tpu_custom_call" in lowered_for_tpu(kernel, *shape)


def test_results_vary_where_the_values_do():
    for tokens in (400, 0):
        with pytest.raises(ValueError, match="out_specs"):
            lowered_for_tpu(sharded(lambda x: tpu.top_k(x, 2), PartitionSpec()), tokens, 60)


AHEAD_OF_TIME = """
import json, jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from calmoe_kernels.pallas_tpu.top_k import top_k

devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
one, data = SingleDeviceSharding(devices[0]), PartitionSpec("data")
mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))

def compiled(f, *shapes, sharding=one):
    args = [jax.ShapeDtypeStruct(s, jnp.float32, sharding=sharding) for s in shapes]
    return jax.jit(f).lower(*args).compile()

def choose(k):
    return lambda x: top_k(x, k)

programs = {
    "tokens 65536, experts 128, k 8": compiled(choose(8), (65536, 128)),
    "tokens 8192, experts 256, k 8": compiled(choose(8), (8192, 256)),
    "tokens 4096, experts 384, k 8": compiled(choose(8), (4096, 384)),
    "tokens 17, experts 3, k 2": compiled(choose(2), (17, 3)),
    "tokens 256, experts 4096, k 4096": compiled(choose(4096), (256, 4096)),
    "tokens 256, experts 9544, k 8": compiled(choose(8), (256, 9544)),
    "vmap": compiled(jax.vmap(choose(8)), (5, 300, 60)),
    "shard_map": compiled(
        jax.shard_map(choose(8), mesh=mesh, in_specs=data, out_specs=data),
        (4000, 60), sharding=NamedSharding(mesh, data),
    ),
    "router": compiled(lambda x, w: top_k(x @ w, 8), (8192, 512), (512, 128)),
}
print(json.dumps({
    name: {"text": p.as_text(), "temporary": p.memory_analysis().temp_size_in_bytes}
    for name, p in programs.items()
}))
"""


def test_compiles_for_v5e():
    pytest.importorskip("libtpu", reason="no TPU compiler: pip install libtpu, as jax[tpu] does")
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "PYTHONPATH": str(Path(tpu.__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-c", AHEAD_OF_TIME],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    programs = json.loads(done.stdout.splitlines()[-1])
    assert len(programs) == 9
    for name, program in programs.items():
        assert "tpu_custom_call" in program["text"], name
    # the matrix product writes what the kernel reads: nothing is transposed in between
    assert " copy(" not in programs["router"]["text"]
    assert " transpose(" not in programs["router"]["text"]
