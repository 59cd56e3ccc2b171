"""Preparing and publishing of each kind of job, before and after its pipeline.

`prepare` turns the rows that a job refers to into a request and input files; `publish` turns a
pipeline's result into rows, inside the transaction that ends the job.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from adap.core.audit.leakage import HeldOut
from adap.core.audit.plan import (
    ChecksPiece,
    Piece,
    ScoresPiece,
    Subject,
    known_input,
    make_plan,
    piece_input,
    trained_on_input,
)
from adap.core.config.audits import AuditConfig, AuditRequest
from adap.core.config.data import DatasetOptions
from adap.core.config.rankings import RankingRequest
from adap.core.config.training import TrainingConfig, TrainingRequest
from adap.core.errors import AdapError
from adap.core.report import DatasetProvenance, ModelProvenance
from adap.core.resolve import (
    DatasetSummary,
    Known,
    resolve_audit,
    resolve_ranking,
    resolve_training,
)
from adap.core.statement import Statement
from adap.models.catalogue import SMALLEST
from adap.models.header import Declaration, Manifest, ProbeResult
from adap.store import freed, scores
from adap.store.ids import new_id
from adap.store.jobs import JobError
from adap.store.tables import AssetStatus, DatasetRow, JobKind, JobRow, ModelRow
from adap.worker.pipelines.requests import (
    AnyRequest,
    AuditChecks,
    AuditReport,
    AuditScores,
    DatasetCheck,
    Export,
    ModelCheck,
    Ranking,
    Start,
    StartModel,
    TrainedOn,
    Training,
)
from adap.worker.pipelines.results import (
    AnyResult,
    AuditJoined,
    DatasetOpened,
    Exported,
    ModelOpened,
    PieceMeasured,
    Ranked,
    Rejected,
    Trained,
)

_PIECE: TypeAdapter[Piece] = TypeAdapter(Piece)


class InputError(AdapError):
    """Something that the job refers to cannot be used."""

    code = "input_not_ready"


@dataclass(frozen=True)
class Prepared:
    """The request of a pipeline, and its inputs as blobs."""

    request: AnyRequest
    blobs: dict[str, str]


def prepare(session: Session, job: JobRow) -> Prepared:
    """Gather what the job's pipeline needs. Raises AdapError where that cannot be had."""
    asked = STEPS[job.kind].prepare
    assert asked is not None
    return asked(session, job)


def publish(
    session: Session, job: JobRow, result: AnyResult, blobs: dict[str, str]
) -> dict[str, Any] | JobError:
    """Write what the job made; returns the job's result, or why it failed after all."""
    return STEPS[job.kind].publish(session, job, result, blobs)


def audit_plan(session: Session, job: JobRow) -> list[Piece]:
    """The pieces of an audit, in order; each is worked on by whichever worker is free."""
    config = AuditConfig.model_validate(_without_ids(job.request))
    dataset, model = _dataset(session, job), _model(session, job.model_id)
    summary = _summary(dataset)
    surrogate = None if job.surrogate_id is None else _model(session, job.surrogate_id)
    tasks, split = resolve_audit(
        config,
        summary,
        _known(model),
        surrogate=None if surrogate is None else _known(surrogate),
    )
    subject = Subject(
        tenant=job.tenant,
        model=_blob(model.content_sha256, model),
        dataset=_blob(dataset.content_sha256, dataset),
        surrogate=None if surrogate is None else surrogate.content_sha256,
        split=split,
        examples=summary.examples_in(split),
        image=(summary.height, summary.width),
    )
    return make_plan(config, tasks, subject)


def piece_of(job: JobRow) -> Piece:
    """The piece of an audit that this job does."""
    return _PIECE.validate_python(job.request)


