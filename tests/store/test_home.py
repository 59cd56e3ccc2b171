"""The service's folder is its user's alone, whoever made it and however."""

import logging
import stat
from pathlib import Path

import pytest

from adap.store import home


def modes(folder: Path, *names: str) -> list[str]:
    return [stat.filemode((folder / name).lstat().st_mode) for name in names]


def filled(folder: Path) -> None:
    """A home as one was made that everybody could read."""
    (folder / "blobs").mkdir(parents=True)
    (folder / "adap.db").write_text("rows")
    for path, mode in ((folder, 0o755), (folder / "blobs", 0o775), (folder / "adap.db", 0o644)):
        path.chmod(mode)


def test_a_home_that_others_could_read_is_shut(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    filled(tmp_path / "home")
    with caplog.at_level(logging.WARNING):
        home.take(tmp_path / "home")
    assert modes(tmp_path / "home", ".", "blobs", "adap.db") == [
        *("drwx------", "drwx------", "-rw-------")
    ]
    assert not caplog.records
    assert (tmp_path / "home" / "adap.db").read_text() == "rows"


def test_a_new_home_is_made_shut_whatever_the_umask(tmp_path: Path) -> None:
    home.take(tmp_path / "far" / "home")
    assert modes(tmp_path / "far", "home") == ["drwx------"]


def test_what_is_not_the_services_stays_as_it_is_and_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    filled(tmp_path / "shared")
    page, elsewhere = tmp_path / "shared" / "page.html", tmp_path / "elsewhere"
    for path in (page, elsewhere):
        path.write_text("for all")
        path.chmod(0o644)
    (tmp_path / "shared" / "logs").symlink_to(elsewhere)
    with caplog.at_level(logging.WARNING):
        home.take(tmp_path / "shared")
    assert modes(tmp_path / "shared", ".", "page.html") == ["drwxr-xr-x", "-rw-r--r--"]
    assert modes(tmp_path / "shared", "blobs", "adap.db") == ["drwx------", "-rw-------"]
    assert modes(tmp_path, "elsewhere") == ["-rw-r--r--"]
    assert [record.getMessage() for record in caplog.records] == [
        f"other users may look into the home {tmp_path / 'shared'}: chmod 700 it, or choose another"
    ]
