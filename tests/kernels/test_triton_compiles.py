"""Every kernel that the operations launch compiles for sm_80 and sm_90, and spills no register."""

import itertools
import os
import re
import subprocess

import jax
import jax.numpy as jnp
import pytest
from dispatching import exhaustive

import calmoe_jax as cm

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels are interpreted in this process", allow_module_level=True)

from calmoe_kernels import selection  # noqa: E402
from calmoe_kernels.availability import Implementation  # noqa: E402
from calmoe_kernels.triton import launch as launching  # noqa: E402

pytestmark = pytest.mark.slow

TYPES = {
    "float32": "*fp32",
    "bfloat16": "*bf16",
    "float16": "*fp16",
    "int32": "*i32",
    "int8": "*i8",
}


def layer(tokens, experts, k, d, *, dtype=jnp.bfloat16, bias=False, padded=False, **options):
    """A layer without experts, traced forward and backward on shapes alone."""

    def output(logits, selection_bias, x, where):
        of_all = {"k": k, "implementation": "triton"} | options
        routed = cm.route(logits, selection_bias, where=where, **of_all)
        rows = cm.dispatch(x, routed.plan, implementation="triton")
        y = cm.combine(rows, routed.plan, routed.routing.combine_weights, implementation="triton")
        return jnp.sum(y.astype(jnp.float32)) + jnp.sum(routed.statistics.logsumexp)

    def plan(indices):
        return cm.plan_dispatch(indices, num_experts=experts, implementation="triton")

    logits = jax.ShapeDtypeStruct((tokens, experts), jnp.float32)
    selection_bias = jax.ShapeDtypeStruct((experts,), jnp.float32) if bias else None
    x = jax.ShapeDtypeStruct((tokens, d), dtype)
    where = jax.ShapeDtypeStruct((tokens,), bool) if padded else None
    jax.eval_shape(jax.grad(output, argnums=(0, 2)), logits, selection_bias, x, where)
    jax.eval_shape(plan, jax.ShapeDtypeStruct((tokens, k), jnp.int32))


@pytest.fixture
def launches(monkeypatch):
    """What is launched while tracing, as on a machine with a GPU."""
    seen = {}

    def record(one):
        arguments = [x if isinstance(x, int) else str(x.dtype) for x in one.inputs]
        key = one.kernel.__name__, str(arguments), str(sorted(one.constants.items()))
        seen[key] = one
        return tuple(jnp.zeros(output.shape, output.dtype) for output in one.outputs)

    monkeypatch.setattr(launching, "_bind", record)
    available = tuple(Implementation(name, True, "") for name in selection.NAMES)
    monkeypatch.setattr(selection, "implementations", lambda: available)
    return seen


def compiled(one, capability):
    names = [name for name in one.kernel.arg_names if name not in one.constants]
    values = [*one.inputs, *one.outputs]
    signature = {
        name: "i32" if isinstance(value, int) else TYPES[str(value.dtype)]
        for name, value in zip(names, values, strict=True)
    } | dict.fromkeys(one.constants, "constexpr")
    # what jax-triton tells Triton: arrays are aligned, integers may be
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(one.kernel.arg_names)
        if name in names and (not isinstance(v := values[names.index(name)], int) or v % 16 == 0)
    }
    source = triton.compiler.ASTSource(
        fn=one.kernel, signature=signature, constexprs=one.constants, attrs=aligned
    )
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    options = {
        "num_warps": one.num_warps,
        "num_stages": one.num_stages,
        "enable_fp_fusion": True,
    }
    return triton.compile(source, target=target, options=options)


