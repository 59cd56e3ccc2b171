"""What operators see, queues and keys; and problems, which everybody sees."""

from collections.abc import Iterable, Sequence

from rich.console import RenderableType
from rich.markup import escape

from adap.client.client import Json
from adap.client.show.parts import table, when


def queues(items: Sequence[Json]) -> RenderableType:
    """Queues: whether workers take jobs, what waits and what runs."""
    return table(
        *("queue", "workers take jobs", "queued", "running", "reason"),
        rows=(
            (
                item["name"],
                f"no, paused since {when(item['paused_at'])}" if item["paused"] else "yes",
                item["queued"],
                item["running"],
                item["reason"] or "",
            )
            for item in items
        ),
        right=("queued", "running"),
    )


def keys(items: Sequence[Json]) -> RenderableType:
    """API keys, without the keys themselves."""
    return table(
        *("id", "name", "tenant", "scopes", "created", "expires", "revoked"),
        rows=(
            (
                item["id"],
                item["name"],
                item["tenant"],
                ", ".join(item["scopes"]),
                when(item["created_at"]),
                when(item["expires_at"]),
                when(item["revoked_at"]),
            )
            for item in items
        ),
    )


def problem(title: str, details: Iterable[str]) -> str:
    """A problem and its single faults, as console markup."""
    return "\n".join((f"[red]{escape(title)}[/]", *(f"  - {escape(text)}" for text in details)))
