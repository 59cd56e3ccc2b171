"""What every subcommand works with: the client, and where answers and progress are shown."""

import json as json_
import sys
from dataclasses import dataclass
from typing import Any, Protocol

import typer
from rich.console import Console, RenderableType

from adap.client import watch
from adap.client.client import Client, Json
from adap.client.references import DATASETS, LATEST, MODELS, at


class Named(Protocol):
    """Calls for things that may be named."""

    def id_of(self, reference: str, **query: str | None) -> str:
        """The id of what is meant."""


PIPE_COLUMNS = 1000  # a table that no terminal shows is not cut


@dataclass(frozen=True)
class Session:
    """What every subcommand works with."""

    client: Client
    json: bool
    out: Console
    err: Console

    def answer(self, value: Any, *shown: RenderableType) -> None:
        """Print a result: the JSON, or what people read instead of it."""
        if self.json:
            self.out.print(
                json_.dumps(value, indent=2, ensure_ascii=False),
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        else:
            self.out.print(*shown, sep="\n", highlight=False)

    def page(self, page: Json, shown: RenderableType, *, again: str = "") -> None:
        """Print a page of a list, and how to get the next: by the options `again` too."""
        self.answer(page, shown)
        if page["has_more"]:
            more = f"There is more: {again}--after {page['next_cursor']}"
            self.err.print(more, markup=False, highlight=False, soft_wrap=True)

    def the(self, named: Named, reference: str, **query: str) -> str:
        """The id of what a command line names; says which the newest is, where that is meant."""
        found = named.id_of(reference, **query)
        if reference == LATEST:
            self.err.print(f"{LATEST} is {found}", markup=False, highlight=False)
        return found

    def audit(self, reference: str) -> str:
        """The id of an audit; the newest is the newest that has a report."""
        return self.the(self.client.jobs, reference, kind="audit", status="succeeded")

    def with_ids(self, request: Json) -> Json:
        """A request with the ids of the data sets and models that it names."""
        found = self.client.with_ids(request)
        for path in (*MODELS, *DATASETS):
            if at(request, path) == LATEST:
                said = f"{LATEST} is {at(found, path)}"
                self.err.print(said, markup=False, highlight=False)
        return found

    def follow(self, *jobs: Json) -> list[Json]:
        """Show jobs until they end. Raises JobFailedError if one has no result."""
        try:
            with watch.open_board(self.err) as board:
                lines = [board.line(label(job)) for job in jobs]
                return watch.follow_all(self.client, jobs, lines)
        except KeyboardInterrupt:
            for job in jobs:
                self.err.print(
                    f"{job['id']} goes on without you. "
                    f"Watch it again: adap jobs watch {job['id']}\n"
                    f"Stop it: adap jobs cancel {job['id']}",
                    highlight=False,
                    soft_wrap=True,
                )
            sys.exit(130)


def session(context: typer.Context) -> Session:
    """The session that the command line asked for."""
    made = context.obj
    assert isinstance(made, Session)
    return made


def label(job: Json) -> str:
    """What a job is called beside its bar."""
    if job["kind"] == "train":
        return f"train {job['request']['method']['name']}"
    return str(job["kind"]).replace("_", " ")


def queued(job: Json) -> str:
    return f"{job['id']} is {job['status']}. Watch it: adap jobs watch {job['id']}"


def console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=PIPE_COLUMNS)
