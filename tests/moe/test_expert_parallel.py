"""A layer whose experts are spread over devices gives what one device gives."""

import functools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sparse_references
from dispatching import exhaustive
from exchanging import (
    TOKENS,
    D,
    E,
    agree,
    loss_of,
    mesh_of,
    near,
    over,
    problem,
    ragged_all_to_all,
    reference,
    with_gradients,
)

import calmoe_jax as cm
from calmoe_jax.moe import ExpertParams, exchange_ragged, expert_parallel_layer

EXCHANGES = ("all_to_all", "ring", "ragged")
KINDS = ("random", "skewed", "dead", "masked", "padded", "broken")


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    """`lax.ragged_all_to_all` runs on no CPU."""
    monkeypatch.setattr(exchange_ragged, "ragged_all_to_all", ragged_all_to_all)
    monkeypatch.setattr(exchange_ragged, "ragged_all_to_all_runs", lambda: True)


GROUPS = {
    "scores": "sigmoid", "num_groups": 4, "groups_per_token": 2, "scaling_factor": 2.5,
    "renormalize": False,
}  # fmt: skip


@functools.cache
def compiled(mesh, exchange, check_vma=True, kind="Auto", **options):
    layer = over(mesh_of(mesh, kind), exchange=exchange, check_vma=check_vma, **options)
    return with_gradients(layer).lower(*problem("random")).compile()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("mesh", "exchange", "check_vma", "options"),
    [
        ("4", "all_to_all", True, {"k": 2}),
        ("4", "ring", True, {"k": 2}),
        ("4", "ragged", True, {"k": 2}),
        ("2x2", "ring", True, {"k": 1, "renormalize": False}),
        *exhaustive(
            *(
                (mesh, exchange, True, {"k": k, "renormalize": k > 1})
                for mesh in ("2", "2x2", "8", "2x4")
                for exchange in EXCHANGES
                for k in (1, 4)
            ),
            *(("2x2", exchange, False, {"k": 1, "renormalize": False}) for exchange in EXCHANGES),
            *(("4", exchange, False, {"k": 3} | GROUPS) for exchange in EXCHANGES),
            *(
                ("2x2", exchange, True, {"k": 2, "axis_name": ("data", "expert")})
                for exchange in EXCHANGES
            ),
        ),
    ],
    ids=str,
)
def test_devices_agree_with_one(mesh, exchange, check_vma, options, kind):
    found = compiled(mesh, exchange, check_vma, **options)(*problem(kind))
    of_one = {name: value for name, value in options.items() if name != "axis_name"}
    wanted = reference(**of_one)(*problem(kind))
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(wanted)) == (kind != "broken")
    agree(found, wanted)


def test_outputs_are_a_loop():
    """The reference is itself right: dense, in float64."""
    arrays, where = problem("masked")
    x, logits, params, bias, shared = (jax.tree.map(np.asarray, a) for a in arrays)
    (output, load, *_), gradients = reference(k=2)(arrays, where)
    y, wanted, *_ = sparse_references.sparse_layer(
        x, logits, params, bias, shared, where, k=2, act=sparse_references.gelu
    )
    near(output, y, 1e-5, "output")
    assert load.tolist() == wanted
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves((gradients[:3], gradients[4])))
    assert not gradients[3].any()


@pytest.mark.parametrize("exchange", [*exhaustive("all_to_all", "ring", "ragged")])
def test_explicit_axes(exchange):
    found = compiled("4", exchange, kind="Explicit", k=2)(*problem("random"))
    agree(found, reference(k=2)(*problem("random")))


def collectives(text):
    names = "all-to-all", "all-gather", "reduce-scatter", "all-reduce", "collective-permute"
    return [len(re.findall(rf" {name}(?:-start)?\(", text)) for name in names]


def test_collectives_do_not_grow_with_experts():
    """With gradients; two all-reduces are of the shared arrays and of the numbers tested here."""
    exchanges, gathers, scatters, _, moves = collectives(compiled("4", "all_to_all", k=2).as_text())
    assert (exchanges, gathers, scatters, moves) == (4, 0, 0, 0)
    exchanges, gathers, scatters, _, moves = collectives(compiled("4", "ring", k=2).as_text())
    # the gradient of a gather is a scatter: there 2 and 1, back 1 and 2
    assert (exchanges, gathers, scatters, moves) == (0, 3, 3, 0)


