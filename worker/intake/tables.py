"""Labels, splits, groups and clusters of the images of a zip, from a table in it.

    metadata.csv                  file_name,label[,split][,group][,cluster], columns in any order,
    images/0001.png               as Hugging Face's imagefolder; where it is there, it alone decides
    train/metadata.jsonl          a table in each split folder, of the images below it

A table is CSV with commas, semicolons or tabs, or JSON Lines. With a column `labels` instead of
`label` an image may have any number of classes: `cat|dog`, or nothing for none of them.
"""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from os.path import commonpath

from adap.core.config.base import Split
from adap.core.config.data import DatasetOptions
from adap.models.header import shown
from adap.worker.intake.archive import AnyArchive
from adap.worker.intake.columns import ROLES, Role, find_column, note_unread, plain, require_column
from adap.worker.intake.examples import Example, suffix_of
from adap.worker.intake.labels import LabelColumns, Value, read_labels
from adap.worker.intake.limits import Reasons, Rejected
from adap.worker.intake.lookup import Images, is_picture
from adap.worker.intake.named import with_splits_of_folders
from adap.worker.intake.names import cluster_problem, group_problem, labels_problem, tidy
from adap.worker.intake.notes import Notes, counted, listed
from adap.worker.intake.rows import rows_of
from adap.worker.intake.splits import (
    MOST_DIFFERENT,
    is_called_a_split,
    is_code,
    names_a_split_alone,
    refuse_codes,
    split_problem,
    splits_of,
)

METADATA = ("metadata.csv", "metadata.tsv", "metadata.jsonl")
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")

_HOT = ("0", "1", "0.0", "1.0", "-1", "-1.0")
_IMAGE, _LABEL = ("file_name",), ("label", "labels")


@dataclass(frozen=True)
class _Columns:
    image: str
    label: str  # or what the columns of the classes are called together
    split: str | None
    group: str | None
    cluster: str | None


@dataclass(frozen=True)
class Line:
    """What is said of one image, by column; `root` is the folder that its path starts from."""

    where: str
    root: str
    values: dict[str, Value | None]
    table: str = ""  # that it stands in, where there may be several
    place: Split | None = None  # whose folder may hold the image, as the table is called so
    split: Split | None = None  # that the whole table is of


@dataclass(frozen=True)
class _Row:
    """A line of a table and the image that it names."""

    where: str
    name: str | None  # in the archive
    file_name: str  # as the table has it
    label: Value
    split: str | None
    group: str | None
    cluster: str | None


def by_tables(
    archive: AnyArchive,
    images: Sequence[str],
    tables: Sequence[str],
    *,
    options: DatasetOptions,
    notes: Notes,
) -> tuple[list[Example], bool]:
    """The examples that tables name, and whether each may have several labels."""
    roots = [table.rpartition("/")[0] for table in tables]
    inside = [f"{root}/" if root else "" for root in roots]
    places = splits_of_tables(tables)
    splits = places if len(tables) > 1 else {}
    if not splits and any(
        a.startswith(b) for i, a in enumerate(inside) for b in inside[:i] + inside[i + 1 :]
    ):
        raise Rejected(
            "expected one metadata.csv beside the folders of images, or one in each split folder, "
            f"got {listed(tables)}: join them to one with a column `split`"
        )
    shared = commonpath(roots)
    reasons = Reasons()
    lines = (
        Line(where, root, values, table, places.get(table), splits.get(table))
        for table, root in zip(tables, roots, strict=True)
        for where, values in rows_of(archive.read(table), table, reasons)
    )
    base = f"{shared}/" if shared else ""
    source = listed(tables)
    if splits:
        told = ", ".join(f"{shown(table)} ({split})" for table, split in splits.items())
        notes.step(f"{counted(len(splits), 'split')} from tables {told}")
    return by_lines(lines, images, source, base=base, options=options, notes=notes, reasons=reasons)


def tables_among(others: Sequence[str]) -> list[str]:
    """What may be a table of the images, by any name, among the files beside them."""
    return [
        name
        for name in others
        if suffix_of(name) in TABLE_SUFFIXES and "submission" not in name.lower()
    ]


def are_one_each(tables: Sequence[str], images: Sequence[str]) -> bool:
    """Whether each table lies in a split folder of its own, and all images in one of these."""
    roots = [table.rpartition("/")[0] for table in tables]
    splits = splits_of({root.rpartition("/")[2] for root in roots})
    return (
        len(set(roots)) == len(tables) == len(splits)
        and len({root.rpartition("/")[0] for root in roots}) == 1
        and all(name.startswith(tuple(f"{root}/" for root in roots)) for name in images)
    )


