"""`adap report`: what audits have found."""

import json as json_
import tempfile
import webbrowser
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from adap.client import show
from adap.client.commands.requests import parse_json
from adap.client.commands.session import session

REPORT_FORMS = {".html": "text/html", ".md": "text/markdown", ".xml": "application/xml"}

app = typer.Typer(no_args_is_help=True, help="Reports: what audits have found.")


@app.command("show")
def show_report(context: typer.Context, job_id: str) -> None:
    """The figures of a finished audit."""
    here = session(context)
    report = here.client.report(job_id)
    here.answer(report, show.report(report))


@app.command("open")
def open_report(context: typer.Context, job_id: str) -> None:
    """The report as a page in the browser."""
    here = session(context)
    page = here.client.report_as(job_id, "text/html")
    path = Path(tempfile.mkdtemp(prefix="adap-report-")) / f"{job_id}.html"
    path.write_bytes(page)
    opened = webbrowser.open(path.as_uri())
    here.answer(
        {"path": str(path), "opened": opened},
        f"The report is {path}." + ("" if opened else " No browser could be started here."),
    )


@app.command("save")
def save_report(
    context: typer.Context,
    job_id: str,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="A name ending in .html, .json, .md (a model card) or .xml (JUnit, for CI); "
            "by default JOB_ID.html.",
        ),
    ] = None,
) -> None:
    """Save the report as one self-contained page, as JSON, as a model card or as JUnit XML."""
    here = session(context)
    path = output or Path(f"{job_id}.html")
    if path.suffix == ".json":
        report = here.client.report(job_id)
        path.write_text(json_.dumps(report, indent=2, ensure_ascii=False), encoding="utf-8")
    elif path.suffix in REPORT_FORMS:
        path.write_bytes(here.client.report_as(job_id, REPORT_FORMS[path.suffix]))
    else:
        raise typer.BadParameter(
            f"expected a name ending in .json, {', '.join(REPORT_FORMS)}; got {path.name!r}",
            param_hint="--output",
        )
    here.answer({"path": str(path)}, f"Saved {path}.")


@app.command("remove")
def remove_report(context: typer.Context, job_id: str) -> None:
    """Remove a report with its scores; the job and its figures stay."""
    here = session(context)
    here.client.remove_report(job_id)
    here.answer({"removed": job_id}, f"Removed the report of {job_id}.")


@app.command("verify")
def verify_report(
    context: typer.Context,
    job_id: Annotated[str | None, typer.Argument(help="The audit; or name both files.")] = None,
    report: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Of `adap report save -o report.json`."),
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="The audit's scores as safetensors."),
    ] = None,
) -> None:
    """Compute every figure again from the stored scores; fails where one differs."""
    here = session(context)
    if (job_id is None) == (report is None) or (report is None) != (scores is None):
        raise typer.BadParameter("expected the id of an audit, or both --report and --scores")
    if report is not None and scores is not None:
        stated = parse_json(report.read_text(encoding="utf-8"), option="--report")
        if not isinstance(stated, dict):
            raise typer.BadParameter("expected a JSON object", param_hint="--report")
        content = scores.read_bytes()
    else:
        assert job_id is not None
        stated = here.client.report(job_id)
        with tempfile.TemporaryDirectory(prefix="adap-verify-") as folder:
            file = Path(folder) / "scores.safetensors"
            here.client.save_scores(job_id, file)
            content = file.read_bytes()
    from adap.client import verify  # scikit-learn takes a second that no other command should wait

    lines = [asdict(line) for line in verify.verify(stated, content)]
    wrong = [line["figure"] for line in lines if not line["ok"]]
    here.answer({"ok": not wrong, "figures": lines}, show.verification(lines))
    if wrong:
        raise verify.MismatchError(
            f"{len(wrong)} of {len(lines)} figures do not come from these scores: "
            + ", ".join(wrong)
        )