def prepare_report(session: Session, job: JobRow, shards: Sequence[JobRow]) -> Prepared:
    """The last step of an audit: join its pieces, which are the jobs `shards` in their order."""
    model, dataset = _model(session, job.model_id), _dataset(session, job)
    surrogate = None if job.surrogate_id is None else _model(session, job.surrogate_id)
    pieces = [piece_of(shard) for shard in shards]
    split = pieces[0].split
    seen = _seen(model)
    here = _kept(session, job.tenant, seen)
    return Prepared(
        AuditReport(
            config=pieces[0].config,
            pieces=pieces,
            model=_provenance(model),
            surrogate=None if surrogate is None else _provenance(surrogate),
            dataset=DatasetProvenance(
                id=dataset.id,
                name=dataset.name,
                sha256=_blob(dataset.content_sha256, dataset),
                split=split,
                reading=_summary(dataset).reading,
            ),
            trained_on=[_held_out(model, sha256) for sha256 in here] if seen else None,
            missing=len(seen) - len(here),
            statement=_statement(job),
        ),
        {
            "dataset": _blob(dataset.content_sha256, dataset),
            **{trained_on_input(number): sha256 for number, sha256 in enumerate(here)},
            **{
                piece_input(number, name): sha256
                for number, shard in enumerate(shards)
                for name, sha256 in (shard.result or {})["blobs"].items()
            },
        },
    )


# --- what each kind needs -------------------------------------------------------------------------


def _prepare_dataset(session: Session, job: JobRow) -> Prepared:
    dataset = session.get_one(DatasetRow, job.dataset_id)
    asked = {name: job.request[name] for name in DatasetOptions.model_fields if name in job.request}
    request = DatasetCheck(options=DatasetOptions.model_validate(asked))
    return Prepared(request, {"upload": _blob(dataset.upload_sha256, dataset)})


def _prepare_model(session: Session, job: JobRow) -> Prepared:
    model = session.get_one(ModelRow, job.model_id)
    told = job.request.get("declared")
    request = ModelCheck(declared=None if told is None else Declaration.model_validate(told))
    return Prepared(request, {"upload": _blob(model.upload_sha256, model)})


def _prepare_training(session: Session, job: JobRow) -> Prepared:
    request = TrainingRequest.model_validate(job.request)
    dataset = _dataset(session, job)
    config = TrainingConfig.model_validate(
        {key: value for key, value in job.request.items() if key in TrainingConfig.model_fields}
    )
    blobs = {"dataset": _blob(dataset.content_sha256, dataset)}
    if job.checkpoint_sha256 is not None:
        blobs["checkpoint"] = job.checkpoint_sha256
    model = None if request.warm_start is None else _model(session, job.model_id)
    known = None if model is None else _known(model).ranker
    task, start = (
        resolve_training(request, _summary(dataset), start=known, smallest=SMALLEST).task,
        None,
    )
    assert task is not None
    if model is not None:
        blobs["warm_start"] = _blob(model.content_sha256, model)
        start = Start(
            model=StartModel(**_provenance(model).model_dump(include={*StartModel.model_fields})),
            fresh_head=request.fresh_head(),
            seen=sorted(_seen(model)),
        )
    return Prepared(
        Training(
            config=config,
            task=task,
            sample=request.sample,
            devices=request.devices,
            warm_start=start,
            dataset=TrainedOn(
                id=dataset.id,
                name=dataset.name,
                sha256=_blob(dataset.content_sha256, dataset),
            ),
            job_id=job.id,
        ),
        blobs,
    )


def _prepare_shard(session: Session, job: JobRow) -> Prepared:
    dataset, model = _dataset(session, job), _model(session, job.model_id)
    blobs = {
        "dataset": _blob(dataset.content_sha256, dataset),
        "model": _blob(model.content_sha256, model),
    }
    if job.surrogate_id is not None:
        surrogate = _model(session, job.surrogate_id)
        blobs["surrogate"] = _blob(surrogate.content_sha256, surrogate)
    piece = piece_of(job)
    if isinstance(piece, ChecksPiece):
        return Prepared(AuditChecks(piece=piece), blobs)
    by_key = {column.key: column.name for column in piece.columns}
    known = {by_key[key]: sha256 for key, sha256 in scores.find(session, list(by_key)).items()}
    blobs |= {known_input(name): sha256 for name, sha256 in known.items()}
    return Prepared(AuditScores(piece=piece, known=known), blobs)


def _prepare_export(session: Session, job: JobRow) -> Prepared:
    model = _model(session, job.model_id)
    return Prepared(Export(), {"model": _blob(model.content_sha256, model)})


