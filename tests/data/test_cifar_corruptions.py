"""Corruptions of CIFAR-10-C against references that go pixel by pixel, and their laws."""

import colorsys
import sys
import zlib

import numpy as np
import pictures
import pytest
from scipy import ndimage

from calmoe_jax.data import _jpeg
from calmoe_jax.data.cifar_corruptions import (
    CIFAR_CORRUPTIONS,
    _blur,
    _digital,
    _parts,
    _spatter,
    _weather,
    corrupt_cifar,
)

IMAGES = np.stack([pictures.picture(label, label, 32) for label in range(8)])
# As published, a higher severity of these need not change pixels more: the affine part of the
# elastic transform shrinks, frost dims the image, glass is blurred more and shuffled as much.
NOT_ORDERED = ("elastic_transform", "frost", "glass_blur", "motion_blur", "spatter", "saturate")
SEEDED = (
    "gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "frost",
    "fog", "elastic_transform", "speckle_noise", "spatter",
)  # fmt: skip


def randoms_of(name, severity, count=8):
    """The random numbers of each image, once more."""
    return [
        np.random.RandomState(zlib.crc32(f"{name} {severity} {i}".encode())) for i in range(count)
    ]


def as_floats(images=IMAGES):
    return images / 255.0


@pytest.mark.every_case
@pytest.mark.parametrize("name", CIFAR_CORRUPTIONS)
def test_corruptions_repeat_and_grow_with_severity(name):
    kept = IMAGES.copy()
    changes = []
    for severity in range(1, 6):
        result = corrupt_cifar(IMAGES, name, severity)
        assert (result.dtype, result.shape) == (np.uint8, IMAGES.shape)
        assert (result == corrupt_cifar(IMAGES, name, severity)).all()
        changes.append(np.abs(result.astype(float) - IMAGES).mean())
    assert (IMAGES == kept).all()
    assert min(changes) > 0
    if name not in NOT_ORDERED:
        assert (np.diff(changes) > 0).all(), changes


@pytest.mark.every_case
@pytest.mark.parametrize("name", CIFAR_CORRUPTIONS)
def test_an_image_is_corrupted_alike_in_any_company(name):
    together = corrupt_cifar(IMAGES, name, 3)
    rows = np.array([5, 2])
    np.testing.assert_array_equal(
        corrupt_cifar(IMAGES[rows], name, 3, numbers=rows), together[rows]
    )
    np.testing.assert_array_equal(
        corrupt_cifar(np.ascontiguousarray(IMAGES[6:]), name, 3, numbers=np.arange(6, 8)),
        together[6:],
    )
    assert corrupt_cifar(IMAGES[:0], name, 3).shape == (0, 32, 32, 3)
    twice = corrupt_cifar(IMAGES[[1, 1]], name, 3, numbers=np.array([0, 3]))
    assert (twice[0] == twice[1]).all() == (name not in SEEDED)


def test_arguments():
    with pytest.raises(ValueError, match=r"name must be one of gaussian_noise, .* got name='rain'"):
        corrupt_cifar(IMAGES, "rain", 1)
    with pytest.raises(ValueError, match=r"severity must be in \[1, 5\], got severity=0"):
        corrupt_cifar(IMAGES, "fog", 0)
    with pytest.raises(ValueError, match=r"images must be \[n, 32, 32, 3\], got"):
        corrupt_cifar(IMAGES[..., 0], "fog", 1)
    with pytest.raises(TypeError, match="images must be uint8, got"):
        corrupt_cifar(IMAGES / 255.0, "fog", 1)
    with pytest.raises(ValueError, match="one for each of the 8 images"):
        corrupt_cifar(IMAGES, "fog", 1, numbers=np.arange(7))


