"""Blobs in a folder and in an S3 bucket (a real S3 server)."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import obstore
import pytest
from obstore.store import S3Store

from adap.store.artifacts import open_blobs
from adap.store.blobs import CHUNK_BYTES, Blobs, FolderBlobs, OtherContentError
from adap.store.settings import Settings
from adap.store.storage import MissingContentError
from tests.s3 import bucket_of, with_bucket


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_a_blob_comes_back_under_its_hash(blobs: Blobs, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    sha256 = blobs.put(write(tmp_path / "in", data))
    assert sha256 == hashlib.sha256(data).hexdigest()
    assert blobs.put(tmp_path / "in") == sha256
    with blobs.open(sha256) as file:
        file.seek(1000)
        assert file.read() == data[1000:]
    assert blobs.local_path(sha256).read_bytes() == data


def test_a_missing_blob_is_not_found(blobs: Blobs) -> None:
    with pytest.raises(FileNotFoundError):
        blobs.open("0" * 64)


def test_a_deleted_blob_is_gone_and_deleting_again_is_no_error(
    blobs: Blobs, tmp_path: Path
) -> None:
    sha256 = blobs.put(write(tmp_path / "in", b"x"))
    blobs.delete(sha256)
    blobs.delete(sha256)
    with pytest.raises(FileNotFoundError):
        blobs.open(sha256)


def test_files_that_wait_are_joined_in_the_order_given(blobs: Blobs, tmp_path: Path) -> None:
    contents = [os.urandom(1_500_000), b"", os.urandom(10)]
    names = [blobs.stage(write(tmp_path / "part", content)) for content in contents]
    assert not (tmp_path / "part").exists()
    whole = contents[2] + contents[0] + contents[1]
    sha256 = hashlib.sha256(whole).hexdigest()
    order = [names[2], names[0], names[1]]
    with pytest.raises(OtherContentError, match=f"expected .*{'0' * 64}, got {sha256}"):
        blobs.join(order, sha256="0" * 64)
    with pytest.raises(FileNotFoundError):
        blobs.open("0" * 64)
    for _ in range(2):
        blobs.join(order, sha256=sha256)
        assert blobs.local_path(sha256).read_bytes() == whole
    blobs.delete(names[0])
    blobs.delete(names[0])
    with pytest.raises(FileNotFoundError):
        blobs.join(order, sha256="1" * 64)
    assert set(blobs.older_than(-2)) == {sha256, names[1], names[2]}


def test_a_kill_while_writing_leaves_no_partial_blob_whatever_the_byte(tmp_path: Path) -> None:
    """The kernel kills who writes beyond a limit, at that very byte."""
    root = tmp_path / "blobs"
    before = FolderBlobs(root).put(write(tmp_path / "before", b"an older one"))
    source = write(tmp_path / "big", os.urandom(2 * CHUNK_BYTES + CHUNK_BYTES // 2))
    script = (
        "import os, resource, signal, sys; from pathlib import Path\n"
        "from store.artifacts import FolderBlobs\n"
        "blobs, source = FolderBlobs(Path(sys.argv[1])), Path(sys.argv[2])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        "for offset in map(int, sys.argv[3:]):\n"
        "    if not (pid := os.fork()):\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (offset, offset))\n"
        "        blobs.put(source)\n"
        "        os._exit(0)\n"
        "    print(os.WTERMSIG(os.waitpid(pid, 0)[1]))\n"
    )
    size = source.stat().st_size
    offsets = sorted({0, 1, CHUNK_BYTES, 2 * CHUNK_BYTES, size - 1, *range(0, size, size // 17)})
    arguments = [str(root), str(source), *map(str, offsets)]
    run = subprocess.run(
        [sys.executable, "-c", script, *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout.split() == [f"{signal.SIGXFSZ:d}"] * len(offsets)
    assert sorted(part.stat().st_size for part in root.glob("*.part")) == offsets
    assert [path.name for path in root.glob("??/*")] == [before]
    assert list(FolderBlobs(root).older_than(-1)) == [before]
    assert not list(root.glob("*.part")), "remains of the killed writes are swept"
    assert FolderBlobs(root).local_path(before).read_bytes() == b"an older one"


def test_a_cached_copy_is_checked_against_its_name(s3_endpoint: str, tmp_path: Path) -> None:
    settings = with_bucket(Settings(home=tmp_path), bucket_of(s3_endpoint))
    store = S3Store(
        settings.blobs.split("/")[2],
        prefix="prefix",
        endpoint=s3_endpoint,
        access_key_id="test",
        secret_access_key="test",
        region="us-east-1",
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )
    obstore.put(store, "0" * 64, b"something else")
    sha256 = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(MissingContentError, match=f"got {sha256}"):
        open_blobs(settings).open("0" * 64)
    assert list((tmp_path / "cache").iterdir()) == []
