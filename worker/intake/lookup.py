"""Which image of an archive a line of a table means, by the name that the line has for it."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property

from adap.core.config.base import Split
from adap.models.header import shown
from adap.worker.intake.splits import splits_of

_SUFFIX = re.compile(r"\.(png|jpe?g|webp|bmp|gif|tiff?|dcm)$", re.IGNORECASE)


class Images:
    """The images of an archive by what a table may call them."""

    def __init__(self, images: Sequence[str]) -> None:
        self.guessed = 0  # found by less than their path
        self._left = dict.fromkeys(images)
        self._images = frozenset(images)
        self._example = min(images, default="")
        bases = [_base(name) for name in images]
        stems = [base.rpartition(".")[0] or base for base in bases]
        self._alike = Counter(bases)
        self._guesses = [_unique(bases, images), _unique(stems, images)]

    def find(self, root: str, file_name: str, *, split: Split | None = None) -> str | None:
        """The image, by its path from the table's folder; else by its name, where one has it.

        split: of which the table is one, so that its images may lie in the folder of that split.
        """
        path = _path(file_name)
        inside = f"{root}/" if root else ""
        if (exact := inside + path) in self._images:
            return self._take(exact)
        if split is not None and (folder := self._folders.get(split)) is not None:
            below = f"{folder}/{path}"
            found = below if below in self._images else self._plainly.get(_plain(below))
            if found is not None:
                return self._take(found)
        base = _base(path)
        guess = next(filter(None, (guesses.get(base) for guesses in self._guesses)), None)
        if guess is None:
            guess = self._plainly.get(_plain(inside + path)) or self._plainly.get(_plain(base))
        if guess is None or not guess.startswith(inside):
            return None
        self.guessed += guess in self._left
        return self._take(guess)

    def told(self, file_name: str) -> str:
        """Why a name that was not found names no image."""
        if (alike := self._alike[_base(_path(file_name))]) > 1:
            return f"got {shown(file_name)}, as {alike} images are called: write its folder, too"
        return f"got {shown(file_name)}, where images are called as {shown(self._example)} is"

    def left(self) -> list[str]:
        """The images that no line named."""
        return list(self._left)

    @cached_property
    def _folders(self) -> dict[Split, str]:
        """The folder of images of each split, where its name says that and one folder does."""
        folders = sorted({name.rpartition("/")[0] for name in self._images})
        splits = splits_of(folders)
        counts = Counter(splits.values())
        return {split: folder for folder, split in splits.items() if counts[split] == 1}

    @cached_property
    def _plainly(self) -> dict[str, str]:
        """By path and by name without suffix and capitals, as of copies that were converted."""
        paths = [_plain(name) for name in self._images]
        bases = [_base(path) for path in paths]
        names = list(self._images)
        return _unique(bases, names) | _unique(paths, names)

    def _take(self, name: str) -> str:
        self._left.pop(name, None)
        return name


def is_picture(name: str) -> bool:
    """Whether a text ends as the names of image files do."""
    return _SUFFIX.search(name) is not None


def _path(file_name: str) -> str:
    name = file_name.replace("\\", "/")
    if "://" in name:
        name = re.split(r"[?#]", name, maxsplit=1)[0]  # of an address
    return "/".join(part for part in name.split("/") if part != ".")


def _base(path: str) -> str:
    return path.rpartition("/")[2]


def _plain(path: str) -> str:
    return _SUFFIX.sub("", path).casefold()


def _unique(keys: Sequence[str], images: Sequence[str]) -> dict[str, str]:
    counts = Counter(keys)
    return {key: name for key, name in zip(keys, images, strict=True) if counts[key] == 1}
