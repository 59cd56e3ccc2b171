"""Models compared on one data set, from audits that were run already."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError
from safetensors.numpy import load
from sqlalchemy import select

from adap import faults
from adap.api import assets, forms
from adap.api.deps import House, HouseDep, Reader
from adap.api.errors import explain_validation, problems
from adap.api.guarded import GuardedRoute
from adap.api.pages import PAGE, wants_page
from adap.api.pages.compare import compare_page
from adap.api.schemas import NO_PIPELINE, Contender, Leaderboard, LeaderboardSetting
from adap.core.config.attacks import APGDAttack, Attack, FGSMAttack, PGDAttack
from adap.core.config.audits import AuditConfig, AuditRequest
from adap.core.config.base import Split
from adap.core.config.data import MAX_CLASSES_IN_URL, ClassName, EachClass
from adap.core.config.deployment import PipelineStep
from adap.core.config.threats import Norm
from adap.core.figures.intervals import Resampled, percentile_interval
from adap.core.fractions import fraction
from adap.core.report import APFigure, Difference, Interval
from adap.core.resolve import DatasetSummary, resolve_split
from adap.store.storage import MissingContentError
from adap.store.tables import DatasetRow, JobKind, JobRow, JobStatus, ModelRow

log = logging.getLogger(__name__)

router = APIRouter(prefix="/v1/leaderboard", tags=["audits"], route_class=GuardedRoute)

Sides = dict[str, Resampled]
"""By side: clean and worst_case."""

_PIPELINE: TypeAdapter[list[PipelineStep]] = TypeAdapter(list[PipelineStep])

_LOST = (
    "The scores of this audit are lost, so that there are no intervals: an operator can put them "
    "back, or audit the model again."
)


@dataclass(frozen=True)
class _Audit:
    """A finished audit and its model, as far as a leaderboard asks."""

    job: JobRow
    model: ModelRow
    config: AuditConfig
    setting: LeaderboardSetting

    @property
    def attacks(self) -> list[Attack]:
        return self.config.resolved_attacks()

    @property
    def attacked_by(self) -> dict[str, str]:
        """Each attack in words, by its whole configuration but for its label."""
        return {
            json.dumps(attack.as_json() | {"label": None}, sort_keys=True): _described(attack)
            for attack in self.attacks
        }

    @property
    def strength(self) -> tuple[int, int]:
        """Gradients evaluated for each image, then attacks."""
        return sum(map(_evaluations, self.attacks)), len(self.attacks)

    @property
    def unchecked(self) -> list[str]:
        """What its checks leave to be desired."""
        verdict = _summary(self.job)["trust"]
        if verdict is None:
            return ["trust checks: none were run"]
        if verdict == "not trustworthy":
            return ["a verdict that can be relied on: it is not trustworthy"]
        return []

    def missing(self, reference: "_Audit") -> list[str]:
        """What keeps it below the line, in words; nothing where it is ranked."""
        lacking = reference.attacked_by.keys() - self.attacked_by.keys()
        return [reference.attacked_by[key] for key in sorted(lacking)] + self.unchecked


@router.get(
    "",
    response_model=Leaderboard,
    responses=problems("not_found", "not_ready", "not_acceptable") | PAGE,
)
def leaderboard(
    request: Request,
    response: Response,
    house: HouseDep,
    caller: Reader,
    dataset_id: Annotated[str, Query(pattern=faults.DATASET_ID, max_length=40)],
    positive: Annotated[
        list[ClassName] | None,
        forms.several_classes("/query/positive"),
        Query(
            max_length=MAX_CLASSES_IN_URL,
            description="positive classes of the task; repeated where several, or a JSON list",
        ),
    ] = None,
    split: Split | None = None,
    norm: Norm | None = None,
    epsilon: Annotated[
        float | None,
        BeforeValidator(fraction),
        Query(ge=0, le=1000, description="a number, or a fraction such as 8/255"),
    ] = None,
    each: Annotated[bool, Query(description="of a task for each class")] = False,
    sample: Annotated[
        int | None, Query(ge=0, le=2**31, description="examples sampled; 0 for all of them")
    ] = None,
    pipeline: Annotated[
        list[Annotated[str, Field(max_length=300)]] | None,
        Query(
            max_length=8,
            description="the steps in order, each as a text (`jpeg:80`) or in JSON; `none` for no "
            "pipeline",
        ),
    ] = None,
) -> Leaderboard | Response:
    """The models that were audited on a data set, the highest worst-case AP first.

    Audits are comparable where task, split, sample, threat and pipeline agree. Of several such
    settings that fit what is asked for, the one with most models is shown (of equal ones the
    oldest), and `other_settings` says which others there are. Ranked are checked audits that
    ran every attack of the strongest of them; weaker or unchecked ones follow without a rank,
    with what is `missing`. Of each model the newest ranked audit counts. Differences to the
    leader are paired:
    both rankings on the same resamples of the same images. Also as a page (`text/html`).
    """
    as_page = wants_page(request, response)
    with house.database.reading() as session:
        dataset = assets.find(session, DatasetRow, dataset_id, caller)
        assets.require_ready(dataset)
        query = (
            select(JobRow, ModelRow)
            .join(ModelRow, ModelRow.id == JobRow.model_id)
            .where(
                JobRow.kind == JobKind.AUDIT,
                JobRow.status == JobStatus.SUCCEEDED,
                JobRow.tenant == caller.tenant,
                JobRow.dataset_id == dataset_id,
                ModelRow.deleted_at.is_(None),
            )
            .order_by(JobRow.id)
        )
        summary = DatasetSummary.model_validate(dataset.summary)
        audits = [
            _Audit(job, model, config := _config(job), _setting(job, config, summary))
            for job, model in session.execute(query)
            if "blobs" in (job.result or {})  # a report that was removed has no intervals
        ]
    asked: dict[str, Any] = {"split": split, "norm": norm, "epsilon": epsilon}
    asked["positive"] = positive and sorted(positive)
    asked["pipeline"] = None if pipeline is None else _steps(pipeline)
    by_setting: dict[str, list[_Audit]] = {}
    for audit in audits:
        fits = all(value in (None, getattr(audit.setting, key)) for key, value in asked.items())
        of_each = audit.setting.positive is None
        sampled = sample is None or (audit.setting.sample or 0) == sample
        if fits and sampled and (of_each or not each):
            by_setting.setdefault(audit.setting.model_dump_json(), []).append(audit)
    board = Leaderboard(dataset_id=dataset_id, setting=None, other_settings=[], contenders=[])
    if by_setting:
        chosen = max(by_setting.values(), key=lambda some: len({audit.model.id for audit in some}))
        board = Leaderboard(
            dataset_id=dataset_id,
            setting=chosen[0].setting,
            other_settings=[some[0].setting for some in by_setting.values() if some is not chosen],
            contenders=_contenders(house, chosen),
        )
    return compare_page(board, dataset_name=dataset.name) if as_page else board


def _steps(texts: Sequence[str]) -> list[PipelineStep]:
    """The pipeline that a query names. ApiError for what names none."""
    if list(texts) == [NO_PIPELINE]:
        return []
    try:
        return _PIPELINE.validate_python([_read(text) for text in texts])
    except ValidationError as error:
        raise explain_validation(error, prefix="query/pipeline") from error


def _read(text: str) -> Any:
    try:
        return json.loads(text) if text.startswith("{") else text
    except (ValueError, RecursionError):
        return text  # and no step either: the refusal says so


def _setting(job: JobRow, config: AuditConfig, summary: DatasetSummary) -> LeaderboardSetting:
    """What must agree for two audits to be comparable."""
    tasks = (job.result or {})["summary"]["tasks"]
    each = isinstance(config.task, EachClass)
    split = resolve_split(config.split, summary)
    sample = config.sampled(summary.examples_in(split))
    return LeaderboardSetting(
        positive=None if each else sorted(tasks[0]["positive"]),
        split=split,
        sample=sample,
        sample_seed=None if sample is None else config.seed,
        norm=config.threat.norm,
        epsilon=config.threat.epsilon,
        pipeline=config.pipeline,
    )


def _config(job: JobRow) -> AuditConfig:
    own = {key: job.request[key] for key in AuditRequest.model_fields if key in job.request}
    return AuditRequest.model_validate(own)


def _evaluations(attack: Attack) -> int:
    if isinstance(attack, PGDAttack | APGDAttack):
        return attack.steps * attack.restarts
    return int(isinstance(attack, FGSMAttack))


def _described(attack: Attack) -> str:
    told = attack.as_json()
    parts = [f"{told[name]} {name}" for name in ("steps", "queries", "restarts") if name in told]
    return f"{attack.name} with {', '.join(parts)}" if parts else attack.name


def _contenders(house: House, audits: list[_Audit]) -> list[Contender]:
    """The ranked, best first, with their paired differences to the best; then the others."""
    checked = [audit for audit in audits if not audit.unchecked]
    reference = max(checked or audits, key=lambda audit: audit.strength)
    of_model: dict[str, _Audit] = {}
    for audit in audits:  # oldest first: a newer one takes the place, unless it would lose a rank
        known = of_model.get(audit.model.id)
        if known is None or known.missing(reference) or not audit.missing(reference):
            of_model[audit.model.id] = audit
    by_ap = sorted(
        of_model.values(),
        key=lambda it: (
            bool(it.missing(reference)),
            -_summary(it.job)["worst_case_ap"],
            it.model.id,
        ),
    )
    leader = by_ap[0]
    of_leader = _resampled(house, leader.job)
    found = []
    for place, audit in enumerate(by_ap, start=1):
        summary, missing = _summary(audit.job), audit.missing(reference)
        own = _resampled(house, audit.job)
        difference = None
        if place > 1 and not missing:
            difference = Difference(
                value=summary["worst_case_ap"] - _summary(leader.job)["worst_case_ap"],
                interval=_paired(own, of_leader),
            )
        found.append(
            Contender(
                rank=None if missing else place,
                missing=missing,
                model_id=audit.model.id,
                model_name=audit.model.name,
                job_id=audit.job.id,
                clean=_figure(summary["clean_ap"], own, "clean"),
                worst_case=_figure(summary["worst_case_ap"], own, "worst_case"),
                problem=None if own is not None else _LOST,
                to_leader=difference,
                trust=summary["trust"],
                attacks=list(summary["attacks"]),
            )
        )
    return found


def _summary(job: JobRow) -> dict[str, Any]:
    return dict((job.result or {})["summary"])


def _figure(ap: float, resampled: Sides | None, name: str) -> APFigure:
    return APFigure(
        ap=ap, interval=None if resampled is None else percentile_interval(resampled[name])
    )


def _paired(own: Sides | None, leader: Sides | None) -> Interval | None:
    """The interval of a difference in the worst case; None unless both have the same resamples."""
    if own is None or leader is None:
        return None
    if own["worst_case"].ap.shape != leader["worst_case"].ap.shape:
        return None
    return percentile_interval(own["worst_case"] - leader["worst_case"])


def _resampled(house: House, job: JobRow) -> Sides | None:
    """Bootstrapped mean APs over the tasks, clean and in the worst case.

    None where the file is lost: the figures of the others are shown all the same.
    """
    try:
        with house.blobs.open((job.result or {})["blobs"]["resampled"]) as file:
            arrays = load(file.read())
    except MissingContentError as error:
        log.warning("content.missing", extra={"job_id": job.id, "reason": str(error)})
        return None

    def mean(name: str) -> NDArray[np.float64]:
        rows = [arrays[key] for key in arrays if key.endswith(f".{name}")]
        return np.asarray(np.mean(rows, axis=0), dtype=np.float64)

    return {
        side: Resampled(*(mean(f"{side}.{field.name}") for field in fields(Resampled)))
        for side in ("clean", "worst_case")
    }
