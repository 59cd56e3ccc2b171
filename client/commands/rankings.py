"""`adap rank` and `adap score`: images in order."""

from pathlib import Path
from typing import Annotated

import typer

from adap.client import show
from adap.client.base import RANKING_FORMS
from adap.client.commands.options import (
    After,
    ConfigFile,
    Limit,
    ModelRef,
    OfDataset,
    OfModel,
    OtherPositive,
    Positive,
    Set,
    Split,
    Watch,
)
from adap.client.commands.requests import build_request, task
from adap.client.commands.session import queued, session


def rank(
    context: typer.Context,
    model: OfModel = None,
    dataset: OfDataset = None,
    positive: Positive = None,
    other_positive: OtherPositive = False,
    split: Split = None,
    job_id: Annotated[
        str | None, typer.Option("--job", help="Show the ranking that this job has made.")
    ] = None,
    limit: Limit = 20,
    after: After = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Save the whole ranking: a name ending in .csv, .parquet or .ndjson.",
        ),
    ] = None,
    config: ConfigFile = None,
    set_: Set = None,
    watch_: Watch = False,
) -> None:
    """Rank the images of a data set by a model, best first."""
    here = session(context)
    if output is not None and output.suffix not in RANKING_FORMS:
        raise typer.BadParameter(
            f"expected a name ending in {', '.join(RANKING_FORMS)}; got {output.name!r}",
            param_hint="--output",
        )
    if after is not None and job_id is None:
        raise typer.BadParameter(
            "expected --job with it, the ranking whose next page is meant", param_hint="--after"
        )
    if job_id is None:
        request = build_request(
            config,
            {
                "model_id": model,
                "dataset_id": dataset,
                "task": task(positive),
                "other_positive": other_positive or None,
                "split": split,
            },
            set_,
        )
        job = here.client.rank(here.with_ids(request))
        if not watch_ and output is None:
            here.answer(job, f"{queued(job)}\nShow its ranking: adap rank --job {job['id']}")
            return
        here.follow(job)
        job_id = job["id"]
    else:
        job_id = here.the(here.client.jobs, job_id, kind="rank", status="succeeded")
    if output is not None:
        here.client.save_ranking(job_id, output)
        here.answer({"path": str(output)}, f"Saved {output}.")
        return
    page = here.client.ranking(job_id, limit=limit, after=after)
    here.page(page, show.ranking(page["data"]), again=f"adap rank --job {job_id} ")


def score(
    context: typer.Context,
    model_id: ModelRef,
    images: Annotated[
        list[Path], typer.Argument(exists=True, dir_okay=False, help="PNG, JPEG or WebP files.")
    ],
    positive: Annotated[
        list[str] | None,
        typer.Option(help="A class to score, where the model has a logit for each class."),
    ] = None,
    resize: Annotated[
        str | None,
        typer.Option(
            metavar="FIT", help="Of images of another size than the model's: stretch, crop or pad."
        ),
    ] = None,
) -> None:
    """Score a few images with a model."""
    here = session(context)
    model_id = here.the(here.client.models, model_id)
    answer = here.client.score(model_id, images, positive=positive, resize=resize)
    here.answer(answer, show.scores(answer["scores"], images))
