"""`adap report`: what audits have found."""

import json as json_
import tempfile
import webbrowser
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from adap.client import show
from adap.client.commands.options import AuditRef
from adap.client.commands.requests import parse_json
from adap.client.commands.session import Session, session

REPORT_FORMS = {
    ".html": "text/html",
    ".md": "text/markdown",
    ".xml": "application/xml",
    ".sarif": "application/sarif+json",
}

ReportFile = Annotated[
    Path,
    typer.Argument(
        exists=True, dir_okay=False, help="Of `adap report save JOB_ID -o report.json`."
    ),
]

app = typer.Typer(no_args_is_help=True, help="Reports: what audits have found.")


@app.command("show")
def show_report(context: typer.Context, job_id: AuditRef) -> None:
    """The figures of a finished audit."""
    here = session(context)
    job_id = here.audit(job_id)
    report = here.client.report(job_id)
    here.answer(report, show.report(report))


@app.command("open")
def open_report(context: typer.Context, job_id: AuditRef) -> None:
    """The report as a page in the browser."""
    here = session(context)
    job_id = here.audit(job_id)
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
    job_id: AuditRef,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="A name ending in .html, .json, .md (a model card), or for CI .xml (JUnit) or "
            ".sarif; by default JOB_ID.html.",
        ),
    ] = None,
) -> None:
    """Save the report as one self-contained page, as JSON, a model card, JUnit or SARIF."""
    here = session(context)
    job_id = here.audit(job_id)
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
def remove_report(context: typer.Context, job_id: AuditRef) -> None:
    """Remove a report with its scores; the job and its figures stay."""
    here = session(context)
    job_id = here.audit(job_id)
    here.client.remove_report(job_id)
    here.answer({"removed": job_id}, f"Removed the report of {job_id}.")


@app.command("keygen")
def make_key(
    context: typer.Context,
    key: Annotated[Path, typer.Argument(help="Where the private key is put, for example KEY.pem.")],
) -> None:
    """Make a key to sign reports with: the private one for you alone, the public one beside it."""
    from adap.client import signing  # cryptography, which no other command needs

    here = session(context)
    public = signing.write_key_pair(key)
    mark = signing.fingerprint(signing.public_key(public.read_bytes()))
    here.answer(
        {"private": str(key), "public": str(public), "fingerprint": mark},
        f"Wrote {key}, which nobody else may read, and {public} to hand on ({mark}).",
    )


@app.command("canonical")
def write_canonical(
    context: typer.Context,
    report: ReportFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the bytes are put.")],
) -> None:
    """Write the very bytes that a signature is of (RFC 8785), for other tools to check."""
    from adap.client import signing  # cryptography, which no other command needs

    here = session(context)
    content = signing.canonical(report.read_bytes())
    output.write_bytes(content)
    here.answer({"path": str(output), "bytes": len(content)}, f"Wrote {len(content):,} bytes.")


