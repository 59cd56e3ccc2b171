"""Folders as people have them, packed: read back by the standard library."""

import os
import zipfile
from pathlib import Path

import pytest

from adap.client.packing import BROKEN, OUTSIDE, RENAMED, pack_folder


def packed(root: Path) -> tuple[dict[str, bytes], dict[str, list[str]]]:
    target = root.parent / "packed.zip"
    told = pack_folder(root, target)
    with zipfile.ZipFile(target) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}, told


def folder(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    (root / "cat").mkdir(parents=True)
    (root / "cat" / "1.png").write_bytes(b"one")
    return root


def test_a_file_from_before_1980_is_packed_and_its_time_changes_nothing(tmp_path: Path) -> None:
    root = folder(tmp_path)
    os.utime(root / "cat" / "1.png", (0, 0))
    assert packed(root) == ({"cat/1.png": b"one"}, {})
    first = (tmp_path / "packed.zip").read_bytes()
    os.utime(root / "cat" / "1.png", (10**9, 10**9))
    packed(root)
    assert (tmp_path / "packed.zip").read_bytes() == first


def test_a_name_that_is_no_utf8_is_sent_with_its_bytes_spelt_out_and_told_of(
    tmp_path: Path,
) -> None:
    root = folder(tmp_path)
    (root / os.fsdecode(b"cat/caf\xe9.png")).write_bytes(b"two")
    files, told = packed(root)
    assert files == {"cat/1.png": b"one", "cat/caf%E9.png": b"two"}
    assert told == {RENAMED: ["cat/caf%E9.png"]}
    (root / "cat" / "caf%E9.png").write_bytes(b"three")
    with pytest.raises(ValueError, match=r"two files would be called cat/caf%E9\.png"):
        packed(root)


def test_links_are_followed_inside_the_folder_and_named_where_they_are_not(tmp_path: Path) -> None:
    root = folder(tmp_path)
    (tmp_path / "elsewhere.png").write_bytes(b"secret")
    (root / "dog").symlink_to("cat")
    (root / "cat" / "2.png").symlink_to("1.png")
    (root / "cat" / "3.png").symlink_to(tmp_path / "elsewhere.png")
    (root / "cat" / "4.png").symlink_to("nowhere.png")
    (root / "cat" / "round").symlink_to("..")
    (root / ".hidden").write_bytes(b"x")
    files, told = packed(root)
    assert files == {f"{k}/{i}.png": b"one" for k in ("cat", "dog") for i in (1, 2)}
    assert told[OUTSIDE] == ["cat/3.png", "dog/3.png"]
    assert told[BROKEN] == ["cat/4.png", "cat/round", "dog/4.png", "dog/round"]


def test_what_cannot_be_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    root = folder(tmp_path)
    with pytest.raises(OSError, match="nosuch"):
        pack_folder(root / "nosuch", tmp_path / "packed.zip")
