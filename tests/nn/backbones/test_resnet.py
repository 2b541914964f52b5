"""ResNet-18 with the stem for ImageNet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dispatching import exhaustive
from flax import nnx

from calmoe_jax import nn

IMAGES = jnp.asarray(np.random.RandomState(0).rand(3, 33, 40, 3), jnp.float32)


def net(**options):
    return nn.ResNet18(
        3, **{"stages": 2, "width": 4, "stem": "imagenet", "rngs": nnx.Rngs(0)} | options
    )


def test_it_has_as_many_parameters_as_the_published_one():
    abstract = nnx.eval_shape(lambda: nn.ResNet18(3, stem="imagenet", rngs=nnx.Rngs(0)))
    assert nn.count_parameters(abstract) == 11_176_512
    assert abstract.num_features == 512


@pytest.mark.parametrize("dtype", [jnp.bfloat16, *exhaustive((jnp.float32,))])
def test_it_is_trained(dtype):
    """Gradients reach every parameter; statistics stay in float32, whatever the dtype."""
    network = nn.from_nnx(
        lambda rngs: nn.SingleClassifier(net(stages=1, dtype=dtype, rngs=rngs), 3, rngs=rngs)
    )
    params, state = network.init(jax.random.key(0))

    def loss(params):
        prediction, after = network.apply(params, state, IMAGES, train=True)
        return -prediction.log_probs[:, 0].mean(), (prediction.log_probs, after)

    value = jax.value_and_grad(loss, has_aux=True)
    (_, (log_probs, after)), gradient = jax.jit(value)(params)
    assert all(bool(jnp.isfinite(g).all() & (g != 0).any()) for g in jax.tree.leaves(gradient))
    kinds = {x.dtype for x in jax.tree.leaves((params, after, gradient, log_probs))}
    assert kinds == {jnp.dtype("float32")}


def test_a_compiled_program_is_what_is_called_eagerly():
    module = net(stages=1)
    graph, state = nnx.split(module)
    compiled = jax.jit(lambda state: nnx.merge(graph, state)(IMAGES))(state)
    np.testing.assert_allclose(module(IMAGES), compiled, rtol=1e-4, atol=1e-5)
    assert compiled.shape == (3, 4)


def test_unknown_stems(unchecked):
    with pytest.raises(ValueError, match="stem must be one of cifar, imagenet, got stem='mnist'"):
        net(stem="mnist")
