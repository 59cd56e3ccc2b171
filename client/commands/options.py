"""Options that several subcommands share."""

from pathlib import Path
from typing import Annotated

import typer

WHICH = "its name, its id or the start of it, or @latest"
DatasetRef = Annotated[str, typer.Argument(metavar="DATASET", help=f"The data set: {WHICH}.")]
ModelRef = Annotated[str, typer.Argument(metavar="MODEL", help=f"The model: {WHICH}.")]
JobRef = Annotated[str, typer.Argument(metavar="JOB", help=f"The job: {WHICH}.")]
AuditRef = Annotated[str, typer.Argument(metavar="AUDIT", help=f"The audit: {WHICH}.")]
SweepRef = Annotated[str, typer.Argument(metavar="SWEEP", help=f"The sweep: {WHICH}.")]
OfDataset = Annotated[str | None, typer.Option("--dataset", help=f"The data set: {WHICH}.")]
OfModel = Annotated[str | None, typer.Option("--model", help=f"The model: {WHICH}.")]
Limit = Annotated[int, typer.Option(min=1, max=100, help="How many to show.")]
After = Annotated[str | None, typer.Option(help="Where the page before this one ended.")]
AssetStatus = Annotated[
    str | None, typer.Option("--status", help="validating, ready, rejected; else all but the last.")
]
Watch = Annotated[
    bool, typer.Option("--watch", "-w", help="Show progress until the end; fail if it fails.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what it would do and cost, and start nothing.")
]
NewName = Annotated[str | None, typer.Option("--name", help="What to call it from now on.")]
Note = Annotated[
    str | None, typer.Option("--note", help="What to know about it; an empty text takes it away.")
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", exists=True, dir_okay=False, help="A JSON file with the request, or part of it."
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Any field of the request, for example method.lambda=2 or optimizer.lr=1e-4. "
        "May be given several times.",
    ),
]
Positive = Annotated[
    list[str] | None,
    typer.Option(help="A class to rank first; several options are one positive side."),
]
OtherPositive = Annotated[
    bool,
    typer.Option(
        "--other-positive",
        help="Read a model's single logit for other classes than it ranks first.",
    ),
]
TrainingPreset = Annotated[
    str | None,
    typer.Option(
        help="Of what is not said otherwise: paper-cifar, paper-celeba, paper-bdd, robust or quick."
    ),
]
TrainingSample = Annotated[
    int | None,
    typer.Option(
        "--sample",
        min=4,
        help="Try it on about so many examples at random, each class in its share.",
    ),
]
Seed = Annotated[int | None, typer.Option(help="Of every random choice.")]
Split = Annotated[
    str | None, typer.Option(help="train, validation or test; by default test where there is one.")
]


def change(name: str | None, note: str | None) -> dict[str, str | None]:
    """What `edit` was told. Raises BadParameter where it was nothing."""
    if name is None and note is None:
        raise typer.BadParameter("expected --name, --note or both, got neither")
    return {"name": name, "note": note}
