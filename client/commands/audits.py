"""`adap audit` and `adap leaderboard`: what average precision attacks leave."""

from pathlib import Path
from typing import Annotated

import typer

from adap.client import show
from adap.client.client import ClientError
from adap.client.commands.options import (
    ConfigFile,
    DatasetRef,
    DryRun,
    OfDataset,
    OfModel,
    OtherPositive,
    Positive,
    Seed,
    Set,
    Split,
    Watch,
)
from adap.client.commands.requests import (
    build_request,
    corruptions,
    number,
    parse_json,
    task,
)
from adap.client.commands.session import queued, session


class ThresholdsNotMetError(ClientError):
    """The audited model does not keep what was asked of it."""


def audit(
    context: typer.Context,
    model: OfModel = None,
    dataset: OfDataset = None,
    positive: Positive = None,
    each: Annotated[
        bool, typer.Option("--each", help="A task for each class of the data set.")
    ] = False,
    other_positive: OtherPositive = False,
    split: Split = None,
    norm: Annotated[str | None, typer.Option(help="linf, l2, l1, l0 or patch.")] = None,
    epsilon: Annotated[
        str | None,
        typer.Option(
            help="Largest change of a pixel in [0, 1]; 8/255 may be written. Of l0 the number of "
            "pixels, of patch the pixels along its side."
        ),
    ] = None,
    preset: Annotated[str | None, typer.Option(help="quick, standard or paper.")] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(help="pgd, apgd, fgsm, square, transfer or noise, instead of a preset."),
    ] = None,
    surrogate: Annotated[
        str | None, typer.Option(help="The attacker's own model, for transfer.")
    ] = None,
    corruption: Annotated[
        list[str] | None,
        typer.Option(
            help="A common corruption to measure beside the attacks, for example fog; all for the "
            "whole suite. May be given several times."
        ),
    ] = None,
    severity: Annotated[
        list[int] | None,
        typer.Option(
            help="Of the corruptions, 1 to 5; by default all. May be given several times."
        ),
    ] = None,
    smallest_changes: Annotated[
        bool,
        typer.Option(
            "--smallest-changes",
            help="Search for the smallest change that moves each positive out of the first k as "
            "well; k is the number of positives, or --set smallest_changes.k=100.",
        ),
    ] = False,
    universal: Annotated[
        bool,
        typer.Option(
            "--universal",
            help="Search for one perturbation that all images share as well, within the threat; "
            "or --set universal.rounds=50.",
        ),
    ] = False,
    pipeline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STEP",
            help="What the deployment does to an image before the model sees it: jpeg:80, "
            "jpeg:60-90, resize:WIDTHxHEIGHT, crop:WIDTHxHEIGHT or quantise:256. Images are "
            "attacked before it. Several times for several steps, in order.",
        ),
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(
            metavar="THRESHOLD",
            help="What the model must keep, for example 'worst_case_ap >= 0.4'; with --watch the "
            "exit code is 1 where it does not. May be given several times.",
        ),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(min=4, help="Audit so many examples at random, each side in its share."),
    ] = None,
    statement: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="A JSON file of what is stated about the audit: purpose, tester, approver and so "
            "on; carried into the report.",
        ),
    ] = None,
    seed: Seed = None,
    name: Annotated[str | None, typer.Option(help="Of the audit, to find it by.")] = None,
    config: ConfigFile = None,
    set_: Set = None,
    dry_run: DryRun = False,
    watch_: Watch = False,
) -> None:
    """Attack a model and measure what average precision is left."""
    here = session(context)
    request = build_request(
        config,
        {
            "model_id": model,
            "dataset_id": dataset,
            "task": task(positive, each=each),
            "other_positive": other_positive or None,
            "split": split,
            "preset": preset,
            "attacks": attack or None,
            "surrogate": None if surrogate is None else {"model_id": surrogate},
            "corruptions": corruptions(corruption, severity),
            "smallest_changes": {} if smallest_changes else None,
            "universal": {} if universal else None,
            "pipeline": pipeline or None,
            "thresholds": require or None,
            "sample": sample,
            "statement": None
            if statement is None
            else parse_json(statement.read_bytes(), option="--statement"),
            "seed": seed,
            "name": name,
        },
        [
            *([] if norm is None else [f"threat.norm={norm}"]),
            *([] if epsilon is None else [f"threat.epsilon={number(epsilon)}"]),
            *(set_ or []),
        ],
    )
    request = here.with_ids(request)
    if dry_run:
        found = here.client.estimate("audits", request)
        here.answer(found, show.estimate(found, "audit"))
        return
    job = here.client.audit(request)
    if not watch_:
        here.answer(job, queued(job))
        return
    (job,) = here.follow(job)
    report = here.client.report(job["id"])
    here.answer(
        job,
        show.report(report),
        f"\nSee the images and curves: adap report open {job['id']}",
    )
    unmet = [result["threshold"] for result in report["thresholds"] if not result["passed"]]
    if unmet:
        raise ThresholdsNotMetError(f"Not met: {'; '.join(unmet)}")


def show_leaderboard(
    context: typer.Context,
    dataset_id: DatasetRef,
    positive: Positive = None,
    each: Annotated[
        bool, typer.Option("--each", help="Of audits of a task for each class.")
    ] = False,
    split: Split = None,
    norm: Annotated[str | None, typer.Option(help="linf, l2, l1, l0 or patch.")] = None,
    epsilon: Annotated[str | None, typer.Option(help="Of the audits to compare.")] = None,
    sample: Annotated[
        int | None, typer.Option(min=0, help="How many examples they took; 0 for all of them.")
    ] = None,
    pipeline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STEP", help="Through which they attacked, step by step; none for no pipeline."
        ),
    ] = None,
) -> None:
    """Compare the models that were audited on a data set."""
    here = session(context)
    found = here.client.leaderboard(
        here.the(here.client.datasets, dataset_id),
        **(task(positive, each=each) or {}),
        split=split,
        norm=norm,
        epsilon=None if epsilon is None else number(epsilon),
        sample=sample,
        pipeline=pipeline or None,
    )
    here.answer(found, show.leaderboard(found))
