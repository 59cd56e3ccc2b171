"""JSON with long texts, read without keeping the interpreter to itself.

To read JSON, and to decode base64, is one call each, in which no other thread of the process runs:
for an image of 30 MB it lasts a tenth of a second, and with it the event loop stands still, whoever
else waits. Here long texts are cut out by their quotes first, which costs next to nothing, what is
left of the JSON is short, and base64 is decoded a piece at a time.
"""

import base64
import binascii
import secrets

from adap.api.errors import ApiError

LONG_BYTES = 1024  # of a text that is cut out
MAX_TEXTS = 5000  # names and values
MAX_REST_BYTES = 12 * 2**20
PIECE_BYTES = 2**20  # of base64, a multiple of four


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

    def decode(self, text: str) -> bytes:
        """The bytes of a base64 text of the JSON. ValueError or TypeError if it is none."""
        if not (isinstance(text, str) and text.startswith(self._mark)):
            return base64.b64decode(text, validate=True)
        long = bytes(self._texts[int(text[len(self._mark) :])])
        if b"\\" in long:
            long = long.replace(rb"\/", b"/")  # as some write it
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


def _too_much(expected: str) -> ApiError:
    return ApiError("invalid_request", f"/body: expected {expected}.")
