"""The frequency filter against loops, scipy's DCT and a real JPEG codec."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
import scipy.fft

import calmoe_jax as cm

filtered = jax.jit(cm.fgr.dct_filter)
QUALITIES = (15.0, 18.0, 25.0)


def images_of(height, width, channels, seed=0):
    """Smooth images with some noise, from black to white."""
    rng = np.random.RandomState(seed)
    y, x = np.mgrid[:height, :width][..., None] / 16
    waves = sum(
        rng.randn(3, 1, 1, channels) * np.cos(6 * (rng.rand() * y + rng.rand() * x + rng.rand()))
        for _ in range(4)
    )
    waves = waves + 0.1 * rng.randn(*waves.shape)
    low, high = waves.min(axis=(1, 2, 3), keepdims=True), waves.max(axis=(1, 2, 3), keepdims=True)
    return ((waves - low) / (high - low)).astype(np.float32)


def by_scipy(block, step):
    return scipy.fft.idctn(
        np.round(scipy.fft.dctn(block, norm="ortho") / step) * step, norm="ortho"
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (16, 16), (28, 28), (7, 9), (12, 20), (0, 8)])
def test_equals_loops_and_scipy(size, channels):
    height, width = size
    if not height:
        images = np.zeros((3, 0, width, channels), np.float32)
    else:
        images = images_of(height, width, channels)
    found = np.asarray(filtered(jnp.asarray(images), jnp.array(QUALITIES)))
    for quantise in (references.quantise_block, by_scipy):
        expected = references.dct_filter(images, QUALITIES, quantise)
        np.testing.assert_allclose(found, expected, atol=1e-4)
    rows, columns = height // 8 * 8, width // 8 * 8
    np.testing.assert_array_equal(found[:, rows:], images[:, rows:])
    np.testing.assert_array_equal(found[:, :, columns:], images[:, :, columns:])
    if rows and columns:
        assert np.abs(found - images)[:, :rows, :columns].mean() > 1 / 255


@pytest.mark.parametrize("channels", [1, 3])
def test_every_coefficient_has_its_step(channels):
    """Noise fills all frequencies; near quality 101 the steps stop at one grey level."""
    quality = np.repeat([1.0, 30.0, 51.0, 80.0, 99.0, 101.0], 2)
    images = np.random.RandomState(0).rand(12, 16, 16, channels).astype(np.float32)
    found = filtered(jnp.asarray(images), jnp.asarray(quality, jnp.float32))
    difference = np.abs(found - references.dct_filter(images, quality))
    assert difference[quality < 90].max() < 1e-4
    assert difference.max() < 1 / 255  # a coefficient or two rounds the other way in float32
    assert difference.mean() < 1e-5


def test_lower_quality_removes_more():
    image = jnp.asarray(images_of(32, 32, 3)[:1])
    quality = jnp.array([1.0, 15.0, 25.0, 51.0, 90.0, 101.0])
    change = jnp.abs(filtered(jnp.tile(image, (6, 1, 1, 1)), quality) - image).mean((1, 2, 3))
    assert (jnp.diff(change) < 0).all()
    assert change[-1] < 1 / 255  # steps are never below one grey level


@pytest.mark.parametrize("channels", [1, 3])
def test_constant_images_stay_constant(channels):
    levels = np.linspace(0, 1, 9)
    images = jnp.asarray(np.tile(levels[:, None, None, None], (1, 16, 16, channels)), jnp.float32)
    found = filtered(images, jnp.full(9, 15.0))
    np.testing.assert_allclose(found, np.broadcast_to(found[:, :1, :1], found.shape), atol=1e-6)
    if channels == 1:
        step = 16 * (101 - 15) / 50 / 8  # of the mean, in grey levels
        assert (jnp.abs(found - images) * 255 <= step / 2 + 1e-3).all()
        np.testing.assert_allclose(found[0], 0, atol=1e-6)


def test_filtering_twice_is_filtering_once():
    images = jnp.asarray(0.25 + images_of(16, 16, 1) / 2)  # nothing to clip
    once = filtered(images, jnp.array(QUALITIES))
    np.testing.assert_allclose(filtered(once, jnp.array(QUALITIES)), once, atol=1e-5)


def test_result_stays_in_range():
    checkers = np.indices((16, 16)).sum(0)[None, ..., None] % 2
    found = filtered(
        jnp.asarray(np.tile(checkers, (3, 1, 1, 1)), jnp.float32), jnp.array(QUALITIES)
    )
    assert 0 <= found.min()
    assert found.max() <= 1


def test_transforms_agree():
    images = jnp.asarray(images_of(16, 12, 3))
    quality = jnp.array(QUALITIES)
    expected = filtered(images, quality)
    np.testing.assert_allclose(cm.fgr.dct_filter(images, quality), expected, atol=1e-5)
    mapped = jax.jit(jax.vmap(lambda x, q: cm.fgr.dct_filter(x[None], q[None])[0]))(images, quality)
    np.testing.assert_allclose(mapped, expected, atol=1e-5)
    assert filtered(images[:0], quality[:0]).shape == (0, 16, 12, 3)


def test_computed_in_float32():
    images = jnp.asarray(images_of(16, 16, 1), jnp.bfloat16)
    found = filtered(images, jnp.array(QUALITIES, jnp.bfloat16))
    assert found.dtype == jnp.float32
    expected = references.dct_filter(np.asarray(images, np.float64), QUALITIES)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_bad_channels(channels):
    with pytest.raises(ValueError, match=rf"1 or 3 channels, got images.shape=.*{channels}\)"):
        cm.fgr.dct_filter(jnp.zeros((1, 8, 8, channels)), jnp.ones(1))


@pytest.mark.parametrize("quality", [51, 1])
def test_equals_a_jpeg_codec(quality):
    """Where the tables are integers and the level shift of 128 is a whole number of steps.

    JPEG shifts levels by 128, the filter does not: 8 * 128 is 64 steps of 16 (32 of 32), so the
    same coefficients come out. Where one of a block lies so near the middle between two steps
    that the codec's integer DCT (good to 0.2) may round it the other way, the blocks differ by
    up to a step's wave, some 7 grey levels; elsewhere by no more than the codec's integer output.
    """
    image_module = pytest.importorskip("PIL.Image")
    table = np.array(references.LUMINANCE).reshape(8, 8) * (101 - quality) // 50
    images = np.round(20 + 215 * images_of(64, 64, 1)).astype(np.uint8)
    ours = filtered(jnp.asarray(images / 255, jnp.float32), jnp.full(3, float(quality)))
    basis = references.dct_basis()
    differences, clear = [], []
    for image, mine in zip(images[..., 0], np.asarray(ours)[..., 0] * 255, strict=True):
        file = io.BytesIO()
        image_module.fromarray(image).save(file, "JPEG", qtables=[table.ravel().tolist()])
        decoded = np.asarray(image_module.open(file), np.float64)
        for i in range(0, 64, 8):
            for j in range(0, 64, 8):
                block = slice(i, i + 8), slice(j, j + 8)
                steps = basis @ image[block] @ basis.T / table
                differences.append(np.abs(mine - decoded)[block])
                clear.append((np.abs(steps - np.floor(steps) - 0.5) * table).min() > 0.2)
    differences, clear = np.array(differences), np.array(clear)
    assert clear.mean() > 0.4
    assert differences[clear].max() < 0.6
    assert differences.mean() < 0.4
    assert differences.max() < 10


def test_tables_are_those_of_a_jpeg_codec():
    image_module = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    image_module.new("RGB", (8, 8)).save(file, "JPEG", quality=50)
    tables = image_module.open(file).quantization
    assert tuple(tables[0]) == references.LUMINANCE
    assert tuple(tables[1]) == references.CHROMINANCE
