"""Sending a file, and what its check found."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adap.client import show, watch
from adap.client.client import ClientError, Json
from adap.client.commands.session import Session


class RejectedError(ClientError):
    """An upload that was checked and cannot be used."""

    def __init__(self, what: str, asset: Json) -> None:
        super().__init__(f"The {what} {asset['id']} was rejected.")
        self.reasons: list[str] = asset["reasons"]


@contextmanager
def uploading(here: Session, file: Path) -> Iterator[Any]:
    """Show how much of a file was sent."""
    total, sent = file.stat().st_size, 0
    with watch.open_board(here.err) as board:
        line = board.line("upload")

        def on_bytes(count: int) -> None:
            nonlocal sent
            sent += count
            text = f"{show.size(sent)} of {show.size(total)}"
            line.show("sending", completed=sent, total=total, text=text)

        yield on_bytes
        line.end(f"{show.size(total)} sent", well=True)


def being_checked(what: str, asset: Json) -> str:
    return (
        f"{asset['id']} is being checked. Watch it: adap jobs watch {asset['job_id']}\n"
        f"Then see what it holds: adap {what.replace('data set', 'dataset')} show {asset['id']}"
    )
