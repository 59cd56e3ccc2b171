"""Tests of common corruptions. The judges are SciPy, Pillow, colorsys and formulas written out."""

import colorsys
import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from adap.core.config.corruptions import CORRUPTION_KINDS, Corruption
from adap.core.corruptions.kinds import KINDS, cloud, disk
from adap.core.corruptions.parameters import PARAMETERS, table_of
from adap.core.corruptions.suite import corrupted
from adap.core.errors import DataError


def picture(side: int = 32, channels: int = 3, seed: int = 0) -> np.ndarray:
    """(C, H, W) uint8 with edges, slopes and a texture."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    planes = [
        0.5 + 0.4 * np.sin(6 * x + c) * np.cos(5 * y) + 0.1 * ((x > 0.5) ^ (y > 0.3))
        for c in range(channels)
    ]
    noisy = np.stack(planes) + rng.normal(0, 0.05, (channels, side, side))
    return (noisy.clip(0.01, 1) * 255).astype(np.uint8)


def left_of(image: np.ndarray, kind: str, severity: int, *, name: str = "a") -> np.ndarray:
    """(C, H, W) uint8"""
    corruption = Corruption.model_validate({"kind": kind, "severity": severity})
    return corrupted(image[None], [name], corruption=corruption, seed=0)[0]


def levels(x: np.ndarray) -> np.ndarray:
    return np.rint(x.clip(0, 1) * 255)


@pytest.mark.parametrize("kind", CORRUPTION_KINDS)
def test_every_corruption_moves_an_image_further_the_severer_it_is(kind):
    images = np.stack([picture(32, seed=i) for i in range(6)])
    ids = [str(i) for i in range(6)]
    far = [
        np.abs(
            corrupted(
                images, ids, corruption=Corruption(kind=kind, severity=severity), seed=0
            ).astype(float)
            - images
        ).mean()
        for severity in (1, 5)
    ]
    assert far[0] > 0
    if kind != "elastic_transform":  # as published: its severities bend otherwise, not more
        assert far[0] < far[1]


@pytest.mark.parametrize("kind", CORRUPTION_KINDS)
def test_a_picture_depends_on_no_other_of_its_batch_and_comes_back_the_same(kind):
    images = np.stack([picture(16, channels=1, seed=i) for i in range(3)])
    corruption = Corruption(kind=kind, severity=4)
    together = corrupted(images, ["a", "b", "c"], corruption=corruption, seed=0)
    alone = corrupted(images[1:2], ["b"], corruption=corruption, seed=0)[0]
    # float32 sums in another order may round to the next level
    assert np.abs(together[1].astype(int) - alone).max() <= 1
    again = corrupted(images, ["a", "b", "c"], corruption=corruption, seed=0)
    np.testing.assert_array_equal(together, again)


@pytest.mark.parametrize(
    "kind",
    ["gaussian_noise", "shot_noise", "impulse_noise", "motion_blur", "snow", "fog", "glass_blur"],
)
def test_another_image_and_another_seed_draw_other_numbers(kind):
    images = np.stack([picture()] * 2)
    corruption = Corruption(kind=kind, severity=5)
    one, other = corrupted(images, ["a", "b"], corruption=corruption, seed=0)
    assert (one != other).any()
    (reseeded,) = corrupted(images[:1], ["a"], corruption=corruption, seed=1)
    assert (one != reseeded).any()


@pytest.mark.parametrize("side", [32, 96])
@pytest.mark.parametrize("severity", [1, 3, 5])
def test_noise_has_the_published_spread(side, severity):
    grey = np.full((3, side, side), 128, np.uint8)
    place = severity - 1
    sigma = {32: [0.04, 0.06, 0.08, 0.09, 0.10], 96: [0.08, 0.12, 0.18, 0.26, 0.38]}[side][place]
    noise = np.random.default_rng(0).normal(128 / 255, sigma, 100_000).clip(0, 1)
    found = left_of(grey, "gaussian_noise", severity) / 255
    assert found.std() == pytest.approx(noise.std(), rel=0.06)
    photons = {32: [500, 250, 100, 75, 50], 96: [60, 25, 12, 5, 3]}[side][place]
    shots = np.random.default_rng(0).poisson(128 / 255 * photons, 100_000) / photons
    found = left_of(grey, "shot_noise", severity) / 255
    assert found.std() == pytest.approx(shots.clip(0, 1).std(), rel=0.06)
    share = {32: [0.01, 0.02, 0.03, 0.05, 0.07], 96: [0.03, 0.06, 0.09, 0.17, 0.27]}[side][place]
    found = left_of(grey, "impulse_noise", severity)
    assert set(np.unique(found)) == {0, 128, 255}
    deviation = (share * (1 - share) / found.size) ** 0.5
    assert (found != 128).mean() == pytest.approx(share, abs=4 * deviation)


@pytest.mark.parametrize(("side", "radius", "sigma"), [(32, 1.5, 0.1), (96, 3, 0.1), (96, 10, 0.5)])
def test_defocus_is_scipys_correlation_with_a_soft_disk(side, radius, sigma):
    table, severity = table_of(side, side), 5 if radius in (1.5, 10) else 1
    assert PARAMETERS["defocus_blur"].at(table, severity) == (radius, sigma)
    reach = max(8, int(radius))
    steps = np.arange(-reach, reach + 1)
    hard = (steps[:, None] ** 2 + steps**2 <= radius**2).astype(float)
    near = np.arange(-2, 3) if radius > 8 else np.arange(-1, 2)
    edge = np.exp(-(near**2) / (2 * sigma**2))
    soft = ndimage.correlate1d(hard / hard.sum(), edge / edge.sum(), axis=0, mode="mirror")
    soft = ndimage.correlate1d(soft, edge / edge.sum(), axis=1, mode="mirror")
    assert disk(radius, sigma).sum() == pytest.approx(soft.sum())
    image = picture(side)
    expected = np.stack([ndimage.correlate(plane / 255, soft, mode="mirror") for plane in image])
    assert np.abs(left_of(image, "defocus_blur", severity) - levels(expected)).max() <= 1


def test_zoom_blur_is_the_mean_of_scipys_zooms():
    image = picture(32) / 255
    total = image.copy()
    factors = np.arange(1, 1.16, 0.01)
    for factor in factors:
        cut = int(np.ceil(32 / factor))
        top = (32 - cut) // 2
        middle = image[:, top : top + cut, top : top + cut]
        large = ndimage.zoom(middle, (1, factor, factor), order=1)
        top = (large.shape[1] - 32) // 2
        total += large[:, top : top + 32, top : top + 32]
    found = left_of((image * 255).round().astype(np.uint8), "zoom_blur", 3)
    assert np.abs(found - levels(total / (len(factors) + 1))).max() <= 1


def test_motion_blur_of_a_point_is_half_a_gaussian_along_a_line():
    point = np.zeros((1, 33, 33), np.uint8)
    point[0, 16, 16] = 255
    found = left_of(point, "motion_blur", 5)[0] / 255  # radius 9, sigma 2.5
    weights = np.exp(-0.5 * (np.arange(19) / 2.5) ** 2)
    lit = np.sort(found[found > 0])[::-1]
    expected = weights / weights.sum()
    seen = np.rint(expected * 255) > 0
    np.testing.assert_allclose(lit, expected[seen], atol=1 / 255)
    rows, columns = np.nonzero(found)
    away = np.hypot(rows - 16, columns - 16)
    slope = np.abs(rows - 16)[away > 4] / away[away > 4]
    assert np.ptp(slope) < 0.2  # one line, at the nearest pixels
    assert (np.abs(rows - 16) <= np.abs(columns - 16)).all()  # within 45 degrees of level


def test_brightness_raises_the_value_of_hsv_alone():
    image = picture(16)
    found = left_of(image, "brightness", 3)
    for y, x in ((2, 3), (7, 11), (15, 0)):
        hue, saturation, value = colorsys.rgb_to_hsv(*(image[:, y, x] / 255))
        expected = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.15, 1))
        assert np.abs(found[:, y, x] - levels(np.array(expected))).max() <= 1


def test_contrast_draws_each_channel_to_its_mean():
    image = picture(16)
    mean = image.mean(axis=(1, 2), keepdims=True)
    expected = np.rint((image - mean) * 0.3 + mean)
    assert np.abs(left_of(image, "contrast", 4) - expected).max() <= 1


@pytest.mark.parametrize("severity", [1, 5])
def test_jpeg_pixelate_and_resize_are_pillows(severity):
    image = picture(32)
    whole = Image.fromarray(image.transpose(1, 2, 0))
    file = io.BytesIO()
    whole.save(file, "JPEG", quality={1: 80, 5: 40}[severity])
    read = np.asarray(Image.open(file)).transpose(2, 0, 1)
    np.testing.assert_array_equal(left_of(image, "jpeg_compression", severity), read)
    for kind, share, by in (
        ("pixelate", {1: 0.95, 5: 0.65}, Image.Resampling.BOX),
        ("resize", {1: 0.9, 5: 0.35}, Image.Resampling.BILINEAR),
    ):
        side = int(32 * share[severity])
        small = whole.resize((side, side), by).resize((32, 32), by)
        np.testing.assert_array_equal(
            left_of(image, kind, severity), np.asarray(small).transpose(2, 0, 1)
        )


def test_elastic_at_severity_one_is_one_affine_map_as_scipy_applies_it():
    image = picture(32, channels=1)
    found = left_of(image, "elastic_transform", 1)[0].astype(float)
    inner = np.s_[6:-6, 6:-6]

    def wrong(parameters: np.ndarray) -> float:
        matrix, offset = parameters[:4].reshape(2, 2), parameters[4:]
        moved = ndimage.affine_transform(
            image[0].astype(float), matrix, offset=offset, order=1, mode="mirror"
        )
        return float(np.abs(moved - found)[inner].mean())

    from scipy.optimize import minimize

    best = min(
        (
            minimize(wrong, [1, 0, 0, 1, y, x], method="Powell", options={"maxfev": 3000})
            for y, x in ((0, 0), (2, 0), (-2, 0))
        ),
        key=lambda it: it.fun,
    )
    assert wrong(np.array([1, 0, 0, 1, 0, 0])) > 4  # it did move
    assert best.fun < 1  # and some affine map explains it


def test_elastic_shifts_pixels_by_the_published_shares_of_the_side():
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))[None]
    shifts = []
    for i in range(8):
        found = left_of(ramp, "elastic_transform", 4, name=str(i))[0].astype(float)
        shifts.append((found - ramp[0])[20:-20, 20:-20] / 4)
    # a blur of uniform noise by sigma s has the deviation 1 / sqrt(3) / (2 sqrt(pi) s)
    local = [shift - ndimage.uniform_filter(shift, 15) for shift in shifts]
    sigma = 0.04 * 64
    expected = 0.1 * 64 / 3**0.5 / (2 * np.pi**0.5 * sigma)
    assert 0.3 * expected < np.std(local) < 1.2 * expected


def test_fog_is_a_cloud_that_adds_and_darkens():
    image = picture(32)
    x = image / 255
    draws = [np.random.default_rng(0)]
    density, decay = PARAMETERS["fog"].at("32x32", 4)
    clouds = cloud([np.random.default_rng(0)], 32, decay)[0].numpy()
    assert (clouds.min(), clouds.max()) == (0, 1)
    neighbours = np.abs(np.diff(clouds, axis=0)).mean()
    assert neighbours < 0.5 * np.abs(clouds - np.random.default_rng(1).permuted(clouds)).mean()
    import torch

    found = KINDS["fog"](torch.from_numpy(x[None]).float(), draws, density, decay)[0].numpy()
    expected = (x + density * clouds) * x.max() / (x.max() + density)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_glass_takes_colours_of_neighbours_only():
    dots = np.zeros((1, 16, 16), np.uint8)
    dots[0, 8, 8] = 255
    found = left_of(dots, "glass_blur", 1)[0]  # no blur to speak of, shifts of one pixel
    assert set(np.unique(found)) <= {0, 255}
    rows, columns = np.nonzero(found)
    # a colour may be handed on from pixel to pixel, against the way of the scan only
    assert (rows >= 7).all()
    assert (columns >= 7).all()


def test_snow_whitens_and_falls():
    image = np.full((3, 32, 32), 100, np.uint8)
    found = left_of(image, "snow", 3).astype(float)
    colour = 0.9
    white = colour * 100 / 255 + (1 - colour) * (100 / 255 * 1.5 + 0.5)
    assert found.min() == np.rint(255 * white)
    flakes = found[0] - found.min()
    assert (flakes > 20).mean() > 0.02
    np.testing.assert_array_equal(flakes, np.rot90(flakes, 2))
    down = np.abs(np.diff(flakes, axis=0)).mean()
    across = np.abs(np.diff(flakes, axis=1)).mean()
    assert down < across


def test_small_images_get_the_values_of_32_pixels_and_large_ones_those_of_224():
    assert table_of(32, 32) == table_of(95, 300) == "32x32"
    assert table_of(96, 96) == table_of(224, 224) == "224x224"


def test_images_without_room_for_a_kernel_are_refused():
    with pytest.raises(DataError, match="at least 8x8 pixels for corruptions, got 9x7"):
        corrupted(
            np.zeros((1, 1, 7, 9), np.uint8),
            ["a"],
            corruption=Corruption(kind="fog", severity=1),
            seed=0,
        )


@pytest.mark.parametrize("kind", CORRUPTION_KINDS)
@pytest.mark.parametrize("shape", [(2, 8, 11), (1, 97, 120)])
def test_odd_sizes_and_channels_are_corrupted_too(kind, shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert left_of(image, kind, 2).shape == shape


def test_a_black_image_stays_a_picture():
    black = np.zeros((1, 8, 8), np.uint8)
    for kind in CORRUPTION_KINDS:
        assert np.isfinite(left_of(black, kind, 5)).all()
    assert (left_of(black, "fog", 5) == 0).all()  # as published: no light, no fog
