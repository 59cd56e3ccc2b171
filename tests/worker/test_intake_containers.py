"""Data sets in a form that is not read: recognised, and refused with what leads on.

Judges: the libraries that write these forms (NumPy, SciPy, pandas, pyarrow, torch, pickle);
IDX, NIfTI, LMDB, HDF5 and TFRecord begin as their specifications say.
"""

import gzip
import io
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.io
import torch
from PIL import Image

from tests.worker.archives import encode, pack, pixels, png, two_classes
from tests.worker.test_intake_labels import npz, read, reasons

IMAGES = np.stack([pixels(i) for i in range(4)])
LABELS = np.array([0, 1, 0, 1])
NPZ = "np.savez_compressed('data.npz', images=images, labels=labels)"


def written(write: Any) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def arrow(buffer: io.BytesIO) -> None:
    table = pa.table({"image": [b"?"], "label": [0]})
    with pa.ipc.new_stream(buffer, table.schema) as stream:  # as Hugging Face's library does
        stream.write_table(table)


def tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


PICKLE = pickle.dumps({b"data": IMAGES.reshape(4, -1), b"labels": [0, 1, 0, 1]})
IDX = struct.pack(">IIII", 0x803, 4, 8, 8) + bytes(256)
DIGITS = pd.DataFrame(IMAGES[..., 0].reshape(4, -1)).add_prefix("pixel")
DIGITS.insert(0, "label", LABELS)
FACES = pd.DataFrame({"emotion": [0], "pixels": ["70 80 82"], "Usage": ["Training"]})
CASES: dict[str, tuple[bytes, str, str]] = {
    "a NumPy array": (written(lambda file: np.save(file, IMAGES)), "one NumPy array", NPZ),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5", NPZ),
    "HDF5 in a zip": (pack({"a/train.h5": b"\x89HDF\r\n\x1a\n" + bytes(99)}), "HDF5", NPZ),
    "MATLAB": (written(lambda file: scipy.io.savemat(file, {"X": IMAGES})), "MATLAB", NPZ),
    "tensors": (written(lambda file: torch.save(torch.zeros(4, 3, 8, 8), file)), "torch.save", NPZ),
    "a pickle": (PICKLE, "never is here", NPZ),
    "CIFAR": (tar({"cifar-10-batches-py/data_batch_1": PICKLE}), "CIFAR", "--from cifar10"),
    "CIFAR-100": (pack({"cifar-100-python/train": PICKLE}), "CIFAR", "--from cifar10"),
    "MNIST": (pack({"train-images-idx3-ubyte.gz": gzip.compress(IDX)}), "IDX", NPZ),
    "MNIST alone": (gzip.compress(IDX), "IDX", NPZ),
    "TFRecord": (pack({"train.tfrecord-00000-of-00001": b"?"}), "TFRecord", "class folders"),
    "LMDB": (pack({"db/data.mdb": bytes(16) + b"\xde\xc0\xef\xbe"}), "LMDB", "class folders"),
    "Arrow": (pack({"train/data-0.arrow": written(arrow)}), "Arrow", "to_parquet"),
    "NIfTI": (
        pack({f"{c}/1.nii.gz": gzip.compress(struct.pack("<i", 348) + bytes(344)) for c in "ab"}),
        "NIfTI",
        "16-bit PNG",
    ),
    "digits": (DIGITS.to_csv(index=False).encode(), "a table of pixels", "reshape"),
    "faces": (pack({"fer2013.csv": FACES.to_csv(index=False).encode()}), "of pixels", "reshape"),
    "zips in a zip": (pack({"train.zip": pack(two_classes())}), "an archive", "send it alone"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_form_that_is_not_read_is_refused_once_with_the_way_on(case: str, tmp_path: Path) -> None:
    content, kind, way = CASES[case]
    (reason,) = reasons(content, tmp_path)
    assert kind in reason
    assert way in reason


def test_arrays_that_followed_the_way_on_are_read(tmp_path: Path) -> None:
    digits = DIGITS.drop(columns="label").to_numpy()
    images = digits.reshape(-1, 8, 8).astype("uint8")  # as the sentence says
    made = read(npz(images=images, labels=DIGITS["label"].to_numpy()), tmp_path)
    assert np.array_equal(made.images[:, 0], IMAGES[..., 0])
    assert made.labels.tolist() == LABELS.tolist()


def test_images_whatever_their_names_end_in_are_no_other_form(tmp_path: Path) -> None:
    names = ["cat/1", "cat/2.0001", "dog/3.image", "dog/4.JPG_large"]
    made = read(pack({name: png(i) for i, name in enumerate(names)}), tmp_path)
    assert len(made.images) == 4


@pytest.mark.parametrize("kind", ["WEBP", "PNG"])
def test_a_moving_picture_is_refused_with_what_to_save(kind: str, tmp_path: Path) -> None:
    moving = encode(pixels(1), kind, save_all=True, append_images=[Image.fromarray(pixels(2))])
    (reason,) = reasons(pack({**two_classes(), "cat/m": moving}), tmp_path)
    assert "2 frames: save the one that is meant" in reason