def splits_of_tables(tables: Sequence[str]) -> dict[str, Split]:
    """The split that each of the tables in one folder is of, where all names say one."""
    stems = {table: table.rpartition("/")[2].rpartition(".")[0] for table in tables}
    splits = splits_of(stems.values())
    if (
        len({table.rpartition("/")[0] for table in tables}) != 1
        or len(set(splits.values())) != len(tables)
        or not all(map(names_a_split_alone, stems.values()))
    ):
        return {}
    return {table: splits[stem] for table, stem in stems.items()}


def with_labels(
    archive: AnyArchive, tables: Sequence[str], images: Sequence[str], options: DatasetOptions
) -> dict[str, dict[str, str]]:
    """The labels that tables say of images, for each table that has some."""
    index = Images(images if tables else ())
    found: dict[str, dict[str, str]] = {}
    for table in tables:
        place, root = splits_of_tables([table]).get(table), table.rpartition("/")[0]
        labels: dict[str, str] = {}
        try:
            rows = (values for _, values in rows_of(archive.read(table), table, Reasons()))
            first = next(rows, {})
            image = require_column("image", list(first), _IMAGE, options)
            label = require_column("label", list(first), _LABEL, options)
            for row in chain([first], rows):
                name, told = row.get(image), row.get(label)
                if not isinstance(name, str) or told in (None, ""):
                    continue
                if (known := index.find(root, tidy(name), split=place)) is not None:
                    labels[known] = str(told)
        except Rejected:
            continue
        if labels:
            found[table] = labels
    return found


def columns_asked(options: DatasetOptions) -> dict[str, str]:
    """What was asked for that only a table can have, as told to people, and its column if any."""
    asked = {
        f"the {role} column {shown(name)} that was asked for": name
        for role in ROLES
        if (name := getattr(options, f"{role}_column")) is not None
    }
    if options.label_columns is not None and options.label_columns.strip() == "*":
        asked["a table with columns of 0 and 1"] = ""
    elif options.label_columns is not None:
        for name in map(tidy, options.label_columns.split(",")):
            asked[f"the label column {shown(name)} that was asked for"] = name
    if options.label_separator not in (None, "none"):
        asked[f"a table of labels with {shown(options.label_separator)} between them"] = ""
    return asked


def tables_asked(archive: AnyArchive, others: Sequence[str], options: DatasetOptions) -> list[str]:
    """The tables, by any name, that have all columns that were asked for. Rejected without one."""
    asked = columns_asked(options)
    wanted = {name for name in asked.values() if name}
    tables = tables_among(others)
    headers = {table: _header(archive, table) for table in tables}
    found = [table for table in tables if wanted <= headers[table]]
    if found:
        return found
    known = set[str]().union(*headers.values())
    missing = next((text for text, name in asked.items() if name not in known), next(iter(asked)))
    beside = f", beside {listed(tables)}" if tables else ""
    raise Rejected(
        f"expected {missing}, got no table that has it{beside}: add the table, or leave the option "
        "out to have labels read from the folders"
    )


def _header(archive: AnyArchive, table: str) -> set[str]:
    """The columns of a table; none of what cannot be read as one."""
    try:
        return set(
            next((set(values) for _, values in rows_of(archive.read(table), table, Reasons())), ())
        )
    except Rejected:
        return set()


