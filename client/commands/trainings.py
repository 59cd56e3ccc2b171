"""`adap train`: a model that ranks some classes first."""

from typing import Annotated

import typer

from adap.client import show
from adap.client.commands.options import (
    ConfigFile,
    DryRun,
    OfDataset,
    Positive,
    Seed,
    Set,
    TrainingPreset,
    TrainingSample,
    Watch,
)
from adap.client.commands.requests import build_request, task
from adap.client.commands.session import queued, session


def train(
    context: typer.Context,
    dataset: OfDataset = None,
    positive: Positive = None,
    method: Annotated[
        str | None, typer.Option(help="ce, ap, pgd, trades, mart, adap_lpn, …")
    ] = None,
    each: Annotated[
        bool, typer.Option("--each", help="One network for all classes, trained on their mean AP.")
    ] = False,
    preset: TrainingPreset = None,
    architecture: Annotated[str | None, typer.Option(help="small_cnn, resnet18, …")] = None,
    start_from: Annotated[
        str | None, typer.Option(help="The model whose weights to start from.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    sample: TrainingSample = None,
    name: Annotated[str | None, typer.Option(help="Of the resulting model.")] = None,
    seed: Seed = None,
    config: ConfigFile = None,
    set_: Set = None,
    dry_run: DryRun = False,
    watch_: Watch = False,
) -> None:
    """Train a model that ranks some classes first."""
    here = session(context)
    request = build_request(
        config,
        {
            "dataset_id": dataset,
            "task": task(positive, each=each),
            "method": method,
            "preset": preset,
            "architecture": architecture,
            "warm_start": None if start_from is None else {"model_id": start_from},
            "epochs": epochs,
            "sample": sample,
            "name": name,
            "seed": seed,
        },
        set_,
    )
    request = here.with_ids(request)
    if dry_run:
        found = here.client.estimate("training-jobs", request)
        here.answer(found, show.estimate(found, "training"))
        return
    job = here.client.train(request)
    if not watch_:
        here.answer(job, queued(job))
        return
    (job,) = here.follow(job)
    model_id = job["result"]["model_id"]
    here.answer(
        job,
        show.model(here.client.models.show(model_id)),
        f"\nAttack it: adap audit --model {model_id} --dataset {request['dataset_id']} --watch",
    )
