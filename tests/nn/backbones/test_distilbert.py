"""DistilBERT: its counts, its masks, its dtypes; `tests/nn/pretrained` has its features."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from calmoe_jax import nn

IDS = jnp.asarray(np.random.RandomState(0).randint(0, 20, (4, 6)), jnp.int32)
MASK = jnp.array([[1] * 6, [1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0] * 6], bool)


def bert(seed=0, **options):
    return nn.DistilBERT.of_size("tiny", vocab_size=20, **{"rngs": nnx.Rngs(seed)} | options)


def test_it_has_as_many_parameters_as_the_published_one():
    abstract = nnx.eval_shape(lambda: nn.DistilBERT.of_size("base", rngs=nnx.Rngs(0)))
    assert nn.count_parameters(abstract) == 66_362_880
    assert abstract.num_features == 768


def test_padding_may_hold_anything_and_every_parameter_learns():
    graph, params = nnx.split(bert())

    def loss(params, ids):
        values = nnx.merge(graph, params)({"ids": ids, "mask": MASK}).values
        return jnp.sum(jnp.sin(values[:3])), values

    call = jax.jit(jax.value_and_grad(loss, has_aux=True))
    plain = call(params, IDS)
    assert jnp.isfinite(plain[0][1]).all()  # of a text that is all padding too
    gradient = nnx.to_pure_dict(plain[1])
    assert all(bool(jnp.isfinite(g).all() & (g != 0).any()) for g in jax.tree.leaves(gradient))
    for other in (99, -7):
        found = call(params, jnp.where(MASK, IDS, other))
        jax.tree.map(np.testing.assert_array_equal, plain, found)


def test_padding_may_be_of_any_length():
    call = jax.jit(bert().__call__)
    longer = (jnp.pad(x[:3], ((0, 0), (0, 9))) for x in (IDS, MASK))
    short = call((IDS[:3], MASK[:3])).values
    np.testing.assert_allclose(call(tuple(longer)).values, short, rtol=1e-5, atol=1e-5)


def test_half_precision_normalises_in_float32():
    net, full = bert(dtype=jnp.bfloat16), bert()
    assert {x.dtype for x in jax.tree.leaves(nnx.state(net))} == {jnp.dtype("float32")}
    traced = jax.jit(net.__call__).trace((IDS, MASK))
    assert "bf16[4,6,48]" in str(traced.jaxpr)
    assert not re.search(r":bf16\[[\d,]*\] = (exp|rsqrt|div)\b", str(traced.jaxpr))
    found = traced.lower().compile()((IDS, MASK)).values
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, jax.jit(full.__call__)((IDS, MASK)).values, atol=0.1)


def test_ids_outside_the_vocabulary_are_seen():
    found = jax.jit(bert().__call__)((IDS.at[0, 2].set(20).at[1, 1].set(-1), MASK)).values
    np.testing.assert_array_equal(jnp.isnan(found).all(axis=1), [True, True, False, False])


def test_wrong_arguments(unchecked):
    with pytest.raises(ValueError, match="size must be one of tiny, base, got size='large'"):
        nn.DistilBERT.of_size("large", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="norms must be one of before, after"):
        nn.TextEncoder(
            9, 6, width=8, depth=2, heads=2, mlp_width=8, norms="first", rngs=nnx.Rngs(0)
        )
    with pytest.raises(ValueError, match="epsilon must be positive"):
        nn.TextEncoder(9, 6, width=8, depth=2, heads=2, mlp_width=8, epsilon=0.0, rngs=nnx.Rngs(0))
