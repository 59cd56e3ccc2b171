"""An S3 store that resets, hangs or crawls, and the copies of its blobs on this machine."""

import hashlib
import os
import shutil
import time
from pathlib import Path
from threading import Thread

import pytest

from adap.store.artifacts import open_blobs
from adap.store.blobs import Blobs
from adap.store.cache import IN_USE_S, Cache
from adap.store.s3 import PIECE_BYTES
from adap.store.settings import MIB, Settings
from adap.store.storage import UNAVAILABLE, BlobsAwayError, MissingContentError, trouble
from tests.s3 import Line, bucket_of, with_bucket

CONTENT = os.urandom(3 * MIB)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    return path


def far(line: Line, s3_endpoint: str, home: Path, *, limit_s: float = 60) -> Blobs:
    """A store at the end of the line."""
    environment = bucket_of(s3_endpoint) | {"ADAP_S3_ENDPOINT": line.endpoint}
    return open_blobs(with_bucket(Settings(home=home, blobs_limit_s=limit_s), environment))


@pytest.mark.parametrize("mode", ["reset", "hang"])
def test_a_store_that_is_away_is_told_from_one_without_the_content(
    line: Line, s3_endpoint: str, tmp_path: Path, source: Path, mode: str
) -> None:
    blobs = far(line, s3_endpoint, tmp_path, limit_s=1)
    staged = blobs.stage(shutil.copy(source, tmp_path / "staged"))
    line.be(mode)
    for ask in (
        lambda: blobs.put(source),
        lambda: blobs.adopt(staged, sha256=SHA256),
        lambda: blobs.local_path(SHA256),
        lambda: blobs.exists(SHA256),
        lambda: blobs.delete(SHA256),
        lambda: list(blobs.older_than(0)),
        blobs.probe,
    ):
        with pytest.raises(BlobsAwayError) as caught:
            ask()
        found = trouble(caught.value)
        assert found is not None
        assert found.code == UNAVAILABLE
    line.be("open")  # what hung may still arrive: this content never did
    with pytest.raises(MissingContentError):
        blobs.open("1" * 64)
    assert blobs.put(source) == SHA256
    assert blobs.local_path(SHA256).read_bytes() == CONTENT


def test_while_a_store_hangs_one_tries_it_and_the_others_are_told_at_once(
    line: Line, s3_endpoint: str, tmp_path: Path
) -> None:
    patient = far(line, s3_endpoint, tmp_path)
    line.be("reset")
    with pytest.raises(BlobsAwayError):
        patient.exists(SHA256)
    line.be("hang")
    before = line.came
    trying = Thread(target=lambda: patient.exists(SHA256))
    trying.start()
    while line.came == before:
        time.sleep(0.01)
    for _ in range(100):
        with pytest.raises(BlobsAwayError, match="is being tried"):
            patient.exists(SHA256)
    line.be("open")
    trying.join(60)
    assert not trying.is_alive()
    assert not patient.exists(SHA256)


def test_a_slow_store_is_waited_for_and_a_large_file_moves_in_pieces(
    line: Line, s3_endpoint: str, tmp_path: Path
) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(os.urandom(MIB // 4))
    large.write_bytes(os.urandom(2 * PIECE_BYTES + MIB))
    blobs = far(line, s3_endpoint, tmp_path)
    line.be("slow")
    assert blobs.local_path(blobs.put(small)).read_bytes() == small.read_bytes()
    assert line.passed > 2 * (MIB // 4)
    line.be("open")
    assert blobs.local_path(blobs.put(large)).read_bytes() == large.read_bytes()


def keep(cache: Cache, content: bytes) -> str:
    sha256 = hashlib.sha256(content).hexdigest()
    cache.keep(sha256, [content])
    return sha256


def used_long_ago(cache: Cache, *names: str) -> None:
    """As if nobody had used these for longer the earlier they are named."""
    for age, name in enumerate(reversed(names), start=1):
        path = cache.folder / name
        at = time.time() - IN_USE_S - 100 * age
        os.utime(path, (at, path.stat().st_mtime))


def test_copies_leave_by_when_they_were_used_and_never_while_somebody_may_open_them(
    tmp_path: Path,
) -> None:
    cache = Cache(tmp_path / "cache", limit_bytes=250)
    a, b, c = (keep(cache, bytes([n]) * 100) for n in range(3))
    assert all(map(cache.find, (a, b, c))), "over the limit, but in use"
    used_long_ago(cache, b, a, c)
    d = keep(cache, b"d" * 50)
    assert [cache.find(name) is not None for name in (a, b, c, d)] == [True, False, True, True]
    (tmp_path / "cache" / "killed.part").write_bytes(bytes(100))
    used_long_ago(cache, "killed.part")
    keep(cache, b"e")
    assert (tmp_path / "cache" / "killed.part").exists(), "it may be on its way"
    at = time.time() - 2 * 24 * 3600
    os.utime(tmp_path / "cache" / "killed.part", (at, at))
    keep(cache, b"f")
    assert not (tmp_path / "cache" / "killed.part").exists()


def test_a_copy_that_was_damaged_is_fetched_again(
    s3_endpoint: str, tmp_path: Path, source: Path
) -> None:
    settings = with_bucket(Settings(home=tmp_path), bucket_of(s3_endpoint))
    sha256 = open_blobs(settings).put(source)
    blobs = open_blobs(settings)
    copy = blobs.local_path(sha256)
    damaged = bytearray(CONTENT)
    damaged[1000] ^= 1
    for reader in (blobs, open_blobs(settings)):  # the process that wrote it, and a later one
        copy.write_bytes(damaged)
        assert reader.local_path(sha256).read_bytes() == CONTENT