@pytest.mark.parametrize(
    ("exchange", "counts"), [("all_to_all", [2, 0, 0, 0, 0]), ("ring", [0, 2, 1, 0, 0])]
)
def test_collectives_of_outputs(exchange, counts):
    layer = over(mesh_of("4"), exchange=exchange, k=2)
    lowered = jax.jit(lambda *inputs: layer(*inputs)[0]).lower(*problem("random"))
    assert collectives(lowered.compile().as_text()) == counts


@pytest.mark.parametrize(
    ("mesh", "exchange", "check_vma", "options", "parts"),
    [
        ("2x2", "all_to_all", False, {"k": 3, "capacity": 2} | GROUPS, 4),
        ("4", "ring", True, {"k": 2, "capacity": 5}, 1),
        *exhaustive(
            ("4", "all_to_all", True, {"k": 1, "capacity": 1}, 4),
            ("2", "ring", False, {"k": 3, "capacity": 2} | GROUPS, 1),
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["random", "skewed", "padded"])
def test_capacities_are_those_of_one_device(mesh, exchange, check_vma, options, parts, kind):
    found = compiled(mesh, exchange, check_vma, **options)(*problem(kind))
    wanted = reference(parts=parts, **options)(*problem(kind))
    assert wanted[0][2] > 0
    agree(found, wanted)


@pytest.mark.parametrize("exchange", ["all_to_all", *exhaustive("ring", "ragged")])
def test_gradients_inside_of_a_summed_loss(exchange):
    """With `check_vma`; without, see `test_pmap`."""
    rows = jax.P("expert")

    def gradient(x, logits, params, shared):
        def loss(*arrays):
            x, logits, params, shared = arrays
            out = expert_parallel_layer(
                x, logits, params, None, shared, axis_name="expert", k=2, exchange=exchange
            )
            return jax.lax.psum(loss_of(out.output), "expert")

        return jax.grad(loss, (0, 1, 2, 3))(x, logits, params, shared)

    mapped = jax.shard_map(
        gradient, mesh=mesh_of("4"), in_specs=(rows, rows, rows, jax.P()),
        out_specs=(rows, rows, rows, jax.P()),
    )  # fmt: skip
    (x, logits, params, bias, shared), where = problem("random")
    found = jax.jit(mapped)(x, logits, params, shared)
    _, wanted = reference(k=2)((x, logits, params, bias * 0, shared), where)
    jax.tree.map(lambda a, b: near(a, b, 1e-5, ""), found, (*wanted[:3], wanted[4]))


@pytest.mark.parametrize("exchange", [*exhaustive("all_to_all", "ring", "ragged")])
def test_tokens_that_devices_share(exchange):
    """Each device takes them for its own."""
    own, shared = jax.P("expert"), jax.P()
    layer = partial(expert_parallel_layer, axis_name="expert", k=2, exchange=exchange)
    mapped = jax.shard_map(
        lambda *args: layer(*args).output, mesh=mesh_of("2"), in_specs=(shared, shared, own),
        out_specs=own,
    )  # fmt: skip
    arrays = problem("random")[0][:3]

    def loss(layer, x, logits, params):
        output = layer(x, logits, params)
        return loss_of(output), output

    found, outputs = jax.jit(jax.grad(partial(loss, mapped), (0, 1, 2), has_aux=True))(*arrays)
    one = partial(loss, lambda *args: cm.sparse_layer(*args, k=2).output)
    wanted, output = jax.jit(jax.grad(one, (0, 1, 2), has_aux=True))(*arrays)
    near(outputs, jnp.concatenate([output, output]), 1e-5, "output")
    jax.tree.map(lambda a, b: near(a, 2 * b, 1e-5, ""), found, wanted)


@pytest.mark.parametrize("exchange", ["ring", *exhaustive("all_to_all", "ragged")])
def test_pmap(exchange):
    """Each device's own loss: the exchange adds up what all give to a device's experts."""

    def gradient(x, logits, params, where):
        def loss(x, logits, params):
            out = expert_parallel_layer(
                x, logits, params, where=where, axis_name="e", k=2, exchange=exchange
            )
            return loss_of(out.output), out.output

        return jax.grad(loss, (0, 1, 2), has_aux=True)(x, logits, params)

    def split(tree):
        return jax.tree.map(lambda a: a.reshape(4, -1, *a.shape[1:]), tree)

    (x, logits, params, bias, _), where = problem("padded")
    mapped = jax.pmap(gradient, axis_name="e", devices=jax.devices()[:4])
    found, output = mapped(*split((x, logits, params, where)))
    zeros = jax.tree.map(lambda a: jnp.zeros((2, *a.shape[1:]), a.dtype), params)
    (wanted_output, *_), wanted = reference(k=2)((x, logits, params, bias * 0, zeros), where)
    near(output, split(wanted_output), 1e-5, "output")
    jax.tree.map(lambda a, b: near(a, b, 1e-5, ""), found, split(wanted[:3]))


@pytest.mark.parametrize("exchange", ["ring", *exhaustive("all_to_all")])
def test_vmap_stands_for_devices(exchange):
    """Without any: for trying things out."""
    (x, logits, params, *_), _ = problem("random")
    layer = partial(expert_parallel_layer, axis_name="e", k=2, exchange=exchange)
    split = jax.tree.map(lambda a: a.reshape(4, -1, *a.shape[1:]), (x, logits, params))
    found = jax.jit(lambda *args: jax.vmap(layer, axis_name="e")(*args).output)(*split)
    wanted = jax.jit(lambda *args: cm.sparse_layer(*args, k=2).output)(x, logits, params)
    near(found.reshape(TOKENS, D), wanted, 1e-5, "output")


@pytest.mark.parametrize("exchange", [*exhaustive("all_to_all", "ring")])
def test_jit_is_eager(exchange):
    layer = over(mesh_of("2"), exchange=exchange, k=2)
    eager = layer(*problem("random"))
    jax.tree.map(lambda a, b: near(a, b, 1e-6, ""), eager, jax.jit(layer)(*problem("random")))


@pytest.mark.parametrize("exchange", [*exhaustive(*EXCHANGES)])
def test_64_bits_agree_to_the_last_digits(exchange):
    with jax.enable_x64(True):
        given = problem("masked", np.float64)
        options = {"k": 3} | GROUPS
        layer = over(mesh_of("4"), exchange=exchange, **options)
        agree(with_gradients(layer)(*given), reference(**options)(*given), 1e-13)


@pytest.mark.parametrize("exchange", ["ring", *exhaustive("all_to_all", "ragged")])
def test_bfloat16(exchange):
    arrays, where = problem("random", jnp.bfloat16)
    layer = over(mesh_of("4"), exchange=exchange, k=2)
    output, *_ = jax.jit(layer)(arrays, where)
    assert output.dtype == jnp.bfloat16
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), arrays)
    (wanted, *_), _ = reference(k=2)(wide, where)
    near(output, wanted, 2e-2, "output")


