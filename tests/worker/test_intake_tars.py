"""Tars as GNU tar, Python and WebDataset write them, and as the hostile do.

The judge is the same data set as a zip, or the pixels and labels that were packed.
"""

import gzip
import io
import json
import os
import struct
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from adap.core.config.base import SPLITS
from adap.core.config.data import DatasetOptions
from adap.core.datasets import ImageSet
from adap.worker.intake import IntakeLimits, Rejected, read_dataset
from adap.worker.intake.notes import Notes
from adap.worker.intake.tars import MAX_HEADER_BYTES
from tests.worker.archives import metadata, pack, pixels, png, two_classes

Pack = Callable[[bytes], bytes]
PACKED: dict[str, Pack] = {
    "tar": lambda content: content,
    "tar.gz": gzip.compress,
    "tar.zst": lambda content: zstandard.compress(content, 3),
    "tar.zst in frames": lambda content: b"".join(
        zstandard.compress(content[i : i + 1000]) for i in range(0, len(content), 1000)
    ),
}


def tar(members: Mapping[str, bytes], kind: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def read(
    content: bytes,
    folder: Path,
    notes: Notes | None = None,
    limits: IntakeLimits | None = None,
    **options: Any,
) -> ImageSet:
    path, scratch = folder / "upload", folder / "scratch"
    path.write_bytes(content)
    scratch.mkdir(exist_ok=True)
    try:
        return read_dataset(
            path,
            limits=limits or IntakeLimits(),
            on_progress=lambda done, total: None,
            options=DatasetOptions.model_validate(options),
            notes=notes,
            scratch=scratch,
        )
    finally:
        assert not list(scratch.iterdir())
        assert sorted(os.listdir(folder)) == ["scratch", "upload"]


def same(one: ImageSet, other: ImageSet) -> bool:
    return (
        np.array_equal(one.images, other.images)
        and np.array_equal(one.labels, other.labels)
        and list(one.classes) == list(other.classes)
        and list(one.example_ids) == list(other.example_ids)
        and (one.splits is None) == (other.splits is None)
        and (one.splits is None or np.array_equal(one.splits, other.splits))
    )


SPLIT = {
    f"data/{split}/{name}": content
    for split in ("train", "test")
    for name, content in two_classes().items()
}
TABLE = {f"images/{k}.png": png(k) for k in range(4)}
TABLE["metadata.csv"] = metadata(
    [{"file_name": f"images/{k}.png", "label": "ab"[k % 2]} for k in range(4)]
)


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("members", [two_classes(), SPLIT, TABLE], ids=["class", "split", "table"])
def test_a_tar_is_read_as_the_same_files_in_a_zip(
    packed: str, members: dict[str, bytes], tmp_path: Path
) -> None:
    wanted = read(pack(members), tmp_path)
    assert same(read(PACKED[packed](tar(members)), tmp_path), wanted)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_other_alphabets_come_through(kind: int, tmp_path: Path) -> None:
    folder = "/".join(["ordner" * 5] * 5)
    members = {f"{c}/{folder}/{k}.png": png(k) for k, c in enumerate(["schön", "日本"] * 2)}
    assert read(tar(members, kind), tmp_path).classes == ["schön", "日本"]


def test_what_gnu_tar_packs_is_read_and_what_systems_left_is_named(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for name, content in two_classes(**{"cat/.DS_Store": b"x", "README.md": b"y"}).items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    (source / "empty").mkdir()
    made = subprocess.run(["tar", "-czf", "-", "-C", source, "."], capture_output=True, check=True)
    (tmp_path / "out").mkdir()
    notes = Notes()
    image_set = read(made.stdout, tmp_path / "out", notes)
    assert same(image_set, read(pack(two_classes()), tmp_path / "out"))
    assert "ignored: 'cat/.DS_Store'" in notes.steps
    assert {"other_files", "empty_folders"} <= {fact.code for fact in notes.facts}


# --- WebDataset -----------------------------------------------------------------------------------


def samples(start: int, labels: str, ending: str = "cls", **more: str) -> dict[str, bytes]:
    """A shard: an image and its label for each character."""
    members: dict[str, bytes] = {}
    for k, label in enumerate(labels, start):
        members[f"{k:04d}.png"] = png(k)
        text = json.dumps({"label": label, **more}) if ending == "json" else label
        members[f"{k:04d}.{ending}"] = text.encode()
    return members


@pytest.mark.parametrize("ending", ["cls", "json", "txt"])
@pytest.mark.parametrize("packed", PACKED)
def test_samples_get_the_labels_that_stand_beside_them(
    ending: str, packed: str, tmp_path: Path
) -> None:
    notes = Notes()
    made = read(PACKED[packed](tar(samples(0, "0101", ending))), tmp_path, notes)
    assert (made.classes, made.labels.tolist()) == (["0", "1"], [0, 1, 0, 1])
    assert np.array_equal(made.images[2].transpose(1, 2, 0), pixels(2))
    assert f"labels from the files .{ending} beside the images" in notes.steps


def test_shards_in_a_zip_are_one_data_set_with_the_splits_they_are_called_by(
    tmp_path: Path,
) -> None:
    shards = {
        "train-000000.tar": tar(samples(0, "0101")),
        "train-000001.tar.gz": gzip.compress(tar(samples(4, "0011"))),
        "test-000000.tar.zst": zstandard.compress(tar(samples(0, "1001"))),
        "README.md": b"x",
    }
    notes = Notes()
    made = read(pack(shards), tmp_path, notes)
    assert made.splits is not None
    assert [SPLITS[i] for i in made.splits] == ["test"] * 4 + ["train"] * 8
    assert made.labels.tolist() == [1, 0, 0, 1, 0, 1, 0, 1, 0, 0, 1, 1]
    assert np.array_equal(made.images[4 + 5].transpose(1, 2, 0), pixels(5))
    assert "other_files" in {fact.code for fact in notes.facts}
    plain = {
        name.replace("train", "part").replace("test", "part1"): c for name, c in shards.items()
    }
    assert read(pack(plain), tmp_path).splits is None


def test_a_tar_for_each_class_is_a_class_folder(tmp_path: Path) -> None:
    classes = {f"n0144{c}.tar": tar({f"{k}.png": png(k + c) for k in range(3)}) for c in (0, 8)}
    assert read(pack(classes), tmp_path).classes == ["n01440", "n01448"]
    parts = {f"images-{c}.tar": tar({f"{k}.png": png(k + c) for k in range(3)}) for c in (0, 8)}
    with pytest.raises(Rejected, match=r"\.cls, \.json or \.txt beside each image"):
        read(pack(parts), tmp_path)


def test_json_beside_the_label_says_split_and_cluster(tmp_path: Path) -> None:
    members = {
        **samples(0, "0101"),
        **{
            f"{k:04d}.json": json.dumps({"split": s, "patient": k // 2, "image": "x.jpg"}).encode()
            for k, s in enumerate(["train", "train", "test", "test"])
        },
    }
    made = read(tar(members), tmp_path, cluster_column="patient")
    assert made.splits is not None
    assert made.splits.tolist() == [0, 0, 2, 2]
    assert made.clusters == ["0", "0", "1", "1"]


def test_a_sample_of_two_images_asks_which_and_one_without_label_is_refused(tmp_path: Path) -> None:
    both = samples(0, "0101") | {f"{k:04d}.mask.png": png(k + 50) for k in range(4)}
    with pytest.raises(Rejected, match=r"one image in each sample.*--image-column"):
        read(tar(both), tmp_path)
    made = read(tar(both), tmp_path, image_column="png")
    assert np.array_equal(made.images[1].transpose(1, 2, 0), pixels(1))
    missing = samples(0, "0101")
    del missing["0002.cls"]
    with pytest.raises(Rejected, match=r"\.cls beside each image, got none beside '0002.png'"):
        read(tar(missing), tmp_path)
    with pytest.raises(Rejected, match="a JSON object"):
        read(tar(samples(0, "0101", "json") | {"0001.json": b"[" * 5000}), tmp_path)


# --- hostile --------------------------------------------------------------------------------------


def header(
    name: str = "cat/1.png", kind: bytes = b"0", size: int | bytes = 0, **more: Any
) -> bytes:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in more.items():
        setattr(info, key, value)
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT)[-512:])
    block[124:136] = size if isinstance(size, bytes) else f"{size:011o}\0".encode()
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


SOUND = tar(two_classes())
END = bytes(1024)
OPEN = SOUND.rstrip(b"\0").ljust(-(-len(SOUND.rstrip(b"\0")) // 512) * 512, b"\0")


def reasons(content: bytes, folder: Path, **options: Any) -> list[str]:
    with pytest.raises(Rejected) as caught:
        read(content, folder, **options)
    assert 0 < len(caught.value.reasons) <= 100
    assert all(reason.isprintable() and len(reason) < 800 for reason in caught.value.reasons)
    return caught.value.reasons


@pytest.mark.parametrize(
    "name", ["../evil.png", "/evil.png", "cat/../../evil.png", "cat//1.png", "c:/evil", "cat/\x07"]
)
@pytest.mark.parametrize("packed", ["tar", "tar.gz", "tar.zst"])
def test_a_name_that_is_no_plain_path_is_refused_and_nothing_written(
    name: str, packed: str, tmp_path: Path
) -> None:
    (reason,) = reasons(PACKED[packed](tar(two_classes() | {name: png(9)})), tmp_path)
    assert "expected a relative name" in reason or "printable" in reason


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (tarfile.SYMTYPE, "got a link: pack it with --dereference"),
        (tarfile.LNKTYPE, "--hard-dereference"),
        (tarfile.CHRTYPE, "got a device: leave it out"),
        (tarfile.BLKTYPE, "got a device: leave it out"),
        (tarfile.FIFOTYPE, "got a device: leave it out"),
        (tarfile.GNUTYPE_SPARSE, "a sparse one"),
        (b"M", "got a device: leave it out"),
    ],
)
def test_links_devices_and_sparse_files_are_refused(kind: bytes, said: str, tmp_path: Path) -> None:
    odd = header("cat/9.png", kind, linkname="/etc/passwd" if kind in b"12" else "")
    (reason,) = reasons(OPEN + odd + END, tmp_path)
    assert reason.startswith("'cat/9.png': ")
    assert said in reason


def pax(records: bytes) -> bytes:
    return header("x", b"x", len(records)) + records.ljust(-(-len(records) // 512) * 512, b"\0")


def record(key: str, value: str) -> bytes:
    size = len(f" {key}={value}\n")
    return f"{size + len(str(size + 2))} {key}={value}\n".encode()


@pytest.mark.parametrize(
    ("tail", "said"),
    [
        (header(size=2**33 - 1) + END, "the tar was cut"),
        (header(size=b"\x80" + b"\xff" * 11) + END, "the tar was cut|sound tar"),
        (header(size=b"\xff" * 12) + END, "one after the other|sound tar|headers of"),  # below zero
        (pax(record("size", "-1024")) + header("cat/9.png") + END, "one after|headers of|sound"),
        (pax(record("size", "9" * 30)) + header("cat/9.png") + END, "was cut|sound"),
        (header("x", b"x", 2**30) + END, "headers of at most"),
        (header("x", b"L", 2**30) + END, "headers of at most"),
        (header("x", b"L", 512) * 1 + b"a" * 512 + b"", "sound tar|was cut|goes on"),
        ((header("x", b"L", 512) + b"a" * 512) * 5000 + header() + END, "blocks of headers"),
        (pax(b"5 a=\n") * 5000 + header() + END, "blocks of headers"),
        (pax(b"1 " * 4000) + header("cat/9.png") + END, "an empty file"),
        (
            pax(record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0")) + header() + END,
            "",
        ),
        (b"\x01" * 512 + END, "damaged, or tars were joined"),
        (END + SOUND, "damaged, or tars were joined"),
        (b"", "none: it was cut"),
        (header("cat/9.png", size=4096) + b"x" * 100, "cut|sound tar"),
        (header("cat/1.png") + END, "expected each name once"),
    ],
)
def test_headers_that_lie_end_at_once(tail: bytes, said: str, tmp_path: Path) -> None:
    found = reasons(OPEN + tail, tmp_path)
    assert any(part in reason for part in said.split("|") for reason in found), found


def test_a_sparse_map_that_goes_on_and_on_is_not_followed(tmp_path: Path) -> None:
    first = bytearray(header("cat/9.png", tarfile.GNUTYPE_SPARSE, 0))
    first[482] = 1  # more of the map follows
    first[148:156] = b" " * 8
    first[148:156] = f"{sum(first):06o}\0 ".encode()
    more = bytearray(512)
    more[504] = 1
    (reason,) = reasons(OPEN + bytes(first) + bytes(more) * 5000 + END, tmp_path)
    assert "blocks of headers" in reason


def test_bombs_are_ended_by_the_bytes_that_really_come(tmp_path: Path) -> None:
    zeros = tar(two_classes() | {"cat/3.png": bytes(2**25)})
    for content in (gzip.compress(zeros), zstandard.compress(zeros, 19)):
        (reason,) = reasons(content, tmp_path)
        assert "bytes unpacked, got more" in reason
    (reason,) = reasons(
        gzip.compress(SOUND), tmp_path, limits=IntakeLimits(archive_bytes=len(SOUND) - 1)
    )
    assert f"at most {len(SOUND) - 1} bytes unpacked" in reason


def test_a_window_of_gigabytes_is_refused(tmp_path: Path) -> None:
    # a frame of one block of zeros, whose header asks for the largest window that there is
    frame = (
        b"\x28\xb5\x2f\xfd"
        + b"\x00"
        + bytes([31 - 10 << 3])
        + struct.pack("<L", 1 << 3 | 3)[:3]
        + b"\0"
    )
    (reason,) = reasons(frame, tmp_path)
    assert "sound zstd stream" in reason
    assert "memory" in reason


@pytest.mark.parametrize("packed", ["tar", "tar.gz", "tar.zst"])
def test_a_tar_that_was_cut_is_refused_wherever_that_was(packed: str, tmp_path: Path) -> None:
    content = PACKED[packed](OPEN + END)
    for share in range(1, 20):
        try:  # what was cut may be zeros after the last member
            assert len(read(content[: len(content) * share // 20], tmp_path)) == 4
        except Rejected:
            continue
        assert share > 15
    reasons(PACKED[packed](OPEN), tmp_path)  # at the end of a member: all that is there is sound


def test_other_things_that_are_compressed_are_named(tmp_path: Path) -> None:
    (reason,) = reasons(gzip.compress(png(1)), tmp_path)
    assert "expected a sound tar, got a PNG image" in reason
    (reason,) = reasons(gzip.compress(b""), tmp_path)
    assert "expected a sound tar, got an empty file" in reason


def test_limits_on_members_count_for_tars_too(tmp_path: Path) -> None:
    limits = IntakeLimits(entries=3)
    assert "at most 3 files" in reasons(SOUND, tmp_path, limits=limits)[0]
    many = OPEN + header("cat/", b"5") * 5000 + END
    assert "at most 300 files" in reasons(many, tmp_path, limits=IntakeLimits(entries=300))[0]
    large = tar(two_classes() | {"cat/9.png": bytes(2**20)})
    found = reasons(large, tmp_path, limits=IntakeLimits(entry_bytes=2**20 - 1))
    assert "'cat/9.png': expected at most 1048575 bytes" in found[0]
    name = "a" * (2 * MAX_HEADER_BYTES)
    assert "headers of at most" in reasons(tar(two_classes() | {name: b""}), tmp_path)[0]


def test_what_a_shard_in_a_zip_does_wrong_is_told_by_its_name(tmp_path: Path) -> None:
    shards = {"train-0.tar": tar(samples(0, "0101")), "train-1.tar.gz": gzip.compress(OPEN)}
    (reason,) = reasons(pack(shards), tmp_path)
    assert reason.startswith("'train-1': ")
    (reason,) = reasons(pack({"a.tar": SOUND, "cat/1.png": png(1)}), tmp_path)
    assert "expected tars alone" in reason
