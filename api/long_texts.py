"""JSON with long texts, read without keeping the interpreter to itself.

To read JSON, and to decode base64, is one call each, in which no other thread of the process runs:
for an image of 30 MB it lasts a tenth of a second, and with it the event loop stands still, whoever
else waits. Here long texts are cut out by their quotes first, which costs next to nothing, what is
left of the JSON is short, and base64 is decoded a piece at a time. Which long texts are images is
known when the rest was read; the others are put back then.
"""

import base64
import binascii
import secrets
from typing import Any

from pydantic_core import from_json

from adap import faults
from adap.api.errors import ApiError, ErrorItem

LONG_BYTES = 1024  # of a text that is cut out
MAX_OTHER_BYTES = 64 * 1024  # of a text that is no image
MAX_TEXTS = 5000  # names and values
MAX_REST_BYTES = 12 * 2**20
PIECE_BYTES = 2**20  # of base64, a multiple of four
ESCAPE_BYTES = 6  # of the longest, \u002B


class LongTexts:
    """A body whose long texts are cut out; `rest` is JSON with a mark in the place of each.

    Raises ApiError where there are too many texts, or too much beside the long ones.
    """

    def __init__(self, body: bytes) -> None:
        self._mark = secrets.token_hex(16)  # which nobody can have sent
        self._texts: list[memoryview] = []
        parts: list[bytes | memoryview] = []
        if body.count(b'"') > 2 * MAX_TEXTS:
            raise _too_much(f"at most {MAX_TEXTS} texts")
        view, kept, position = memoryview(body), 0, 0
        while (start := body.find(b'"', position)) >= 0:
            end = _end_of_text(body, start)
            if end < 0:
                break
            if end - start > LONG_BYTES:
                parts += [view[kept : start + 1], f"{self._mark}{len(self._texts)}".encode()]
                self._texts.append(view[start + 1 : end])
                kept = end
            position = end + 1
        self.rest = b"".join([*parts, view[kept:]])
        if len(self.rest) > MAX_REST_BYTES:
            raise _too_much(f"at most {MAX_REST_BYTES} bytes beside the long texts")

    def put_back(self, value: Any, *, images: tuple[str, ...]) -> Any:
        """The value of `rest` with its long texts, all but those in lists of one field.

        images: the names on the way to that field, whose texts `decode` takes. Raises ApiError for
        another text that is no JSON or longer than any may be.
        """
        return self._whole(value, "/body", images) if self._texts else value

    def _whole(
        self, value: Any, pointer: str, images: tuple[str, ...] | None, *, listed: bool = False
    ) -> Any:
        if isinstance(value, str):
            return value if listed and images == () else self._text(value, pointer)
        if isinstance(value, list):
            return [
                self._whole(each, f"{pointer}/{place}", images, listed=True)
                for place, each in enumerate(value)
            ]
        if not isinstance(value, dict):
            return value
        whole: dict[str, Any] = {}
        for mark, inner in value.items():
            name = self._text(mark, pointer)
            further = images[1:] if images and images[0] == name else None
            whole[name] = self._whole(inner, f"{pointer}/{faults.shown(name)[1:-1]}", further)
        return whole

    def _text(self, text: str, pointer: str) -> str:
        if not text.startswith(self._mark):
            return text
        long = self._texts[int(text[len(self._mark) :])]
        if len(long) > MAX_OTHER_BYTES:
            raise _refused(
                pointer, f"expected a text of at most {MAX_OTHER_BYTES} bytes, got {len(long)}"
            )
        try:
            return str(from_json(b'"%b"' % bytes(long)))
        except ValueError as error:
            raise _refused(pointer, f"expected JSON, got {error!s:.200}") from error

    def decode(self, text: str) -> bytes:
        """The bytes of a base64 text of the JSON. ValueError or TypeError if it is none."""
        if not (isinstance(text, str) and text.startswith(self._mark)):
            return base64.b64decode(text, validate=True)
        long = bytes(self._texts[int(text[len(self._mark) :])])
        if b"\\" in long:  # as some write a slash or a plus
            long = _unescaped(long)
        pieces = [long[at : at + PIECE_BYTES] for at in range(0, len(long), PIECE_BYTES)]
        if any(piece.endswith(b"=") for piece in pieces[:-1]):
            raise ValueError("padding in the middle")
        return b"".join([binascii.a2b_base64(piece, strict_mode=True) for piece in pieces])


def _end_of_text(body: bytes, start: int) -> int:
    """Where the text ends that begins at this quote; -1 where it does not."""
    position = start + 1
    while (end := body.find(b'"', position)) >= 0:
        before = body[position:end]
        if (len(before) - len(before.rstrip(b"\\"))) % 2 == 0:
            return end
        position = end + 1
    return end


def _unescaped(long: bytes) -> bytes:
    """What a text of JSON says, read a piece at a time. ValueError if it says nothing."""
    pieces: list[bytes] = []
    at = 0
    while at < len(long):
        end = at + PIECE_BYTES
        if end < len(long):  # not within an escape
            escape = long.rfind(b"\\", end - ESCAPE_BYTES + 1, end)
            end = end if escape < 0 else escape
        pieces.append(from_json(b'"%b"' % long[at:end]).encode())
        at = end
    return b"".join(pieces)


def _too_much(expected: str) -> ApiError:
    return _refused("/body", f"expected {expected}.")


def _refused(pointer: str, detail: str) -> ApiError:
    item = ErrorItem(pointer=pointer, detail=detail)
    return ApiError("invalid_request", f"{pointer}: {detail}", errors=[item])
