"""Audits: by ids, or a model and a data set in the request itself; reports and scores."""

import json
from contextlib import ExitStack
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response, UploadFile
from fastapi.concurrency import run_in_threadpool
from pydantic import Field, ValidationError
from sqlalchemy.orm import Session
from starlette.datastructures import FormData

from adap.api import assets, bodies, estimates, forms, quotas
from adap.api.accept import choose
from adap.api.assets import AssetId
from adap.api.deps import (
    Caller,
    House,
    HouseDep,
    Reader,
    Uploader,
    Writer,
    require_admitted_at_the_end,
)
from adap.api.errors import POSTED, ApiError, explain_validation, problems
from adap.api.guarded import GuardedRoute
from adap.api.idempotency import Idempotency, IdempotencyDep
from adap.api.listing import After, Limit, make_cursor, read_offset
from adap.api.pages.report import BROWSERS, with_ways
from adap.api.routes.datasets import DatasetFields
from adap.api.routes.jobs import describe_job, find_job, finished_blob, remove_files
from adap.api.routes.models import Positive, declared_model
from adap.api.schemas import Estimate, ExampleScores, Job, Page
from adap.core.config.audits import AuditConfig, AuditRequest, StatedAudit
from adap.core.config.base import Identifier
from adap.core.config.data import EachClass, Task
from adap.core.config.methods import CEMethod
from adap.core.config.training import TrainingRequest
from adap.core.errors import ConfigError
from adap.core.rendering.card import card
from adap.core.rendering.junit import junit
from adap.core.rendering.sarif import sarif
from adap.core.report import Report
from adap.core.resolve import (
    DatasetSummary,
    Known,
    check_fits,
    resolve_audit,
    resolve_audit_of_files,
    resolve_tasks,
    resolve_training,
)
from adap.models.catalogue import SMALLEST
from adap.models.header import Manifest
from adap.store import jobs
from adap.store.tables import DatasetRow, JobKind, JobRow, ModelRow

SURROGATE_SEED = 1_000_003

router = APIRouter(prefix="/v1/audits", tags=["audits"], route_class=GuardedRoute)


class AuditForm(DatasetFields):
    """`POST /v1/audits`, multipart/form-data: everything in one request."""

    model: UploadFile | None = Field(None, description="see POST /v1/models")
    model_upload_id: Identifier | None = Field(
        None, description="instead of `model`: one that came in parts, see POST /v1/uploads"
    )
    dataset: UploadFile | None = Field(None, description="see POST /v1/datasets")
    dataset_upload_id: Identifier | None = Field(None, description="instead of `dataset`")
    config: str = Field(
        "{}",
        max_length=forms.MAX_TEXT,
        description="an AuditConfig as JSON, with `statement` if there is one",
    )
    architecture: str | None = Field(
        None, max_length=64, description="this and the next three: see POST /v1/models"
    )
    input: str | None = Field(None, max_length=4096)
    output: str | None = Field(None, max_length=forms.MAX_TEXT)
    weights: str | None = Field(None, max_length=200)
    positive: Positive = None


