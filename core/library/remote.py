"""A ranker behind HTTP, asked politely: at a limited rate, within a budget, again after a failure.

For the library alone: the service asks no other service for scores (an import contract holds it).

    ask = adap.HTTPRanker("https://models.example/score", queries=20_000, folder="here")
    adap.audit(ask, images, labels, attacks=[adap.Square(queries=200), "noise"], folder="here")

What was answered is kept in `folder`, by the bytes that were sent, so that an audit that was cut
off asks nothing twice: no query is spent again, and the same call goes on.
"""

import io
import sqlite3
import time
import weakref
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from hashlib import blake2b
from os import PathLike
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adap.core.errors import ConfigError, ModelError
from adap.core.library.running import made_folder

MOST_WAITED_S = 600.0  # for one Retry-After: who asks for more is given up
FIRST_BACKOFF_S, MOST_BACKOFF_S = 0.5, 60.0
MOST_ANSWERED_BYTES = 1024**2  # of the answer to one image, unpacked
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


class Response(Protocol):
    """What `score` reads: an answer of httpx."""

    @property
    def status_code(self) -> int:
        """Of HTTP."""

    @property
    def text(self) -> str:
        """The body."""

    def json(self) -> Any:
        """The body, read as JSON."""


def as_png(image: NDArray[np.float32]) -> bytes:
    """An image (C, H, W) in [0, 1] as PNG: rounded to 8 bits, as whoever sends files must."""
    levels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    if len(levels) not in (1, 3):
        raise ConfigError(f"expected images of 1 or 3 channels for PNG, got {len(levels)}")
    file = io.BytesIO()
    Image.fromarray(levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0)).save(file, "PNG")
    return file.getvalue()


def score_in_json(response: Response) -> float:
    """The number `score` of a JSON object, or the body itself where it is a number."""
    value = response.json()
    return float(value["score"] if isinstance(value, dict) else value)