@pytest.mark.parametrize("exchange", ["all_to_all", "ring", *exhaustive("ragged")])
def test_no_tokens(exchange):
    _, _, params, bias, shared = problem("random")[0]
    arrays = *(jnp.zeros((0, n), jnp.float32) for n in (D, E)), params, bias, shared
    layer = over(mesh_of("4"), exchange=exchange, k=2)
    output, load, dropped, _ = jax.jit(layer)(arrays, jnp.zeros(0, bool))
    assert output.shape == (0, D)
    assert not load.any()
    assert dropped == 0


def call(x=None, logits=None, params=None, mesh="4", axis_name="expert", **options):
    """Traced only."""
    arrays, where = problem("random")
    given = [b if a is None else a for a, b in zip((x, logits, params), arrays[:3], strict=True)]
    layer = over(mesh_of(mesh), axis_name=axis_name, **{"k": 2} | options)
    jax.eval_shape(layer, (*given, None, arrays[4]), where)


def some(params, number):
    return ExpertParams(*(p[:number] for p in params))


def test_errors():
    params = problem("random")[0][2]
    with pytest.raises(ValueError, match="divisible by the 4 devices of axis 'expert', got num_e"):
        call(logits=jnp.zeros((TOKENS, 6)))
    with pytest.raises(ValueError, match=r"params must have the 2 experts of one device .* got"):
        call(params=some(params, 4))
    with pytest.raises(ValueError, match="exchange must be one of all_to_all, ring, ragged, got"):
        call(exchange="broadcast")
    with pytest.raises(ValueError, match="axis_name='tensor', which is not bound"):
        call(axis_name="tensor")
    with pytest.raises(ValueError, match="axis_name='expert', which is not bound"):
        expert_parallel_layer(*problem("random")[0][:3], axis_name="expert", k=2)
    with pytest.raises(ValueError, match="buffer_factor must be None with exchange='ring', got"):
        call(exchange="ring", buffer_factor=2.0)
    with pytest.raises(ValueError, match="buffer_factor must be positive and finite, got"):
        call(exchange="ragged", buffer_factor=0.0)
    with pytest.raises(ValueError, match="capacity must be None with exchange='ragged'"):
        call(exchange="ragged", capacity=3)
    with pytest.raises(ValueError, match="capacity must be at least 1"):
        call(capacity=0)
