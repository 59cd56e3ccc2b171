"""`adap queue`: whether workers take jobs; for admins."""

import sys
from typing import Annotated

import typer

from adap.client import show, watch
from adap.client.commands.session import Session, session

app = typer.Typer(no_args_is_help=True, help="Queues: whether workers take jobs; for admins.")


QueueName = Annotated[
    str | None, typer.Argument(metavar="[QUEUE]", help="compute or intake; by default both.")
]
Reason = Annotated[str | None, typer.Option(help="Shown to all whose jobs wait.")]


@app.command("show")
def show_queues(context: typer.Context) -> None:
    """Whether queues are paused, what waits and what runs."""
    here = session(context)
    items = here.client.queues.list()
    here.answer(items, show.queues(items))


@app.command("pause")
def pause_queue(context: typer.Context, queue: QueueName = None, reason: Reason = None) -> None:
    """Let workers take no job; what runs goes on, and new jobs wait."""
    here = session(context)
    items = [here.client.queues.pause(name, reason=reason) for name in _queues(here, queue)]
    here.answer(items, show.queues(items))


@app.command("drain")
def drain_queue(context: typer.Context, queue: QueueName = None, reason: Reason = None) -> None:
    """Pause, and wait until all that runs has ended. Ctrl-C ends the waiting, not the pause."""
    here = session(context)
    names = _queues(here, queue)
    for name in names:
        here.client.queues.pause(name, reason=reason)
    try:
        items = watch.drained(here.client, names, here.err)
    except KeyboardInterrupt:
        here.err.print(f"{' and '.join(names)} stay paused. Resume: adap queue resume")
        sys.exit(130)
    here.answer(items, show.queues(items))


@app.command("resume")
def resume_queue(context: typer.Context, queue: QueueName = None) -> None:
    """Let workers take jobs again, which they do within seconds."""
    here = session(context)
    items = [here.client.queues.resume(name) for name in _queues(here, queue)]
    here.answer(items, show.queues(items))


def _queues(here: Session, queue: str | None) -> list[str]:
    return [item["name"] for item in here.client.queues.list()] if queue is None else [queue]
