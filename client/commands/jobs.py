"""`adap jobs`: trainings, audits, rankings, checks."""

import re
from typing import Annotated

import typer

from adap.client import show
from adap.client.client import Json, ProblemError
from adap.client.commands.options import After, JobRef, Limit
from adap.client.commands.session import Session, queued, session
from adap.client.references import LATEST

app = typer.Typer(no_args_is_help=True, help="Jobs: trainings, audits, rankings, checks.")


@app.command("list")
def list_jobs(
    context: typer.Context,
    kind: Annotated[str | None, typer.Option(help="train, audit, rank, …")] = None,
    status: Annotated[str | None, typer.Option(help="queued, running, failed, …")] = None,
    limit: Limit = 20,
    after: After = None,
) -> None:
    """The jobs, newest first."""
    here = session(context)
    page = here.client.jobs.page(limit=limit, after=after, kind=kind, status=status)
    here.page(page, show.jobs(page["data"]))


@app.command("show")
def show_job(context: typer.Context, job_id: JobRef) -> None:
    """One job: how far it is, what it made, or why it failed."""
    here = session(context)
    job_id = here.the(here.client.jobs, job_id)
    job = here.client.jobs.show(job_id)
    here.answer(job, show.job(job))


@app.command("watch")
def watch_jobs(
    context: typer.Context,
    job_ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="JOB...", help="By name, id or the start of it, or @latest."),
    ] = None,
    last: Annotated[bool, typer.Option("--last", help="The newest job, as @latest.")] = False,
) -> None:
    """Show progress until the end; fails if a job fails."""
    here = session(context)
    if bool(job_ids) == last:
        got = "both" if last else "neither"
        raise typer.BadParameter(f"expected jobs, or --last for the newest; got {got}")
    names = [LATEST] if last else list(job_ids or [])
    found = [here.the(here.client.jobs, name) for name in names]
    ended = here.follow(*(here.client.jobs.show(job_id) for job_id in found))
    here.answer(ended if len(ended) > 1 else ended[0], *map(show.job, ended))


@app.command("cancel")
def cancel_job(context: typer.Context, job_id: JobRef) -> None:
    """Cancel a job that has not ended."""
    here = session(context)
    job_id = here.the(here.client.jobs, job_id)
    job = here.client.jobs.cancel(job_id)
    here.answer(job, f"{job_id} is {job['status']}.")


@app.command("retry")
def retry_job(
    context: typer.Context,
    job_id: Annotated[str | None, typer.Argument()] = None,
    failed_since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="All that failed in this time, as 90s, 30m, 2h or 7d."),
    ] = None,
    code: Annotated[
        str | None, typer.Option(help="Of these only those with this code, as storage_unavailable.")
    ] = None,
) -> None:
    """Run the request of a failed or cancelled job again, as a new job; or of all that failed."""
    here = session(context)
    if (job_id is None) == (failed_since is None) or (code is not None and failed_since is None):
        raise typer.BadParameter(
            "expected a job, or --failed-since with or without --code; got "
            + ("both" if job_id is not None else "neither")
        )
    if job_id is not None:
        job = here.client.jobs.retry(here.the(here.client.jobs, job_id))
        here.answer(job, queued(job))
        return
    assert failed_since is not None
    _retry_all(here, _seconds(failed_since), code)


def _retry_all(here: Session, within_s: float, code: str | None) -> None:
    """Run again what failed and was not run again yet; what cannot be is named, and the rest is."""
    failed: list[Json] = []
    after = None
    while True:
        page = here.client.jobs.page(
            limit=100,
            after=after,
            status="failed",
            code=code,
            retried="false",
            ended_within_s=f"{within_s:g}",
        )
        failed += page["data"]
        if not page["has_more"]:
            break
        after = page["next_cursor"]
    retried: list[Json] = []
    left: list[Json] = []
    for job in reversed(failed):  # oldest first, as they came
        try:
            retried.append(here.client.jobs.retry(job["id"]))
        except ProblemError as error:
            if error.code != "conflict":
                raise
            left.append({"id": job["id"], "reason": str(error)})
    here.answer(
        {"retried": retried, "left": left},
        f"{len(retried)} of {len(failed)} failed jobs were queued again.",
        *(f"{job['retry_of']}: now {job['id']}" for job in retried),
        *(f"{job['id']}: left. {job['reason']}" for job in left),
    )


def _seconds(text: str) -> float:
    """A time as `90s`, `30m`, `2h` or `7d`."""
    found = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if found is None:
        raise typer.BadParameter(f"expected a time as 90s, 30m, 2h or 7d, got {text!r}")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]
