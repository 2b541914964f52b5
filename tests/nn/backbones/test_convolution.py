"""The convolution for CPU: XLA's values and gradients, and fast inside a loop."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calmoe_jax.nn.backbones._convolution import loop_friendly_conv


def problem(size, n):
    rng = np.random.RandomState(size)
    x = jnp.asarray(rng.randn(2, n, n + 1, 3), jnp.float32)
    return x, jnp.asarray(rng.randn(size, size, 3, 5), jnp.float32)


@pytest.mark.parametrize(
    ("size", "stride", "padding", "n"),
    [
        (3, 1, 1, 7),
        (3, 2, 1, 8),
        (3, 2, 1, 9),
        (1, 2, 0, 8),
        (1, 1, 0, 5),
        (2, 1, 1, 6),
        (4, 3, 2, 11),
    ],
)
def test_values_and_gradients_are_those_of_xla(size, stride, padding, n):
    def xla(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            [(padding, padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    arguments = problem(size, n)
    expected, pull_back = jax.vjp(xla, *arguments)
    found, own_pull_back = jax.vjp(
        lambda x, kernel: loop_friendly_conv(x, kernel, stride, padding), *arguments
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    cotangent = jnp.cos(jnp.arange(expected.size, dtype=jnp.float32)).reshape(expected.shape)
    for a, b in zip(own_pull_back(cotangent), pull_back(cotangent), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_a_gradient_inside_a_loop_costs_what_it_costs_outside():
    """Where XLA's own form is not rewritten in loops it takes 30 times as long; allow 4."""
    x = jnp.ones((8, 24, 24, 32))
    kernel = jnp.full((3, 3, 32, 32), 1e-3)

    def step(kernel):
        loss = lambda k: jnp.sum(jnp.square(loop_friendly_conv(x, k, 1, 1)))  # noqa: E731
        return kernel - 1e-9 * jax.grad(loss)(kernel)

    def seconds(program):
        program(kernel).block_until_ready()
        times = []
        for _ in range(5):
            start = time.perf_counter()
            program(kernel).block_until_ready()
            times.append(time.perf_counter() - start)
        return min(times)

    outside = seconds(jax.jit(step))
    inside = seconds(
        jax.jit(lambda k: jax.lax.scan(lambda c, _: (step(c), None), k, None, length=4)[0])
    )
    assert inside / 4 < 4 * outside
