"""The judges: sums written out pixel by pixel, and slopes known beforehand."""

import numpy as np
import pytest
import torch
from scipy.stats import t as student
from torch import nn

from adap.core.audit.checks.gradients import gradient_predicts
from adap.core.audit.checks.judging import Judged
from adap.core.audit.checks.limits import PART_CHANCE, SLOPE_PART
from adap.core.audit.checks.parts import Place, partitions, places, summed, weakest
from adap.core.audit.checks.runs import Bench
from adap.core.config.attacks import APGDAttack
from adap.core.config.threats import Threat
from adap.models.architectures import build


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 13), (3, 32, 32), (2, 1, 1)])
def test_every_way_of_taking_an_image_apart_has_each_pixel_in_one_part(
    shape: tuple[int, int, int],
) -> None:
    generator = torch.Generator().manual_seed(0)
    x, gradient, products = torch.rand(3, 4, *shape, generator=generator)
    sums = summed(products, x, gradient)
    assert sums.shape == (len(places(*shape)), 4)
    done = 0
    for partition in partitions(*shape):
        part = partition.part_of(x, gradient).expand_as(x)
        for number in range(len(partition.names)):
            expected = (products * (part == number)).flatten(1).sum(1)
            torch.testing.assert_close(sums[done + number], expected)
        of_all = sums[done : done + len(partition.names)].sum(0)
        torch.testing.assert_close(of_all, products.flatten(1).sum(1))
        done += len(partition.names)
    assert done == len(sums)


def test_the_names_of_parts_say_where_they_are() -> None:
    x = torch.full((1, 1, 4, 12), 0.99)
    x[..., 2, 3] = 0.3
    where = torch.zeros_like(x)
    where[..., 2, 3] = 1
    sums = summed(where, x, where)[:, 0].numpy()
    assert [place.name for place, total in zip(places(1, 4, 12), sums, strict=True) if total] == [
        "columns 3 to 4",
        "rows 2 to 2",
        "every second row from 0, column from 1",
        "pixels from 0.25 to 0.375",
        "quarter 4 of the pixels by the size of their gradient",
        "the pixel in row 2, column 3",
    ]


def each(*names: str) -> list[Place]:
    return [Place(name, len(names)) for name in names]


@pytest.mark.parametrize("turned", [1.0, 0.2, -1.0])
@pytest.mark.parametrize("unit", [1.0, 0.01])
def test_a_part_that_promises_what_it_does_not_keep_is_found(turned: float, unit: float) -> None:
    """Of eight parts the third keeps `turned` of what it promises; a gradient has any unit."""
    rng = np.random.default_rng(0)
    promised = rng.normal(size=(8, 96))
    kept = promised.copy()
    kept[2] *= turned
    seen = kept.sum(0) + 0.1 * rng.normal(size=96)
    part = weakest(each(*"abcdefgh"), promised / unit, promised.sum(0) / unit, seen)
    assert part is not None
    assert SLOPE_PART.status(part.high) == {1.0: "pass", 0.2: "caution", -1.0: "fail"}[turned]
    if turned < 1:
        of_all = float((promised.sum(0) * seen).sum() / np.square(promised.sum(0)).sum())
        assert part.name == "c"
        assert part.slope == pytest.approx(turned / of_all, abs=0.2)


def test_one_image_says_nothing_of_a_part() -> None:
    rng = np.random.default_rng(0)
    promised = rng.normal(size=(2, 96))
    promised[1] = 0
    promised[1, 5] = 1
    seen = promised[0] - promised[1]
    part = weakest(each("whole", "of one image"), promised, promised.sum(0), seen)
    assert part is not None
    assert part.name == "whole"
    assert SLOPE_PART.status(part.high) == "pass"
    few = slice(0, 10)
    assert weakest(each("a"), promised[:1, few], promised[0, few], promised[0, few]) is None


@pytest.mark.parametrize("among", [4, 256])
@pytest.mark.parametrize("images", [8, 48])
def test_a_slope_is_judged_by_what_chance_does_to_as_many_parts_of_as_few_images(
    images: int, among: int
) -> None:
    """The judge: least squares of one column, its HC3 error, and Student's t by SciPy."""
    rng = np.random.default_rng(1)
    promised = np.zeros((2, 96))
    promised[0] = rng.normal(size=96)
    promised[1, :images] = rng.choice([-1.0, 1.0], images)
    seen = promised[0] - promised[1] + rng.normal(size=96)
    part = weakest([Place("few", among)], promised[1:], promised.sum(0), seen)
    assert part is not None
    whole = promised.sum(0)
    unit = (whole * seen).sum() / np.square(whole).sum()
    few, rest = unit * promised[1], seen - unit * whole
    slope = (few * rest).sum() / np.square(few).sum()
    left = (rest - slope * few) / (1 - np.square(few) / np.square(few).sum())
    error = np.sqrt(np.square(few * left).sum()) / np.square(few).sum()
    quantile = student.isf(PART_CHANCE / among, images - 1)
    assert part.slope == pytest.approx(1 + slope)
    assert part.high == pytest.approx(1 + slope + quantile * error, abs=0.02 * quantile * error)


@pytest.mark.parametrize(("images", "judged"), [(7, "whole"), (8, "of some images")])
def test_a_part_is_judged_by_eight_images_at_least(images: int, judged: str) -> None:
    promised = np.random.default_rng(0).normal(size=(2, 96))
    promised[1] = 0
    promised[1, :images] = 0.5
    seen = promised[0] - promised[1]
    part = weakest(each("whole", "of some images"), promised, promised.sum(0), seen)
    assert part is not None
    assert part.name == judged


def test_a_bright_pixel_of_one_dark_image_makes_no_gradient_wrong() -> None:
    """The brightest band is one pixel then, of which one step is all that is known."""
    generator = np.random.default_rng(2)
    images = generator.integers(20, 100, size=(24, 3, 16, 16)).astype(np.uint8)
    images[7, :, 5, 9] = 250
    targets = np.arange(24) % 2
    network = nn.Sequential(build("small_cnn", channels=3, seed=0), nn.Flatten(0))
    with torch.no_grad():
        network(torch.tensor(images) / 255)  # in train mode: BatchNorm sees them
    bench = Bench(images, targets, 0, 24, torch.device("cpu"), lambda _: None)
    threat = Threat(norm="linf", epsilon=8 / 255)
    slopes = bench.gradients(network.eval(), APGDAttack(), threat)
    clean = bench.score(network)
    judged = Judged(targets, clean, {"white_box": clean - 100 * (2 * targets - 1)})
    assert gradient_predicts(clean, slopes, judged).status == "pass"
