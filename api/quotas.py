"""Quotas of one tenant: jobs, stored bytes, requests a second. Answered by 429."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from sqlalchemy import bindparam, func, select, text
from sqlalchemy.orm import Session

from adap.api.errors import ApiError
from adap.store import freed, results
from adap.store.settings import Settings
from adap.store.tables import LIVE, JobRow

JOBS_RETRY_S = 10  # until a job of the tenant may have ended
BYTES_RETRY_S = 60  # until somebody may have removed something
HELD_TIMES = 2  # what a tenant may have on the disk with what it removed, in what it may have
HELD_RETRY_S = 3600  # until garbage may have been collected
AT_ONCE = 100  # more requests than are answered in one moment

_LIVE_JOBS = select(func.count()).where(
    JobRow.tenant == bindparam("tenant"), JobRow.status.in_(LIVE), JobRow.parent_id.is_(None)
)


def check_jobs(session: Session, settings: Settings, tenant: str, *, new: int) -> None:
    """Raise ApiError where this many more jobs would be too many.

    Requests of one moment wait for each other only near the limit: far from it they cannot pass it
    together.
    """
    if new == 0 or settings.max_tenant_jobs is None:
        return
    live = session.scalar(_LIVE_JOBS, {"tenant": tenant}) or 0
    if live + new + AT_ONCE > settings.max_tenant_jobs:
        _one_at_a_time(session, tenant)
        live = session.scalar(_LIVE_JOBS, {"tenant": tenant}) or 0
    if live + new > settings.max_tenant_jobs:
        raise ApiError(
            "too_many_jobs",
            f"Expected at most {settings.max_tenant_jobs} queued and running jobs "
            f"(ADAP_MAX_TENANT_JOBS), got {new} more than the {live} there are; wait for one to "
            "end, or cancel one.",
            headers={"Retry-After": str(JOBS_RETRY_S)},
        )


def check_bytes(session: Session, settings: Settings, tenant: str, *, new: int) -> None:
    """Raise ApiError where this many more bytes of files would be too many."""
    if settings.max_tenant_bytes is None:
        return
    _one_at_a_time(session, tenant)
    stored = results.stored_bytes(session, tenant)
    gone = freed.held_bytes(session, tenant, grace_s=settings.blob_grace_s)
    most = HELD_TIMES * settings.max_tenant_bytes
    if stored + gone + new > most:
        raise ApiError(
            "storage_full",
            f"Expected at most {most} bytes in all with those that were removed and are on the "
            f"disk still ({HELD_TIMES} times ADAP_MAX_TENANT_BYTES), got {new} more than the "
            f"{stored} there are and the {gone} removed within "
            f"{freed.held_s(settings.blob_grace_s) / 3600:g} hours (ADAP_BLOB_GRACE_S); come again "
            "when they are deleted.",
            headers={"Retry-After": str(HELD_RETRY_S)},
        )
    if stored + new > settings.max_tenant_bytes:
        raise ApiError(
            "storage_full",
            f"Expected files of at most {settings.max_tenant_bytes} bytes in all "
            f"(ADAP_MAX_TENANT_BYTES), got {new} more than the {stored} there are; remove some.",
            headers={"Retry-After": str(BYTES_RETRY_S)},
        )


def _one_at_a_time(session: Session, tenant: str) -> None:
    """Nobody else counts for the tenant until this transaction ends; SQLite has one writer."""
    if session.get_bind().dialect.name == "postgresql":
        lock = text("SELECT pg_advisory_xact_lock(hashtextextended(:tenant, 0))")
        session.execute(lock, {"tenant": tenant})


MOST_BUCKETS = 10_000  # then the full ones are forgotten, which changes nothing


class Rates:
    """Requests a second of each tenant, in this process: a bucket that refills all the time."""

    def __init__(self, per_s: float | None) -> None:
        self.per_s = per_s
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens left, and when that was
        self._lock = Lock()

    def take(self, tenant: str) -> None:
        """Count a request. Raises ApiError where the last second had too many already."""
        if self.per_s is None:
            return
        tokens = self.count(tenant)
        if tokens < 1:
            raise ApiError(
                "rate_limited",
                f"Expected at most {self.per_s:g} requests a second "
                "(ADAP_MAX_TENANT_REQUESTS_PER_S), got more.",
                headers={"Retry-After": str(max(1, round((1 - tokens) / self.per_s)))},
            )

    def left(self, tenant: str) -> bool:
        """Whether another request may come now; counts none."""
        with self._lock:
            return self.per_s is None or self._level(tenant, time.monotonic()) >= 1

    def count(self, tenant: str) -> float:
        """Count a request, where there is room; returns how much room there was."""
        if self.per_s is None:
            return 1.0
        with self._lock:
            at = time.monotonic()
            tokens = self._level(tenant, at)
            if len(self._buckets) >= MOST_BUCKETS:
                full = max(self.per_s, 1.0)
                names = [name for name in self._buckets if self._level(name, at) >= full]
                for name in names:
                    del self._buckets[name]
            self._buckets[tenant] = (tokens - 1 if tokens >= 1 else tokens, at)
            return tokens

    def _level(self, tenant: str, at: float) -> float:
        assert self.per_s is not None
        size = max(self.per_s, 1.0)
        tokens, before = self._buckets.get(tenant, (size, at))
        return min(size, tokens + (at - before) * self.per_s)


class Places:
    """How many answers of each tenant are open for long, in this process; for its event loop."""

    def __init__(self, most: int | None) -> None:
        self.most = most
        self._taken: Counter[str] = Counter()

    def free(self, tenant: str) -> bool:
        """Whether another may be opened."""
        return self.most is None or self._taken[tenant] < self.most

    @contextmanager
    def take(self, tenant: str) -> Iterator[None]:
        """Hold a place as long as the block. Raises ApiError where all are taken."""
        if not self.free(tenant):
            raise ApiError(
                "too_many_streams",
                f"Expected at most {self.most} streams of events at a time "
                "(ADAP_MAX_TENANT_STREAMS), got one more; follow fewer jobs, or ask for them now "
                "and then.",
                headers={"Retry-After": str(JOBS_RETRY_S), "Connection": "close"},
            )
        self._taken[tenant] += 1
        try:
            yield
        finally:
            self._taken[tenant] -= 1
            if not self._taken[tenant]:
                del self._taken[tenant]