@router.post(
    "",
    status_code=201,
    responses=problems(
        "not_found",
        "not_ready",
        "invalid_config",
        "invalid_data",
        "too_large",
        "unsupported_media_type",
        *POSTED,
        "storage_full",
    ),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/AuditRequest"}},
                "multipart/form-data": {"schema": {"$ref": "#/components/schemas/AuditForm"}},
            },
        }
    },
)
async def audit(
    request: Request, house: HouseDep, caller: Uploader, once: IdempotencyDep, response: Response
) -> Job:
    """Audit a model on a data set: clean AP, AP under each attack, and the worst case.

    `{model_id, dataset_id}` alone is a good audit. As multipart, the model and the data set come
    with the request, as files or by their uploads in parts; both are checked first, and the audit
    starts by itself when they are ready.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == "application/json":
        content = await bodies.read(request)
        await require_admitted_at_the_end(request, house)
        job = await run_in_threadpool(_audit_by_ids, content, caller, once)
    elif content_type == "multipart/form-data":
        async with request.form(**forms.FORM_LIMITS) as form:
            await require_admitted_at_the_end(request, house)
            job = await run_in_threadpool(_audit_files, form, house, caller, once)
    else:
        raise ApiError(
            "unsupported_media_type",
            f"Expected application/json or multipart/form-data, got {content_type or 'nothing'}.",
        )
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job


REPORT_FORMS = (
    *("application/json", "text/html", "text/markdown", "application/xml"),
    "application/sarif+json",
)
SCORE_FORMS = ("application/json", "application/vnd.safetensors", "application/octet-stream")
Accept = Annotated[str, Header(max_length=1000)]
_DERIVED = {"text/markdown": card, "application/xml": junit, "application/sarif+json": sarif}


@router.get(
    "/{job_id}/report",
    response_model=Report,
    responses=problems("not_found", "not_ready", "not_acceptable")
    | {
        200: {
            "description": "The report",
            "content": {form: {"schema": {"type": "string"}} for form in REPORT_FORMS[1:]},
        },
        304: {"description": "Not modified"},
    },
)
def audit_report(
    job_id: AssetId,
    request: Request,
    house: HouseDep,
    caller: Reader,
    accept: Accept = REPORT_FORMS[0],
) -> Response:
    """The report in the form that `Accept` names.

    JSON; one self-contained page (`text/html`); a model card (`text/markdown`); JUnit XML
    (`application/xml`), with a test case for each threshold and each check of the audit; or SARIF
    (`application/sarif+json`), with a result for each of them that is not met.
    """
    form = choose(accept, REPORT_FORMS)
    name = "page" if form == "text/html" else "report"
    sha256 = finished_blob(house, job_id, caller, JobKind.AUDIT, name)
    if form in _DERIVED:
        with house.blobs.open(sha256) as file:
            text = _DERIVED[form](Report.model_validate_json(file.read()))
        answer = assets.derived_response(request, text, media_type=form)
    elif form == "text/html" and BROWSERS in accept:
        with house.blobs.open(sha256) as file:
            text = with_ways(file.read().decode(), _ways_from(house, job_id, caller))
        answer = assets.derived_response(request, text, media_type=form)
    else:
        answer = assets.blob_response(request, house, sha256, media_type=form)
    answer.headers["Vary"] = "Accept"
    return answer


def _ways_from(house: House, job_id: str, caller: Caller) -> list[tuple[str, str]]:
    """Where the report of an audit leads back to, of what is still there."""
    with house.database.reading() as session:
        job = find_job(session, job_id, caller, JobKind.AUDIT)
        model, dataset = (
            session.get(ModelRow, job.model_id),
            session.get(DatasetRow, job.dataset_id),
        )
        ways = [("/", "Home"), (f"/v1/jobs/{job_id}", "The job")]
        if model is not None and model.deleted_at is None:
            ways.append((f"/v1/models/{model.id}", model.name))
        if dataset is not None and dataset.deleted_at is None:
            ways += [
                (f"/v1/datasets/{dataset.id}", dataset.name),
                (f"/v1/audits/{job_id}/images", "Images in order of score"),
                (f"/v1/leaderboard?dataset_id={dataset.id}", "Compare"),
            ]
    return ways


@router.delete("/{job_id}/report", status_code=204, responses=problems("not_found", "not_ready"))
def remove_audit_report(job_id: AssetId, house: HouseDep, caller: Writer) -> Response:
    """Remove a report with its scores, and from leaderboards; the job and its figures stay."""
    return remove_files(house, job_id, caller, JobKind.AUDIT)


@router.get(
    "/{job_id}/scores",
    response_model=Page[ExampleScores],
    responses=problems("not_found", "not_ready", "not_acceptable")
    | {
        200: {
            "description": "A page of the scores, or all that the figures come from as one file",
            "content": {
                form: {"schema": {"type": "string", "format": "binary"}} for form in SCORE_FORMS[1:]
            },
        },
        304: {"description": "Not modified"},
    },
)
def audit_scores(
    job_id: AssetId,
    request: Request,
    response: Response,
    house: HouseDep,
    caller: Reader,
    limit: Limit = 100,
    after: After = None,
    attack: Annotated[str | None, Query(max_length=100)] = None,
    accept: Accept = SCORE_FORMS[0],
) -> Page[ExampleScores] | Response:
    """The logit of every image, clean and under each attack (or one), in the order of the data.

    With `Accept: application/vnd.safetensors` or `application/octet-stream` the whole file that the
    report's `scores_sha256` names, from which every figure can be computed again.
    """
    form = choose(accept, SCORE_FORMS)
    if form != SCORE_FORMS[0]:
        sha256 = finished_blob(house, job_id, caller, JobKind.AUDIT, "scores")
        filename = f"{job_id}.safetensors"
        answer = assets.blob_response(request, house, sha256, media_type=form, filename=filename)
        answer.headers["Vary"] = "Accept"
        return answer
    response.headers["Vary"] = "Accept"
    sha256 = finished_blob(house, job_id, caller, JobKind.AUDIT, "table")
    rows, cursor = read_rows(house, sha256, limit=limit, after=after)
    if attack is not None:
        unknown = [row for row in rows if attack not in row["attacks"]]
        if unknown:
            names = ", ".join(unknown[0]["attacks"])
            raise ApiError(
                "invalid_request", f"/query/attack: expected one of {names}; got {attack!r}"
            )
        rows = [{**row, "attacks": {attack: row["attacks"][attack]}} for row in rows]
    return Page(
        data=[ExampleScores.model_validate(row) for row in rows],
        has_more=cursor is not None,
        next_cursor=cursor,
    )


def read_rows(
    house: House, sha256: str, *, limit: int, after: str | None
) -> tuple[list[dict[str, Any]], str | None]:
    """Some lines of a stored NDJSON file, and the cursor of the next ones: a byte offset."""
    with house.blobs.open(sha256) as file:
        file.seek(read_offset(after))
        lines = [line for _, line in zip(range(limit), file, strict=False)]
        position = file.tell()
        more = bool(file.readline())
    try:
        rows = [json.loads(line) for line in lines]
    except json.JSONDecodeError as error:  # an offset into the middle of a line
        raise ApiError(
            "invalid_request", "/query/after: expected a `next_cursor` that this list has given"
        ) from error
    return rows, make_cursor(str(position)) if more else None


@router.post(
    "/estimate",
    responses=problems("not_found", "not_ready", "invalid_config", "invalid_data", "invalid_model"),
)
def estimate_audit(request: AuditRequest, house: HouseDep, caller: Writer) -> Estimate:
    """What this audit would cost; nothing is made. It is refused as the audit would be."""
    with house.database.reading() as session:
        model = assets.find(session, ModelRow, request.model_id, caller)
        dataset = assets.find(session, DatasetRow, request.dataset_id, caller)
        assets.require_ready(model)
        assets.require_ready(dataset)
        summary = DatasetSummary.model_validate(dataset.summary)
        surrogate = _known_or_none(_surrogate(session, request, caller))
        tasks, split = resolve_audit(request, summary, _known(model), surrogate=surrogate)
        return estimates.of_audit(
            session,
            caller,
            request,
            model=model,
            summary=summary,
            split=split,
            tasks=tasks,
        )


def _audit_by_ids(content: Any, caller: Caller, once: Idempotency) -> Job:
    try:
        request = AuditRequest.model_validate(content)
    except ValidationError as error:
        raise explain_validation(error, content=content) from error
    trains = request.surrogate is not None and request.surrogate.train_on is not None
    with once.writing(_asked(request), new_jobs=2 if trains else 1) as session:
        model = assets.find(session, ModelRow, request.model_id, caller)
        dataset = assets.find(session, DatasetRow, request.dataset_id, caller)
        assets.require_ready(model)
        assets.require_ready(dataset)
        summary = DatasetSummary.model_validate(dataset.summary)
        given = _surrogate(session, request, caller)
        tasks, _ = resolve_audit(request, summary, _known(model), surrogate=_known_or_none(given))
        surrogate, training = given, None
        if trains:
            surrogate, training = _trained_surrogate(session, request, caller, model, tasks)
        job = jobs.enqueue(
            session,
            JobKind.AUDIT,
            tenant=caller.tenant,
            request=request.model_copy(
                update={"task": tasks[0] if len(tasks) == 1 else EachClass(each=True)}
            ).as_json(),
            dataset_id=dataset.id,
            model_id=model.id,
            surrogate_id=None if surrogate is None else surrogate.id,
        )
        answer = _kept(session, once, job)
    if training is not None:
        once.house.ring(training)
    once.house.ring(job)
    return answer


def _asked(config: AuditConfig) -> dict[str, Any]:
    """What is asked for, with the attacks that a preset stands for."""
    attacks = [attack.as_json() for attack in config.resolved_attacks()]
    return {**config.as_json(), "attacks": attacks}


def _kept(session: Session, once: Idempotency, job: JobRow) -> Job:
    answer = describe_job(session, once.house, job)
    return once.keep(session, answer, location=f"/v1/jobs/{job.id}")


def _known(model: ModelRow) -> Known:
    return Known(model.content_sha256, Manifest.model_validate(model.manifest))


def _known_or_none(model: ModelRow | None) -> Known | None:
    return None if model is None else _known(model)


def _surrogate(session: Session, config: AuditConfig, caller: Caller) -> ModelRow | None:
    """The attacker's own model, where one that is here is named."""
    if config.surrogate is None or config.surrogate.model_id is None:
        return None
    surrogate = assets.find(session, ModelRow, config.surrogate.model_id, caller)
    assets.require_ready(surrogate)
    return surrogate