def _prepare_ranking(session: Session, job: JobRow) -> Prepared:
    request = RankingRequest.model_validate(job.request)
    dataset, model = _dataset(session, job), _model(session, job.model_id)
    request, split = resolve_ranking(request, _summary(dataset), _known(model).ranker)
    return Prepared(
        Ranking(config=request, split=split),
        {
            "dataset": _blob(dataset.content_sha256, dataset),
            "model": _blob(model.content_sha256, model),
        },
    )


# --- what each kind publishes ---------------------------------------------------------------------


def _publish_dataset(
    session: Session, job: JobRow, result: AnyResult, blobs: dict[str, str]
) -> dict[str, Any] | JobError:
    dataset = session.get_one(DatasetRow, job.dataset_id)
    if isinstance(result, Rejected):
        return _reject(session, dataset, "dataset_rejected", result.reasons)
    assert isinstance(result, DatasetOpened)
    dataset.status = AssetStatus.READY
    freed.note(session, dataset.tenant, dataset.stored_bytes)
    dataset.content_sha256 = blobs["content"]
    dataset.upload_sha256 = None  # the stored form replaces it
    dataset.summary = result.summary.model_dump(mode="json")
    return {"dataset_id": dataset.id, "summary": dataset.summary}


def _publish_model(
    session: Session, job: JobRow, result: AnyResult, blobs: dict[str, str]
) -> dict[str, Any] | JobError:
    model = session.get_one(ModelRow, job.model_id)
    if isinstance(result, Rejected):
        return _reject(session, model, "model_rejected", result.reasons)
    assert isinstance(result, ModelOpened)
    model.status = AssetStatus.READY
    freed.note(session, model.tenant, model.stored_bytes)
    model.content_sha256 = blobs["content"]
    model.upload_sha256 = None
    model.manifest = result.manifest.model_dump(mode="json")
    model.findings = result.findings.model_dump(mode="json")
    return {"model_id": model.id, "findings": model.findings}


def _reject(
    session: Session, asset: DatasetRow | ModelRow, code: str, reasons: list[str]
) -> JobError:
    freed.note(session, asset.tenant, asset.stored_bytes)
    asset.status = AssetStatus.REJECTED
    asset.reasons = reasons
    asset.upload_sha256 = None
    return JobError(code, "; ".join(reasons[:3]))


def _publish_training(
    session: Session, job: JobRow, result: AnyResult, blobs: dict[str, str]
) -> dict[str, Any]:
    assert isinstance(result, Trained)
    summary = result.summary
    method = summary["method"]["name"]
    # A surrogate that an audit waits for has its row already.
    model = session.scalar(select(ModelRow).where(ModelRow.job_id == job.id))
    if model is None:
        name = job.request.get("name") or f"{method} on {summary['dataset']['name']}"
        model = ModelRow(id=new_id("mdl"), tenant=job.tenant, name=name, job_id=job.id)
        session.add(model)
    model.status = AssetStatus.READY
    model.content_sha256 = blobs["content"]
    model.manifest = result.manifest.model_dump(mode="json")
    session.flush()
    return {"model_id": model.id, "summary": summary}


def _publish_shard(
    session: Session, job: JobRow, result: AnyResult, blobs: dict[str, str]
) -> dict[str, Any]:
    assert isinstance(result, PieceMeasured)
    piece = piece_of(job)
    if isinstance(piece, ScoresPiece):
        made = {c.key: blobs[c.name] for c in piece.columns if c.name in blobs}
        scores.keep(session, made)
    return {"blobs": result.known | blobs}


def _publish_files(
    _session: Session, _job: JobRow, result: AnyResult, blobs: dict[str, str]
) -> dict[str, Any]:
    assert isinstance(result, AuditJoined | Ranked | Exported)
    return {"summary": result.summary.model_dump(mode="json"), "blobs": blobs}


# --- one line a kind ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Steps:
    """What the worker's parent does before and after the pipeline of a kind of job."""

    prepare: Callable[[Session, JobRow], Prepared] | None
    """None for an audit, whose pieces are jobs of their own: see `audit_plan`, `prepare_report`."""
    publish: Callable[[Session, JobRow, AnyResult, dict[str, str]], dict[str, Any] | JobError]


