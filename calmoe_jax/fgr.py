"""FGR: low-quality JPEG filtering of images, and gradients that do not oppose calibration.

Zhang et al., Frequency-aware Gradient Rectification, arXiv 2508.19830, 2025.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from calmoe_jax._numerics import at_least_float32, safe_divide, wide_dtype
from calmoe_jax._signatures import checked

_BLOCK = 8

# ITU-T T.81 (JPEG), tables K.1 and K.2.
_LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    np.float32,
)
_CHROMINANCE = np.full((_BLOCK, _BLOCK), 99, np.float32)
_CHROMINANCE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]

# ITU-T T.871 (JFIF): luminance and the two colour differences, centred on 128.
_RGB_TO_YCBCR = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32
)
_YCBCR_TO_RGB = np.array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]], np.float32)
_OFFSET = np.array([0, 128, 128], np.float32)

# Row u holds the u-th orthonormal DCT-II basis vector of length 8.
_DCT = np.sqrt(2 / _BLOCK) * np.cos(
    np.pi * np.arange(_BLOCK)[:, None] * (2 * np.arange(_BLOCK)[None, :] + 1) / (2 * _BLOCK)
)
_DCT[0] /= np.sqrt(2)
_DCT = _DCT.astype(np.float32)


@checked
def dct_filter(
    images: Float[Array, "images height width channels"], quality: Float[Array, " images"]
) -> Float[Array, "images height width channels"]:
    """Quantises the 8x8 block DCT of images, which removes their fine frequencies.

    In grey levels 0 to 255, each 8x8 block `X` of each channel becomes `D^T (Q round(D X D^T / Q)) D`
    with `D` the orthonormal DCT-II and `Q = max(1, table (101 - quality) / 50)`. Colour images are
    filtered as YCbCr, with the chrominance table for the two colour channels.

    Args:
        images: values in [0, 1]; 1 channel (grey) or 3 (RGB).
        quality: quality of each image, in [1, 101]: lower removes more. FGR draws it from
            {15, 18, 25}.

    Returns:
        Filtered images in [0, 1], at least float32. Rows and columns beyond the last whole block
        stay as they are, as do images smaller than a block.

    Raises:
        ValueError: if there are neither 1 nor 3 channels.

    Example:
        >>> dct_filter(jnp.full((1, 8, 8, 1), 0.5), jnp.array([15.0]))[0, 0, 0].round(3)
        Array([0.499], dtype=float32)

    References:
        Zhang et al., Frequency-aware Gradient Rectification, arXiv 2508.19830, 2025; tables and
        colour space from the JPEG standard (ITU-T T.81, T.871).
    """  # noqa: E501
    channels = images.shape[-1]
    if channels not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels, got images.shape={images.shape}.")
    images = at_least_float32(images)
    rows, columns = (size // _BLOCK * _BLOCK for size in images.shape[1:3])
    whole = images[:, :rows, :columns] * 255
    if channels == 3:
        matrix, offset = _RGB_TO_YCBCR.astype(whole.dtype), _channel(_OFFSET).astype(whole.dtype)
        whole = jnp.einsum("nhwc,dc->nhwd", whole, matrix, precision="highest") + offset
    filtered = _quantise_blocks(whole, quality.astype(images.dtype))
    if channels == 3:
        matrix = _YCBCR_TO_RGB.astype(whole.dtype)
        filtered = jnp.einsum("nhwc,dc->nhwd", filtered - offset, matrix, precision="highest")
    return images.at[:, :rows, :columns].set(jnp.clip(filtered / 255, 0, 1))


def _channel(values: np.ndarray) -> Float[Array, "1 1 1 channels"]:
    return jnp.asarray(values)[None, None, None, :]


def _quantise_blocks(
    images: Float[Array, "images height width channels"], quality: Float[Array, " images"]
) -> Float[Array, "images height width channels"]:
    """Quantises every whole 8x8 block; height and width are multiples of 8."""
    count, height, width, channels = images.shape
    shape = (count, height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK, channels)
    tables = np.stack([_LUMINANCE, _CHROMINANCE, _CHROMINANCE][:channels], axis=-1)
    scale = (101 - quality) / 50
    steps = jnp.maximum(1, jnp.asarray(tables, images.dtype)[None] * scale[:, None, None, None])
    steps = steps[:, None, :, None, :, :]
    basis = _DCT.astype(images.dtype)
    forward, inverse = "nrhcwk,uh,vw->nrucvk", "nrucvk,uh,vw->nrhcwk"
    spectrum = jnp.einsum(forward, images.reshape(shape), basis, basis, precision="highest")
    quantised = jnp.round(spectrum / steps) * steps
    blocks = jnp.einsum(inverse, quantised, basis, basis, precision="highest")
    return blocks.reshape(images.shape)


def _inner(a: PyTree, b: PyTree, dtype: jnp.dtype) -> Float[Array, ""]:
    products = jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)
    return jax.tree.reduce(jnp.add, products, jnp.zeros((), dtype))


def rectify_gradient(main: PyTree, calibration: PyTree) -> PyTree:
    """Removes from a gradient the part that opposes the calibration gradient.

    `g - min(<g, c>, 0) / |c|^2 c`: where `<g, c> < 0` the result is the projection of `g` on the
    plane orthogonal to `c`; elsewhere it is `g`.

    Args:
        main: gradient of the training loss `g`; any pytree of float arrays.
        calibration: gradient of a calibration loss `c`, of the same structure and shapes.

    Returns:
        The rectified gradient, with the dtypes of `main`; `main` itself if `calibration` is zero.
        NaN or infinity in either tree never gives a result that is all finite.

    Raises:
        ValueError: if the trees differ in structure or in a leaf's shape.

    Example:
        >>> rectify_gradient({"w": jnp.array([1.0, -1.0])}, {"w": jnp.array([0.0, 2.0])})
        {'w': Array([1., 0.], dtype=float32)}

    References:
        Zhang et al., Frequency-aware Gradient Rectification, arXiv 2508.19830, 2025.
    """
    structures = [str(jax.tree.structure(tree)) for tree in (main, calibration)]
    if structures[0] != structures[1]:
        raise ValueError(
            "calibration must have the structure of main, got "
            f"calibration={structures[1]} and main={structures[0]}."
        )
    for g, c in zip(jax.tree.leaves(main), jax.tree.leaves(calibration), strict=True):
        if g.shape != c.shape:
            raise ValueError(
                f"calibration must have the shapes of main, got a leaf of shape {c.shape} where "
                f"main has {g.shape}."
            )
    dtype = wide_dtype(*(x.dtype for x in jax.tree.leaves((main, calibration))))
    wide, unit = (jax.tree.map(lambda x: x.astype(dtype), tree) for tree in (main, calibration))
    # scaled by its largest entry, the calibration gradient's square cannot under- or overflow
    largest = jax.tree.map(lambda c: jnp.max(jnp.abs(c), initial=0), unit)
    largest = jax.tree.reduce(jnp.maximum, largest, jnp.zeros((), dtype))
    unit = jax.tree.map(lambda c: c / jnp.where(largest == 0, 1, largest), unit)
    conflict = jnp.minimum(_inner(wide, unit, dtype), 0)
    coefficient = safe_divide(conflict, _inner(unit, unit, dtype))
    rectified = jax.tree.map(lambda g, c: g - coefficient * c, wide, unit)
    return jax.tree.map(lambda g, x: x.astype(g.dtype), main, rectified)
