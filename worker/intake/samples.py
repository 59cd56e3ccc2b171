"""Labels of images in WebDataset shards, from the files of the same key beside them.

    0001.jpg, 0001.cls            the label: the number of a class, or its name
    0001.jpg, 0001.json           an object whose keys are read as columns of a table are
    0001.jpg, 0001.txt            a text, which is taken for the label where there is nothing else

The key is a file's name up to its first dot. Where there is JSON for all images beside the labels,
split, group and cluster are read from it.

Source: the WebDataset format, github.com/webdataset/webdataset.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adap.core.config.data import DatasetOptions
from adap.models.header import shown
from adap.worker.intake.archive import AnyArchive
from adap.worker.intake.columns import SYNONYMS
from adap.worker.intake.examples import Example
from adap.worker.intake.labels import Value
from adap.worker.intake.limits import Reasons, Rejected
from adap.worker.intake.names import tidy
from adap.worker.intake.notes import Notes
from adap.worker.intake.rows import json_value
from adap.worker.intake.tables import Line, by_lines

_CLASS, _JSON, _TEXT = "cls", "json", "txt"
_MAX_BYTES = 64 * 1024  # of the JSON or text of one image

Beside = dict[str, dict[str, str]]
"""The files of each ending, by their key."""


def find_samples(images: Sequence[str], others: Sequence[str], *, shards: bool) -> Beside | None:
    """The files that say labels, where these are samples: None otherwise.

    Files that end in .cls are nothing else; others are asked for in `shards` alone, where every
    image has one.
    """
    beside: Beside = {}
    for name in others:
        key, ending = _key(name)
        if ending in (_CLASS, _JSON, _TEXT):
            beside.setdefault(ending, {})[key] = name
    keys = {_key(name)[0] for name in images}
    if _CLASS in beside or (shards and any(keys <= files.keys() for files in beside.values())):
        return beside
    return None


def by_samples(
    archive: AnyArchive,
    images: Sequence[str],
    beside: Mapping[str, Mapping[str, str]],
    *,
    options: DatasetOptions,
    notes: Notes,
) -> tuple[list[Example], bool]:
    """The examples that samples are, and whether each may have several labels."""
    images = _one_each(images, options)
    keys = {_key(name)[0]: name for name in images}
    told = [ending for ending, files in beside.items() if keys.keys() <= files.keys()]
    label = next((ending for ending in (_CLASS, _JSON, _TEXT) if ending in told), None)
    if label is None:
        missing = sorted(set(keys) - set(beside.get(_CLASS, ())))
        raise Rejected(
            f"expected a file .{_CLASS} beside each image, got none beside "
            f"{shown(keys[missing[0]])} and {len(missing) - 1} more"
        )
    reasons = Reasons()
    lines = (
        Line(where, "", values | {"file_name": image})
        for key, image in keys.items()
        for where, values in _values(archive, key, beside, told, label, reasons)
    )
    return by_lines(
        lines,
        images,
        f"the files .{label} beside the images",
        options=options.model_copy(update={"image_column": None}),
        notes=notes,
        reasons=reasons,
    )


def _one_each(images: Sequence[str], options: DatasetOptions) -> list[str]:
    """One image of each sample, of the ending that was asked for where there are several."""
    wanted = options.image_column
    if wanted is not None:
        images = [name for name in images if _key(name)[1] == wanted.lower().lstrip(".")]
    first: dict[str, str] = {}
    for name in images:
        other = first.setdefault(_key(name)[0], name)
        if other != name:
            ending = _key(other)[1]
            raise Rejected(
                f"expected one image in each sample, got {shown(other)} and {shown(name)}: say "
                f"which with `image_column` (--image-column {ending})"
            )
    if not first:
        raise Rejected(f"expected images that end in {shown(wanted or '')}, got none")
    return list(first.values())


def _values(
    archive: AnyArchive,
    key: str,
    beside: Mapping[str, Mapping[str, str]],
    told: Sequence[str],
    label: str,
    reasons: Reasons,
) -> Iterator[tuple[str, dict[str, Value | None]]]:
    """What is said of one sample; nothing where that cannot be read, which is a reason then."""
    values: dict[str, Value | None] = {}
    for ending in (_JSON, label) if _JSON in told and label != _JSON else (label,):
        name = beside[ending][key]
        if archive.size(name) > _MAX_BYTES:
            reasons.add(
                f"{shown(name)}: expected at most {_MAX_BYTES} bytes, got {archive.size(name)}"
            )
            return
        try:
            text = archive.read(name).decode("utf-8-sig")
            values |= _columns(text) if ending == _JSON else {"label": tidy(text)}
        except (ValueError, RecursionError):
            what = "a JSON object" if ending == _JSON else "a label"
            reasons.add(f"{shown(name)}: expected {what} in UTF-8, got something else")
            return
    yield shown(beside[label][key]), values


def _columns(text: str) -> dict[str, Value | None]:
    row: Any = json.loads(text)
    if not isinstance(row, dict):
        raise ValueError("no object")
    named = {tidy(str(name)): value for name, value in row.items()}
    return {
        _LABEL_KEYS.get(name, name): json_value(value)
        for name, value in named.items()
        if name.lower() not in SYNONYMS["image"]
    }


_LABEL_KEYS = {_CLASS: "label"}  # as the file of this ending is called


def _key(name: str) -> tuple[str, str]:
    """The key of a file, with its folders, and its ending."""
    folder, _, base = name.rpartition("/")
    key, _, ending = base.partition(".")
    return f"{folder}/{key}", ending.lower()
