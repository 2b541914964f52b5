"""A convolution whose gradients are fast on CPU inside loops too.

XLA:CPU has a fast kernel for one layout of convolutions (batch, height, width, features; height,
width, in, out), and rewrites others to it only at the top level of a program. The gradients of
`jax.lax.conv_general_dilated` have other layouts; inside `scan`, `map` or `cond` they run element
by element: a ResNet-18 step took 13 s there instead of 0.3 s (16 images, jax 0.10.2 and 0.12).
Here both gradients need no rewriting: the input's is a convolution with the flipped kernel, the
kernel's one matrix product for each of its positions.
Like every `custom_vjp` it has no forward-mode derivative.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def loop_friendly_conv(
    x: Float[Array, "images height width channels_in"],
    kernel: Float[Array, "rows columns channels_in channels_out"],
    stride: int,
    padding: int,
) -> Float[Array, "images height2 width2 channels_out"]:
    """Convolves images with a kernel; the same function as `jax.lax.conv_general_dilated`.

    Args:
        x: images.
        kernel: weights, of odd or even size.
        stride: step of the window in both directions, at least 1.
        padding: zeros on both sides of each direction, less than the kernel's size.

    Returns:
        The convolved images.

    Example:
        >>> loop_friendly_conv(jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1)), 1, 1)[0, 1, 1, 0]
        Array(9., dtype=float32)
    """
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=_DIMENSIONS
    )


def _forward(
    x: Float[Array, "images height width channels_in"],
    kernel: Float[Array, "rows columns channels_in channels_out"],
    stride: int,
    padding: int,
) -> tuple[Float[Array, "images height2 width2 channels_out"], tuple[jax.Array, jax.Array]]:
    return loop_friendly_conv(x, kernel, stride, padding), (x, kernel)


def _backward(
    stride: int,
    padding: int,
    saved: tuple[jax.Array, jax.Array],
    cotangent: Float[Array, "images height2 width2 channels_out"],
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    spans = [(size - 1) * stride + 1 for size in cotangent.shape[1:3]]
    margins = [
        (k - 1 - padding, n + padding - span)
        for k, n, span in zip(kernel.shape[:2], x.shape[1:3], spans, strict=True)
    ]
    to_x = jax.lax.conv_general_dilated(
        cotangent,
        jnp.flip(kernel, (0, 1)).swapaxes(2, 3),
        (1, 1),
        margins,
        lhs_dilation=(stride, stride),
        dimension_numbers=_DIMENSIONS,
    )
    padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    to_kernel = [
        jnp.einsum(
            "nhwi,nhwo->io",
            padded[:, i : i + spans[0] : stride, j : j + spans[1] : stride],
            cotangent,
        )
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    ]
    return to_x, jnp.stack(to_kernel).reshape(kernel.shape)


loop_friendly_conv.defvjp(_forward, _backward)
