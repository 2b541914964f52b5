"""Collectives read from a program's text: against programs whose exchanges are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calmoe_jax.parallel import device_mesh
from calmoe_jax.parallel.collectives import collectives_of
from calmoe_jax.parallel.flops import count_flops

AXES = {"data": 2, "expert": 2}


def brief(found):
    return sorted((c.kind, c.axes, c.group_size, c.num_bytes, c.times) for c in found)


def program(line, *, before="", entry="  r = f32[] parameter(0)"):
    return f"HloModule m\n\n{before}\n%body (p: f32[]) -> f32[] {{\n{line}\n}}\n" + (
        f"ENTRY %main (p: f32[]) -> f32[] {{\n{entry}\n}}\n"
    )


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("replica_groups={{0,2},{1,3}}", ("data",)),
        ("replica_groups={{2,0},{3,1}}", ("data",)),
        ("replica_groups={{0,1},{2,3}}", ("expert",)),
        ("replica_groups={{0,1,2,3}}", ("data", "expert")),
        ("replica_groups=[2,2]<=[4]", ("expert",)),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", ("data",)),
        ("replica_groups=[1,4]<=[4]", ("data", "expert")),
        ("replica_groups=mesh['data'=2,'expert'=2] {'expert'}", ("expert",)),
        ("replica_groups=mesh['a'=1,'b'=2,'c'=2] {'b'}, use_global_device_ids=true", ("data",)),
        ("source_target_pairs={{0,1},{1,0},{2,3},{3,2}}", ("expert",)),
        ("source_target_pairs={{0,2},{2,0}}", ("data",)),
        ("replica_groups={{0,3},{1,2}}", ("data", "expert")),  # along no axis
    ],
)
def test_groups_are_axes(groups, axes):
    kind = "collective-permute" if "pairs" in groups else "all-reduce"
    line = f"  %r = bf16[3,5]{{1,0}} {kind}(%x), channel_id=1, {groups}, to_apply=%add"
    text = program(line, entry="  %c = f32[] call(%p), to_apply=%body")
    (found,) = collectives_of(text, AXES, slices=2)
    size = 4 if "1,2,3" in groups or "1,4" in groups else 2
    assert brief([found]) == [(kind, axes, size, 30, 1)]
    assert found.far == ("data" in axes)


@pytest.mark.parametrize(
    ("line", "kind", "num_bytes"),
    [
        ("(f32[4], s8[7]) all-reduce-start(%a, %b), replica_groups=[1,4]<=[4]", "all-reduce", 23),
        ("(f32[4], f32[16]) all-gather-start(%a), replica_groups=[1,4]<=[4]", "all-gather", 64),
        ("f32[4]{0} reduce-scatter(%a), replica_groups=[1,4]<=[4]", "reduce-scatter", 64),
        ("(f32[2], f32[2]) all-to-all(%a, %b), replica_groups=[1,4]<=[4]", "all-to-all", 16),
        ("pred[9]{0} all-gather(%a), replica_groups=[1,4]<=[4]", "all-gather", 9),
    ],
)
def test_sizes_are_those_of_the_whole_value(line, kind, num_bytes):
    text = program(f"  %r = {line}", entry="  %c = f32[] call(%p), to_apply=%body")
    assert brief(collectives_of(text, AXES)) == [(kind, ("data", "expert"), 4, num_bytes, 1)]


def test_loops_count_by_their_length_and_done_operations_not_at_all():
    line = "  %r = f32[8] all-reduce(%x), replica_groups=[1,4]<=[4]\n  %d = all-reduce-done(%r)"
    trips = 'backend_config={"known_trip_count":{"n":"6"}}'
    loop = f"  %w = f32[] while(%p), condition=%c, body=%body, {trips}"
    outer = f"%outer (p: f32[]) -> f32[] {{\n{loop}\n}}\n"
    entry = "  %a = f32[] call(%p), to_apply=%outer\n  %b = f32[] call(%p), to_apply=%outer"
    (found,) = collectives_of(program(line, before=outer, entry=entry), AXES)
    assert (found.times, found.num_bytes) == (12, 32)
    assert found.bytes_sent == 12 * 32 * 2 * 3 / 4
    assert collectives_of(program(line), AXES) == []  # nothing calls it


def test_loops_count_by_their_condition_where_nothing_else_says_it():
    line = "  %r = f32[8] all-reduce(%x), replica_groups=[1,4]<=[4]"
    condition = (
        "%cond (p: s32[]) -> pred[] {\n  %n = s32[]{:T(128)} constant(6), metadata={}\n"
        "  ROOT %lt = pred[] compare(%i, %n), direction=LT\n}\n"
    )
    entry = "  %w = f32[] while(%p), condition=%cond, body=%body"
    (found,) = collectives_of(program(line, before=condition, entry=entry), AXES)
    assert found.times == 6
    unknown = condition.replace("direction=LT", "direction=NE")
    (found,) = collectives_of(program(line, before=unknown, entry=entry), AXES)
    assert found.times == 1


def test_what_hosts_of_slices_send_is_an_exchange_between_slices():
    line = (
        "  %send = (f32[1,1,128]{2,1,0}, u32[], token[]) send(%x, %t), is_host_transfer=true, "
        'frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",'
        '_xla_megascale_transfer_type="ALL_REDUCE"}'
    )
    (found,) = collectives_of(
        program(line, entry="  %c = f32[] call(%p), to_apply=%body"), AXES, slices=2
    )
    assert brief([found]) == [("all-reduce", ("data",), 2, 512, 1)]
    assert found.far
    assert found.bytes_sent == 512


def compiled(function, mesh, *shapes, specs, out):
    mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out)
    given = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    return jax.jit(mapped).lower(*given).compile().as_text()


def test_compiled_programs():
    if len(jax.devices()) < 4:
        pytest.skip("needs four devices")
    mesh = device_mesh(jax.devices()[:4], expert_shards=2)

    def exchanges(x):
        def once(x, _):
            y = jax.lax.all_to_all(x, "expert", 0, 0, tiled=True)
            return jnp.sin(y), jax.lax.psum(jnp.sum(y), ("data", "expert"))

        x, sums = jax.lax.scan(once, x, length=5)
        return jax.lax.psum_scatter(x, "data", tiled=True), sums.sum()

    text = compiled(
        exchanges,
        mesh,
        (16, 4),
        specs=jax.P(("data", "expert")),
        out=(jax.P(("expert", "data")), jax.P()),
    )
    found = collectives_of(text, dict(mesh.shape))
    assert brief(found) == [
        ("all-reduce", ("data", "expert"), 4, 4, 5),
        ("all-to-all", ("expert",), 2, 64, 5),
        ("reduce-scatter", ("data",), 2, 64, 1),
    ]


def test_flops_of_products_loops_and_branches():
    def step(a, b):
        def once(a, _):
            return jax.checkpoint(jnp.tanh)(a @ b), None

        a, _ = jax.lax.scan(once, a, length=3)
        return jax.lax.cond(a[0, 0] > 0, lambda a: a @ b, lambda a: jnp.sin(a @ b), a)

    a, b = jnp.ones((2, 4)), jnp.ones((4, 4))
    assert count_flops(step, a, b) == 4 * 2 * 2 * 4 * 4
    gradient = jax.grad(lambda a, b: jnp.sum(step(a, b)), argnums=(0, 1))
    assert count_flops(gradient, a, b) == 3 * 4 * 2 * 2 * 4 * 4
    image, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5))

    def convolve(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    assert count_flops(convolve, image, kernel) == 2 * 2 * 6 * 6 * 5 * 27


def test_flops_are_those_of_one_device():
    if len(jax.devices()) < 4:
        pytest.skip("needs four devices")
    mesh = device_mesh(jax.devices()[:4])
    mapped = jax.shard_map(
        lambda x, w: x @ w, mesh=mesh, in_specs=(jax.P(("data", "expert")), jax.P()),
        out_specs=jax.P(("data", "expert")),
    )  # fmt: skip
    assert count_flops(mapped, np.ones((8, 3)), np.ones((3, 5))) == 2 * 2 * 3 * 5
