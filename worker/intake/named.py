"""Examples whose labels no folder says: labels in the names of images, splits of their folders.

cat_0001.png, train/dog.12.jpg      the label is what stands before the last mark of the name
"""

from collections.abc import Sequence
from dataclasses import replace

from adap.core.config.data import DatasetOptions
from adap.models.header import shown
from adap.worker.intake.examples import Example
from adap.worker.intake.limits import Reasons, Rejected
from adap.worker.intake.names import label_problem, tidy
from adap.worker.intake.notes import Notes, counted, listed
from adap.worker.intake.splits import names_a_split_alone, splits_of


def by_names(
    images: Sequence[str], mark: str, *, options: DatasetOptions, notes: Notes
) -> list[Example]:
    """The examples of images whose names hold their labels, before the last `mark`.

    Raises Rejected, by name, for each image without one.
    """
    reasons, examples = Reasons(), []
    bare: dict[str, list[str]] = {}  # names without the mark, by folder
    for name in sorted(images):
        base = name.rpartition("/")[2]
        label = tidy((base.rpartition(".")[0] or base).rpartition(mark)[0])
        if not label:
            bare.setdefault(name.rpartition("/")[0], []).append(name)
        elif problem := label_problem(label):
            reasons.add(f"{shown(name)}: {problem} before the last {shown(mark)} of its name")
        else:
            examples.append(Example(name, name, (label,)))
    for folder, names in bare.items():
        where = f" of {shown(folder)}" if folder else ""
        reasons.add(
            f"expected a label before the last {shown(mark)} of each name, got none in "
            f"{counted(len(names), 'image')}{where}, for example {shown(names[0])}: leave them "
            "out, as a test split without labels judges nothing"
        )
    reasons.settle()
    notes.step(f"labels are what stands before the last {shown(mark)} in the names of the images")
    return with_splits_of_folders(examples, options.folders, notes)


def with_splits_of_folders(
    examples: list[Example], declared: str | None, notes: Notes
) -> list[Example]:
    """Where no column names the split, the folders of the images may: all of them, or none."""
    if declared is not None and set(declared.split("/")) == {"-"}:
        return examples
    levels: list[list[str]] = [example.example_id.split("/")[:-1] for example in examples]
    place = 0
    if declared is not None:
        if "split" not in declared.split("/"):
            raise Rejected(
                "expected `folders` with a split in it, or -, where no folder is a class, got "
                f"{declared}"
            )
        place = declared.split("/").index("split")
    while (
        declared is None
        and all(len(path) > place for path in levels)
        and len({path[place] for path in levels}) == 1
        and not names_a_split_alone(levels[0][place])
    ):
        place += 1  # a folder around everything
    tops = [path[place] if len(path) > place else "" for path in levels]
    splits = splits_of(set(tops))
    named = sorted(splits)
    if not named:
        return examples
    if len(named) < len(set(tops)) or not all(map(names_a_split_alone, named)):
        others = listed(sorted(set(tops) - set(named))) if len(named) < len(set(tops)) else ""
        raise Rejected(
            f"there is no column `split`, and the folder {listed(named)} could be one"
            f"{f', but {others} beside it could not' if others else ''}: add a column `split` to a "
            "table, or say with `folders` that folders are splits (--folders split) or mean "
            "nothing (--folders -)"
        )
    told = ", ".join(f"`{folder}` ({splits[folder]})" for folder in named)
    notes.step(f"{counted(len(set(splits.values())), 'split')} from folders {told}")
    return [replace(e, split=splits[top]) for e, top in zip(examples, tops, strict=True)]
