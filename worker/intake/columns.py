"""Meanings of a table's columns, or an NPZ's arrays: by name, or as the sender says.

The documented name wins over others that are in use; what could be one or another is refused.
"""

import re
from collections.abc import Sequence
from typing import Literal, get_args

from adap.core.config.data import DatasetOptions
from adap.models.header import shown
from adap.worker.intake.limits import Rejected
from adap.worker.intake.notes import Notes, listed

Role = Literal["image", "label", "split", "group", "cluster"]
ROLES: tuple[Role, ...] = get_args(Role)

SYNONYMS: dict[Role, tuple[str, ...]] = {
    "image": (
        *("filename", "file", "image", "img", "image_id", "imageid", "image_name", "image_path"),
        *(
            "img_name",
            "img_path",
            "image_file",
            "filepath",
            "file_path",
            "path",
            "id_code",
            "fname",
        ),
    ),
    "label": ("class", "target", "category", "class_name", "label_name", "y", "diagnosis"),
    "split": ("splits", "set", "subset", "partition", "phase"),
    "group": ("groups",),
    "cluster": ("clusters",),
}
_WEAK: dict[Role, tuple[str, ...]] = {  # where there is no other
    "image": ("id", "name"),
    "label": ("class_id", "classid", "label_id", "category_id", "dx"),
}
_FOLDS = {"fold", "folds", "kfold", "k_fold", "cv_fold", "fold_id", "split_fold", "fold_number"}
_LIKE_CLUSTERS = ("patient", "subject", "drive", "scene", "study", "participant")


def find_column(
    role: Role, columns: Sequence[str], documented: Sequence[str], options: DatasetOptions
) -> str | None:
    """The column of a role, None where there is none. Raises Rejected where it is not clear."""
    asked: str | None = getattr(options, f"{role}_column")
    option = f"`{role}_column` (--{role}-column)"
    if asked is not None:
        if asked not in columns:
            raise Rejected(
                f"expected the {role} column {shown(asked)} that was asked for, "
                f"got {shown(', '.join(columns)[:300])}"
            )
        return asked
    found = [name for name in columns if name in documented]
    for known in (documented, SYNONYMS[role], _WEAK.get(role, ())):
        found = found or [name for name in columns if plain(name) in known]
    if len(found) > 1:
        raise Rejected(
            f"expected one column {' or '.join(documented)}, got {listed(found)}: say which with "
            f"{option}"
        )
    return found[0] if found else None


def plain(column: str) -> str:
    """The name of a column as it is compared: `file_name` of `File Name`."""
    return re.sub(r"[\s_-]+", "_", column.strip().lower())


def require_column(
    role: Role, columns: Sequence[str], documented: Sequence[str], options: DatasetOptions
) -> str:
    """The same of a role without which there is no data set."""
    found = find_column(role, columns, documented, options)
    if found is None:
        raise Rejected(
            f"expected one column {' or '.join(documented)}, "
            f"got {shown(', '.join(columns)[:300])}: name yours "
            f"with `{role}_column` (--{role}-column)"
        )
    return found


def note_unread(
    columns: Sequence[str],
    read: Sequence[str | None],
    notes: Notes,
    *,
    clustered: bool,
    split: bool = False,
) -> None:
    """Note the columns that mean nothing here, and those that look like clusters or folds.

    clustered, split: whether another column is known to mean clusters, or splits.
    """
    unread = [name for name in columns if name not in read]
    if unread:
        notes.step(f"columns not read: {listed(unread)}")
    if not split:
        note_folds(unread, notes)
    like = [name for name in unread if any(word in name.lower() for word in _LIKE_CLUSTERS)]
    if like and not clustered:
        notes.fact(
            "info",
            "clusters_not_declared",
            f"the column {listed(like)} looks like clusters of images that are no independent "
            f"draws; if it is, send `cluster_column` (--cluster-column {like[0]})",
        )


def note_folds(unread: Sequence[str], notes: Notes) -> None:
    """Note what is not read and looks like folds, which say no split until one is chosen."""
    folds = [name for name in unread if plain(name) in _FOLDS]
    if folds:
        notes.fact(
            "info",
            "folds_not_read",
            f"{listed(folds)} looks like the folds of a cross-validation, which are no splits: if "
            "one of them is tested on, write train and test in a column or an array `split`",
        )
