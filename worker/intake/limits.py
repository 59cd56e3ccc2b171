"""Limits on what an upload may ask of the machine, and the refusals that name them."""

from dataclasses import dataclass

from adap.core.errors import DataError

MAX_REASONS = 100


@dataclass(frozen=True)
class IntakeLimits:
    """Limits on one uploaded data set; each is named in the reason when it is exceeded.

    `archive_bytes`, `entries` and `pixels` come from the settings ADAP_MAX_FILE_BYTES,
    ADAP_MAX_IMAGES and ADAP_MAX_IMAGE_PIXELS."""

    archive_bytes: int = 8 * 1024**3  # the file as sent
    entries: int = 250_000  # CelebA has 202,599; members of a zip; examples of an NPZ
    entry_bytes: int = 32 * 1024**2  # one image or metadata.csv, unpacked
    unpacked_bytes: int = 32 * 1024**3  # all members together, unpacked (never on disk)
    ratio: int = 100  # unpacked to packed, for members above 1 MiB
    pixels: int = 4 * 1024**2  # of one image: 2048 x 2048
    decoded_bytes: int = 8 * 1024**3  # all images as uint8: the memory that they will take


class Rejected(DataError):  # noqa: N818 - the word of the API: an upload is ready or rejected
    """An upload that is not a usable data set, with every reason that was found."""

    def __init__(self, *reasons: str) -> None:
        self.reasons = list(reasons)
        more = f" (and {len(reasons) - 1} more reasons)" if len(reasons) > 1 else ""
        super().__init__(f"{reasons[0]}{more}")


class Reasons:
    """What is wrong so far. Looking on stops when there are enough reasons."""

    def __init__(self) -> None:
        self._reasons: list[str] = []

    def add(self, reason: str) -> None:
        """Note one more reason; raises Rejected when that makes enough."""
        self._reasons.append(reason)
        if len(self._reasons) == MAX_REASONS:
            raise Rejected(*self._reasons)

    def settle(self) -> None:
        """Raise Rejected if there was any reason."""
        if self._reasons:
            raise Rejected(*self._reasons)
