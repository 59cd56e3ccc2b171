"""Content negotiation by the `Accept` header (RFC 9110, 12.5.1)."""

from collections.abc import Mapping, Sequence

from adap.api.errors import ApiError

MAX_CHARACTERS = 1000


def choose(accept: str, offered: Sequence[str]) -> str:
    """The media type of the highest weight; among equals one that is named, then the first offered.

    The most specific range decides about a type, so `application/*;q=0.5, */*` wants any type more
    than JSON. Raises ApiError (406) where none is wanted.
    """
    if len(accept) > MAX_CHARACTERS:
        raise ApiError(
            "not_acceptable", f"Expected Accept of at most {MAX_CHARACTERS} characters, got more."
        )
    ranges = dict(_range(part) for part in (accept.strip() or "*/*").split(",") if part.strip())
    (weight, _), media_type = max(
        ((_wish(media_type, ranges), media_type) for media_type in offered),
        key=lambda wished: wished[0],
    )
    if weight == 0:
        raise ApiError(
            "not_acceptable",
            f"Expected Accept: {' or '.join(offered)}, got {accept:.80}",
            headers={"Vary": "Accept"},
        )
    return media_type


def _range(part: str) -> tuple[str, float]:
    """A media range and its weight; other parameters are ignored, a weight of no sense is 1."""
    media_range, *parameters = (piece.strip().lower() for piece in part.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return media_range, min(max(float(value), 0.0), 1.0)
            except ValueError:
                break
    return media_range, 1.0


def _wish(media_type: str, ranges: Mapping[str, float]) -> tuple[float, int]:
    """The weight of a type, and how specific the range is that gives it."""
    matching = ("*/*", f"{media_type.partition('/')[0]}/*", media_type)
    return max(
        ((ranges[name], place) for place, name in enumerate(matching) if name in ranges),
        key=lambda wish: wish[1],
        default=(0.0, 0),
    )
