"""Images and labels in every form that people have them: the same figures, or a refusal."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import adap


class Yielding(Dataset[object]):
    """Thirty examples, each made by a function of its place."""

    def __init__(self, make: Callable[[int], object]) -> None:
        self.make = make

    def __len__(self) -> int:
        return 30

    def __getitem__(self, place: int) -> object:
        return self.make(place)


CALM = {"attacks": [adap.PGD(steps=2)], "checks": "off", "certify": "off", "progress": False}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 5, 1))


@pytest.fixture(scope="module")
def stored() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (30, 3, 4, 5), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def labels() -> Tensor:
    return torch.arange(30) % 2


def test_every_form_of_the_same_images_gives_the_same_bits(
    model: nn.Module, stored: Tensor, labels: Tensor
) -> None:
    floats = stored.float() / 255
    forms = [
        (stored, labels),
        (stored.numpy(), labels.numpy().astype(bool)),
        (stored.permute(0, 2, 3, 1), labels[:, None]),
        (floats, labels.float()),
        (floats.double().numpy(), labels.tolist()),
        (stored.numpy().transpose(0, 2, 3, 1) / 255, labels),
        (TensorDataset(floats, labels), None),
        (DataLoader(TensorDataset(stored, labels), batch_size=7), None),
        (Yielding(lambda i: {"pixel_values": floats[i], "label": int(labels[i])}), None),
        (list(floats.clone().requires_grad_()), labels),
        (stored.to(memory_format=torch.channels_last), labels),
    ]
    reports = [adap.audit(model, images, marks, **CALM) for images, marks in forms]
    for report in reports[1:]:
        assert report.task == reports[0].task
        assert np.array_equal(report.scores[0].clean, reports[0].scores[0].clean)


@pytest.mark.parametrize(
    "positive", [2, "2", [2], (2,), np.int64(2), np.array([2]), torch.tensor(2), 2.0, range(2, 3)]
)
def test_rows_of_labels_are_read_by_the_column_that_positive_names(
    model: nn.Module, stored: Tensor, positive: object
) -> None:
    rows = torch.rand(30, 4, generator=torch.Generator().manual_seed(6)).gt(0.5)
    if positive == "2":
        with pytest.raises(adap.DataError, match=r"positive=, the column .* got \['2'\]"):
            adap.audit(model, stored, rows, positive=positive, **CALM)
        return
    report = adap.audit(model, stored, rows, positive=positive, **CALM)
    with torch.no_grad():
        judged = average_precision_score(rows[:, 2], model(stored.float() / 255)[:, 0])
    assert report.clean.ap == pytest.approx(judged)


def test_a_loader_in_another_order_takes_no_names_and_says_what_it_left_out(
    model: nn.Module, stored: Tensor, labels: Tensor
) -> None:
    shuffled = DataLoader(TensorDataset(stored, labels), batch_size=7, shuffle=True, drop_last=True)
    report = adap.audit(model, shuffled, **CALM)
    assert any("shuffles or samples" in warning for warning in report.warnings)
    assert any("28 examples of a data set of 30" in warning for warning in report.warnings)
    for names in ({"groups": ["a", "b"] * 15}, {"ids": [f"{i}" for i in range(30)]}):
        with pytest.raises(adap.ConfigError, match="shuffle=False"):
            adap.audit(model, shuffled, **names, **CALM)
    with pytest.raises(adap.ConfigError, match=r"at least one label .* got none"):
        adap.audit(model, stored, labels, positive=[], **CALM)
    with pytest.raises(adap.ConfigError, match="call once a class"):
        adap.audit(model, stored, labels, positive={"each": True}, **CALM)


def test_images_that_are_black_are_said_to_be(model: nn.Module, labels: Tensor) -> None:
    masks = torch.rand(30, 3, 4, 5, generator=torch.Generator().manual_seed(7)) > 0.5
    for images, black in ((masks.byte(), True), (masks.float(), False), (masks / 255, True)):
        report = adap.audit(model, images, labels, **CALM)
        assert any("black to the eye" in warning for warning in report.warnings) == black


def test_floats_between_the_levels_of_a_byte_are_scored_as_they_are(
    model: nn.Module, labels: Tensor
) -> None:
    images = torch.rand(30, 3, 4, 5, generator=torch.Generator().manual_seed(5))
    report = adap.audit(model, images, labels, **CALM)
    with torch.no_grad():
        expected = model(images)[:, 0].double().numpy()
    assert np.array_equal(report.scores[0].clean, expected)
    assert any("not all multiples of 1/255" in warning for warning in report.warnings)
    spooled = adap.audit(model, DataLoader(TensorDataset(images, labels), batch_size=8), **CALM)
    assert spooled.task == report.task


def test_a_sample_keeps_the_share_of_each_side_and_is_said(
    model: nn.Module, stored: Tensor
) -> None:
    labels = (torch.arange(30) % 3 == 0).long()
    report = adap.audit(model, stored, labels, sample=12, **CALM)
    assert (report.task.examples, report.task.positives) == (12, 4)
    assert any("sample of 12 of 30" in warning for warning in report.warnings)
    assert report.task == adap.audit(model, stored, labels, sample=12, **CALM).task


@pytest.mark.parametrize(("positives", "enough"), [(2, 30), (28, 30), (4, 15)])
def test_a_sample_without_two_of_each_side_is_refused_with_a_size_that_would_do(
    model: nn.Module, stored: Tensor, positives: int, enough: int
) -> None:
    labels = (torch.arange(30) < positives).long()
    with pytest.raises(adap.DataError, match=f"in a sample of 8 of 30, .*: sample {enough} or"):
        adap.audit(model, stored, labels, sample=8, **CALM)
    assert adap.audit(model, stored, labels, sample=enough, **CALM).task.examples == enough


@pytest.mark.parametrize("sample", [3, 0, -5, 2.5, True, "all"])
def test_a_sample_that_is_no_number_of_examples_is_refused(
    model: nn.Module, stored: Tensor, labels: Tensor, sample: object
) -> None:
    with pytest.raises(adap.ConfigError, match="sample as a whole number of at least 4, got"):
        adap.audit(model, stored, labels, sample=sample, **CALM)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x, y: (x.float(), y), r"pixels in \[0, 1\], got 0 to 255; pixels from 0 to 255"),
        (lambda x, y: (x.float() / 255 - 0.5, y), r"got -0.5 to 0.5; normalised .*mean="),
        (lambda x, y: (x.float() / 255 * 1.1, y), r"to 1\.1; .* images.clamp\(0, 1\) ends it"),
        (lambda x, y: ((x / 255).index_fill(0, torch.tensor(3), torch.nan), y), "NaN .* in 1 im"),
        (lambda x, y: (x.long(), y), "uint8, or floats in .0, 1., got int64"),
        (lambda x, y: (x[0, 0], y), r"got \(4, 5\)"),
        (lambda x, y: (x[:, :2], y), r"channels \(1 or 3\).*got \(30, 2, 4, 5\).*layout="),
        (lambda x, y: (x[:0], y[:0]), r"got \(0, 3, 4, 5\)"),
        (lambda x, y: ("photos/", y), "a NumPy array, a tensor, or a Dataset.* got str"),
        (lambda x, y: ("photos/", None), "a NumPy array, a tensor, or a Dataset.* got str"),
        (lambda x, y: (x, None), "expected labels beside the images"),
        (lambda x, y: (x, y[:5]), r"30 labels, one an image, got \(5,\)"),
        (lambda x, y: (x, y + 1), r"labels in \{0, 1\}, got \[1, 2\]: positive="),
        (lambda x, y: (x, y * float("nan")), "labels, got 30 NaN"),
        (lambda x, y: (x, y * 0), "got 0 positives among 30"),
        (lambda x, y: (x, ["cat", "dog"] * 15), "positive= names those"),
        (lambda x, y: (x, [0, "cat"] * 15), "all numbers or all names|positive= names those"),
        (lambda x, y: (x, [None] * 30), "all numbers or all names, got NoneType"),
        (lambda x, y: (x, torch.eye(2)[y]), r"positive=.* 0 to 1, as labels are rows \(30, 2\)"),
        (lambda x, y: (x.float().to_sparse(), y), "a dense tensor of numbers, got .*sparse_coo"),
        (lambda x, y: (x.to("meta"), y), "a dense tensor of numbers, got .*on meta"),
        (lambda x, y: ([torch.rand(3, 4 + i % 2, 5) for i in range(30)], y), "of one shape"),
        (lambda x, y: (Yielding(lambda i: (torch.rand(3, 4 + i % 2, 5), 1)), None), "equal size"),
        (lambda x, y: (Yielding(lambda i: (x[i], None)), None), "labels as numbers, got TypeErr"),
        (lambda x, y: (Yielding(lambda i: {}["img_7"]), None), "got KeyError: 'img_7'"),
        (lambda x, y: (Yielding(lambda i: {"x": x[i], "y": 1}), None), "exactly one of .*got x, y"),
        (lambda x, y: (TensorDataset(x), None), r"\(images, labels, index\) from the loader"),
        (lambda x, y: (TensorDataset(x, y), y), "no labels beside a TensorDataset"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_was_expected_and_what_came(
    model: nn.Module, stored: Tensor, labels: Tensor, change: object, said: str
) -> None:
    images, marks = change(stored, labels)  # type: ignore[operator]
    with pytest.raises(adap.AdapError, match=said):
        adap.audit(model, images, marks, **CALM)


def test_pixels_beyond_the_range_by_rounding_are_put_on_its_edge(
    model: nn.Module, stored: Tensor, labels: Tensor
) -> None:
    """A pixel of 1.0000001, as normalising and back leaves them."""
    floats = stored.float() / 255
    off = floats.clone()
    off[0], off[1] = 1 + 1e-7, -3e-8
    floats[0], floats[1] = 1, 0
    exact, rounded = (adap.audit(model, x, labels, **CALM) for x in (floats, off))
    assert np.array_equal(exact.scores[0].clean, rounded.scores[0].clean)
    assert (off.min() < 0, off.max() > 1) == (True, True)  # nobody's own images were changed


def test_a_data_set_with_the_index_for_the_losses_can_be_audited(
    model: nn.Module, stored: Tensor, labels: Tensor
) -> None:
    plain = adap.audit(model, stored, labels, **CALM)
    indexed = adap.audit(model, TensorDataset(stored, labels, torch.arange(30)), **CALM)
    assert np.array_equal(plain.scores[0].clean, indexed.scores[0].clean)


def test_clusters_are_drawn_whole_in_the_intervals_of_an_audit(
    model: nn.Module, stored: Tensor, labels: Tensor
) -> None:
    plain = adap.audit(model, stored, labels, **CALM)
    alone = adap.audit(model, stored, labels, clusters=[f"p{i}" for i in range(30)], **CALM)
    assert alone.clean == plain.clean
    whole = adap.audit(model, stored, labels, clusters=[f"p{i // 5}" for i in range(30)], **CALM)
    assert (whole.clean.ap, whole.task.clusters.clusters) == (plain.clean.ap, 6)
    assert whole.clean.interval != plain.clean.interval
    assert any("6 clusters" in warning for warning in whole.warnings)
    with pytest.raises(adap.DataError, match=r"30 clusters, .*got 29"):
        adap.audit(model, stored, labels, clusters=["p"] * 29, **CALM)


def test_a_data_set_that_does_not_know_its_length_is_audited_in_the_order_of_its_sampler(
    model: nn.Module, stored: Tensor, labels: Tensor
) -> None:
    class Endless(Dataset[tuple[Tensor, Tensor]]):
        def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
            return stored[i % 30], labels[i % 30]

    loader = DataLoader(Endless(), batch_size=8, sampler=range(30))
    found, plain = (adap.audit(model, *data, **CALM) for data in ((loader,), (stored, labels)))
    assert np.array_equal(found.scores[0].clean, plain.scores[0].clean)
