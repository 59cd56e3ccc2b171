"""Names of labels, groups and clusters: which can be, and how one is written."""

import unicodedata
from collections.abc import Sequence

from adap.models.header import shown
from adap.wording import is_name

MAX_NAME_CHARACTERS = 200  # of a class, a group or a cluster


def tidy(text: str) -> str:
    """A name without space around it, in Unicode NFC."""
    return unicodedata.normalize("NFC", text.strip())


def label_problem(label: str) -> str | None:
    """Why this cannot be the name of a class, if it cannot."""
    return name_problem("label", label)


def labels_problem(labels: Sequence[str]) -> str | None:
    """Why these cannot be the labels of one image, if they cannot."""
    if len(set(labels)) < len(labels):
        return f"expected each label once, got {shown('|'.join(labels))}"
    return next(filter(None, map(label_problem, labels)), None)


def group_problem(group: str) -> str | None:
    """Why this cannot be the name of a group, if it cannot."""
    return name_problem("group", group)


def cluster_problem(cluster: str) -> str | None:
    """Why this cannot be the name of a cluster, if it cannot."""
    return name_problem("cluster", cluster)


def name_problem(kind: str, name: str) -> str | None:
    """Why this cannot be the name of what `kind` says, if it cannot."""
    if name and is_name(name) and len(name) <= MAX_NAME_CHARACTERS:
        return None
    return (
        f"expected a {kind} of 1 to {MAX_NAME_CHARACTERS} printable characters, got {shown(name)}"
    )