def by_lines(
    lines: Iterable[Line],
    images: Sequence[str],
    source: str,
    *,
    options: DatasetOptions,
    notes: Notes,
    base: str = "",
    reasons: Reasons | None = None,
) -> tuple[list[Example], bool]:
    """The same of lines from anywhere; `base` is left out of the names of examples."""
    index = Images(images)
    reasons = Reasons() if reasons is None else reasons
    rows: list[_Row] = []
    columns: _Columns | None = None
    hot: LabelColumns | None = None
    unread: dict[str, set[str]] = {}  # some values of each column that is not read
    first = Line("", "", {})
    for line in lines:
        values = line.values
        if columns is None:
            first = line
            columns, hot = _find_columns(values, options, source)
            read = [*columns.__dict__.values(), *(hot.columns if hot else ())]
            note_unread(
                list(values),
                read,
                notes,
                clustered=columns.cluster is not None,
                split=columns.split is not None,
            )
            unread = {name: set() for name in {*values} - {*read}}
        elif line.table != first.table:
            _check_same_columns(line, first, columns, hot)
        for name, some in unread.items():
            if len(some) <= MOST_DIFFERENT and isinstance(text := values.get(name), str):
                some.add(text)
        try:
            rows.append(_read_row(line, columns, hot, index))
        except ValueError as error:
            reasons.add(f"{line.where}: {error}")
    if columns is None:
        reasons.settle()
        raise Rejected(f"{source}: expected lines with file_name and label, got none")
    for name, some in unread.items() if columns.split is None else ():
        if (
            len(some) <= MOST_DIFFERENT
            and len(set(splits_of(some).values())) > 1
            and all(map(names_a_split_alone, some))
        ):
            raise Rejected(
                f"the column {shown(name)} holds {listed(sorted(some))}, as if it were the split: "
                f"send `split_column` (--split-column {name}), or leave it out"
            )
        if (
            is_called_a_split(name)
            and len(some) <= MOST_DIFFERENT
            and all(map(is_code, some - {""}))
        ):
            refuse_codes(name, some)
    if columns.split is not None:
        refuse_codes(columns.split, {row.split for row in rows if row.split})
    told = [row.label for row in rows]
    if hot is None:
        _refuse_without_labels(rows, columns)
        labels, multilabel = read_labels(told, column=columns.label, options=options, notes=notes)
    else:
        labels = [label for label in told if isinstance(label, tuple)]
        multilabel = hot.several(labels, notes)
    examples = _examples(rows, labels, index, base, reasons, notes, one_each=not multilabel)
    named = {example.name.rpartition("/")[0] for example in examples}
    left: dict[str, list[str]] = {}
    for name in index.left():
        left.setdefault(name.rpartition("/")[0], []).append(name)
    for folder, names_left in left.items():
        if folder and folder not in named and len(names_left) > 1:
            reasons.add(
                f"expected a line with its label in {source} for each image, got none for the "
                f"{len(names_left):,} images of {shown(folder)}: leave that folder out, as a test "
                "split without labels judges nothing, or add the lines"
            )
            continue
        for name in names_left:
            reasons.add(
                f"{shown(name)}: expected a line with its label in {source}, got none: leave the "
                "image out, or add the line"
            )
    reasons.settle()
    notes.step(f"labels from {source}")
    if index.guessed:
        notes.step(f"{counted(index.guessed, 'image')} found by the file's name alone")
    _note_other_splits(examples, notes)
    if columns.split is None and not any(example.split for example in examples):
        examples = with_splits_of_folders(examples, options.folders, notes)
    return sorted(examples, key=lambda example: example.name), multilabel


def _note_other_splits(examples: Sequence[Example], notes: Notes) -> None:
    """Note images that a table puts into another split than the folder that they lie in."""
    folders = {name for example in examples for name in example.example_id.split("/")[:-1]}
    named = {name: split for name, split in splits_of(folders).items() if names_a_split_alone(name)}
    against = [
        example
        for example in examples
        if example.split is not None
        and any(
            named.get(folder, example.split) != example.split
            for folder in example.example_id.split("/")[:-1]
        )
    ]
    if against:
        notes.fact(
            "caution",
            "split_against_folder",
            f"the table puts {counted(len(against), 'image')} into another split than the folder "
            f"that they lie in, for example {shown(against[0].example_id)} into "
            f"{against[0].split}: the table was followed",
            images=len(against),
        )


def _check_same_columns(
    line: Line, first: Line, columns: _Columns, hot: LabelColumns | None
) -> None:
    """Raise Rejected where another table has not the columns that are read, or more classes."""
    read = {*(hot.columns if hot else [columns.label]), columns.image, columns.split}
    read |= {columns.group, columns.cluster}
    odd = {name for name in read - {None} if name not in line.values}
    if hot is not None:
        odd |= line.values.keys() - first.values.keys()
    if odd:
        raise Rejected(
            f"expected the same columns in all tables, got {listed(sorted(map(str, odd)))} in one "
            f"of {shown(first.table)} and {shown(line.table)} alone: give both the same columns"
        )


def _examples(
    rows: Sequence[_Row],
    labels: Sequence[tuple[str, ...]],
    index: Images,
    base: str,
    reasons: Reasons,
    notes: Notes,
    *,
    one_each: bool,
) -> list[Example]:
    """An example of each image that the rows name; what is wrong with a row becomes a reason."""
    found: dict[str, tuple[_Row, Example]] = {}
    again, differ = 0, list[_Row]()
    for row, names in zip(rows, labels, strict=True):
        if problem := _problem(row, names, index):
            reasons.add(f"{row.where}: {problem}")
            continue
        assert row.name is not None
        split = None if row.split is None else splits_of([row.split])[row.split]
        example_id = row.name.removeprefix(base)
        example = Example(row.name, example_id, names, split, row.group, row.cluster)
        first, before = found.setdefault(row.name, (row, example))
        if first is row:
            continue
        if first.file_name != row.file_name:
            reasons.add(
                f"{row.where}: expected the name of an image, got {shown(row.file_name)}, where "
                f"{shown(row.name)} is {shown(first.file_name)} of {first.where}"
            )
        elif before == example:
            again += 1
        else:
            differ.append(row)
    if differ:
        several = (
            "; if an image may have several labels, join them in a column `labels`: cat|dog"
            if one_each
            else ""
        )
        reasons.add(
            f"expected one line for each image, got {counted(len(differ), 'line')} against an "
            f"earlier one of the same image, the first {differ[0].where}, for "
            f"{shown(differ[0].file_name)}: keep one{several}"
        )
    if again:
        notes.step(f"{counted(again, 'line')} left out, which said the same again")
    return [example for _, example in found.values()]


