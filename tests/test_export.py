"""`jax.export`: named tuples in and out, and any number of tokens."""

import importlib
import inspect
import sys
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dispatching import close, exhaustive, normal

import calmoe_jax as cm
from calmoe_jax import _export
from calmoe_jax.moe import ExpertParams, sparse_layer

pytestmark = pytest.mark.exhaustive

ROOMS = ("routing", "mixture", "moe", "reweighting", "calibration", "shift", "training")


def inputs(tokens):
    params = ExpertParams(normal(1, 4, 3, 5), normal(2, 4, 5, 3), normal(3, 4, 5), normal(4, 4, 3))
    return normal(5, tokens, 3), normal(6, tokens, 4), jax.tree.map(jnp.asarray, params)


def layer(capacity):
    def call(x, gate_logits, params):
        result = sparse_layer(x, gate_logits, params, k=2, capacity=capacity)
        return result, cm.moe.load_balancing_loss(result.routed)

    return jax.jit(call)


def read_back(exported):
    return jax.export.deserialize(exported.serialize()) if find_spec("flatbuffers") else exported


@pytest.mark.exhaustive
@pytest.mark.parametrize("capacity", [None, 3])
def test_any_number_of_tokens(capacity):
    (tokens,) = jax.export.symbolic_shape("tokens")

    def shape(x, *rows):
        return jax.ShapeDtypeStruct((*rows, *x.shape[len(rows) :]), x.dtype)

    x, gate_logits, params = inputs(6)
    shapes = shape(x, tokens), shape(gate_logits, tokens), jax.tree.map(shape, params)
    call = layer(capacity)
    exported = read_back(jax.export.export(call, platforms=["cpu"])(*shapes))
    for size in (6, 1):
        found = exported.call(*inputs(size))
        wanted = call(*inputs(size))
        assert jax.tree.structure(found) == jax.tree.structure(wanted)
        close((found[0].output, found[1]), (wanted[0].output, wanted[1]))


@pytest.mark.parametrize("options", [{"block_size": 4}, *exhaustive({}, {"capacity": 3})], ids=str)
def test_routes_and_plans_of_any_number_of_tokens(options):
    (tokens,) = jax.export.symbolic_shape("tokens")
    shape = jax.ShapeDtypeStruct((tokens, 4), jnp.float32)
    call = jax.jit(lambda logits: jax.tree.leaves(cm.route(logits, k=2, **options)))
    exported = jax.export.export(call, platforms=["cpu"])(shape)
    logits = normal(6, 7, 4)
    for found, wanted in zip(exported.call(logits)[:4], call(logits)[:4], strict=True):
        rows = min(len(found), len(wanted))  # of blocks, room for one more expert at most
        np.testing.assert_allclose(found[:rows], wanted[:rows], rtol=1e-6)


def public_named_tuples():
    for room in ROOMS:
        importlib.import_module(f"calmoe_jax.{room}")
    for name, module in list(sys.modules.items()):
        if name.startswith(tuple(f"calmoe_jax.{room}" for room in ROOMS)):
            for own in vars(module).values():
                if inspect.isclass(own) and hasattr(own, "_fields") and own.__module__ == name:
                    if not own.__name__.startswith("_"):
                        yield own


def test_every_public_named_tuple_is_registered_under_its_own_name():
    classes = list(public_named_tuples())
    assert len(classes) > 50
    assert set(classes) <= _export._registered
    for one in classes:
        # a second registration is refused by JAX, and so was made before
        with pytest.raises(ValueError, match="uplicate serialization registration for type"):
            jax.export.register_namedtuple_serialization(one, serialized_name=f"again.{one}")


def test_a_second_import_does_no_harm():
    again = importlib.reload(_export)
    again.register_named_tuples("calmoe_jax.moe", "calmoe_jax.routing")
