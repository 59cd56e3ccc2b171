"""BDD100K (Yu et al. 2020): frames of 1280x720 from driving videos, labelled by weather and scene.

The published validation part is the test split, as its own test labels are not published; the paper
does the same. Frames without labels are left out. A frame is squeezed to `size`, by default 64, as
a whole; the released code of the paper uses 224. The paper's Cloudy is the published
`partly cloudy`: 6.99 % of the training frames, as in its Table 6 (`overcast` is another 12.6 %).
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import ijson
import numpy as np

from adap.core.config.base import SPLITS
from adap.core.datasets import ImageSet
from adap.core.errors import DataError
from adap.core.published.base import Published, Reading, alone, decoded, find, replacing

DEFAULT_SIZE = 64
CLASSES: dict[str, tuple[str, ...]] = {
    "weather": (*("clear", "foggy", "overcast", "partly cloudy", "rainy", "snowy", "undefined"),),
    "scene": (
        *("city street", "gas stations", "highway", "parking lot", "residential", "tunnel"),
        "undefined",
    ),
}
_PARTS = {"train": "train", "val": "test"}
_SOURCE = "it comes from https://bdd-data.berkeley.edu (100K Images, and Labels of 2018)"


def _read(root: Path, reading: Reading) -> ImageSet:
    labelling = reading.labelling(tuple(CLASSES))
    classes = CLASSES[labelling]
    paths: list[Path] = []
    names: list[str] = []
    labels: list[int] = []
    splits: list[int] = []
    for part, split in _PARTS.items():
        file = f"bdd100k_labels_images_{part}.json"
        table = find(root, file, places=("labels", "bdd100k/labels", "."), source=_SOURCE)
        images = find(root, part, places=("images/100k", "bdd100k/images/100k"), source=_SOURCE)
        for name, attributes in _attributes(table, reading.cache).items():
            label = attributes.get(labelling)
            if label not in classes:
                raise DataError(
                    f"expected {labelling} of {name} in {table} among {', '.join(classes)}; "
                    f"got {label}"
                )
            paths.append(images / name)
            names.append(f"{part}/{name}")
            labels.append(classes.index(label))
            splits.append(SPLITS.index(split))
    side = reading.size or DEFAULT_SIZE
    return ImageSet(
        images=decoded(paths, height=side, width=side, reading=reading),
        labels=np.array(labels, np.int64),
        classes=list(classes),
        example_ids=names,
        splits=np.array(splits, np.int8),
    )


def _attributes(table: Path, cache: Path) -> dict[str, dict[str, str]]:
    """Attributes of each frame by its name, kept beside the images: the published file, of more
    than a gigabyte, is mostly boxes, and is read once, frame by frame."""
    status = table.stat()
    key = hashlib.sha256(f"{table.resolve()}\0{status.st_size} {status.st_mtime_ns}".encode())
    kept = cache / f"{key.hexdigest()[:32]}.json"
    if kept.exists():
        known: dict[str, dict[str, str]] = json.loads(kept.read_text(encoding="utf-8"))
        return known
    attributes: dict[str, dict[str, str]] = {}
    try:
        with table.open("rb") as file:
            for frame in ijson.items(file, "item"):
                attributes[_name(frame)] = frame["attributes"]
    except (ijson.JSONError, KeyError, TypeError) as error:
        raise DataError(
            f"expected a list of frames with name and attributes in {table}, got {error!r}"
        ) from error
    with alone(cache), replacing(kept) as partial:
        partial.write_text(json.dumps(attributes), encoding="utf-8")
    return attributes


def _name(frame: dict[str, Any]) -> str:
    """The name of a frame, a file directly in its folder."""
    name = str(frame["name"])
    if Path(name).name != name:
        raise DataError(f"expected the name of a file, got {name!r}")
    return name


BDD100K = Published(
    name="bdd100k",
    description="64x64 frames of driving videos, labelled by weather or by scene",
    source="images/100k/{train,val}/ and labels/bdd100k_labels_images_{train,val}.json from "
    "https://bdd-data.berkeley.edu",
    tasks=(
        ("scene", "tunnel"),
        ("scene", "residential"),
        ("weather", "rainy"),
        ("weather", "partly cloudy"),
    ),
    read=_read,
)