class HTTPRanker:
    """A function from float32 images (B, C, H, W) to (B,) scores that asks a server, one by one.

    url: where an image is POSTed.  headers: of each request, for example a key.
    encode: an image (C, H, W) to the body; by default PNG, which rounds to 8 bits.
    score: the answer of httpx to a number; by default `score` of a JSON object.
    per_second: requests at most.  queries: requests in all, tries again included.
    tries: of one image, with a longer wait each time, or as long as Retry-After says.
    timeout_s: for each step of an answer, and for the whole of it; more than 1 MiB is refused.
    folder: where answers are kept; without one they are forgotten with this object.

    A call raises ModelError, in one sentence, where the budget is spent, where a server keeps
    failing, or where an answer is no number. Raises ConfigError for options that no request could
    follow, or without httpx, which `pip install 'adap-audit[http]'` brings.
    Source: RFC 9110, 10.2.3 (Retry-After); RFC 6585, 4 (429).

    >>> ask = adap.HTTPRanker("http://127.0.0.1:1/score", queries=0)
    >>> ask(torch.rand(1, 3, 4, 4).numpy())
    Traceback (most recent call last):
    adap.core.errors.ModelError: ...
    """

    def __init__(
        self,
        url: str,
        *,
        headers: dict[str, str] | None = None,
        encode: Callable[[NDArray[np.float32]], bytes] = as_png,
        score: Callable[[Response], float] = score_in_json,
        content_type: str = "image/png",
        per_second: float = 5.0,
        queries: int = 10_000,
        tries: int = 6,
        timeout_s: float = 30.0,
        folder: str | PathLike[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"expected an address such as https://host/path, got {url!r:.200}")
        for name, value, least in (
            ("per_second", per_second, 1e-6),
            ("queries", queries, 0),
            ("tries", tries, 1),
            ("timeout_s", timeout_s, 1e-3),
        ):
            if isinstance(value, bool) or not isinstance(value, int | float) or value < least:
                raise ConfigError(f"expected {name} of at least {least:g}, got {value!r:.80}")
        self.url, self.headers = url, {"content-type": content_type, **(headers or {})}
        self.encode, self.score = encode, score
        self.tries, self.timeout_s, self.left = tries, timeout_s, queries
        self._between_s, self._next = 1 / per_second, 0.0
        self._clock, self._sleep = clock, sleep
        self._answers = _Answers(None if folder is None else made_folder(folder) / "answers.sqlite")
        self._queries = queries
        # What a report calls it: no path, no query, no credentials.
        self.__qualname__ = f"HTTP ranker at {parts.hostname}"

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float64]:
        """(B,) scores; of an image that was asked about before, the answer that came then."""
        httpx = _httpx()
        with httpx.Client(timeout=self.timeout_s) as client:
            return np.array([self._of(client, image) for image in images], np.float64)

    def _of(self, client: Any, image: NDArray[np.float32]) -> float:
        body = self.encode(np.asarray(image, np.float32))
        key = blake2b(body, digest_size=32, person=b"adap answer", key=self._where()).digest()
        known = self._answers.get(key)
        if known is not None:
            return known
        found = self._asked(client, body)
        self._answers.put(key, found)
        return found

    def _where(self) -> bytes:
        return blake2b(self.url.encode(), digest_size=32).digest()

    def _asked(self, client: Any, body: bytes) -> float:
        """The answer to one image, however often it takes to ask."""
        wait, pause, said = FIRST_BACKOFF_S, 0.0, ""
        for _ in range(self.tries):
            if pause:
                self._sleep(pause)
            if self.left <= 0:
                raise ModelError(
                    f"expected an answer within the budget of {self._queries:,} queries, and it is "
                    f"spent{f' ({said})' if said else ''}: with folder= the same call and a larger "
                    "queries= goes on where it was"
                )
            self._pace()
            self.left -= 1
            try:
                response = self._answer(client, body)
            except _httpx().RequestError as error:
                said, asked = f"{type(error).__name__}: {error}", None
            else:
                if response.status_code not in AGAIN:
                    return self._read(response)
                said = f"it answers {response.status_code}"
                asked = _retry_after(response.headers.get("retry-after"))
            if asked is not None and asked > MOST_WAITED_S:
                raise ModelError(
                    f"expected a server that answers within {MOST_WAITED_S:g} s, got one that asks "
                    f"to come again after {asked:.0f} s ({said})"
                )
            pause = wait if asked is None else asked
            wait = min(2 * wait, MOST_BACKOFF_S)
        raise ModelError(f"expected an answer within {self.tries} tries, and {said}")

    def _answer(self, client: Any, body: bytes) -> Any:
        """What a server answers, read as far as an answer goes: it may never end, or unpack to
        anything."""
        httpx, begun, content = _httpx(), self._clock(), bytearray()
        with client.stream("POST", self.url, content=body, headers=self.headers) as response:
            for part in response.iter_bytes():
                content += part
                if len(content) > MOST_ANSWERED_BYTES:
                    raise ModelError(
                        f"expected an answer of at most {MOST_ANSWERED_BYTES} bytes to one image, "
                        "got more"
                    )
                if self._clock() - begun > self.timeout_s:
                    raise httpx.ReadTimeout(f"no whole answer within {self.timeout_s:g} s")
        unpacked = {"content-encoding", "content-length", "transfer-encoding"}
        headers = [one for one in response.headers.items() if one[0].lower() not in unpacked]
        return httpx.Response(response.status_code, headers=headers, content=bytes(content))

    def _pace(self) -> None:
        """Wait until another request may go: never two within 1 / per_second."""
        now = self._clock()
        if now < self._next:
            self._sleep(self._next - now)
        self._next = max(now, self._next) + self._between_s

    def _read(self, response: Any) -> float:
        if not 200 <= response.status_code < 300:
            raise ModelError(
                f"expected a score, got {response.status_code}: {response.text[:200]!r}"
            )
        try:
            value = float(self.score(response))
        except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
            raise ModelError(
                f"expected an answer with a number, got {response.text[:200]!r}: score= reads "
                "answers of another form"
            ) from error
        if not np.isfinite(value):
            raise ModelError(f"expected a finite score, got {value}")
        return value


class _Answers:
    """Scores by the hash of what was asked; in a file each is there when it came."""

    def __init__(self, path: Path | None) -> None:
        self._database = sqlite3.connect(
            path or ":memory:",
            isolation_level=None,  # each answer is kept as it comes
            check_same_thread=False,  # the library itself takes turns
        )
        self._database.execute(
            "create table if not exists answers (asked blob primary key, score real)"
        )
        weakref.finalize(self, self._database.close)

    def get(self, key: bytes) -> float | None:
        """What was answered, if anything was."""
        row = self._database.execute("select score from answers where asked = ?", (key,)).fetchone()
        return None if row is None else float(row[0])

    def put(self, key: bytes, score: float) -> None:
        """Keep an answer."""
        self._database.execute("insert or replace into answers values (?, ?)", (key, score))


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait, of a number or a date (RFC 9110, 10.2.3); None for anything else."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())


def _httpx() -> Any:
    try:
        import httpx
    except ImportError as error:
        raise ConfigError(
            "expected httpx to ask a server with, got none: pip install 'adap-audit[http]'"
        ) from error
    return httpx
