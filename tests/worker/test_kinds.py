"""Every kind of job is known wherever it must be; the judge is the list of kinds itself."""

import re
from pathlib import Path
from typing import get_args

from adap.api.main import create_app
from adap.store.kinds import KINDS, QUEUES, JobKind
from adap.store.settings import Settings
from adap.store.tables import JobRow
from adap.worker.kinds import STEPS
from adap.worker.pipelines.requests import AnyRequest, DatasetCheck
from adap.worker.pipelines.table import PIPELINES


def test_every_kind_is_described_prepared_and_published() -> None:
    assert set(KINDS) == set(STEPS) == set(JobKind)
    assert [kind for kind in JobKind if STEPS[kind].prepare is None] == [JobKind.AUDIT]
    assert {kind.queue for kind in JobKind} == set(QUEUES)
    column = JobRow.__table__.c.kind.type
    assert set(column.enums) == {kind.value for kind in JobKind}  # type: ignore[attr-defined]


def test_every_request_has_a_pipeline() -> None:
    requests = set(get_args(get_args(AnyRequest)[0]))
    assert requests - set(PIPELINES) == {DatasetCheck}, (
        "which needs no torch, see adap.worker.child"
    )
    names = [request.model_fields["pipeline"].default for request in requests]
    assert len(set(names)) == len(requests)


def test_links_of_a_kind_lead_to_routes(tmp_path: Path) -> None:
    routes = {
        re.sub(r"\{\w+\}", "{id}", path)
        for path in create_app(Settings(home=tmp_path)).app.openapi()["paths"]
    }
    linked = {path for kind in KINDS.values() for path in kind.links.values()}
    assert linked
    assert linked <= routes
