"""`Idempotency-Key`: a POST that is sent again changes nothing and is answered as before.

The answer is stored in the transaction that makes what it tells of, so there is never one without
the other, whatever was killed when. A refused request made nothing: its key may be used again.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request
from pydantic import BaseModel
from sqlalchemy import bindparam, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from adap import faults
from adap.api import limits, quotas
from adap.api.deps import AnyCaller, Caller, House, HouseDep
from adap.api.errors import ApiError, Replayed
from adap.store.tables import IdempotencyRow

Answer = TypeVar("Answer", bound=BaseModel)

# by the connection, at a third of what the session's own execute takes
_EARLIER = select(
    IdempotencyRow.fingerprint, IdempotencyRow.status, IdempotencyRow.location, IdempotencyRow.body
).where(IdempotencyRow.tenant == bindparam("tenant"), IdempotencyRow.key == bindparam("key"))
_KEEP = insert(IdempotencyRow)


class Idempotency:
    """The key of one POST, if it has one, and the transaction in which the request is honoured."""

    def __init__(self, house: House, caller: Caller, key: str | None, path: str) -> None:
        self.house = house
        self.caller = caller
        self.key = key
        self.path = path
        self._fingerprint = ""

    @contextmanager
    def writing(self, content: Any, *, new_jobs: int = 0) -> Iterator[Session]:
        """The transaction of a request with this content, unless it was answered before.

        `new_jobs` is how many jobs it will queue. Raises Replayed with the earlier answer, and
        ApiError for a key that came with another content, a limit or a quota.
        """
        self._fingerprint = _hash(self.path, content)
        limits.check(self.house.settings, content)
        try:
            with self.house.database.writing() as session:
                self._recall(session)
                quotas.check_jobs(session, self.house.settings, self.caller.tenant, new=new_jobs)
                yield session
        except IntegrityError:  # the same request at the same moment was faster
            with self.house.database.reading() as session:
                self._recall(session)
            raise

    def keep(
        self, session: Session, answer: Answer, *, status: int = 201, location: str | None = None
    ) -> Answer:
        """Store what this key is answered with from now on; returns the answer."""
        self._keep(session, status, location, answer.model_dump(mode="json"))
        return answer

    def refuse_later(self, session: Session, code: str, detail: str) -> None:
        """Store that this key is answered with a problem: its answer must not be kept."""
        self._keep(session, 409, None, {"code": code, "detail": detail})

    def _keep(
        self, session: Session, status: int, location: str | None, body: dict[str, Any]
    ) -> None:
        if self.key is None:
            return
        session.connection().execute(
            _KEEP,
            {
                "tenant": self.caller.tenant,
                "key": self.key,
                "fingerprint": self._fingerprint,
                "status": status,
                "location": location,
                "body": body,
            },
        )

    def _recall(self, session: Session) -> None:
        if self.key is None:
            return
        asked = {"tenant": self.caller.tenant, "key": self.key}
        row = session.connection().execute(_EARLIER, asked).one_or_none()
        if row is None:
            return
        if row.fingerprint != self._fingerprint:
            raise ApiError(
                "idempotency_key_reused",
                f"The Idempotency-Key {self.key!r:.80} came with another request before; expected "
                "the same path and content, or a new key.",
            )
        if row.status >= 400:
            raise ApiError(row.body["code"], row.body["detail"])
        raise Replayed(row.status, row.body, row.location)


def _hash(path: str, content: Any) -> str:
    text = json.dumps([path, content], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


async def _idempotency(  # async: no thread is needed for this
    request: Request,
    house: HouseDep,
    caller: AnyCaller,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=255,
            pattern=faults.HEADER_TEXT,
            description="any text of your own, new for each request: the same request with the "
            "same key again is answered as before and makes nothing new",
        ),
    ] = None,
) -> Idempotency:
    return Idempotency(house, caller, idempotency_key, request.url.path)


IdempotencyDep = Annotated[Idempotency, Depends(_idempotency)]
