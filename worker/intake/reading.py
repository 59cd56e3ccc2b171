"""From an uploaded file to an `ImageSet`, or to every reason why not."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from adap.core.config.base import SPLITS
from adap.core.config.data import DatasetOptions
from adap.core.datasets import ImageSet
from adap.models.formats import EDGE_BYTES, describe
from adap.models.header import shown
from adap.worker.intake.archive import AnyArchive, Archive
from adap.worker.intake.arrays import is_arrays, read_arrays
from adap.worker.intake.asked import Asked, Room, Shape
from adap.worker.intake.class_names import with_names
from adap.worker.intake.containers import refuse_containers, way_on_from
from adap.worker.intake.counts import (
    check_class_count,
    check_counts,
    label_matrix,
    looks_missing,
)
from adap.worker.intake.decoding import MAX_SIZES, File, Undecoded, decode_all
from adap.worker.intake.equal import alike
from adap.worker.intake.examples import Example, is_no_image
from adap.worker.intake.folders import by_folders, refuse_other_labels, refuse_parts
from adap.worker.intake.held_out import with_test_split
from adap.worker.intake.layouts import one_class_alone, way_on
from adap.worker.intake.limits import IntakeLimits, Rejected
from adap.worker.intake.masks import refuse_masks
from adap.worker.intake.named import by_names
from adap.worker.intake.notes import Notes, counted, listed
from adap.worker.intake.samples import by_samples, find_samples
from adap.worker.intake.similar import note_near_duplicates
from adap.worker.intake.tables import (
    METADATA,
    are_one_each,
    by_tables,
    columns_asked,
    splits_of_tables,
    tables_among,
    tables_asked,
    with_labels,
)
from adap.worker.intake.tars import SUFFIXES as TAR_SUFFIXES
from adap.worker.intake.tars import Tars, are_a_series, is_tar, stem
from adap.worker.intake.values import note_values

PARQUET_MAGIC = b"PAR1"
_PARQUET = (".parquet",)
MAX_SHARDS = 500  # Parquet files or tars of one data set, all open at once
_COPY_BYTES = 8 * 1024**2


def in_memory(_: NDArray[Any], shape: Shape) -> NDArray[np.uint8]:
    """Room for a small data set."""
    return np.empty(shape, np.uint8)


def read_dataset(
    path: Path,
    *,
    limits: IntakeLimits,
    on_progress: Callable[[int, int], None],
    options: DatasetOptions | None = None,
    notes: Notes | None = None,
    room: Room = in_memory,
    scratch: Path | None = None,
) -> ImageSet:
    """Open what somebody sent as a data set: a zip or tar of images, NPZ or Parquet, by content.

    `on_progress(done, total)` counts images; it is called at least every hundred images.
    `options` choose where the upload can be read in more than one way; `notes` are filled with how
    it was read; `room` says where the pixels go, for example `adap.core.datasets.Draft.room`.
    Raises Rejected with up to 100 reasons.
    """
    size = path.stat().st_size
    notes = Notes() if notes is None else notes
    if size > limits.archive_bytes:
        raise Rejected(f"expected a file of at most {limits.archive_bytes} bytes, got {size}")
    asked = Asked(limits, options or DatasetOptions(), notes, room, on_progress, scratch)
    kind = _kind(path, size)
    if kind == "parquet":
        from adap.worker.intake.parquet import read_parquet  # pyarrow takes a while to start

        notes.form = "Parquet"
        _refuse_folders(asked)
        image_set = read_parquet({"": path}, asked)
    elif kind == "tar":
        notes.form = "tar"
        image_set = _read_tars({"": path}, asked)
    else:
        with Archive(path, limits=limits) as archive:
            if is_arrays(archive):
                notes.form = "NPZ"
                _refuse_folders(asked)
                for option in ("label_separator", "label_columns"):
                    if getattr(asked.options, option) not in (None, "none"):
                        raise Rejected(
                            f"expected no `{option}` (--{option.replace('_', '-')}) with an NPZ, "
                            "whose labels (N, K) of 0 and 1 say which images have several: leave "
                            "it out"
                        )
                image_set = read_arrays(archive, asked)
            elif any(name.lower().endswith(_PARQUET) for name in archive.names):
                from adap.worker.intake.parquet import read_parquet

                notes.form = "zip of Parquet files"
                _refuse_folders(asked)
                with _put_down(archive, _PARQUET, "Parquet files", asked) as shards:
                    image_set = read_parquet(shards, asked)
            elif any(name.lower().endswith(TAR_SUFFIXES) for name in archive.names):
                notes.form = "zip of tars"
                with _put_down(archive, TAR_SUFFIXES, "tars", asked) as shards:
                    image_set = _read_tars({stem(name): at for name, at in shards.items()}, asked)
            else:
                notes.form = "zip"
                image_set = _read_images(archive, asked)
    if asked.options.hold_out is not None:
        image_set = with_test_split(image_set, asked.options.hold_out, notes)
    _look_over(image_set, notes)
    return image_set


def summarise(image_set: ImageSet, *, notes: Notes | None = None) -> dict[str, Any]:
    """What a data set holds, as plain JSON: counts, sizes and how many images are repeated.

    `duplicates` counts the images whose pixels were seen before in the data set.
    """
    count, channels, height, width = image_set.images.shape
    splits, split_examples, groups = None, {}, image_set.groups
    if image_set.splits is not None:
        members = {
            split: image_set.splits == i
            for i, split in enumerate(SPLITS)
            if image_set.has_split(split)
        }
        splits = {split: image_set.class_counts(mask) for split, mask in members.items()}
        split_examples = {split: int(mask.sum()) for split, mask in members.items()}
    classes = image_set.class_counts()
    came = (notes.sizes if notes else None) or Counter({(height, width): count})
    return {
        "examples": count,
        "multilabel": image_set.multilabel,
        "classes": classes,
        "prevalence": {name: of_class / count for name, of_class in classes.items()},
        "splits": splits,
        "split_examples": split_examples,
        "groups": None if groups is None else dict(sorted(Counter(groups).items())),
        "clusters": None if image_set.clusters is None else len(set(image_set.clusters)),
        "channels": channels,
        "height": height,
        "width": width,
        "sizes": {f"{w}x{h}": number for (h, w), number in came.most_common(MAX_SIZES)},
        **_repeated(image_set),
    }


def _look_over(image_set: ImageSet, notes: Notes) -> None:
    """Note what any data set may have that figures of it suffer from."""
    folded: dict[str, list[str]] = {}
    for name in image_set.classes:
        plain = re.sub(r"(?<=\w)[-_\s]+(?=\w)", "", name.casefold().strip())
        folded.setdefault(plain, []).append(name)
    for names in folded.values():
        if len(names) > 1:
            notes.fact(
                "caution",
                "case_variants",
                f"the classes {listed(names)} differ in case or space alone and are kept apart: "
                "if they are one class, give them one name",
            )
    odd = [name for name in image_set.classes if looks_missing(name)]
    rest = [name for name in image_set.classes if name != "-1"]
    if 1 < len(rest) < len(image_set.classes) and all(map(str.isdecimal, rest)):
        odd.append("-1")  # among classes that are counted from 0
    if odd:
        notes.fact(
            "caution",
            "odd_classes",
            f"the classes {listed(odd)} look like missing values or measurements and not like "
            "classes: if they are, leave those images out or give them labels",
        )
    notes.step(counted(len(image_set.classes), "class"))
    note_values(image_set.images, notes)
    _note_clusters(image_set, notes)
    note_near_duplicates(image_set.images, image_set.splits, notes)


def _note_clusters(image_set: ImageSet, notes: Notes) -> None:
    """Note clusters with images in several splits."""
    if image_set.clusters is None or image_set.splits is None:
        return
    splits: dict[str, set[int]] = {}
    for cluster, split in zip(image_set.clusters, image_set.splits.tolist(), strict=True):
        splits.setdefault(cluster, set()).add(split)
    torn = [cluster for cluster, of in splits.items() if len(of) > 1]
    if torn:
        notes.fact(
            "caution",
            "clusters_across_splits",
            f"{len(torn):,} of {counted(len(splits), 'cluster')} ({listed(torn)}) have images in "
            "more than one split: a model trained on one of them has seen the cluster; give each "
            "cluster one split",
            clusters=len(torn),
            share=len(torn) / len(splits),
        )


def _repeated(image_set: ImageSet) -> dict[str, int | None]:
    """How many images were seen before, and how many of these with other labels or elsewhere."""
    first: dict[bytes, int] = {}
    duplicates = conflicting = across = 0
    for i, image in alike(image_set.images):
        earlier = first.setdefault(blake2b(image.tobytes(), digest_size=16).digest(), i)
        if earlier == i:
            continue
        duplicates += 1
        conflicting += bool((image_set.labels[earlier] != image_set.labels[i]).any())
        if image_set.splits is not None:
            across += bool(image_set.splits[earlier] != image_set.splits[i])
    return {
        "duplicates": duplicates,
        "conflicting": conflicting,
        "across_splits": None if image_set.splits is None else across,
    }


def _kind(path: Path, size: int) -> Literal["zip", "parquet", "tar"]:
    with path.open("rb") as file:
        head = file.read(EDGE_BYTES)
        file.seek(max(0, size - EDGE_BYTES))
        tail = file.read()
    if head.startswith(b"PK"):
        return "zip"
    if head.startswith(PARQUET_MAGIC):
        return "parquet"
    told = way_on_from("", head) if size else None
    if told is None and is_tar(head):
        return "tar"
    kind = describe(head, tail)
    if "archive" in kind and told is None:
        kind += ": unpack it, and send the folder (adap dataset add FOLDER) or a zip of it"
    elif told is None and ":" not in kind:
        kind += ": put the images into class folders, and send the folder (adap dataset add FOLDER)"
    raise Rejected(f"expected a zip or tar of class folders, an NPZ or Parquet, got {told or kind}")


def _refuse_folders(asked: Asked) -> None:
    """Raise Rejected for an option that has no meaning in a form without folders and files."""
    for option in ("folders", "label_in_name"):
        if (value := getattr(asked.options, option)) is not None:
            raise Rejected(
                f"expected no `{option}` (--{option.replace('_', '-')}) with {asked.notes.form}, "
                f"which says labels and splits itself, got {shown(value)}: leave it out"
            )


@contextmanager
def _put_down(
    archive: Archive, suffixes: tuple[str, ...], kind: str, asked: Asked
) -> Iterator[dict[str, Path]]:
    """The files of a zip that are data sets themselves, on disk for as long as they are read."""
    names = [name for name in archive.names if name.lower().endswith(suffixes)]
    beside = [name for name in archive.names if name not in set(names)]
    others = [name for name in beside if not is_no_image(name)]
    if others:
        raise Rejected(
            f"expected {kind} alone in a zip that holds some, got {listed(others)} beside "
            f"them: send either the {kind} or the images"
        )
    if beside:
        asked.notes.fact(
            "info",
            "other_files",
            f"{counted(len(beside), 'file')} beside the {kind}, not read: {listed(beside)}",
            files=len(beside),
        )
    size = sum(map(archive.size, names))
    if size > asked.limits.archive_bytes or len(names) > MAX_SHARDS:
        raise Rejected(
            f"expected at most {MAX_SHARDS} {kind} of {asked.limits.archive_bytes} bytes "
            f"together, got {len(names)} of {size}"
        )
    with TemporaryDirectory(dir=asked.scratch, prefix="shards-") as folder:
        shards: dict[str, Path] = {}
        for i, name in enumerate(names):
            shards[name] = Path(folder) / str(i)
            with archive.open(name) as member, shards[name].open("wb") as file:
                while member.left:
                    file.write(member.read(min(member.left, _COPY_BYTES)))
        yield shards


def _read_tars(tars: Mapping[str, Path], asked: Asked) -> ImageSet:
    """Images in tars: class folders, a table, a tar for each class, or WebDataset shards."""
    if len(tars) > 1:
        asked.notes.step(f"{len(tars)} tars, as folders: {listed(list(tars))}")
    with (
        TemporaryDirectory(dir=asked.scratch, prefix="tars-") as folder,
        Tars(tars, limits=asked.limits, scratch=Path(folder)) as archive,
    ):
        return _read_images(archive, asked, shards=archive.flat, series=are_a_series(tars))


def _read_images(
    archive: AnyArchive, asked: Asked, *, shards: bool = False, series: bool = False
) -> ImageSet:
    """An archive of images, of which folders, a table or files beside them say what they are.

    shards: whether it is tars without folders in them.  series: and these are parts of a whole.
    """
    examples, multilabel = _arrange(archive, asked, shards=shards, series=series)
    named = [example.labels for example in examples]
    classes = sorted({name for names in named for name in names})
    labels: NDArray[np.int64] | NDArray[np.uint8]
    if multilabel:
        check_class_count(classes, examples=len(examples))
        labels = label_matrix(named, classes)
    else:
        position = {name: i for i, name in enumerate(classes)}
        labels = np.array([position[name] for (name,) in named], np.int64)
    declared = [SPLITS.index(example.split) for example in examples if example.split is not None]
    splits = np.array(declared, np.int8) if declared else None
    groups = [example.group for example in examples if example.group is not None] or None
    clusters = [example.cluster for example in examples if example.cluster is not None] or None
    check_counts(classes, labels, splits=splits, groups=groups)
    files = (
        File(name, archive.size(name), partial(archive.read, name))
        for name in (example.name for example in examples)
    )
    undecoded = Undecoded(
        labels=labels,
        classes=classes,
        ids=lambda: [example.example_id for example in examples],
        splits=splits,
        groups=groups,
        clusters=clusters,
    )
    return decode_all(files, undecoded, asked)


def _arrange(
    archive: AnyArchive, asked: Asked, *, shards: bool, series: bool
) -> tuple[list[Example], bool]:
    """The examples of an archive, sorted by name, and whether each may have several labels."""
    notes, options = asked.notes, asked.options
    images = [name for name in archive.names if not is_no_image(name)]
    others = [name for name in archive.names if is_no_image(name)]
    tables = [name for name in others if name.rpartition("/")[2].lower() in METADATA]
    if archive.left_behind:
        notes.step(f"ignored: {listed(archive.left_behind)}")
    refuse_containers(archive, images)
    if not images:
        among = f", of {counted(len(others), 'file')} ({listed(others)})" if others else ""
        raise Rejected(
            f"expected images in class folders, got an archive without any{among}: add them as PNG "
            "or JPEG files"
        )
    multilabel = False
    samples = None if tables else find_samples(images, others, shards=shards)
    if samples is not None:
        examples, multilabel = by_samples(archive, images, samples, options=options, notes=notes)
        read = {name for files in samples.values() for name in files.values()}
        others = [name for name in others if name not in read]
    elif options.label_in_name is not None:
        if tables or columns_asked(options):
            raise Rejected(
                "expected no `label_in_name` (--label-in-name) beside a table that says labels "
                f"({listed(tables) or 'as other options ask for'}): leave one of them out"
            )
        examples = by_names(images, options.label_in_name, options=options, notes=notes)
    elif not tables and columns_asked(options):
        tables = tables_asked(archive, others, options)
    elif not tables:
        if shards and series:
            raise Rejected(
                "expected a file .cls, .json or .txt beside each image of WebDataset shards, got "
                f"{shown(images[0])} without"
            )
        steps = len(notes.steps)
        try:
            refuse_masks(images)
            examples = by_folders(images, declared=options.folders, notes=notes)
            if len({example.labels for example in examples}) < 2:
                raise one_class_alone(examples[0].labels[0], others)
        except Rejected as rejected:
            # a table by another name, where folders say nothing
            tables = tables_among(others)
            several = len(tables) > 1 and not are_one_each(tables, images)
            if several:
                labelled = list(with_labels(archive, tables, images, options))
                several = len(labelled) != 1 and not splits_of_tables(labelled)
                tables = tables if several else labelled
            if several and options.folders is None:
                rejected.reasons.insert(
                    0,
                    f"got the tables {listed(tables)}: if one says the labels, call it "
                    "metadata.csv and leave the others out; if each says those of a split, join "
                    "them to a metadata.csv with a column `split`",
                )
            if not tables or several or options.folders is not None:
                if not tables and (way := way_on(archive, images, others)):
                    rejected.reasons.insert(0, way)
                raise
            del notes.steps[steps:]
        else:
            if options.folders is None:
                beside = tables_among(others)
                refuse_other_labels(examples, with_labels(archive, beside, images, options))
                refuse_parts(examples, beside)
    if tables:
        examples, multilabel = by_tables(archive, images, tables, options=options, notes=notes)
    filled = {
        name[: cut.start() + 1]
        for name in (archive.names if archive.folders else ())
        for cut in re.finditer("/", name)
    }
    empty = [folder for folder in archive.folders if folder not in filled]
    if empty:
        notes.fact(
            "info",
            "empty_folders",
            f"{counted(len(empty), 'folder')} without a file, which is no class: {listed(empty)}",
            folders=len(empty),
        )
    others = [name for name in others if name not in tables]
    examples, lists = with_names(archive, examples, others, notes)
    unread = [name for name in others if name not in lists]
    if unread:
        notes.fact(
            "info",
            "other_files",
            f"{counted(len(unread), 'file')} beside the images, not read: {listed(unread)}",
            files=len(unread),
        )
    return examples, multilabel
