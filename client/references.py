"""Names for ids: what people write where an id is asked for, and what is said where none is meant.

An id, the start of one, a name, or `@latest`. Names need not be unique: where one means several
things they are listed, with what tells them apart.
"""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from adap.client.base import ClientError, Json

LATEST = "@latest"
MOST_LISTED = 10

_ID = re.compile(r"[a-z]+_[0-9a-z]{26}")

DATASETS = ("dataset_id", "surrogate.train_on", "training.dataset_id")
MODELS = (
    "model_id",
    "surrogate.model_id",
    "warm_start.model_id",
    "training.warm_start.model_id",
)


class UnknownNameError(ClientError):
    """Nothing has this name, nor an id that begins so."""


class AmbiguousNameError(ClientError):
    """Several things have this name, or an id that begins so: `choices` tell them apart."""

    def __init__(self, noun: str, reference: str, found: Sequence[Json]) -> None:
        self.choices = [described(item) for item in found[:MOST_LISTED]]
        count = f"more than {MOST_LISTED}" if len(found) > MOST_LISTED else str(len(found))
        super().__init__(
            f"{reference!r} means {count} {noun}s. Say which by its id, or by so much of it as no "
            "other begins with."
        )


def is_id(reference: str) -> bool:
    """Whether this is a whole id, which nobody needs to look up."""
    return _ID.fullmatch(reference) is not None


def chosen(noun: str, reference: str, found: Sequence[Json]) -> Json | None:
    """The one of these that is meant; a name goes before the start of an id.

    None where there is none. Raises AmbiguousNameError.
    """
    meant = [item for item in found if name_of(item) == reference] or found
    if len(meant) > 1:
        raise AmbiguousNameError(noun, reference, meant)
    return meant[0] if meant else None


def unknown(noun: str, reference: str, others: Sequence[Json]) -> UnknownNameError:
    """The refusal of a name that nothing has; `others` are some that there are."""
    names = sorted({name for item in others if (name := name_of(item)) is not None})
    near = get_close_matches(reference, names, n=1)
    near = near or [LATEST] * reference.startswith("@")
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UnknownNameError(
        f"There is no {noun} with the name {reference!r}, nor one whose id begins so.{hint}"
    )


def none_yet(noun: str, asked: Mapping[str, str | None]) -> UnknownNameError:
    """The refusal of `@latest` where there is none such."""
    noun = {"audit": "audit", "rank": "ranking"}.get(asked.get("kind") or "", noun)
    ended = f" that has {status}" if (status := asked.get("status")) else ""
    return UnknownNameError(f"There is no {noun}{ended} yet.")


def name_of(item: Json) -> str | None:
    """What a data set, a model, a sweep or a job is called, if it is called something."""
    name = item.get("name") or item.get("request", {}).get("name")
    return None if name is None else str(name)


def described(item: Json) -> str:
    """One line that tells a thing from others of its name."""
    parts = [item["id"], item["created_at"][:16].replace("T", " ")]
    if "kind" in item:
        parts.append(item["kind"].replace("_", " "))
    parts.append(item.get("status", ""))
    if name := name_of(item):
        parts.append(repr(name))
    if summary := item.get("summary"):
        parts.append(f"{summary['examples']:,} images, {len(summary['classes'])} classes")
    if manifest := item.get("manifest"):
        parts.append(str(manifest["architecture"]))
    return "  ".join(part for part in parts if part)


def at(request: Mapping[str, Any], path: str) -> str | None:
    """The reference at a path of a request, if there is one."""
    here: Any = request
    for part in path.split("."):
        here = here.get(part) if isinstance(here, Mapping) else None
    return here if isinstance(here, str) else None


def put(request: Mapping[str, Any], path: str, value: str) -> Json:
    """The request with another value at a path that it has."""
    first, _, rest = path.partition(".")
    return {**request, first: put(request[first], rest, value) if rest else value}
