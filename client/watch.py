"""Progress for people: a bar a job where a terminal is watching, plain lines elsewhere."""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from threading import Event as Flag
from threading import Thread
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from adap.client.client import ENDED, Client, ClientError, Event, JobFailedError, Json

DRAIN_LOOK_S = 1.0
LINE_EVERY_S = 5.0  # without a terminal, between two lines that say the same with other numbers
SIGN_OF_LIFE_S = 30.0  # without a terminal, the longest that nothing is said
MOST_AHEAD = 2  # jobs that run, named to one that waits


class Line(Protocol):
    """Where one job, or one upload, shows how far it is."""

    def show(self, phase: str, *, completed: float, total: float | None, text: str) -> None:
        """How far it is; without a total nobody knows."""

    def note(self, text: str) -> None:
        """Something to remember: it stays in view."""

    def end(self, text: str, *, well: bool) -> None:
        """It has ended."""


class Board(Protocol):
    """Several lines, all in view at once."""

    def line(self, label: str) -> Line:
        """A new line."""


@contextmanager
def open_board(console: Console, *, sign_of_life_s: float = SIGN_OF_LIFE_S) -> Iterator[Board]:
    """A board on a console, as good as the console can show it.

    sign_of_life_s: where there is no terminal, the longest time without a line.
    """
    if not console.is_terminal:
        plain = _PlainBoard(console)
        alive = Thread(target=plain.show_life, args=(sign_of_life_s,), daemon=True)
        alive.start()
        try:
            yield plain
        finally:
            plain.closed.set()
            alive.join()
        return
    progress = Progress(
        TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        BarColumn(bar_width=24, complete_style="cyan", finished_style="green"),
        TextColumn("{task.fields[text]}", table_column=Column(ratio=1, no_wrap=True)),
        console=console,
        expand=True,
    )
    with progress:
        yield _LiveBoard(progress)


def drained(client: Client, queues: Sequence[str], console: Console) -> list[Json]:
    """These queues once nothing runs in them. Raises ResumedError if one is resumed meanwhile."""
    most = 0
    with open_board(console) as board:
        line = board.line("drain")
        while True:
            items = [item for item in client.queues.list() if item["name"] in queues]
            for item in items:
                if not item["paused"]:
                    raise ResumedError(f"The queue {item['name']} was resumed meanwhile.")
            running = sum(item["running"] for item in items)
            if running == 0:
                line.end("nothing runs any more", well=True)
                return items
            most = max(most, running)
            line.show("waiting", completed=most - running, total=most, text=f"{running} running")
            time.sleep(DRAIN_LOOK_S)


class ResumedError(ClientError):
    """A queue that was drained was resumed before it was empty."""


def follow(client: Client, job: Json, line: Line, *, epochs: bool = True) -> Json:
    """Show a job until it ends; the job. Raises JobFailedError if it ends without a result."""

    def on_event(event: Event) -> None:
        match event.type:
            case "progress" if event.data["status"] == "queued":
                line.show("queued", completed=0, total=1, text=queued_text(client, job["id"]))
            case "progress":
                _show_progress(line, event.data)
            case "epoch" if epochs:
                line.note(epoch_text(event.data))
            case "stopped_early":
                line.note(f"stops early: no epoch was better than {event.data['best_epoch']}")
            case "checkpoint_not_kept":
                line.note("the service's disk has no room for a checkpoint; trains on without")
            case "fact":
                line.note(event.data["message"])
            case "resumed":
                line.note(f"goes on after epoch {event.data['epoch']}")
            case "queued" if event.data.get("reason") == "worker_lost":
                line.note("its worker died; queued again")
            case "queued" if event.data.get("reason") == "device_error":
                line.note("the device of its worker failed; queued again for another")
            case "queued" if event.data.get("reason") == "worker_shutdown":
                line.note("its worker was stopped; queued again")

    line.note(job["id"])
    try:
        ended = client.jobs.wait(job["id"], on_event=on_event)
    except JobFailedError as error:
        line.end(error.job["status"], well=False)
        raise
    except BaseException as error:
        line.end("failed" if isinstance(error, Exception) else "still at work", well=False)
        raise
    reading = ((ended["result"] or {}).get("summary") or {}).get("reading")
    if reading is not None:
        line.note(f"read as {reading['summary']}")
    started, finished = (
        datetime.fromisoformat(ended[key]) for key in ("started_at", "finished_at")
    )
    line.end(f"done in {duration((finished - started).total_seconds())}", well=True)
    return ended