def assembler_report(ptx, capability):
    from triton.backends.nvidia.compiler import get_ptxas

    name = f"sm_{capability}a" if capability == 90 else f"sm_{capability}"
    done = subprocess.run(
        [get_ptxas(capability).path, "-v", "--gpu-name", name, "/dev/stdin", "-o", os.devnull],
        input=ptx,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr


def products(rows, experts, d, f, dtype=jnp.bfloat16):
    """A grouped product, traced forward and backward on shapes alone."""

    def output(x, w, sizes):
        return jnp.sum(cm.grouped_matmul(x, w, sizes, implementation="triton").astype(jnp.float32))

    x, w = jax.ShapeDtypeStruct((rows, d), dtype), jax.ShapeDtypeStruct((experts, d, f), dtype)
    sizes = jax.ShapeDtypeStruct((experts,), jnp.int32)
    jax.eval_shape(jax.grad(output, argnums=(0, 1)), x, w, sizes)


def moments(size, width):
    """Tilted moments, with and without the second, traced on shapes alone."""
    from calmoe_kernels.triton import dual

    columns = jax.ShapeDtypeStruct((width,), jnp.float32)
    rows, scores = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((size, width), (size,)))
    for function in (dual.moments, dual.means):
        # a function of its own: what was traced once is not traced again
        jax.eval_shape(
            lambda *args, f=function: f(*args),
            dual.Columns(rows, columns, columns),
            scores,
            columns,
        )


DISPATCH = {
    "choose_kernel", "choose_backward_kernel", "_count_kernel", "_scan_kernel",
    "_place_kernel", "_scatter_kernel", "_gather_kernel",
}  # fmt: skip
MATMUL = {"_rows_kernel", "_matrices_kernel"}

CASES = {
    "mixtral": lambda: layer(65536, 8, 2, 4096),
    "128 experts, k=2": lambda: layer(65536, 128, 2, 4096, dtype=jnp.float32),
    "qwen3": lambda: layer(65536, 128, 8, 2048, renormalize=True, block_size=128),
    "deepseek": lambda: layer(
        8192,
        256,
        8,
        7168,
        bias=True,
        padded=True,
        scores="sigmoid",
        num_groups=8,
        groups_per_token=4,
    ),
    "switch": lambda: layer(8192, 512, 1, 768, capacity=20, renormalize=False),
    "odd": lambda: layer(1000, 60, 6, 100, dtype=jnp.float16),
    "384 experts": lambda: layer(8192, 384, 8, 512),
    "one": lambda: layer(17, 1, 1, 3),
    "64 products": lambda: products(32768, 64, 2048, 1024),
    "8 products": lambda: products(65536, 8, 4096, 4096),
    "float32 products": lambda: products(8192, 16, 256, 512, jnp.float32),
    "1e6 x 16 moments": lambda: moments(1_000_000, 16),
    "1e7 x 64 moments": lambda: moments(10_000_000, 64),
    "1e5 x 32 moments": lambda: moments(100_000, 32),
    "few odd moments": lambda: moments(1001, 5),
    "few odd products": lambda: products(100, 16, 30, 20, jnp.float16),
}


# together they hold every kernel
BY_DEFAULT = [("odd", 90), ("float32 products", 90), ("few odd moments", 80)]
OTHERS = [each for each in itertools.product(CASES, (80, 90)) if each not in BY_DEFAULT]


@pytest.mark.parametrize(("case", "capability"), [*BY_DEFAULT, *exhaustive(*OTHERS)])
def test_kernels_compile_and_do_not_spill(case, capability, launches):
    CASES[case]()
    names = {one.kernel.__name__ for one in launches.values()}
    kinds = {"products": MATMUL, "moments": {"_moments_kernel"}}
    assert names == next((kind for word, kind in kinds.items() if word in case), DISPATCH)
    for one in launches.values():
        kernel = compiled(one, capability)
        report = assembler_report(kernel.asm["ptx"], capability)
        registers = int(re.search(r"Used (\d+) registers", report).group(1))
        spilled = [int(n) for n in re.findall(r"(\d+) bytes spill", report)]
        print(
            f"sm_{capability} {case}: {one.kernel.__name__} {registers} registers, "
            f"{kernel.metadata.shared} bytes shared, {max(spilled, default=0)} spilled"
        )
        assert kernel.asm["cubin"]
        assert len(spilled) == 2
        assert not any(spilled), f"{one.kernel.__name__} {one.constants}"