@pytest.mark.parametrize(
    ("name", "scales"),
    [
        ("gaussian_noise", [0.04, 0.06, 0.08, 0.09, 0.10]),
        ("shot_noise", np.sqrt(0.5 / np.array([500, 250, 100, 75, 50]))),
        ("speckle_noise", 0.5 * np.array([0.06, 0.1, 0.12, 0.16, 0.2])),
    ],
    ids=["gaussian", "shot", "speckle"],
)
@pytest.mark.every_case
def test_noise_has_the_published_size(name, scales):
    grey = np.full((20, 32, 32, 3), 127.5, np.uint8)
    for severity, scale in enumerate(scales, start=1):
        noise = (corrupt_cifar(grey, name, severity) + 0.5) / 255 - 127 / 255
        assert abs(noise.mean()) < 0.002
        assert abs(noise.std() / scale - 1) < 0.03
        assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.1


def test_impulses_are_black_and_white_as_often():
    grey = np.full((20, 32, 32, 3), 100, np.uint8)
    for severity, share in enumerate((0.01, 0.02, 0.03, 0.05, 0.07), start=1):
        result = corrupt_cifar(grey, "impulse_noise", severity)
        assert set(np.unique(result)) == {0, 100, 255}
        for level in (0, 255):
            assert abs((result == level).mean() / share - 0.5) < 0.1


