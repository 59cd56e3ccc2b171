"""Which of several forms of one thing a client wants, by its `Accept` header (RFC 9110, 12.5.1)."""

from collections.abc import Sequence

from api.errors import ApiError


def choose(accept: str, offered: Sequence[str]) -> str:
    """The media type that is wanted most; among equals the first that is offered.

    The most specific range decides about a type, so `text/html, */*;q=0.1` wants HTML. Raises
    ApiError (406) where none is wanted.
    """
    ranges = [_range(part) for part in accept.split(",") if part.strip()]
    wanted = [
        (_quality(media_type, ranges), -place, media_type)
        for place, media_type in enumerate(offered)
    ]
    quality, _, media_type = max(wanted)
    if quality <= 0:
        raise ApiError(
            "not_acceptable", f"Expected Accept: {' or '.join(offered)}, got {accept:.80}"
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


def _quality(media_type: str, ranges: Sequence[tuple[str, float]]) -> float:
    given = dict(reversed(ranges))
    for media_range in (media_type, f"{media_type.partition('/')[0]}/*", "*/*"):
        if media_range in given:
            return given[media_range]
    return 0.0
