"""Common parts of both clients: errors, events, files that are counted, when to try again.

    ClientError
    |- ConnectionFailedError   no service answers there
    |- ProblemError            it answered with a problem: code, detail, status, request_id, errors
    `- JobFailedError          a job that was waited for failed or was cancelled

Nothing here waits for anything: that is what the clients differ in.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx

DEFAULT_URL = "http://127.0.0.1:8000"

Json = dict[str, Any]
FilePath = str | os.PathLike[str]
OnBytes = Callable[[int], None]

RETRY_AFTER_S = (0.1, 0.5)  # before the second and the third try
RETRIED_CODES = (
    "rate_limited",
    "storage_unavailable",
    "overloaded",
)  # problems that pass by themselves
LONGEST_RETRY_S = 10.0
PING_LIMIT_S = 45.0  # the service sends something every 15 s
RECONNECT_AFTER_S = 0.5
RECONNECT_FOR_S = 60.0  # as long as a restart of the service may take
IN_PARTS_ABOVE_BYTES = 64 * 2**20  # a larger file is sent in parts, and goes on after a cut
HASHED_BYTES = 8 * 2**20  # of a file at a time
UPLOAD_READ_LIMIT_S = 600.0  # from the last byte sent to the answer: the file is hashed and synced
EXPORTED = (".safetensors", ".onnx")
RANKING_FORMS = {
    ".csv": "text/csv",
    ".parquet": "application/vnd.apache.parquet",
    ".ndjson": "application/x-ndjson",
}
SCORE_READ_LIMIT_S = 120.0  # above the limit of the service itself


POINTER = re.compile(r"^/(?:body|query|path|header|cookie)((?:/[^/:\s]+)*): ")  # before a detail


def dotted(pointer: str) -> str:
    """`threat.epsilon` for the JSON pointer `/threat/epsilon`."""
    return pointer.removeprefix("/").replace("/", ".").replace("~1", "/").replace("~0", "~")


class ClientError(Exception):
    """Base of everything that a caller may expect to go wrong."""


class ConnectionFailedError(ClientError):
    """No service answers at this address."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(
            f"No service answers at {url} ({reason}). Start one with `adap up`, or name another "
            "with --url or ADAP_URL."
        )


class ProblemError(ClientError):
    """The service's own explanation, RFC 9457; `code` is stable, `detail` is for people."""

    def __init__(self, problem: Json, *, retry_after_s: float | None = None) -> None:
        detail: str = problem["detail"]
        if found := POINTER.match(detail):
            where = f"{dotted(found[1])}: " if found[1] else ""
            detail = where + detail[found.end() :]
        super().__init__(detail)
        self.retry_after_s = retry_after_s
        self.problem = problem
        self.code: str = problem["code"]
        self.detail: str = problem["detail"]
        self.status: int = problem["status"]
        self.request_id: str | None = problem.get("request_id")
        self.errors: list[dict[str, str]] = problem.get("errors", [])


class JobFailedError(ClientError):
    """A job ended without a result."""

    def __init__(self, job: Json) -> None:
        error = job["error"]
        super().__init__(
            f"The job {job['id']} failed: {error['message']}"
            if error
            else f"The job {job['id']} was {job['status']}."
        )
        self.job = job


@dataclass(frozen=True)
class Event:
    """Something that happened to a job, or how far it is."""

    type: str
    """`progress`, or what happened: queued, running, epoch, resumed, succeeded, …"""
    data: Json
    """Of `progress`: status, progress and queue_position as in a job."""
    seq: int | None
    """Counted from 1 without gaps; None for progress, which is shown and not kept."""


OnEvent = Callable[[Event], None]


ENDED = ("succeeded", "failed", "cancelled")


class EventReader:
    """Reads server-sent events line by line: an empty line ends one."""

    def __init__(self) -> None:
        self._kind = "message"
        self._data: list[str] = []

    def feed(self, line: str) -> Event | None:
        """The event that this line ends, if it ends one."""
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            self._kind = value
        elif field == "data":
            self._data.append(value)
        elif not line:
            kind, data = self._kind, self._data
            self._kind, self._data = "message", []
            if data:
                content = json.loads("\n".join(data))
                if kind == "progress":
                    return Event("progress", content, None)
                return Event(content["type"], content["data"], content["seq"])
        return None


def read_events(lines: Iterable[str]) -> Iterator[Event]:
    """Parse a stream of server-sent events: `event:` and `data:` lines, an empty line ends one."""
    reader = EventReader()
    for line in lines:
        event = reader.feed(line)
        if event is not None:
            yield event


class Counted(io.BufferedReader):
    """A file that tells how many bytes of it were read."""

    def __init__(self, path: Path, on_bytes: OnBytes | None) -> None:
        super().__init__(io.FileIO(path))
        self._on_bytes = on_bytes or (lambda _: None)
        self._told = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """As any file; httpx reads a chunk, sends it, reads the next."""
        chunk = super().read(size)
        self._told += len(chunk)
        self._on_bytes(len(chunk))
        return chunk

    def again(self) -> None:
        """Back to the start; what was told is taken back."""
        self.seek(0)
        self._on_bytes(-self._told)
        self._told = 0


class Parts:
    """A file that is sent in parts: its hash, and the parts that are still to be sent."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._digest = hashlib.sha256()
        self._part_bytes = 0
        self.size = path.stat().st_size
        self.missing: list[int] = []

    def hash_more(self) -> bool:
        """Read on for the hash; False at the end."""
        block = self._file.read(HASHED_BYTES)
        self._digest.update(block)
        return bool(block)

    @property
    def sha256(self) -> str:
        """Of all that was read."""
        return self._digest.hexdigest()

    def go_on(self, upload: Json) -> None:
        """Learn from the service which parts there are and which of them it has."""
        self._part_bytes = upload["part_bytes"]
        there = set(upload["received"])
        numbers = [] if upload["complete"] else range(1, upload["parts"] + 1)
        self.missing = [number for number in numbers if number not in there]

    @property
    def bytes_there(self) -> int:
        """How much of the file need not be sent any more."""
        return self.size - sum(self._bytes_of(number) for number in self.missing)

    def read(self, number: int) -> bytes:
        """The bytes of a part, counted from 1."""
        self._file.seek((number - 1) * self._part_bytes)
        return self._file.read(self._bytes_of(number))

    def _bytes_of(self, number: int) -> int:
        return min(self._part_bytes, self.size - (number - 1) * self._part_bytes)

    def __enter__(self) -> "Parts":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def part(stack: ExitStack, path: Path, on_bytes: OnBytes | None) -> tuple[str, Counted]:
    """A file of a multipart request, closed with the stack."""
    return path.name, stack.enter_context(Counted(path, on_bytes))


def checked(answer: httpx.Response) -> httpx.Response:
    """The answer, unless it is an error. Also something that is not our service is one."""
    if answer.is_success:
        return answer
    problem = {
        "status": answer.status_code,
        "code": "unexpected_answer",
        "detail": f"Expected an answer of AdAP from {answer.request.url}, got "
        f"{answer.status_code} {answer.reason_phrase}.",
    }
    try:
        content = answer.json()
    except ValueError:
        content = None
    if isinstance(content, dict) and {"status", "code", "detail"} <= content.keys():
        problem = content
    asked = answer.headers.get("retry-after", "")
    raise ProblemError(problem, retry_after_s=float(asked) if asked.isdecimal() else None)


def is_loopback(url: str) -> bool:
    """Whether an address can only mean this machine."""
    host = httpx.URL(url).host
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