@app.command("sign")
def sign_report(
    context: typer.Context,
    report: ReportFile,
    key: Annotated[
        Path,
        typer.Option(exists=True, dir_okay=False, help="A private Ed25519 key in PEM, yours."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The signature; by default REPORT.sig."),
    ] = None,
) -> None:
    """Sign a report: 64 bytes of Ed25519 over its canonical JSON, in a file of their own."""
    from adap.client import signing  # cryptography, which no other command needs

    here = session(context)
    pem = key.read_bytes()
    try:
        private = signing.private_key(pem)
    except signing.PasswordNeededError:
        password = typer.prompt("Password of the key", hide_input=True, err=True)
        private = signing.private_key(pem, password.encode())
    path = output or report.with_name(f"{report.name}.sig")
    content = report.read_bytes()
    path.write_bytes(signing.sign(content, private))
    for caution in signing.cautions(signing.read_report(content)):
        here.err.print(f"Caution: {caution}.", highlight=False, soft_wrap=True)
    mark = signing.fingerprint(private.public_key())
    here.answer({"path": str(path), "key": mark}, f"Signed {report} as {path} with {mark}.")


@app.command("verify")
def verify_report(
    context: typer.Context,
    audit: Annotated[
        str | None, typer.Argument(metavar="JOB_ID|REPORT", help="The audit, or its report's file.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Of `adap report save -o report.json`."),
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="The audit's scores as safetensors."),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Public key of whoever signed, in PEM."),
    ] = None,
    signature: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="By default REPORT.sig; needs --key."),
    ] = None,
    details: Annotated[
        bool, typer.Option("--details", help="Show every figure beside the same computed again.")
    ] = False,
) -> None:
    """Compute every figure again from the stored scores, or check a signature, or both."""
    here = session(context)
    if report is None and audit is not None and Path(audit).is_file():
        report = Path(audit)
        audit = None
    _refuse_unclear(audit, report, scores=scores, key=key, signature=signature)
    audit = None if audit is None else here.audit(audit)
    text = _report_bytes(here, audit, report)
    told: dict[str, Any] = {}
    shown: list[RenderableType] = []
    if key is not None:
        told["signed_by"] = _signed_by(text, key, signature or Path(f"{report}.sig"))
        shown = [f"The signature is one of this report by {told['signed_by']}."]
        if audit is None and scores is None:
            here.answer({"ok": True, **told}, *shown, "Its figures were not computed again.")
            return
    stated = parse_json(text, option="--report")
    if not isinstance(stated, dict):
        raise typer.BadParameter("expected a JSON object", param_hint="--report")
    content = _score_bytes(here, audit, scores)
    # scikit-learn takes a second that no other command should wait
    from adap.client.verify.book import MismatchError
    from adap.client.verify.reports import verify

    lines = [asdict(line) for line in verify(stated, content)]
    wrong = [line["figure"] for line in lines if not line["ok"]]
    listed = lines if details else [line for line in lines if not line["ok"]]
    if listed:
        shown.append(show.verification(listed))
    if not wrong:
        shown.append(f"{len(lines):,} figures agree with the stored scores.")
    here.answer({"ok": not wrong, **told, "figures": lines}, *shown)
    if wrong:
        raise MismatchError(
            f"{len(wrong)} of {len(lines)} figures do not come from these scores: "
            + ", ".join(wrong)
        )


def _refuse_unclear(
    audit: str | None,
    report: Path | None,
    *,
    scores: Path | None,
    key: Path | None,
    signature: Path | None,
) -> None:
    if (audit is None) == (report is None):
        raise typer.BadParameter("expected the id of an audit, or the file of a report")
    if report is not None and scores is None and key is None:
        raise typer.BadParameter("expected --scores or --key, or both, beside the file of a report")
    if audit is not None and scores is not None:
        raise typer.BadParameter(
            "expected no --scores beside the id of an audit, which has its own"
        )
    if signature is not None and key is None:
        raise typer.BadParameter("expected --key, whose signature it is", param_hint="--signature")
    if audit is not None and key is not None and signature is None:
        raise typer.BadParameter("expected --signature beside --key and the id of an audit")


def _report_bytes(here: Session, audit: str | None, report: Path | None) -> bytes:
    if report is not None:
        return report.read_bytes()
    assert audit is not None
    return here.client.report_as(audit, "application/json")


def _score_bytes(here: Session, audit: str | None, scores: Path | None) -> bytes:
    if scores is not None:
        return scores.read_bytes()
    assert audit is not None
    with tempfile.TemporaryDirectory(prefix="adap-verify-") as folder:
        file = Path(folder) / "scores.safetensors"
        here.client.save_scores(audit, file)
        return file.read_bytes()


def _signed_by(text: bytes, key: Path, signature: Path) -> str:
    """The fingerprint of the key, once the signature is found to be of this text and this key."""
    from adap.client import signing

    if not signature.is_file():
        raise typer.BadParameter(f"expected the signature as {signature}, or --signature FILE")
    public = signing.public_key(key.read_bytes())
    signing.check(text, signature.read_bytes(), public)
    return signing.fingerprint(public)
