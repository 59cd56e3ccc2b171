"""DICOM in class folders, as scanners write it and as the hostile do. The judge is pydicom."""

import io
import logging
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_rescale, apply_windowing
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from adap.core.config.data import DatasetOptions
from adap.core.datasets import ImageSet
from adap.worker.intake import IntakeLimits, Rejected, read_dataset
from adap.worker.intake.dicom import read_dicom
from adap.worker.intake.images import Rules, UnusableImageError, strict_decoding
from adap.worker.intake.notes import Notes
from tests.worker.archives import pack

PATIENT = "Doe^Jane-4711"
RULES = Rules(max_pixels=4 * 1024**2)


def made(values: NDArray[Any], syntax: str = ExplicitVRLittleEndian, **elements: Any) -> Dataset:
    """A slice with these values, and what else is given; None takes an element away."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.PatientName = dataset.PatientID = PATIENT
    dataset.Rows, dataset.Columns = values.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8 * values.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    dataset.PixelData = values.astype(values.dtype.newbyteorder(order)).tobytes()
    dataset["PixelData"].VR = "OW" if values.itemsize == 2 else "OB"
    for name, value in elements.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    return dataset


def saved(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def scan(seed: int) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(-1000, 1500, (12, 10)).astype(np.int16)


def window(dataset: Dataset) -> NDArray[np.float64]:
    """0 to 255 as pydicom applies the first window, rounded nowhere."""
    shown = apply_windowing(apply_rescale(dataset.pixel_array, dataset), dataset)
    low, high = -(2.0**15), 2.0**15 - 1
    low, high = (x * dataset.get("RescaleSlope", 1) for x in (low, high))
    low, high = (x + dataset.get("RescaleIntercept", 0) for x in (low, high))
    return (shown - low) / (high - low) * 255


def read(
    files: dict[str, bytes], folder: Path, notes: Notes | None = None, **options: Any
) -> ImageSet:
    path = folder / "upload"
    path.write_bytes(pack(files))
    return read_dataset(
        path,
        limits=IntakeLimits(),
        on_progress=lambda done, total: None,
        options=DatasetOptions.model_validate(options),
        notes=notes,
    )


NAMES = ("ill/1.dcm", "ill/2", "well/3.DCM", "well/4.dcm")


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]
)
@pytest.mark.parametrize(
    "elements",
    [
        {"WindowCenter": 40, "WindowWidth": 400},
        {"WindowCenter": [40, 600], "WindowWidth": [400.5, 1500]},
        {"WindowCenter": 40, "WindowWidth": 400, "VOILUTFunction": "LINEAR_EXACT"},
        {"WindowCenter": 40, "WindowWidth": 400, "RescaleSlope": 2, "RescaleIntercept": -24},
    ],
)
def test_slices_are_shown_by_their_first_window(
    syntax: str, elements: dict[str, Any], tmp_path: Path
) -> None:
    slices = {name: made(scan(k), syntax, **elements) for k, name in enumerate(NAMES)}
    notes = Notes()
    image_set = read({name: saved(s) for name, s in slices.items()}, tmp_path, notes)
    assert image_set.classes == ["ill", "well"]
    for k, dataset in enumerate(slices.values()):
        wanted = window(dataset)
        # of a value that lies half-way, either neighbour is as near
        assert np.abs(image_set.images[k, 0] - wanted).max() <= 0.5 + 1e-6
    assert [fact.code for fact in notes.facts if "DICOM" in fact.message] == ["window"]


def test_levels_decide_for_all_files_in_the_unit_of_the_modality(tmp_path: Path) -> None:
    files = {
        name: made(scan(k), WindowCenter=40, WindowWidth=40, RescaleSlope=1, RescaleIntercept=-24)
        for k, name in enumerate(NAMES)
    }
    notes = Notes()
    image_set = read(
        {name: saved(s) for name, s in files.items()},
        tmp_path,
        notes,
        levels={"low": -1000, "high": 1000},
    )
    for k in range(4):
        hounsfield = scan(k).astype(float) - 24
        wanted = ((hounsfield + 1000) / 2000).clip(0, 1) * 255
        assert np.abs(image_set.images[k, 0] - wanted).max() <= 0.5 + 1e-6
    (fact,) = [fact for fact in notes.facts if fact.code == "deep_values"]
    assert fact.level == "caution"  # values beyond the levels were cut
    assert fact.figures["low"] == min(scan(k).min() for k in range(4)) - 24


def test_low_values_that_are_white_are_inverted_and_it_is_said(tmp_path: Path) -> None:
    grey = [np.random.default_rng(k).integers(0, 256, (9, 9), dtype=np.uint8) for k in range(4)]
    files = {
        name: saved(made(values, PhotometricInterpretation="MONOCHROME1"))
        for name, values in zip(NAMES, grey, strict=True)
    }
    notes = Notes()
    image_set = read(files, tmp_path, notes)
    assert np.array_equal(image_set.images[:, 0], 255 - np.stack(grey))
    assert "inverted" in {fact.code for fact in notes.facts}


def test_values_without_a_window_are_refused_with_the_levels_they_have(tmp_path: Path) -> None:
    files = {name: saved(made(np.clip(scan(k), -900, 900))) for k, name in enumerate(NAMES)}
    with pytest.raises(Rejected, match=r"from -900 to 900 and no window .*--levels -900:900"):
        read(files, tmp_path)


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "MR_small_bigendian.dcm"])
def test_files_of_scanners_are_read_as_pydicom_reads_them(name: str) -> None:
    path = get_testdata_file(name)
    dataset = pydicom.dcmread(path)
    values = apply_rescale(dataset.pixel_array, dataset).astype(float)
    levels = {"low": values.min(), "high": values.max()}
    rules = Rules(RULES.max_pixels, DatasetOptions.model_validate({"levels": levels}).levels)
    with strict_decoding():
        picture = read_dicom(Path(path).read_bytes(), rules)
    wanted = (values - values.min()) / (values.max() - values.min()) * 255
    assert np.abs(picture.pixels - wanted).max() <= 0.5 + 1e-6
    assert picture.values == (values.min(), values.max())


def test_nothing_that_names_a_patient_is_kept_or_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    sound = {
        name: saved(made(scan(k), WindowCenter=40, WindowWidth=400)) for k, name in enumerate(NAMES)
    }
    notes = Notes()
    image_set = read(sound, tmp_path, notes)
    odd = made(scan(9), WindowCenter=40, WindowWidth=400)
    whole = saved(odd)
    centre = b"\x28\x00\x50\x10DS\x04\x0040.0"
    broken = whole.replace(centre, centre.replace(b"40.0", b"Doe "))
    assert broken != whole
    with pytest.raises(Rejected) as caught:
        read({**sound, "ill/1.dcm": broken, "ill/2": whole[:-40]}, tmp_path)
    told = [*notes.reading().steps, *(fact.message for fact in notes.facts), *caught.value.reasons]
    told += [*image_set.example_ids, caplog.text, *capfd.readouterr()]
    assert len(caught.value.reasons) == 3  # two files, and the way out
    assert not any("Doe" in text or "4711" in text for text in told)


# --- hostile --------------------------------------------------------------------------------------


def refusal(data: bytes) -> str:
    with strict_decoding(), pytest.raises(UnusableImageError) as caught:
        read_dicom(data, RULES)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
    return str(caught.value)


SOUND: dict[str, Any] = {"WindowCenter": 40, "WindowWidth": 400}


@pytest.mark.parametrize(
    ("elements", "said"),
    [
        ({"Rows": 65535, "Columns": 65535}, "expected 1 to 4194304 pixels"),
        ({"Rows": 0}, "expected 1 to"),
        ({"Rows": 24}, "does not decode"),  # more pixels than bytes
        ({"NumberOfFrames": 2**31 - 1}, "a single frame"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "got colours"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "got colours"),
        ({"BitsAllocated": 64}, "8 or 16 bits"),
        ({"WindowWidth": 1}, "some width"),
        ({"WindowWidth": -5}, "some width"),
        ({"WindowWidth": "1e300"}, "does not decode"),
        ({"VOILUTFunction": "SIGMOID"}, "expected a linear window"),
        ({"RescaleSlope": "1e308", "RescaleIntercept": "1e308"}, "finite"),
        ({"PixelData": None}, "without pixels"),
        ({"Columns": None}, "does not decode"),
    ],
)
def test_a_slice_that_lies_or_cannot_be_shown_is_refused(
    elements: dict[str, Any], said: str
) -> None:
    assert said in refusal(saved(made(scan(0), **(SOUND | elements))))


def test_runs_are_read_as_pydicom_reads_them() -> None:
    """A scan that pydicom ships both ways, and slices of 8 and 16 bits that it packs."""
    packed, plain = (
        Path(str(get_testdata_file(name))).read_bytes()
        for name in ("MR_small_RLE.dcm", "MR_small.dcm")
    )
    wanted = read_dicom(plain, RULES).pixels
    np.testing.assert_array_equal(read_dicom(packed, RULES).pixels, wanted)
    for values in (scan(1), (scan(2) % 256).astype(np.uint8)):
        dataset = made(values, WindowCenter=100, WindowWidth=300)
        wanted = read_dicom(saved(dataset), RULES).pixels
        dataset.compress(RLELossless)
        np.testing.assert_array_equal(read_dicom(saved(dataset), RULES).pixels, wanted)


def test_runs_of_more_than_the_image_are_refused_before_they_are_unpacked() -> None:
    dataset = made(scan(1))
    dataset.compress(RLELossless)
    header = struct.pack("<16L", 2, 64, 64 + 2**20, *[0] * 13)
    bomb = header + b"\x81\0" * 2**20  # two bytes for 128
    dataset.PixelData = pydicom.encaps.encapsulate([bomb])
    with pytest.raises(UnusableImageError, match=r"expected runs \(RLE\) of 120 pixels, got more"):
        read_dicom(saved(dataset), RULES)


@pytest.mark.parametrize(
    "frame",
    [
        b"\1" * 10,  # no header
        struct.pack("<16L", 0, *[0] * 15) + bytes(64),  # no segment
        struct.pack("<16L", 16, *range(64, 79)) + bytes(64),  # more than there is room for
        struct.pack("<16L", 1, 10, *[0] * 14) + bytes(64),  # in the header
        struct.pack("<16L", 2, 96, 64, *[0] * 13) + bytes(64),  # that fall
        struct.pack("<16L", 2, 64, 64, *[0] * 13) + bytes(64),  # twice the same
        struct.pack("<16L", 2, 64, 128, *[0] * 13) + bytes(64),  # behind the end
    ],
)
def test_runs_without_a_sound_header_are_refused(frame: bytes) -> None:
    dataset = made(scan(1))
    dataset.compress(RLELossless)
    dataset.PixelData = pydicom.encaps.encapsulate([frame])
    with pytest.raises(UnusableImageError) as caught:
        read_dicom(saved(dataset), RULES)
    assert caught.value.damaged
    assert re.search(r"does not decode as DICOM \(error\)|runs \(RLE\) in order", str(caught.value))


@pytest.mark.parametrize(
    ("name", "syntax"),
    [
        ("JPEG2000.dcm", "JPEG 2000"),
        ("JPEG-lossy.dcm", "JPEG Extended"),
        ("image_dfl.dcm", DeflatedExplicitVRLittleEndian.name),
        ("MR_small_jpeg_ls_lossless.dcm", "JPEG-LS"),
    ],
)
def test_compressed_pixels_are_refused_by_the_name_of_the_syntax(name: str, syntax: str) -> None:
    said = refusal(Path(get_testdata_file(name)).read_bytes())
    assert syntax in said
    assert "decompress it first" in said


def test_a_syntax_that_promises_jpeg_is_not_believed() -> None:
    data = saved(made(scan(0), **SOUND))
    uid = struct.pack("<HH2sH", 2, 0x10, b"UI", 20) + ExplicitVRLittleEndian.encode().ljust(
        20, b"\0"
    )
    assert uid in data
    other = struct.pack("<HH2sH", 2, 0x10, b"UI", 22) + JPEG2000Lossless.encode()
    assert "JPEG 2000" in refusal(data.replace(uid, other))


def test_sequences_in_sequences_and_millions_of_elements_end_at_once() -> None:
    head, _, pixels = saved(made(scan(0), **SOUND)).partition(b"\x28\x00\x02\x00US")
    opened = struct.pack("<HH2sHL", 0x0008, 0x1140, b"SQ", 0, 2**32 - 1)
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 2**32 - 1)
    deep = head + (opened + item) * 20_000 + b"\x28\x00\x02\x00US" + pixels
    assert "does not decode" in refusal(deep)
    many = head + struct.pack("<HH2sH", 0x0009, 0x1001, b"LO", 0) * 100_000
    assert "fewer elements" in refusal(many + b"\x28\x00\x02\x00US" + pixels)


def test_lengths_beyond_the_file_take_no_memory() -> None:
    head, _, pixels = saved(made(scan(0), **SOUND)).partition(b"\x28\x00\x02\x00US")
    huge = struct.pack("<HH2sHL", 0x0009, 0x1002, b"OB", 0, 2**32 - 2)
    refusal(head + huge + b"\x28\x00\x02\x00US" + pixels)
    refusal(bytes(128) + b"DICM")
    refusal(bytes(128) + b"DICM" + bytes(range(256)) * 40)
