"""CelebA (Liu et al. 2015): 202,599 aligned faces of 178x218 with 40 yes-or-no attributes.

Each attribute is a labelling of its own: the class of its name against `other`. The recommended
training, validation and test parts are the splits. The middle 178x178 of a face is resized to
`size`, by default 64; the released code of the paper keeps 178x218, which are 24 GB of pixels.
"""

from pathlib import Path

import numpy as np

from adap.core.config.base import SPLITS
from adap.core.datasets import ImageSet
from adap.core.errors import DataError
from adap.core.published.base import Published, Reading, decoded, find

DEFAULT_SIZE = 64
WIDTH, HEIGHT = 178, 218
_TOP = (HEIGHT - WIDTH) // 2
_MIDDLE = (0, _TOP, WIDTH, _TOP + WIDTH)
_PLACES = {  # torchvision's folder, then the publisher's folders, then no folder at all
    "img_align_celeba": ("celeba", "Img", ""),
    "list_attr_celeba.txt": ("celeba", "Anno", ""),
    "list_eval_partition.txt": ("celeba", "Eval", ""),
}
_SOURCE = "it comes from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html (Align&Cropped Images)"


def _read(root: Path, reading: Reading) -> ImageSet:
    images = _find(root, "img_align_celeba", "; unpack img_align_celeba.zip")
    attributes = _find(root, "list_attr_celeba.txt")
    partition = _find(root, "list_eval_partition.txt")
    with attributes.open(encoding="utf-8") as file:
        count, names = file.readline().strip(), file.readline().split()
        if not count.isdigit() or not names:
            raise DataError(
                f"expected the number of images and the names of the attributes in the first two "
                f"lines of {attributes}, got {count[:40]!r}"
            )
        attribute = reading.labelling(sorted(names, key=lambda name: name != "Gray_Hair"))
        column = names.index(attribute)
        rows = dict(_attribute(line, column, len(names), attributes) for line in file)
    if len(rows) != int(count):
        raise DataError(f"expected {count} images in {attributes}, got {len(rows)}")
    splits = {}
    for line in partition.read_text(encoding="utf-8").splitlines():
        name, _, number = line.partition(" ")
        if number.strip() not in ("0", "1", "2"):
            raise DataError(f"expected 0, 1 or 2 beside each name in {partition}, got {line!r}")
        splits[name] = int(number)
    if splits.keys() != rows.keys():
        raise DataError(
            f"expected the same images in {partition} as in {attributes}, got {len(splits)} and "
            f"{len(rows)}, of which {len(splits.keys() & rows.keys())} are the same"
        )
    side = reading.size or DEFAULT_SIZE
    return ImageSet(
        images=decoded(
            [images / name for name in rows],
            height=side,
            width=side,
            crop=_MIDDLE,
            reading=reading,
        ),
        labels=np.array(list(rows.values()), np.int64),
        classes=["other", attribute],
        example_ids=list(rows),
        splits=np.array([splits[name] for name in rows], np.int8),
    )


def _find(root: Path, name: str, hint: str = "") -> Path:
    return find(root, name, places=_PLACES[name], source=_SOURCE + hint)


def _attribute(line: str, column: int, count: int, path: Path) -> tuple[str, int]:
    """Name and label of one image: -1 says no, 1 says yes."""
    name, *values = line.split()
    if len(values) != count or values[column] not in ("-1", "1"):
        raise DataError(f"expected a name and {count} values of -1 or 1 in {path}, got {line!r}")
    return name, int(values[column] == "1")


assert SPLITS == ("train", "validation", "test")  # as 0, 1 and 2 of the published partition

CELEBA = Published(
    name="celeba",
    description="64x64 faces; one attribute, for example Gray_Hair or Mustache, against the rest",
    source="img_align_celeba/, list_attr_celeba.txt and list_eval_partition.txt from "
    "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
    tasks=(("Gray_Hair", "Gray_Hair"), ("Mustache", "Mustache")),
    read=_read,
)
