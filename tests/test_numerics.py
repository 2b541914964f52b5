"""Small numerical helpers."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from devices import shard_map

from calmoe_jax._numerics import normal_cdf
from calmoe_jax.moe.activations import function_of

X = jnp.array([-12, -5, -1.5, -0.0, 0.0, 0.3, 2, 40, -jnp.inf, jnp.inf], jnp.float32)


def test_the_normal_distribution_function():
    np.testing.assert_allclose(normal_cdf(X), scipy.stats.norm.cdf(X), rtol=1e-5)
    density = jax.vmap(jax.grad(normal_cdf))(X)
    np.testing.assert_allclose(density, scipy.stats.norm.pdf(X), rtol=1e-5)
    slope = jax.vmap(jax.grad(jax.grad(normal_cdf)))(X[:8])
    np.testing.assert_allclose(slope, -X[:8] * scipy.stats.norm.pdf(X[:8]), rtol=1e-5)
    half = X[:8].astype(jnp.bfloat16)
    density = jax.vmap(jax.grad(normal_cdf))(half)
    assert density.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        density.astype(float), scipy.stats.norm.pdf(np.asarray(half, float)), rtol=4e-3
    )


def test_gelu_learns_on_every_device(mesh):
    """JAX 0.12 cannot trace the derivative of its own exact form there."""
    gelu = function_of("gelu")
    x = jnp.linspace(-3, 3, 4 * len(mesh.devices))[:, None]
    np.testing.assert_allclose(gelu(x), jax.nn.gelu(x, approximate=False), rtol=1e-5, atol=1e-7)
    wanted = jax.grad(lambda x: gelu(x).sum())(x)
    gradient = jax.grad(lambda x: gelu(x).sum())
    mapped = shard_map(gradient, mesh=mesh, in_specs=jax.P("d"), out_specs=jax.P("d"))
    np.testing.assert_allclose(jax.jit(mapped)(x), wanted, rtol=1e-5)