def follow_all(
    client: Client, jobs: Sequence[Json], lines: Sequence[Line], *, epochs: bool = True
) -> list[Json]:
    """Show jobs until all have ended. Raises the error of the first that has no result."""
    ended: dict[str, Json | ClientError] = {}

    def one(job: Json, line: Line) -> None:
        try:
            ended[job["id"]] = follow(client, job, line, epochs=epochs)
        except ClientError as error:
            ended[job["id"]] = error

    # daemons, so that Ctrl-C ends the watching and not the jobs
    threads = [Thread(target=one, args=pair, daemon=True) for pair in zip(jobs, lines, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results = []
    for job in jobs:
        result = ended[job["id"]]
        if isinstance(result, ClientError):
            raise result
        results.append(result)
    return results


def follow_sweep(sweeps: Iterable[Json], line: Line) -> Json:
    """Show a sweep until it ends; the sweep. `sweeps` is the same one, again and again."""
    told: set[int] = set()
    sweep: Json = {}
    try:
        for sweep in sweeps:
            ended = [trial for trial in sweep["trials"] if trial["status"] in ENDED]
            for trial in ended:
                if trial["number"] not in told:
                    told.add(trial["number"])
                    line.note(trial_text(trial))
            running = sum(trial["status"] == "running" for trial in sweep["trials"])
            line.show(
                "trials",
                completed=len(ended),
                total=sweep["planned"],
                text=f"{len(ended):,}/{sweep['planned']:,} trials, {running} running",
            )
    except BaseException as error:
        line.end("failed" if isinstance(error, Exception) else "still at work", well=False)
        raise
    line.end(sweep["status"], well=sweep["status"] == "succeeded")
    return sweep


def trial_text(trial: Json) -> str:
    """What became of a trial."""
    changes = "  ".join(
        f"{path} {value if isinstance(value, str) else json.dumps(value)}"
        for path, value in trial["parameters"].items()
    )
    if trial["status"] != "succeeded":
        reason = f": {trial['error']['message']}" if trial["error"] else ""
        return f"trial {trial['number']}  {changes}  {trial['status']}{reason}"
    figures = {"clean AP": trial["clean_ap"], "robust AP": trial["robust_ap"]}
    shown = "  ".join(f"{name} {value:.4f}" for name, value in figures.items() if value is not None)
    return f"trial {trial['number']}  {changes}  {shown}"


def epoch_text(record: Json) -> str:
    """What an epoch brought. A method with an AP surrogate has a loss that says nothing."""
    figures = (
        {"surrogate AP": record["metrics"]["surrogate_ap"]}
        if ("surrogate_ap" in record["metrics"])
        else {"loss": record["loss"]}
    )
    figures |= {"clean AP": record["clean_ap"], "robust AP": record["robust_ap"]}
    shown = "  ".join(f"{name} {value:.4f}" for name, value in figures.items() if value is not None)
    return f"epoch {record['epoch']}/{record['epochs']}  {shown}"


def queued_text(client: Client, job_id: str) -> str:
    """Where a job waits: its place, why it cannot start, and what runs before it."""
    try:
        job = client.jobs.show(job_id)
        running = client.jobs.page(status="running", limit=MOST_AHEAD, sort="oldest")
    except ClientError:
        return "queued"  # a service that is away is waited for elsewhere
    if job["status"] != "queued":
        return "starting"
    text = "queued"
    if job["queue_position"]:
        text += f", {job['queue_position']:,} ahead"
    if job["waiting_for"]:
        text += f": {job['waiting_for']}"
    before = [
        f"{other['kind'].replace('_', ' ')} {running_text(other)}" for other in running["data"]
    ]
    more = ", …" if running["has_more"] else ""
    return f"{text}; now running: {'; '.join(before)}{more}" if before else text


def running_text(job: Json) -> str:
    """How far a job is that runs."""
    progress = job["progress"]
    return "starting" if progress is None else progress_text(progress)


def progress_text(progress: Json) -> str:
    """How far a job is, and how long its phase will take."""
    text = "{phase} {completed:,}/{total:,} {unit}".format(**progress)
    return f"{text}, {duration(progress['eta_s'])} left" if progress["eta_s"] else text


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _show_progress(line: Line, state: dict[str, Any]) -> None:
    progress = state["progress"]
    if state["status"] in ENDED:
        return  # said when the job is at hand
    if progress is None or state["status"] != "running":
        text = {"running": "starting"}.get(state["status"], state["status"])
        line.show(state["status"], completed=0, total=None, text=text)
    else:
        line.show(
            progress["phase"],
            completed=progress["completed"],
            total=progress["total"],
            text=progress_text(progress),
        )


class _LiveBoard:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def line(self, label: str) -> Line:
        return _LiveLine(self._progress, label)


class _LiveLine:
    def __init__(self, progress: Progress, label: str) -> None:
        self._progress = progress
        self._label = label
        self._task = progress.add_task(escape(label), total=1, text="waiting")

    def show(self, phase: str, *, completed: float, total: float | None, text: str) -> None:
        del phase
        self._progress.update(self._task, completed=completed, total=total, text=escape(text))

    def note(self, text: str) -> None:
        self._progress.console.print(f"[dim]{escape(self._label)}[/]  {escape(text)}")

    def end(self, text: str, *, well: bool) -> None:
        if well:
            self._progress.update(self._task, completed=1, total=1, text=f"[green]{escape(text)}")
        else:
            self._progress.update(self._task, text=f"[red]{escape(text)}")


class _PlainBoard:
    def __init__(self, console: Console) -> None:
        self.console = console
        self.closed = Flag()  # nothing is said any more, whoever still follows a job
        self._lines: list[_PlainLine] = []

    def line(self, label: str) -> Line:
        line = _PlainLine(self, label)
        self._lines.append(line)
        return line

    def show_life(self, every_s: float) -> None:
        """Let every line that has not ended repeat what it said, where that is long ago."""
        while not self.closed.wait(every_s / 10):
            for line in list(self._lines):
                line.show_life(every_s)


class _PlainLine:
    def __init__(self, board: _PlainBoard, label: str) -> None:
        self._board = board
        self._label = label
        self._phase = ""
        self._said = 0.0
        self._last = ""
        self._since = time.monotonic()
        self._ended = False

    def show(self, phase: str, *, completed: float, total: float | None, text: str) -> None:
        del completed, total
        self._last = text
        if phase == self._phase and time.monotonic() - self._said < LINE_EVERY_S:
            return
        self._phase = phase
        self.note(text)

    def show_life(self, every_s: float) -> None:
        if self._last and not self._ended and time.monotonic() - self._said >= every_s:
            self.note(f"{self._last} (after {duration(time.monotonic() - self._since)})")

    def note(self, text: str) -> None:
        self._said = time.monotonic()
        if not self._board.closed.is_set():
            self._board.console.print(
                f"{self._label}: {text}", markup=False, highlight=False, soft_wrap=True
            )

    def end(self, text: str, *, well: bool) -> None:
        del well
        self._ended = True
        self.note(text)