def _problem(row: _Row, labels: tuple[str, ...], index: Images) -> str | None:
    """What is wrong with a row, if anything is."""
    if row.name is None:
        return f"expected the name of an image, {index.told(row.file_name)}"
    if labels == ("",):
        return "expected a label, got none: give it one, or leave the line and the image out"
    if row.split == "":
        return "expected a split, got none: give it one, or leave the line and the image out"
    return (
        labels_problem(labels)
        or (split_problem(row.split) if row.split is not None else None)
        or (group_problem(row.group) if row.group is not None else None)
        or (cluster_problem(row.cluster) if row.cluster is not None else None)
    )


def _refuse_without_labels(rows: Sequence[_Row], columns: _Columns) -> None:
    """Raise Rejected in one sentence for many lines without a label, as of a test split."""
    bare = [row for row in rows if row.label == ""]
    if plain(columns.label) == "labels" or len(bare) < MOST_DIFFERENT:
        return
    splits = sorted({row.split for row in bare if row.split})
    where = f", those of the split {listed(splits)}" if len(splits) == 1 else ""
    raise Rejected(
        f"expected a label in each line, got none in {len(bare):,} of {len(rows):,}{where}, the "
        f"first {bare[0].where}: leave out what has no label, as it judges nothing; for images of "
        "none of several classes call the column `labels`"
    )


def _refuse_one_hot(values: Mapping[str, Value | None], options: DatasetOptions) -> None:
    """Raise Rejected for a table without labels whose first line has 0 or 1 for each class."""
    columns = list(values)
    if options.label_columns is not None:
        return
    if find_column("label", columns, _LABEL, options) is not None:
        return
    others: tuple[Role, ...] = ("split", "group", "cluster")
    known = {find_column(role, columns, (role,), options) for role in others}
    known.add(find_column("image", columns, _IMAGE, options))
    hot = [
        name
        for name, value in values.items()
        if name not in known and isinstance(value, str) and tidy(value) in _HOT
    ]
    if len(hot) > 1 and {*columns} - {*hot, ""} <= known:
        raise Rejected(
            "expected one column of labels, got columns of 0 and 1 (or -1), as if each were a "
            f"class: {listed(hot)}; say so with `label_columns` (--label-columns '*', or "
            f"{hot[0]},{hot[1]}), or choose one with `label_column` (--label-column {hot[0]})"
        )


def _find_columns(
    values: Mapping[str, Value | None], options: DatasetOptions, table: str
) -> tuple[_Columns, LabelColumns | None]:
    columns = list(values)
    try:
        _refuse_one_hot(values, options)
        image = require_column("image", columns, _IMAGE, options)
        others = (
            find_column("split", columns, ("split",), options),
            find_column("group", columns, ("group",), options),
            find_column("cluster", columns, ("cluster",), options),
        )
        if options.label_columns is not None:
            hot = LabelColumns(options.label_columns, columns, [image, *others])
            return _Columns(image, listed(hot.columns), *others), hot
        return _Columns(image, require_column("label", columns, _LABEL, options), *others), None
    except Rejected as rejected:
        bare = any(is_picture(name) for name in columns)
        hint = "; write their names in the first line, such as file_name,label" if bare else ""
        if len(columns) == 1 and " " in columns[0]:
            hint = "; write commas between the columns"
        raise Rejected(f"{table}: {rejected.reasons[0]}{hint}") from rejected


def _read_row(line: Line, columns: _Columns, hot: LabelColumns | None, index: Images) -> _Row:
    row = line.values

    def text(column: str | None) -> str | None:
        value = None if column is None else row.get(column)
        return None if column is None else tidy(value) if isinstance(value, str) else ""

    file_name = unicodedata.normalize("NFC", text(columns.image) or "")
    label = row.get(columns.label) if hot is None else hot.of(row)
    return _Row(
        where=line.where,
        name=index.find(line.root, file_name, split=line.place),
        file_name=file_name,
        label="" if label is None else label,
        split=line.split if columns.split is None else text(columns.split),
        group=text(columns.group),
        cluster=text(columns.cluster),
    )