def _trained_surrogate(
    session: Session,
    request: AuditRequest,
    caller: Caller,
    model: ModelRow,
    tasks: list[Task],
) -> tuple[ModelRow, JobRow | None]:
    """The attacker's own model that is to be trained first, and the job that trains it."""
    asked = request.surrogate
    assert asked is not None
    assert asked.train_on is not None
    dataset = assets.find(session, DatasetRow, asked.train_on, caller)
    assets.require_ready(dataset)
    known = DatasetSummary.model_validate(dataset.summary)
    for task in tasks:
        resolve_tasks(task, known)  # raises where the data set lacks these classes
    manifest = Manifest.model_validate(model.manifest)
    check_fits(
        known,
        channels=manifest.input.channels,
        height=manifest.input.height,
        width=manifest.input.width,
    )
    training = TrainingRequest(
        dataset_id=dataset.id,
        task=tasks[0] if len(tasks) == 1 else EachClass(each=True),
        method=CEMethod(),
        architecture=asked.architecture or manifest.architecture,
        name=f"surrogate on {dataset.name}"[:200],
        # another start than a model trained here with the same seed, or it would be that model
        seed=SURROGATE_SEED,
    )
    training = resolve_training(training, known, start=None, smallest=SMALLEST)
    return assets.add_surrogate(session, caller, training)


