"""Queues: what waits and runs in each, and a pause of one."""

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import ConfigDict, Field

from adap.api.deps import Admin, HouseDep
from adap.api.errors import problems
from adap.api.guarded import GuardedRoute
from adap.api.schemas import QueueInfo, timestamp
from adap.core.config.base import Config, Name
from adap.store import queues
from adap.store.kinds import Queue
from adap.store.queues import QueueState

router = APIRouter(prefix="/v1/queues", tags=["queues"], route_class=GuardedRoute)


class QueueRequest(Config):
    """`PUT /v1/queues/{queue}`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"paused": True, "reason": "upgrade at noon"}]}
    )

    paused: bool
    reason: Name | None = Field(None, description="shown to all whose jobs wait")


@router.get("", responses=problems())
def list_queues(house: HouseDep, _caller: Admin) -> list[QueueInfo]:
    """Every queue: whether it is paused, what waits and what runs, of all tenants together."""
    with house.database.reading() as session:
        return [_answer(state) for state in queues.states(session)]


@router.put("/{queue}", responses=problems())
def set_queue(
    queue: Annotated[Queue, Path()], request: QueueRequest, house: HouseDep, _caller: Admin
) -> QueueInfo:
    """Pause a queue, or resume it.

    While it is paused no worker takes a job of it; what runs goes on, requests are taken, and their
    jobs wait and say why. It stays so across restarts.
    """
    with house.database.writing() as session:
        if request.paused:
            queues.pause(session, queue, reason=request.reason)
        else:
            queues.resume(session, queue)
    house.halted.forget()
    with house.database.reading() as session:
        (state,) = (state for state in queues.states(session) if state.name == queue)
        return _answer(state)


def _answer(state: QueueState) -> QueueInfo:
    return QueueInfo(
        name=state.name,
        paused=state.paused_at is not None,
        paused_at=timestamp(state.paused_at),
        reason=state.reason,
        queued=state.queued,
        running=state.held,
    )
