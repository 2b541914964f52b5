"""Images of data sets: encoded, reduced to one size."""

import io

import numpy as np
from PIL import Image

from calmoe_jax.data.errors import CorruptDataError

SIZE = 64
_QUALITY = 95


def small_jpeg(raw: bytes, where: str) -> bytes:
    """An image reduced to 64x64 (Lanczos, its ratio of sides is lost), as JPEG of quality 95.

    Args:
        raw: the image, in any format that Pillow reads.
        where: what it is, for errors.

    Raises:
        CorruptDataError: if it cannot be read.
    """
    try:
        image = Image.open(io.BytesIO(raw)).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise CorruptDataError(f"{where} is not an image that can be read: {error}.") from error
    small = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return _encoded(small, "JPEG", quality=_QUALITY)


def png(pixels: np.ndarray) -> bytes:
    """An image [height, width, 3] of bytes as PNG, which loses nothing."""
    return _encoded(Image.fromarray(pixels), "PNG")


def _encoded(image: Image.Image, form: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()