def _audit_files(form: FormData, house: House, caller: Caller, once: Idempotency) -> Job:
    """The model and the data set become assets of their own; the audit waits for their checks."""
    try:
        forms.refuse_twice(form.multi_items(), lists=forms.lists_of(AuditForm))
        asked = AuditForm.model_validate(dict(form))
    except ValidationError as error:
        raise explain_validation(error) from error
    try:
        config = StatedAudit.model_validate(forms.json_of(asked.config, field="config"))
    except ValidationError as error:
        raise explain_validation(error, prefix="body/config") from error
    declared = declared_model(asked)
    options = asked.options()
    files = (
        (asked.model, asked.model_upload_id, ("model", "model_upload_id")),
        (asked.dataset, asked.dataset_upload_id, ("dataset", "dataset_upload_id")),
    )
    for file, upload_id, fields in files:  # before anything is stored
        assets.expect_one_of(file, upload_id, fields=fields)
    with ExitStack() as coming:
        of_model, of_dataset = (
            coming.enter_context(assets.receiving(file, upload_id, house, caller, fields=fields))
            for file, upload_id, fields in files
        )
        content = {
            **_asked(config),
            "model": of_model.sha256,
            "dataset": of_dataset.sha256,
            "declared": None if declared is None else declared.model_dump(mode="json"),
            "options": options.as_json(),
            "names": [of_model.name, of_dataset.name],
        }
        with once.writing(content, new_jobs=3) as session:
            if config.surrogate is not None and config.surrogate.model_id is None:
                raise ConfigError(
                    "expected surrogate.model_id beside files: a surrogate is trained only for a "
                    "model and a data set that have been checked before"
                )
            surrogate = _surrogate(session, config, caller)
            resolve_audit_of_files(
                config,
                declared=None if declared is None else declared.positive,
                surrogate=_known_or_none(surrogate),
            )
            both = of_model.size + of_dataset.size  # before either is kept
            quotas.check_bytes(session, house.settings, caller.tenant, new=both)
            of_model.take(session, house, caller)
            model, model_job = assets.add_model(
                session,
                caller,
                name=of_model.name,
                sha256=of_model.sha256,
                size=of_model.size,
                declared=declared,
            )
            of_dataset.take(session, house, caller)
            dataset, dataset_job = assets.add_dataset(
                session,
                caller,
                name=of_dataset.name,
                sha256=of_dataset.sha256,
                size=of_dataset.size,
                options=options,
            )
            job = jobs.enqueue(
                session,
                JobKind.AUDIT,
                tenant=caller.tenant,
                request={**config.as_json(), "model_id": model.id, "dataset_id": dataset.id},
                dataset_id=dataset.id,
                model_id=model.id,
                surrogate_id=None if surrogate is None else surrogate.id,
            )
            answer = _kept(session, once, job)
    house.ring(model_job)
    house.ring(dataset_job)
    return answer
