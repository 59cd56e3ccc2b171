"""`adap sweep` and `adap sweeps`: trainings that differ in some fields."""

import sys
from typing import Annotated, Any

import typer

from adap.client import show, watch
from adap.client.client import ClientError
from adap.client.commands.options import (
    After,
    ConfigFile,
    DryRun,
    Limit,
    OfDataset,
    Positive,
    Set,
    SweepRef,
    TrainingPreset,
    TrainingSample,
    Watch,
)
from adap.client.commands.requests import build_request, parse_json, task, value_of, without_none
from adap.client.commands.session import Session, session

app = typer.Typer(no_args_is_help=True, help="Sweeps: trainings that differ in some fields.")


class SweepFailedError(ClientError):
    """A sweep that was watched has ended without a model, or was cancelled."""


def sweep(
    context: typer.Context,
    vary: Annotated[
        list[str],
        typer.Option(
            metavar="PATH=VALUES",
            help="A field and its values, for example method.lambda=0.1,1,10; with --trials also "
            "a range, as optimizer.lr=1e-5..1e-2:log. May be given several times.",
        ),
    ],
    dataset: OfDataset = None,
    positive: Positive = None,
    method: Annotated[
        str | None, typer.Option(help="ce, ap, pgd, trades, mart, adap_lpn, …")
    ] = None,
    preset: TrainingPreset = None,
    sample: TrainingSample = None,
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="Search with so many trials; by default every combination."),
    ] = None,
    at_once: Annotated[
        int | None, typer.Option(min=1, help="With --trials: how many are queued or run at a time.")
    ] = None,
    maximise: Annotated[
        str | None, typer.Option(help="With --trials: both, robust_ap or clean_ap.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the sweep.")] = None,
    seed: Annotated[int | None, typer.Option(help="With --trials: of the search.")] = None,
    config: ConfigFile = None,
    set_: Set = None,
    dry_run: DryRun = False,
    watch_: Watch = False,
) -> None:
    """Train many models that differ in some fields, and show which are worth having."""
    here = session(context)
    training = build_request(
        config,
        {
            "dataset_id": dataset,
            "task": task(positive),
            "method": method,
            "preset": preset,
            "sample": sample,
        },
        set_,
    )
    only_searched = {"at_once": at_once, "maximise": maximise, "seed": seed}
    if trials is None and (given := without_none(only_searched)):
        raise typer.BadParameter(
            "expected --trials with it", param_hint=f"--{next(iter(given)).replace('_', '-')}"
        )
    search = {
        "kind": "grid" if trials is None else "tpe",
        "parameters": dict(varied(text, ranges=trials is not None) for text in vary),
        **without_none({"trials": trials, **only_searched}),
    }
    request = without_none({"name": name, "training": training, "search": search})
    request = here.with_ids(request)
    if dry_run:
        found = here.client.estimate("sweeps", request)
        here.answer(found, show.estimate(found, "sweep"))
        return
    made = here.client.sweep(request)
    if not watch_:
        count = f"{made['planned']:,} trials"
        here.answer(made, f"{made['id']}: {count}. Watch it: adap sweeps watch {made['id']}")
        return
    _follow_sweep(here, made["id"])


@app.command("list")
def list_sweeps(context: typer.Context, limit: Limit = 20, after: After = None) -> None:
    """The sweeps, newest first."""
    here = session(context)
    page = here.client.sweeps.page(limit=limit, after=after)
    here.page(page, show.sweeps(page["data"]))


@app.command("show")
def show_sweep(context: typer.Context, sweep_id: SweepRef) -> None:
    """One sweep: its trials, the best of them and the Pareto front."""
    here = session(context)
    sweep_id = here.the(here.client.sweeps, sweep_id)
    found = here.client.sweeps.show(sweep_id)
    here.answer(found, show.sweep(found))


@app.command("watch")
def watch_sweep(context: typer.Context, sweep_id: SweepRef) -> None:
    """Show progress until the end; fails if no trial succeeds."""
    here = session(context)
    sweep_id = here.the(here.client.sweeps, sweep_id)
    _follow_sweep(here, here.client.sweeps.show(sweep_id)["id"])


@app.command("cancel")
def cancel_sweep(context: typer.Context, sweep_id: SweepRef) -> None:
    """Cancel the trials that have not ended, and make no more."""
    here = session(context)
    sweep_id = here.the(here.client.sweeps, sweep_id)
    found = here.client.sweeps.cancel(sweep_id)
    here.answer(found, f"{sweep_id} is {found['status']}.")


def varied(text: str, *, ranges: bool) -> tuple[str, Any]:
    """A field and its values: `method=ce,ap`, a JSON list, or `optimizer.lr=1e-5..1e-2:log`."""
    path, equals, values = text.partition("=")
    if not equals or not path or not values:
        raise typer.BadParameter(f"expected PATH=VALUES, got {text!r}", param_hint="--vary")
    low, dots, high = values.partition("..")
    if dots and not values.startswith("["):
        high, _, log = high.partition(":")
        if not ranges or log not in ("", "log"):
            raise typer.BadParameter(
                f"expected a range LOW..HIGH or LOW..HIGH:log, and --trials with it; got {text!r}",
                param_hint="--vary",
            )
        return path, {"low": value_of(low), "high": value_of(high), "log": bool(log)}
    if values.startswith("["):
        return path, parse_json(values, option="--vary")
    return path, [value_of(value) for value in values.split(",")]


def _follow_sweep(here: Session, sweep_id: str) -> None:
    """Show a sweep until its end, then its trials; fails if it has not succeeded."""
    try:
        with watch.open_board(here.err) as board:
            ended = watch.follow_sweep(here.client.sweeps.follow(sweep_id), board.line("sweep"))
    except KeyboardInterrupt:
        here.err.print(
            f"{sweep_id} goes on without you. Watch it again: adap sweeps watch {sweep_id}\n"
            f"Stop it: adap sweeps cancel {sweep_id}",
            highlight=False,
            soft_wrap=True,
        )
        sys.exit(130)
    here.answer(ended, show.sweep(ended))
    if ended["status"] != "succeeded":
        raise SweepFailedError(f"The sweep {sweep_id} has ended {ended['status']}.")
