"""The judge is a loop over the images that tries every crop and both flips."""

from collections import Counter

import pytest
import torch
from torchvision.transforms.v2 import functional as torchvision

from adap.core.config.training import Augment
from adap.core.training.augment import (
    augment,
    colour_jitter,
    crop_shift,
    random_crop,
    random_erasing,
    random_flip,
)

DTYPES = pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count, *, dtype=torch.uint8):
    """Images of which no two pixels are alike and none is black, so that each move can be told."""
    pixels = torch.stack(
        [torch.randperm(255, generator=generator(i))[:40] + 1 for i in range(count)]
    )
    return pixels.view(count, 2, 4, 5).to(dtype)


def places(image, cropped, *, padding):
    """Corners at which a crop of the padded image is what came out."""
    channels, height, width = image.shape
    padded = torch.zeros(channels, height + 2 * padding, width + 2 * padding, dtype=image.dtype)
    padded[:, padding : padding + height, padding : padding + width] = image
    return [
        (top, left)
        for top in range(2 * padding + 1)
        for left in range(2 * padding + 1)
        if torch.equal(padded[:, top : top + height, left : left + width], cropped)
    ]


@DTYPES
def test_every_crop_is_a_crop_of_its_own_padded_image(dtype):
    x = images(50, dtype=dtype)
    cropped = random_crop(x, padding=2, generator=generator())
    assert cropped.dtype == dtype
    assert all(len(places(a, b, padding=2)) == 1 for a, b in zip(x, cropped, strict=True))


def test_all_places_of_a_crop_are_equally_likely():
    x = images(1).expand(5000, -1, -1, -1)
    counts = Counter(
        places(x[0], cropped, padding=1)[0]
        for cropped in random_crop(x, padding=1, generator=generator())
    )
    assert len(counts) == 9
    # 5000 / 9 = 556 each, standard deviation 22: five of them
    assert all(abs(count - 5000 / 9) < 111 for count in counts.values())


@DTYPES
def test_a_flip_mirrors_about_half_of_the_images_and_leaves_the_others(dtype):
    x = images(200, dtype=dtype)
    out = random_flip(x, generator=generator())
    assert out.dtype == dtype
    kept = (out == x).flatten(1).all(dim=1)
    mirrored = (out == x.flip(-1)).flatten(1).all(dim=1)
    assert (kept ^ mirrored).all()
    assert 65 < mirrored.sum() < 135  # 100, five standard deviations of 7


def rectangles(height, width):
    """Every rectangle of a picture, as (top, left, height, width)."""
    return [
        (top, left, h, w)
        for h in range(1, height + 1)
        for w in range(1, width + 1)
        for top in range(height - h + 1)
        for left in range(width - w + 1)
    ]


@DTYPES
def test_crop_shift_puts_a_rectangle_of_the_image_anywhere_on_black(dtype):
    x = images(60, dtype=dtype)
    out = crop_shift(x, cut=2, generator=generator())
    assert out.dtype == dtype
    sizes, moved = Counter(), Counter()
    for image, found in zip(x, out, strict=True):
        seen = (found != 0).all(dim=0)
        rows, columns = seen.any(dim=1).nonzero().flatten(), seen.any(dim=0).nonzero().flatten()
        top, left, h, w = int(rows[0]), int(columns[0]), len(rows), len(columns)
        piece = found[:, top : top + h, left : left + w]
        sources = [
            (row, column)
            for row, column, a, b in rectangles(4, 5)
            if (a, b) == (h, w) and torch.equal(image[:, row : row + h, column : column + w], piece)
        ]
        assert len(sources) == 1
        assert int((found != 0).sum()) == 2 * h * w  # and all else is black
        sizes[h, w] += 1
        moved[(top, left) != sources[0]] += 1
    assert set(sizes) == {(h, w) for h in (2, 3, 4) for w in (3, 4, 5)}
    assert moved[True] > 10


def test_crop_shift_draws_every_amount_alike():
    x = images(1).expand(6000, -1, -1, -1)
    out = crop_shift(x, cut=2, generator=generator())
    heights = Counter((out != 0).any(dim=1).any(dim=2).sum(dim=1).tolist())
    # 2000 each, standard deviation 37: five of them
    assert set(heights) == {2, 3, 4}
    assert all(abs(count - 2000) < 185 for count in heights.values())


@pytest.mark.parametrize("channels", [1, 3])
def test_colour_jitter_is_torchvisions_image_by_image(channels):
    x = torch.rand(20, channels, 6, 5, generator=generator())
    out = colour_jitter(x, size=0.4, generator=generator(1))
    factors = 1 + 0.4 * (2 * torch.rand(3, 20, generator=generator(1)) - 1)
    for image, found, (b, c, s) in zip(x, out, factors.T.tolist(), strict=True):
        expected = torchvision.adjust_contrast(torchvision.adjust_brightness(image, b), c)
        if channels == 3:
            expected = torchvision.adjust_saturation(expected, s)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    whole = colour_jitter((x * 255).byte(), size=0.4, generator=generator(1))
    torch.testing.assert_close(whole, out, rtol=0, atol=0.02)  # pixels were rounded down


@DTYPES
def test_erasing_blackens_one_rectangle_of_its_share_of_the_images(dtype):
    x = torch.ones(400, 2, 16, 20, dtype=dtype)
    out = random_erasing(x, share=0.5, generator=generator())
    assert out.dtype == dtype
    erased = 0
    for found in out:
        black = (found == 0).all(dim=0)
        assert torch.equal(black, (found == 0).any(dim=0))
        if not black.any():
            continue
        erased += 1
        h, w = int(black.any(dim=1).sum()), int(black.any(dim=0).sum())
        assert int(black.sum()) == h * w
        assert 0.01 < h * w / (16 * 20) < 0.4  # 0.02 to 0.33 before sides are rounded
        assert 0.15 < h / w < 6  # 0.3 to 3.3 before that
    assert 150 < erased < 250  # 200, five standard deviations of 10


@pytest.mark.parametrize(
    "settings",
    [
        Augment(crop_padding=2),
        Augment(flip=True),
        Augment(crop_shift=2),
        Augment(jitter=0.2),
        Augment(erase=0.9),
    ],
)
def test_the_generator_alone_decides(settings):
    x = images(50)
    before = torch.get_rng_state()
    first = augment(x, settings, generator=generator(1))
    assert torch.equal(first, augment(x, settings, generator=generator(1)))
    assert not torch.equal(first, augment(x, settings, generator=generator(2)))
    assert torch.equal(torch.get_rng_state(), before)


def test_settings_that_ask_for_nothing_change_nothing_and_draw_nothing():
    x, unused = images(3), generator()
    assert augment(x, Augment(), generator=unused) is x
    assert torch.equal(unused.get_state(), generator().get_state())


def test_crop_and_flip_together_give_flipped_crops():
    x = images(100)
    out = augment(x, Augment(crop_padding=1, flip=True), generator=generator())
    upright = [bool(places(a, b, padding=1)) for a, b in zip(x, out, strict=True)]
    mirrored = [bool(places(a.flip(-1), b, padding=1)) for a, b in zip(x, out, strict=True)]
    assert all(a != b for a, b in zip(upright, mirrored, strict=True))
    assert {True, False} == set(upright)
