"""The judge is a loop over the images that tries every crop and both flips."""

from collections import Counter

import pytest
import torch

from adap.core.config import Augment
from adap.core.training.augment import augment, random_crop, random_flip

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


@pytest.mark.parametrize("settings", [Augment(crop_padding=2), Augment(flip=True)])
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
