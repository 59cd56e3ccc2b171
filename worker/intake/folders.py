"""Classes and splits of the images of a zip, from the names of its folders.

    cat/0001.png                  class folders, as torchvision's ImageFolder
    train/cat/0001.png            class folders inside split folders
    cat/train/0001.png            split folders inside class folders

All of it may lie in one more folder; folders inside a class folder mean nothing.
What can be read in two ways is refused with both and with the option `folders` that chooses.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from adap.core.config.base import Split
from adap.models.header import shown
from adap.worker.intake.examples import Example
from adap.worker.intake.limits import Reasons, Rejected
from adap.worker.intake.names import name_problem
from adap.worker.intake.notes import Notes, counted, listed
from adap.worker.intake.splits import names_a_split_alone, refuse_misspelt, splits_of

_WRAPPERS = {"data", "dataset", "images", "imgs", "img", "jpg", "png"}  # inside a split folder

_SPLITS_FIRST = ["split", "class"]

Paths = dict[str, list[str]]
"""The parts of the name of each image, without what wraps them, by its name in the archive."""


def by_folders(names: Sequence[str], *, declared: str | None, notes: Notes) -> list[Example]:
    """The examples of images in folders; raises Rejected where it is not clear what these mean.

    declared: what each level of folders is, as in `DatasetOptions.folders`; None to find out.
    """
    paths = _unwrapped({name: name.split("/") for name in names}, notes)
    if declared is None:
        _refuse_copies(paths)
    roles = _find_roles(paths, notes) if declared is None else declared.split("/")
    if roles.count("class") != 1:
        raise Rejected(
            f"expected `folders` with one class in it where there is no table, got {declared}"
        )
    if roles == _SPLITS_FIRST:
        paths = _inside_splits(paths)
    if declared is None:
        _refuse_deeper(paths, roles)
    return _examples(paths, roles, notes)


def _examples(paths: Paths, roles: Sequence[str], notes: Notes) -> list[Example]:
    reasons = Reasons()
    outside: dict[str, list[str]] = {}  # images by the folder that holds them, and is no class
    deep: dict[str, set[str]] = {}  # folders inside of class folders, "" for these themselves
    level = {role: i for i, role in enumerate(roles) if role != "-"}
    splits = splits_of(
        {path[level["split"]] for path in paths.values() if len(path) > len(roles)}
        if "split" in level
        else ()
    )
    examples = []
    for name, path in paths.items():
        if len(path) <= len(roles):
            outside.setdefault("/".join(path[:-1]), []).append(name)
            continue
        told = {role: path[i] for role, i in level.items()}
        problem = next(
            filter(None, (name_problem(_WORDS[role], text) for role, text in told.items())), None
        )
        if "split" in told and told["split"] not in splits:
            problem = (
                f"expected a folder named like a split (train, validation, test), got "
                f"{shown(told['split'])}"
            )
        if problem:
            reasons.add(f"{shown(name)}: {problem}")
            continue
        below = path[len(roles)] if len(path) > len(roles) + 1 else ""
        deep.setdefault(told["class"], set()).add(below)
        examples.append(
            Example(
                name,
                "/".join(path),
                (told["class"],),
                splits.get(told.get("split", "")),
                told.get("group"),
                told.get("cluster"),
            )
        )
    where = {
        ("class",): "class folders",
        ("split", "class"): "class folders inside the split folders",
        ("class", "split"): "split folders inside the class folders",
    }.get(tuple(roles), f"folders for {'/'.join(roles)}")
    for folder, names in outside.items():
        beside = f"the folder {shown(folder)}" if folder else "them"
        reasons.add(
            f"expected images in {where}, got {counted(len(names), 'image')} outside, for example "
            f"{shown(names[0])}: leave {beside} out, or say the labels of all images in a "
            "metadata.csv (file_name,label,split)"
        )
    reasons.settle()
    notes.step(f"folders are {'/'.join(roles)}")
    if splits:
        named = ", ".join(f"`{folder}` ({split})" for folder, split in sorted(splits.items())[:10])
        notes.step(f"{counted(len(set(splits.values())), 'split')} from folders {named}")
        _note_joined(splits, notes)
    if any(folders != {""} for folders in deep.values()):
        notes.step("folders below these mean nothing")
    several = {label: folders for label, folders in deep.items() if len(folders) > 1}
    if several:
        label, folders = min(several.items())
        beside = " and the images beside them" if "" in folders else ""
        notes.fact(
            "info",
            "folders_below_classes",
            f"inside {counted(len(several), 'class folder')} lie several folders, which are not "
            f"told apart: {listed(sorted(folders - {''}))}{beside} are all {shown(label)}; if each "
            "is a class, say so with `folders` (--folders -/class)",
            classes=len(several),
        )
    return examples


_WORDS = {"class": "label", "split": "split", "group": "group", "cluster": "cluster"}


def _note_joined(splits: Mapping[str, Split], notes: Notes) -> None:
    """Note folders that are one split together."""
    for split in sorted(set(splits.values())):
        folders = sorted(folder for folder, of in splits.items() if of == split)
        if len(folders) > 1:
            notes.fact(
                "info",
                "joined_splits",
                f"the folders {listed(folders)} are one {split} split together: leave out what "
                "should not be in it",
                folders=len(folders),
            )


def _find_roles(paths: Paths, notes: Notes) -> list[str]:
    """What each level of folders is. Raises Rejected where it could be one thing or another."""
    tops = sorted({path[0] for path in paths.values() if len(path) > 1})
    refuse_misspelt(tops)
    splits = splits_of(tops)
    deep = sorted({path[0] for path in paths.values() if len(path) > 2})
    if splits and any(top in splits for top in deep):
        _check_split_folders(tops, _inside_splits(paths))
        return _SPLITS_FIRST
    if splits and len(splits) == len(tops):
        raise Rejected(
            f"expected class folders inside {shown(tops[0])}, got images directly in it: say the "
            f"labels in a metadata.csv, or, if {listed(tops)} are the classes, send "
            "`folders` (--folders class)"
        )
    if splits:
        some = listed(sorted(splits))
        notes.fact(
            "info",
            "class_named_like_a_split",
            f"the folder {some} is taken for a class, as images lie directly in it and "
            f"{listed([top for top in tops if top not in splits])} beside it name no split",
        )
    return _find_inner_roles(paths)


_PART = re.compile(
    r"(.*[\W_])?(part|images?|imgs?|batch|chunk|shard|fold|subset|set|data|dir|folder)[\W_]*\d+",
    re.IGNORECASE,
)


def refuse_parts(examples: Sequence[Example], tables: Sequence[str]) -> None:
    """Raise Rejected for class folders that are called as the parts of one collection are."""
    classes = sorted({label for example in examples for label in example.labels})
    if all(map(_PART.fullmatch, classes)):
        beside = f", such as in {listed(tables)}" if tables else ""
        raise Rejected(
            f"the folders {listed(classes)} look like parts of one collection and not like "
            f"classes: name the column of the table that says the labels{beside} (`label_column`, "
            "--label-column), or, if they are the classes, send `folders` (--folders class)"
        )


def refuse_other_labels(examples: Sequence[Example], told: Mapping[str, Mapping[str, str]]) -> None:
    """Raise Rejected where a table says other labels than the folders do, of half of the images.

    told: what tables say of images. Other names for the same classes are no other labels.
    """
    for table, labels in told.items():
        both = {(e.labels[0], labels[e.name]) for e in examples if e.name in labels}
        one_each = len(both) == len({a for a, _ in both}) == len({b for _, b in both})
        if one_each or 2 * len(labels) < len(examples):
            continue
        raise Rejected(
            f"the labels can be read in more than one way: the folders say "
            f"{listed(sorted({e.labels[0] for e in examples}))}, and {shown(table)} says "
            f"{listed(sorted({b for _, b in both}))}; say which with `folders` (--folders class) "
            "or `label_column` (--label-column COLUMN)"
        )


def _refuse_copies(paths: Paths) -> None:
    """Raise Rejected for a folder that holds folders called as those beside it, as a copy does."""
    inside: dict[tuple[str, ...], set[str]] = {}
    for path in paths.values():
        for i, folder in enumerate(path[:3][: len(path) - 1]):
            inside.setdefault(tuple(path[:i]), set()).add(folder)
    splits = splits_of(inside.get((), ()))
    for above in [(), *((split,) for split in sorted(splits))]:
        folders = inside.get(above, set())
        for folder in sorted(folders - (splits.keys() if not above else set())):
            if again := sorted(inside.get((*above, folder), set()) & folders - {folder}):
                raise Rejected(
                    f"expected each class in one place, got {listed(again)} inside {shown(folder)} "
                    "and beside it, as if that were a copy: leave it out, or, if it is a class of "
                    "its own, send `folders` (--folders class)"
                )


def _check_split_folders(tops: Sequence[str], paths: Paths) -> None:
    """Raise Rejected unless all top folders are splits, with the same classes in them."""
    splits, reasons = splits_of(tops), Reasons()
    for other in tops:
        if other not in splits:
            reasons.add(
                f"expected only split folders beside {shown(min(splits))}, got {shown(other)}: "
                f"leave it out, or, if {listed(tops)} are the classes, send `folders` "
                "(--folders class)"
            )
    reasons.settle()
    inner = {(path[0], path[1]) for path in paths.values() if len(path) > 2}
    below = Counter(folder for _, folder in inner)
    for top in sorted({top for top, _ in inner}):
        own = sorted(folder for above, folder in inner if above == top)
        elsewhere = len(below) - len(own)
        if (
            elsewhere > 1
            and all(below[folder] == 1 for folder in own)
            and (len(own) == 1 or max(below.values()) > 1)
        ):
            choose = ", or put them into folders of their classes"
            if len(own) > 1:
                choose = ", or, if these are classes, send `folders` (--folders split/class)"
            raise Rejected(
                f"expected the classes of the other splits in {shown(top)} too, got {listed(own)}, "
                f"which no other has: leave {shown(top)} out, if its images have no labels{choose}"
            )
    if len({top for top, _ in inner}) > 1 and max(below.values()) == 1:
        raise _two_readings(
            ("split/class", f"{listed(tops)} are splits, of the classes {listed(sorted(below))}"),
            ("class", f"{listed(tops)} are classes"),
        )


def _find_inner_roles(paths: Paths) -> list[str]:
    """What the folders inside the top folders are, which are no splits."""
    inner = {(path[0], path[1]) for path in paths.values() if len(path) > 2}
    below = {folder for _, folder in inner}
    outside = [name for name, path in paths.items() if len(path) == 2]
    splits = splits_of(below)
    if splits:
        if len(splits) == len(below) and not outside and all(map(names_a_split_alone, splits)):
            return ["class", "split"]
        raise _two_readings(
            ("class/split", f"inside the class folders {listed(sorted(splits))} are splits"),
            ("class", "folders inside the class folders mean nothing"),
        )
    return ["class"]


def _refuse_deeper(paths: Paths, roles: Sequence[str]) -> None:
    """Raise Rejected where folders below those with a role look like the classes or the splits."""
    place = len(roles)
    while all(len(path) > place + 1 for path in paths.values()):
        if len({path[place] for path in paths.values()}) > 1:
            break
        place += 1  # a folder that is in each of those above
    at = roles.index("class")
    gap = ["-"] * (place - len(roles))
    classes = sorted({path[at] for path in paths.values() if len(path) > at + 1})
    as_they_are = ("/".join(roles), f"the classes are {listed(classes)}")
    inner = {(path[at], path[place]) for path in paths.values() if len(path) > place + 1}
    below = Counter(folder for _, folder in inner)
    splits = splits_of(below)
    if "split" not in roles and splits and all(map(names_a_split_alone, below)):
        raise _two_readings(
            ("/".join([*roles, *gap, "split"]), f"{listed(sorted(splits))} in them are splits"),
            as_they_are,
        )
    again = sorted(folder for folder, count in below.items() if count > 1)
    outside = any(len(path) == place + 1 for path in paths.values())
    if len(again) > 1 and not outside and 2 * len(again) >= len(below):
        without, grouped = (
            "/".join([*roles[:at], role, *roles[at + 1 :], *gap, "class"])
            for role in ("-", "group")
        )
        raise _two_readings(
            as_they_are,
            (without, f"the classes are {listed(again)}, which recur in the folders above"),
            (grouped, "the same, and the folders above are groups; or cluster, or split"),
        )


def _two_readings(*readings: tuple[str, str]) -> Rejected:
    told = "; ".join(f"{value}: {meaning}" for value, meaning in readings)
    return Rejected(
        "the folders can be read in more than one way, as to splits and classes; say which with "
        f"`folders` (--folders {' or '.join(value for value, _ in readings)}): {told}"
    )


def _unwrapped(paths: Paths, notes: Notes) -> Paths:
    """Without the folders that hold everything and are neither a split nor, alone, a class."""
    left_out = []
    while True:
        first = next(iter(paths.values()))[0]
        if names_a_split_alone(first) or not all(
            len(path) > 2 and path[0] == first for path in paths.values()
        ):
            break
        left_out.append(first)
        paths = {name: path[1:] for name, path in paths.items()}
    if left_out:
        notes.step(f"all lies in the folder {shown('/'.join(left_out))}")
    return paths


def _inside_splits(paths: Paths) -> Paths:
    """Without folders between a split folder and its class folders, as `train/train/cat/1.png`."""
    while wrapped := _wrapped_splits(paths):
        paths = {
            name: [path[0], *path[2:]] if path[0] in wrapped and len(path) > 3 else path
            for name, path in paths.items()
        }
    return paths


def _wrapped_splits(paths: Paths) -> set[str]:
    inner: dict[str, set[str]] = {}
    for path in paths.values():
        if len(path) > 2:
            inner.setdefault(path[0], set()).add(path[1] if len(path) > 3 else "")
    return {
        split
        for split, (only, *others) in inner.items()
        if not others and (only == split or only.lower() in _WRAPPERS or splits_of([only]))
    }