STEPS: Mapping[JobKind, Steps] = {
    JobKind.VALIDATE_DATASET: Steps(_prepare_dataset, _publish_dataset),
    JobKind.VALIDATE_MODEL: Steps(_prepare_model, _publish_model),
    JobKind.TRAIN: Steps(_prepare_training, _publish_training),
    JobKind.AUDIT: Steps(None, _publish_files),
    JobKind.AUDIT_SHARD: Steps(_prepare_shard, _publish_shard),
    JobKind.RANK: Steps(_prepare_ranking, _publish_files),
    JobKind.EXPORT: Steps(_prepare_export, _publish_files),
}


# --- the rows a job refers to ---------------------------------------------------------------------


def _dataset(session: Session, job: JobRow) -> DatasetRow:
    dataset = session.get_one(DatasetRow, job.dataset_id)
    _require_ready(dataset, f"data set {dataset.id}")
    return dataset


def _model(session: Session, model_id: str | None) -> ModelRow:
    model = session.get_one(ModelRow, model_id)
    _require_ready(model, f"model {model.id}")
    return model


def _require_ready(asset: DatasetRow | ModelRow, what: str) -> None:
    if asset.status != AssetStatus.READY:
        reasons = "; ".join((asset.reasons or [])[:3])
        raise InputError(
            f"expected {what} to be ready, got {asset.status.value}"
            + (f": {reasons}" if reasons else "")
        )


def _summary(dataset: DatasetRow) -> DatasetSummary:
    return DatasetSummary.model_validate(dataset.summary)


def _known(model: ModelRow) -> Known:
    return Known(model.content_sha256, Manifest.model_validate(model.manifest))


def _blob(sha256: str | None, asset: DatasetRow | ModelRow) -> str:
    if sha256 is None:
        raise InputError(f"expected {asset.id} to have content, got none")
    return sha256


def _findings(model: ModelRow) -> ProbeResult:
    return ProbeResult.model_validate(model.findings)


def _provenance(model: ModelRow) -> ModelProvenance:
    manifest = Manifest.model_validate(model.manifest)
    return ModelProvenance(
        id=model.id,
        name=model.name,
        sha256=_blob(model.content_sha256, model),
        architecture=manifest.architecture,
        origin="trained here" if model.findings is None else "uploaded",
        reading=None if model.findings is None else _findings(model).reading,
        outputs=manifest.output.count,
        positive=manifest.positive,
    )


def _seen(model: ModelRow) -> set[str]:
    """Hashes of the data sets that a model was trained on, or the models that it started from.

    As its manifest says, which may have been uploaded and hold anything.
    """
    training = (model.manifest or {}).get("training") or {}
    dataset, start = training.get("dataset"), training.get("warm_start")
    seen = [dataset.get("sha256")] if isinstance(dataset, dict) else []
    before = start.get("seen") if isinstance(start, dict) else None
    seen += before if isinstance(before, list) else []
    return {sha256 for sha256 in seen if isinstance(sha256, str)}


def _held_out(model: ModelRow, sha256: str) -> HeldOut | None:
    """How the model's own training held out what chose its epoch of this data set.

    None for a data set that only a model before it was trained on, and where the manifest, which
    may have been uploaded, says something else.
    """
    training = (model.manifest or {}).get("training") or {}
    try:
        if training["dataset"]["sha256"] != sha256:
            return None
        config = training["config"]
        return HeldOut(
            fraction=config["validation"]["fraction"],
            seed=config["seed"],
            sample=training.get("sample"),
        )
    except (KeyError, TypeError, ValidationError):
        return None


def _kept(session: Session, tenant: str, contents: Collection[str]) -> list[str]:
    """Which of these contents are data sets that the tenant still has."""
    found = select(DatasetRow.content_sha256).where(
        DatasetRow.tenant == tenant,
        DatasetRow.deleted_at.is_(None),
        DatasetRow.content_sha256.in_(contents),
    )
    return sorted({sha256 for sha256 in session.scalars(found) if sha256 is not None})


def _statement(job: JobRow) -> Statement | None:
    stated = job.request.get("statement")
    return None if stated is None else Statement.model_validate(stated)


def _without_ids(request: dict[str, Any]) -> dict[str, Any]:
    """An audit's configuration without what only the HTTP request carries."""
    own = AuditRequest.model_fields.keys() - AuditConfig.model_fields.keys()
    return {key: value for key, value in request.items() if key not in own}
