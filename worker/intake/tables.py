"""Which labels, split, group and cluster each image of a zip has, where a table says it.

    metadata.csv                  file_name,label[,split][,group][,cluster], columns in any order,
    images/0001.png               as Hugging Face's imagefolder; where it is there, it alone decides

With a column `labels` instead of `label` an image may have any number of classes: `cat|dog`, or
nothing for none of them.
"""

import csv
import io
import unicodedata
from collections.abc import Iterator, Sequence

from adap.models.header import shown
from adap.worker.intake.examples import Example
from adap.worker.intake.limits import Reasons, Rejected
from adap.worker.intake.names import cluster_problem, group_problem, labels_problem, tidy
from adap.worker.intake.notes import Notes, counted, listed
from adap.worker.intake.splits import names_a_split_alone, split_problem, splits_of

METADATA = "metadata.csv"

_COLUMNS = {"file_name", "label", "labels", "split", "group", "cluster"}


def by_table(
    names: Sequence[str], table: str, content: bytes, *, declared: str | None, notes: Notes
) -> tuple[list[Example], bool]:
    """The examples that a table names, and whether each may have several labels.

    declared: what each level of folders is, as in `DatasetOptions.folders`: split, or -.
    """
    root = table.removesuffix(METADATA)
    missing = {name.removeprefix(root): name for name in names}  # images without a line so far
    reasons = Reasons()
    examples = []
    multilabel = has_splits = False
    for line, row in _rows(content, reasons):
        file_name = unicodedata.normalize("NFC", row["file_name"])
        multilabel, has_splits = "labels" in row, "split" in row
        labels = split_labels(row["labels"]) if multilabel else (tidy(row["label"]),)
        split = row["split"].strip() if "split" in row else None
        group = tidy(row["group"]) if "group" in row else None
        cluster = tidy(row["cluster"]) if "cluster" in row else None
        name = missing.pop(file_name, None)
        problem = (
            f"expected the name of an image, once, got {shown(file_name)}"
            if name is None
            else labels_problem(labels)
            or (split_problem(split) if split is not None else None)
            or (group_problem(group) if group is not None else None)
            or (cluster_problem(cluster) if cluster is not None else None)
        )
        if problem or name is None:
            reasons.add(f"{METADATA}, line {line}: {problem}")
            continue
        split = None if split is None else splits_of([split])[split]
        examples.append(Example(name, file_name, labels, split, group, cluster))
    for name in missing.values():
        reasons.add(f"{shown(name)}: expected a line with its label in {METADATA}, got none")
    reasons.settle()
    notes.step(f"labels from `{METADATA}`")
    if not has_splits:
        examples = _with_splits_of_folders(examples, declared, notes)
    return sorted(examples, key=lambda example: example.name), multilabel


def split_labels(text: str) -> tuple[str, ...]:
    """The labels of one image, which stand with | between them."""
    return tuple(map(tidy, text.split("|"))) if text.strip() else ()


def _with_splits_of_folders(
    examples: list[Example], declared: str | None, notes: Notes
) -> list[Example]:
    """Where no column names the split, the folders of the images may: all of them, or none."""
    if declared is not None and set(declared.split("/")) == {"-"}:
        return examples
    levels: list[list[str]] = [example.example_id.split("/")[:-1] for example in examples]
    place = 0 if declared is None else declared.split("/").index("split")
    while (
        declared is None
        and all(len(path) > place for path in levels)
        and (len({path[place] for path in levels}) == 1)
    ):
        if names_a_split_alone(levels[0][place]):
            break
        place += 1  # a folder around everything
    tops = [path[place] if len(path) > place else "" for path in levels]
    splits = splits_of(set(tops))
    named = sorted(splits)
    if not named:
        return examples
    if len(named) < len(set(tops)) or not all(map(names_a_split_alone, named)):
        others = listed(sorted(set(tops) - set(named))) if len(named) < len(set(tops)) else ""
        raise Rejected(
            f"{METADATA} has no column `split`, and the folder {listed(named)} could be one"
            f"{f', but {others} beside it could not' if others else ''}: add the column, or say "
            "with `folders` that folders are splits (--folders split) or mean nothing (--folders -)"
        )
    told = ", ".join(f"`{folder}` ({splits[folder]})" for folder in named)
    notes.step(f"{counted(len(set(splits.values())), 'split')} from folders {told}")
    return [
        Example(e.name, e.example_id, e.labels, splits[top], e.group, e.cluster)
        for e, top in zip(examples, tops, strict=True)
    ]


def _rows(content: bytes, reasons: Reasons) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of the table by column, each with the number of its (last) line."""
    reader = csv.reader(io.StringIO(_text(content), newline=""), strict=True)
    header: list[str] | None = None
    try:
        for row in reader:
            if header is None:
                header = row
                if not _is_header(header):
                    break
            elif row and len(row) != len(header):
                reasons.add(
                    f"{METADATA}, line {reader.line_num}: expected {len(header)} values, "
                    f"got {len(row)}"
                )
            elif row:
                yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise Rejected(f"{METADATA}, line {reader.line_num}: expected CSV, got {error}") from error
    if header is None or not _is_header(header):
        raise Rejected(
            f"{METADATA}: expected the columns file_name,label[,split][,group][,cluster] in any "
            "order (labels instead of label where an image may have several), "
            f"got {shown(','.join(header or []))}"
        )


def _is_header(columns: Sequence[str]) -> bool:
    """Whether these are the columns of a table: all that is needed, nothing unknown or twice."""
    names = set(columns)
    one_kind = len(names & {"label", "labels"}) == 1
    return "file_name" in names <= _COLUMNS and one_kind and len(names) == len(columns)


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Rejected(f"{METADATA}: expected UTF-8, got {error}") from error