@pytest.mark.parametrize("severity", [2, 4])
@pytest.mark.every_case
def test_glass_copies_pixels_one_by_one(severity):
    sigma, rounds = {2: (0.25, 1), 4: (0.25, 2)}[severity]
    result = _blur.glass_blur(as_floats(), severity, randoms_of("glass_blur", severity))
    for image, found, random in zip(
        as_floats(), result, randoms_of("glass_blur", severity), strict=True
    ):
        moves = random.randint(-1, 1, (rounds, 30, 30, 2))
        x = np.floor(255 * ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest") + 1e-6)
        for i in range(rounds):
            for row in range(31, 1, -1):
                for column in range(31, 1, -1):
                    dy, dx = moves[i, row - 2, column - 2]
                    x[row, column] = x[row + dy, column + dx]
        wanted = ndimage.gaussian_filter(x / 255, (sigma, sigma, 0), mode="nearest")
        np.testing.assert_allclose(found, wanted, atol=1e-12)


@pytest.mark.parametrize("degrees", [0.0, 30.0, -90.0, 135.0])
@pytest.mark.every_case
def test_motion_goes_along_its_direction(degrees):
    radius, sigma = 4, 2.0
    image = as_floats()[0]
    weights = [np.exp(-(i**2) / (2 * sigma**2)) for i in range(2 * radius + 1)]
    wanted = np.zeros_like(image)
    for row in range(32):
        for column in range(32):
            for i, weight in enumerate(weights):
                down = int(np.ceil(i * np.sin(np.deg2rad(degrees)) - 0.5))
                right = int(np.ceil(i * np.cos(np.deg2rad(degrees)) - 0.5))
                there = min(max(row + down, 0), 31), min(max(column + right, 0), 31)
                wanted[row, column] += weight * image[there] / sum(weights)
    found = _parts.motion_blurred(as_floats()[:2], radius, sigma, np.array([degrees, 0.0]))
    assert np.abs(255 * (found[0] - wanted)).max() <= 0.5 + 1e-9
    np.testing.assert_allclose(255 * found, np.rint(255 * found), atol=1e-9)


@pytest.mark.parametrize("factor", [1.0, 1.01, 1.13, 1.25, 1.75, 2.25])
@pytest.mark.every_case
def test_zoom_is_that_of_scipy(factor):
    image = as_floats()[1]
    crop = int(np.ceil(32 / factor))
    start = (32 - crop) // 2
    middle = image[start : start + crop, start : start + crop]
    large = ndimage.zoom(middle, (factor, factor, 1), order=1)
    trim = (len(large) - 32) // 2
    wanted = large[trim : trim + 32, trim : trim + 32]
    found = _parts.zoomed(np.moveaxis(image, -1, 0), factor)
    np.testing.assert_allclose(np.moveaxis(found, 0, -1), wanted, atol=1e-12)


@pytest.mark.parametrize(("severity", "count"), [(1, 7), (2, 12), (3, 16), (4, 21), (5, 26)])
@pytest.mark.every_case
def test_zoom_blur_is_a_mean_of_magnifications(severity, count):
    """Of those that the published program makes: 1.25 is a little more, which adds a pixel."""
    factors = [1 + i * (1.01 - 1) for i in range(count)]
    channels = np.moveaxis(as_floats(), -1, 1)
    every = [channels, *(_parts.zoomed(channels, factor) for factor in factors)]
    found = _blur.zoom_blur(as_floats(), severity, [])
    np.testing.assert_allclose(np.moveaxis(found, -1, 1), np.mean(every, axis=0), atol=1e-9)


@pytest.mark.parametrize(
    ("fold", "mode"), [(_parts.mirror, "mirror"), (_parts.reflect, "reflect")], ids=["m", "r"]
)
@pytest.mark.every_case
def test_interpolation_is_that_of_scipy(fold, mode):
    rng = np.random.RandomState(0)
    rows, columns = rng.uniform(-9, 41, (2, 3, 32, 32))
    found = _parts.interpolated(as_floats()[:3], rows, columns, fold)
    for i in range(3):
        for channel in range(3):
            wanted = ndimage.map_coordinates(
                as_floats()[i, ..., channel], [rows[i], columns[i]], order=1, mode=mode
            )
            np.testing.assert_allclose(found[i, ..., channel], wanted, atol=1e-12)


def test_the_elastic_map_moves_the_corners_where_they_are_drawn(monkeypatch):
    """Without displacement, the image's pixels follow the affine map of three corners."""
    y, x = np.mgrid[:32, :32]
    ramps = np.stack([x, y, 0 * x], -1)[None] / 255.0
    seen = []
    monkeypatch.setattr(
        _digital, "interpolated", lambda images, rows, columns, fold: seen.append(
            (rows, columns)
        ) or _parts.interpolated(images, rows, columns, fold)
    )  # fmt: skip
    _digital.elastic_transform(ramps, 1, randoms_of("elastic_transform", 1, 1))
    (rows, columns), (again_rows, again_columns) = seen
    moved = np.array([[26, 26], [26, 6], [6, 6]]) + randoms_of("elastic_transform", 1, 1)[
        0
    ].uniform(-2.56, 2.56, (3, 2))
    for corner, place in zip([[26, 26], [26, 6], [6, 6]], moved, strict=True):
        # the map is affine: interpolate it at the place where the corner went
        at = [
            ndimage.map_coordinates(field[0], [[place[1]], [place[0]]], order=1)[0]
            for field in (columns, rows)
        ]
        np.testing.assert_allclose(at, corner, atol=1e-9)
    np.testing.assert_array_equal(again_rows[0], y)  # severity 1 has no displacement
    np.testing.assert_array_equal(again_columns[0], x)


def test_the_elastic_displacement_is_smooth_and_drawn_down_and_right(monkeypatch):
    seen = []
    monkeypatch.setattr(
        _digital, "interpolated",
        lambda images, rows, columns, fold: seen.append((rows, columns)) or images,
    )  # fmt: skip
    for severity, (amount, sigma) in ((2, (1.6, 6.4)), (5, (3.2, 0.96))):
        _digital.elastic_transform(as_floats(), severity, randoms_of("elastic_transform", severity))
        rows, columns = seen[-1]
        random = randoms_of("elastic_transform", severity)[3]
        random.uniform(-1, 1, (3, 2))  # the corners
        right, down = (
            amount * ndimage.gaussian_filter(field, sigma, mode="reflect", truncate=3.0)
            for field in random.uniform(-1, 1, (2, 32, 32))
        )
        y, x = np.mgrid[:32, :32]
        np.testing.assert_allclose(rows[3] - y, down, atol=1e-9)
        np.testing.assert_allclose(columns[3] - x, right, atol=1e-9)


@pytest.mark.parametrize("name", ["brightness", "saturate"])
@pytest.mark.every_case
def test_hue_saturation_and_value_are_those_of_colorsys(name):
    rng = np.random.RandomState(0)
    pixels = rng.randint(0, 256, (1, 32, 32, 3))
    pixels[0, 0] = np.arange(32)[:, None] * 8  # grey
    pixels[0, 1] = [[255, 0, 0]] * 16 + [[0, 255, 255]] * 16
    for severity in range(1, 6):
        constants = {
            "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
            "saturate": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        }[name][severity - 1]
        found = getattr(_digital, name)(pixels / 255.0, severity, [])
        for wanted, result in zip(pixels.reshape(-1, 3) / 255.0, found.reshape(-1, 3), strict=True):
            h, s, v = colorsys.rgb_to_hsv(*wanted)
            if name == "brightness":
                v = min(v + constants, 1)
            else:
                s = min(s * constants[0] + constants[1], 1)
            np.testing.assert_allclose(result, colorsys.hsv_to_rgb(h, s, v), atol=1e-12)


def test_contrast_keeps_the_mean_of_each_channel():
    result = _digital.contrast(as_floats(), 5, [])
    means = as_floats().mean(axis=(1, 2))
    np.testing.assert_allclose(result.mean(axis=(1, 2)), means, atol=1e-12)
    np.testing.assert_allclose(result.std(axis=(1, 2)), 0.15 * as_floats().std(axis=(1, 2)))


def test_blurs_keep_what_is_even_and_spread_a_point():
    even = np.full((1, 32, 32, 3), 90, np.uint8)
    for name in ("gaussian_blur", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"):
        for severity in (1, 5):
            assert (np.abs(corrupt_cifar(even, name, severity).astype(int) - 90) <= 1).all(), name
    point = np.zeros((1, 33, 33, 1))
    point[0, 16, 16] = 1
    for severity, sigma in ((1, 0.4), (5, 1.0)):
        x = np.arange(-16, 17)
        bell = np.where(np.abs(x) <= int(4 * sigma + 0.5), np.exp(-(x**2) / (2 * sigma**2)), 0)
        bell /= bell.sum()
        found = _blur.gaussian_blur(point, severity, [])[0, ..., 0]
        np.testing.assert_allclose(found, np.outer(bell, bell), atol=1e-12)
    # a disk of radius 1.5 holds 3x3 pixels; its own blur of 0.1 pixels changes nothing
    disk = _blur.defocus_blur(point, 5, [])[0, ..., 0]
    np.testing.assert_allclose(disk[15:18, 15:18], 1 / 9, atol=1e-9)
    assert abs(disk.sum() - 1) < 1e-12


def loopy_fractal(random, decay, size):
    """Diamonds and squares one after the other; noise is drawn level by level."""
    field = np.zeros((size, size))
    step, wobble = size, 100.0
    while step > 1:
        half, number = step // 2, size // step
        noise = [random.uniform(-(wobble**2), wobble**2, (number, number)) for _ in range(3)]

        def mean(*places, field=field):
            return np.mean([field[y % size, x % size] for y, x in places])

        for kind, (down, right) in enumerate(((half, half), (0, half), (half, 0))):
            for i in range(number):
                for j in range(number):
                    y, x = i * step + down, j * step + right
                    if kind == 0:
                        near = [(y + a, x + b) for a in (-half, half) for b in (-half, half)]
                    else:
                        near = [(y - half, x), (y + half, x), (y, x - half), (y, x + half)]
                    field[y, x] = mean(*near) + noise[kind][i, j]
        step, wobble = half, wobble / decay
    field -= field.min()
    return field / field.max()


@pytest.mark.parametrize("decay", [3.0, 1.75])
@pytest.mark.every_case
def test_fog_is_fractal(decay):
    found = _parts.fractal([np.random.RandomState(s) for s in (3, 4)], decay, size=16)
    for seed, field in zip((3, 4), found, strict=True):
        wanted = loopy_fractal(np.random.RandomState(seed), decay, 16)
        np.testing.assert_allclose(field, wanted, atol=1e-12)


def test_fog_keeps_the_brightest_value():
    clouds = _parts.fractal(randoms_of("fog", 5), 1.75)[..., None]
    found = _weather.fog(as_floats(), 5, randoms_of("fog", 5))
    for image, cloud, result in zip(as_floats(), clouds, found, strict=True):
        top = image.max()
        np.testing.assert_allclose(result, (image + 1.5 * cloud) * top / (top + 1.5), atol=1e-12)


def test_snow_falls_and_is_turned():
    black = np.zeros((4, 32, 32, 3))
    layer = _weather.snow(black, 3, randoms_of("snow", 3, 4)) - 0.1 * 0.5  # haze of the darkest
    np.testing.assert_allclose(layer, layer[:, ::-1, ::-1], atol=1e-12)
    assert 0.02 < (layer > 0.05).mean() < 0.9
    down = np.abs(np.diff(layer, axis=1)).mean()
    assert down < np.abs(np.diff(layer, axis=2)).mean()  # streaks are steep


def test_frost_is_added_to_what_is_kept():
    for severity, (kept, added) in ((1, (1.0, 0.2)), (5, (0.75, 0.45))):
        black, white = (
            _weather.frost(
                np.full((5, 32, 32, 3), level), severity, randoms_of("frost", severity, 5)
            )
            for level in (0.0, 1.0)
        )
        np.testing.assert_allclose(white - black, kept, atol=1e-12)
        texture = black / added
        assert 0 <= texture.min() < texture.max() <= 1
        assert texture[..., 2].mean() > texture[..., 0].mean()  # bluish
        assert len({piece.tobytes() for piece in texture}) == 5


def test_jpeg_and_pixels_need_pillow(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    for name in ("jpeg_compression", "pixelate"):
        with pytest.raises(_jpeg.MissingDataError, match=f"pillow is needed for the .* {name}"):
            corrupt_cifar(IMAGES, name, 1)


def test_jpeg_has_the_published_qualities():
    for severity, quality in enumerate((80, 65, 58, 50, 40), start=1):
        found = corrupt_cifar(IMAGES, "jpeg_compression", severity)
        for image, result in zip(IMAGES, found, strict=True):
            raw = pictures.jpeg_of(image, quality=quality)
            np.testing.assert_array_equal(result, pictures.decoded(raw))


def test_pixels_are_means_of_areas():
    ramp = np.zeros((1, 32, 32, 3), np.uint8)
    ramp[0] = (8 * np.arange(32))[:, None, None]
    result = corrupt_cifar(ramp, "pixelate", 5)[0, :, :, 0]
    assert (result == result[:, :1]).all()
    assert len(np.unique(result)) <= int(32 * 0.65)
    assert abs(result.mean() - ramp.mean()) < 2


def brute_distances(edges):
    """Shortest paths of steps to a neighbour, a diagonal one or a knight's move."""
    distance = np.where(edges, 0.0, np.inf)
    steps = [
        (y, x, {1: 1.0, 2: 1.4, 5: 2.1969}[y * y + x * x])
        for y in range(-2, 3)
        for x in range(-2, 3)
        if y * y + x * x in (1, 2, 5)
    ]
    for _ in range(edges.size):
        before = distance.copy()
        for row in range(len(edges)):
            for column in range(edges.shape[1]):
                for y, x, length in steps:
                    if 0 <= row + y < len(edges) and 0 <= column + x < edges.shape[1]:
                        through = distance[row + y, column + x] + length
                        distance[row, column] = min(distance[row, column], through)
        if (before == distance).all():
            return distance


def test_distances_are_shortest_paths():
    rng = np.random.RandomState(0)
    edges = rng.random_sample((3, 12, 12)) < 0.03
    edges[1] = False
    found = _spatter._distances(edges)
    np.testing.assert_allclose(found[0], brute_distances(edges[0]), atol=1e-12)
    np.testing.assert_allclose(found[2], brute_distances(edges[2]), atol=1e-12)
    assert (found[1] > _spatter._FARTHEST).all()


def test_edges_are_where_a_step_is():
    images = np.zeros((4, 16, 16), np.uint8)
    images[0, :, 8:] = 200  # a wall
    images[1, 8:] = 200
    images[2] = np.where(np.add.outer(np.arange(16), np.arange(16)) > 15, 200, 0)
    images[3, :, 8:] = 20  # gradients of at most 80: too weak to begin an edge
    edges = _spatter._edges(images)
    for found, axis in ((edges[0], 1), (edges[1], 0)):
        assert (found.sum(axis=axis) == 1).all()
        assert set(np.argmax(found, axis=axis)) <= {7, 8}
    inside = edges[2, 3:13, 3:13]
    assert set(np.add(*np.nonzero(inside)) + 6) <= {15, 16}
    assert inside.any(axis=0).all()
    turned = _spatter._edges(np.ascontiguousarray(images[2:3, :, ::-1]))[0, 3:13, 3:13]
    assert set(np.subtract(*np.nonzero(turned))) <= {0, 1, -1}
    assert turned.any(axis=0).all()
    bumps = np.random.RandomState(1).randint(0, 256, (2, 16, 16)).astype(np.uint8)
    bumps = ndimage.gaussian_filter(bumps, (0, 2, 2)) * 4
    across = _spatter._edges(bumps)
    # a transposed image has transposed edges, but for equal neighbours
    axes = (0, 2, 1)
    again = _spatter._edges(np.ascontiguousarray(bumps.transpose(axes))).transpose(axes)
    assert (across == again).mean() > 0.97
    assert 0.03 < across.mean() < 0.4
    assert not edges[3].any()
    weak = np.zeros((1, 16, 16), np.uint8)
    weak[0, :8, 8:], weak[0, 8:, 8:] = 25, 200  # gradients of 100 and of 800
    assert _spatter._edges(weak)[0, 2, 7:9].any()  # a weak edge that touches a strong one


def test_histograms_are_equalised():
    rng = np.random.RandomState(0)
    images = rng.randint(3, 20, (3, 9, 9)).astype(np.uint8)
    images[1] = 7
    found = _spatter._equalised(images)
    assert (found[1] == 7).all()
    for image, result in ((images[0], found[0]), (images[2], found[2])):
        least = (image == image.min()).sum()
        for pixel, value in zip(image.ravel(), result.ravel(), strict=True):
            rank = (image <= pixel).sum() - least
            assert value == round(rank * 255 / (81 - least))


def test_light_comes_from_one_side():
    """Distances that grow down and right are lit, those that fall are dark."""
    drops = np.zeros((1, 32, 32), np.uint8)
    drops[0, 8:24, 8:24] = 200
    edges = _spatter._edges(drops)[0]
    distance = np.minimum(_spatter._distances(edges[None])[0], 20)
    lit = _spatter._relief(drops)[0]
    slope = ndimage.sobel(distance, 0) + ndimage.sobel(distance, 1)
    assert lit[slope > 2].mean() > lit[slope < -2].mean() + 30
    np.testing.assert_allclose(lit, lit.T)


def test_water_brightens_and_mud_covers():
    grey = np.full((6, 32, 32, 3), 128, np.uint8)
    for severity in (1, 2, 3):
        assert (corrupt_cifar(grey, "spatter", severity) >= 127).all()
    for severity in (4, 5):
        result = corrupt_cifar(grey, "spatter", severity)
        covered = (result[..., 2] < 60).mean()
        assert 0.001 < covered < 0.5
        assert (result[..., 0] >= result[..., 2]).all()  # brown
    dry = _spatter._relief(np.zeros((1, 32, 32), np.uint8))
    assert np.isfinite(dry).all()
