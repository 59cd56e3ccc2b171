"""Figures for Prometheus: of the jobs from the database, of requests from this process."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from starlette.types import Scope

from adap.store import disk, metrics, queues, storage
from adap.store.database import Database

RATE_WINDOW_S = 3600.0
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})  # else any word


class Metrics:
    """What this process counts, and what it reads from the database when it is asked."""

    def __init__(self, database: Database, *, home: Path, lease_s: float) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Jobs(database, home, lease_s))
        self._requests = Histogram(
            "adap_http_request_seconds",
            "time to the end of the answer",
            ["method", "route", "status"],
            registry=self._registry,
        )

        self._troubles = Counter(
            "adap_storage_errors",
            "requests that the database, the store of files or the disk stood in the way of",
            ["code"],
            registry=self._registry,
        )
        for code in (storage.UNAVAILABLE, storage.MISSING, disk.CODE):
            self._troubles.labels(code)  # 0 so far, or a first error would be no growth

    def count_trouble(self, code: str) -> None:
        """Count a request that storage stood in the way of."""
        self._troubles.labels(code).inc()

    def count(self, scope: Scope, *, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._requests.labels(method, route_of(scope), str(status)).observe(seconds)

    def exposition(self, scoring: dict[str, Any] | None, *, blobs_up: bool) -> bytes:
        """All figures as text.

        scoring: the status of the scoring process, if it answered. blobs_up: whether the store of
        files did.
        """
        registry = CollectorRegistry()
        registry.register(_Scoring(scoring))
        Gauge("adap_blobs_up", "whether the store of files answers", registry=registry).set(
            blobs_up
        )
        return generate_latest(self._registry) + generate_latest(registry)


def route_of(scope: Scope) -> str:
    """The route that answered, without the ids of its path: they would make endless names."""
    return str(getattr(scope.get("route"), "path", "none"))


class _Scoring(Collector):
    def __init__(self, status: dict[str, Any] | None) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """What the scoring process has told."""
        up = GaugeMetricFamily("adap_scoring_up", "whether the scoring process answers")
        up.add_metric([], self._status is not None)
        yield up
        if self._status is None:
            return
        sizes = {int(size): count for size, count in self._status["batch_sizes"].items()}
        total, within, buckets = sum(sizes.values()), 0, []
        for size in sorted(sizes):
            within += sizes[size]
            buckets.append((f"{size:g}", float(within)))
        batches = HistogramMetricFamily("adap_scoring_batch_images", "images scored in one batch")
        images = sum(size * count for size, count in sizes.items())
        batches.add_metric([], [*buckets, ("+Inf", total)], sum_value=images)
        yield batches
        for name, help_, value in (
            ("adap_scoring_waiting_images", "images that wait", self._status["waiting"]),
            ("adap_scoring_models", "models in memory", len(self._status["in_memory"])),
        ):
            yield GaugeMetricFamily(name, help_, value=value)
        yield CounterMetricFamily(
            "adap_scoring_evictions", "models that left memory", value=self._status["evicted"]
        )


class _Jobs(Collector):
    def __init__(self, database: Database, home: Path, lease_s: float) -> None:
        self._database = database
        self._home = home
        self._lease_s = lease_s

    def describe(self) -> list[Metric]:
        """Nothing: or registering would ask the database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """One look at the database."""
        with self._database.reading() as session:
            depths = metrics.depths(session)
            oldest = metrics.oldest_s(session)
            durations = metrics.durations(session)
            images, seconds = metrics.attacked(session)
            lately = metrics.attacked(session, since_s=RATE_WINDOW_S)
            workers = metrics.workers(session, lease_s=self._lease_s)
            states = queues.states(session)
            stored = metrics.stored(session)
            troubles = metrics.troubles(session)

        depth = GaugeMetricFamily(
            "adap_jobs", "jobs that have not ended", labels=["kind", "queue", "status"]
        )
        for (kind, status), count in depths.items():
            depth.add_metric([kind, kind.queue, status], count)
        yield depth
        age = GaugeMetricFamily(
            "adap_oldest_job_age_seconds",
            "since the oldest job that has not ended was asked for",
            labels=["queue", "status"],
        )
        for (queue, status), age_s in oldest.items():
            age.add_metric([queue, status], age_s)
        yield age
        took = HistogramMetricFamily(
            "adap_job_seconds", "from start to end of a job", labels=["kind", "status"]
        )
        for d in durations:
            limits = [f"{limit:g}" for limit in metrics.DURATION_BUCKETS_S]
            buckets = [*zip(limits, d.within, strict=True), ("+Inf", d.count)]
            took.add_metric([d.kind, d.status], buckets, sum_value=d.total_s)
        yield took
        yield CounterMetricFamily(
            "adap_attacked_images", "images attacked by audits, once an attack", value=images
        )
        yield CounterMetricFamily(
            "adap_attack_seconds", "seconds that shards of audits took", value=seconds
        )
        yield GaugeMetricFamily(
            "adap_attacked_images_per_second",
            "of one worker, over the shards that ended in the last hour",
            value=lately[0] / lately[1] if lately[1] else 0.0,
        )
        alive = GaugeMetricFamily("adap_workers", "workers that are alive", labels=["queue"])
        for queue, count in workers.items():
            alive.add_metric([queue], count)
        yield alive
        paused = GaugeMetricFamily(
            "adap_queue_paused", "1 while an operator has paused the queue", labels=["queue"]
        )
        for state in states:
            paused.add_metric([state.name], state.paused_at is not None)
        yield paused
        for name, position in (("adap_assets", 0), ("adap_stored_bytes", 1)):
            family = GaugeMetricFamily(
                name, "of data sets and models that are ready", labels=["of"]
            )
            for of, values in stored.items():
                family.add_metric([of], values[position])
            yield family
        failures = CounterMetricFamily(
            "adap_failed_jobs", "jobs that failed, by the code of their error", labels=["code"]
        )
        for code, failed in troubles.failures.items():
            failures.add_metric([code], failed)
        yield failures
        yield CounterMetricFamily(
            "adap_lost_attempts",
            "attempts that a dead worker or storage cost",
            value=troubles.lost_attempts,
        )
        yield GaugeMetricFamily(
            "adap_undelivered_events",
            "events that webhooks never took, given up",
            value=troubles.undelivered,
        )
        yield GaugeMetricFamily(
            "adap_delayed_events",
            "events that a webhook has not taken so far, to be sent again",
            value=troubles.delayed,
        )
        yield GaugeMetricFamily(
            "adap_condemned_files", "garbage that waits to be deleted", value=troubles.condemned
        )
        yield GaugeMetricFamily(
            "adap_disk_free_bytes",
            "of the disk of ADAP_HOME of this process",
            value=shutil.disk_usage(self._home).free,
        )
