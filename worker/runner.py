"""One worker: claims jobs, has children do the work, publishes what they made.

A worker works on one job at a time (`slot`). A doorbell makes it look for the job whose turn it is,
which need not be the one that the bell rang for; so does, when it is idle, the clock: every few
seconds it looks for a queued job that nobody rang for. As often it says that it lives, and takes
back the jobs of workers that are silent.
"""

import logging
import os
import shutil
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, TypeVar

from celery import Celery
from sqlalchemy import delete, exists, select
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from adap.core.audit.plan import ScoresPiece, known_input
from adap.core.errors import AdapError
from adap.models.errors import ModelFileError
from adap.models.limits import CostLimits
from adap.store import (
    chores,
    disk,
    freed,
    garbage,
    idempotency,
    jobs,
    results,
    retention,
    retries,
    scores,
    storage,
    sweeps,
    uploads,
    webhooks,
)
from adap.store.artifacts import open_blobs
from adap.store.blobs import Blobs
from adap.store.database import UNHURRIED, Database, now
from adap.store.ids import new_id
from adap.store.jobs import Claim, ClaimLostError, JobError
from adap.store.logs import log_about
from adap.store.settings import Settings
from adap.store.storage import Trouble
from adap.store.tables import TERMINAL, JobKind, JobRow, JobStatus, WorkerRow
from adap.store.traces import Traces
from adap.worker import devices, kinds
from adap.worker.app import Bells
from adap.worker.child import (
    Child,
    ChildDiedError,
    ChildFailedError,
    DeviceLostError,
    cool_down,
    warm_up,
)
from adap.worker.intake.limits import IntakeLimits
from adap.worker.pipelines.requests import (
    AnyRequest,
    AuditScores,
    DatasetCheck,
    DeviceTrial,
    ModelCheck,
)
from adap.worker.pipelines.results import AnyResult
from adap.worker.sandbox import make_sandbox
from adap.worker.sweeps import advance
from adap.worker.work import Message, Work

log = logging.getLogger(__name__)

Written = TypeVar("Written")

PROGRESS_EVERY_S = 0.5
DATABASE_RETRY_S = 0.5
DATABASE_AWAY = (OperationalError, InterfaceError)
BLOBS_RETRY_S = 0.5
STORAGE_AWAY_S = 5.0  # after which a job that storage has stopped may be taken again
STORAGE_BACKOFF_S = (5.0, 20.0, 80.0, 320.0, 1280.0)  # after the first, second, … such attempt
TRANSIENT = (disk.CODE, storage.UNAVAILABLE)  # may pass by itself: tried again some times
RETRYABLE = (  # the same request may well succeed
    "worker_lost",
    "timeout",
    disk.CODE,
    devices.CODE,
    storage.UNAVAILABLE,
    storage.MISSING,
)


class UnusableDeviceError(RuntimeError):
    """The device that this worker must use does not work."""


class ShardFailedError(ChildFailedError):
    """A shard of an audit failed for good, and so does the audit."""


class CancelledError(Exception):
    """The job was asked to stop."""


class StoppingError(Exception):
    """This worker is shutting down."""


class TimeLimitError(Exception):
    """The job takes too long, or has not moved for too long."""


class Worker:
    """A worker of one queue."""

    def __init__(self, settings: Settings, app: Celery, *, queue: str) -> None:
        self.settings = settings
        self.bells = Bells(app)
        self.queue = queue
        self.id = f"{queue}@{socket.gethostname()}:{os.getpid()}:{new_id('wrk')[-8:]}"
        self.database = Database(settings)
        self.blobs: Blobs = open_blobs(settings)
        self.sandbox = make_sandbox(settings)
        self.traces = Traces(settings, service="adap-worker")
        self.stopping = Event()
        self.lost_device = False
        self.slot = Lock()
        self.folder = settings.home / "work" / str(os.getpid())
        self._threads = [
            Thread(target=self._regularly, args=(work,), name=work.__name__, daemon=True)
            for work in (self.sweep, self.find_jobs)
        ]

    def start(self) -> None:
        """Announce this worker, and begin to look for jobs.

        Raises UnusableDeviceError if it must use a device that does not work.
        """
        _remove_folders_of_the_dead(self.folder.parent)
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.queue == "compute":
            warm_up()
            if self.settings.device == "cuda":
                self._try_device()
        self.bells.start()
        for thread in self._threads:
            thread.start()
        log.info("worker.started", extra={"worker": self.id, "sandbox": self.sandbox.walls})

    def _try_device(self) -> None:
        work = Work(DeviceTrial(), {}, self.folder, self.settings.device)
        try:
            with Child() as child:
                child.run(work, on_message=lambda _: None, check=lambda: None)
        except (ChildFailedError, ChildDiedError) as error:
            raise UnusableDeviceError(
                f"{error} This worker takes no jobs. Mend the device, or set ADAP_DEVICE=cpu."
            ) from error

    def _retire(self, job: JobRow, reason: str) -> None:
        """Take no more jobs: the device would fail them all."""
        log.error("device.lost", extra={"job_id": job.id, "reason": reason})
        self.lost_device = True
        self.stopping.set()
        os.kill(os.getpid(), signal.SIGTERM)  # as from outside, so that Celery ends too

    def stop(self) -> None:
        """Give the running job back, at once; safe to call again, and from a signal handler."""
        self.stopping.set()

    def join(self) -> None:
        """Wait until the job is given back and nothing runs any more."""
        for thread in self._threads:
            thread.join()
        with self.slot, suppress(SQLAlchemyError), self.database.writing() as session:
            session.execute(delete(WorkerRow).where(WorkerRow.id == self.id))
        cool_down()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.bells.stop()
        self.traces.stop()

    # --- one job ----------------------------------------------------------------------------------

    def run_job(self, job_id: str) -> None:
        """A bell rang for this job: work on the one whose turn it is, if there is any."""
        with self.slot:
            with self.database.reading() as session:
                job = session.get(JobRow, job_id)
            if job is None or job.queue != self.queue:  # no bell of ours rings for it here
                log.warning("doorbell.ignored", extra={"job_id": job_id})
                return
            self._run_next()

    def _run_next(self) -> bool:
        """Work on the job whose turn it is; False if there is none."""
        if self.stopping.is_set():
            return False
        asked_at = time.monotonic()
        with self.database.writing() as session:
            claim = jobs.claim_next(
                session, self.queue, worker=self.id, lease_s=self.settings.lease_s
            )
            if claim is None:
                return False
            job = session.get_one(JobRow, claim.job_id)
        log.info("job.claimed", extra={"job_id": job.id, "attempt": claim.attempt})
        sandbox = self.sandbox if job.queue == "intake" else None
        with Child(sandbox=sandbox, threads=self.settings.threads) as child:
            attempt = Attempt(self, job, claim, since=asked_at)
            if job.kind == JobKind.AUDIT:
                self._attempt(attempt, lambda: self._audit(job, attempt, child))
            else:
                self._attempt(attempt, lambda: self._pipeline(job, attempt, child))
        if job.kind == JobKind.TRAIN:
            with self.database.reading() as session:
                sweep_id = sweeps.sweep_of(session, job.id)
            if sweep_id is not None:
                self._advance(sweep_id)
        return True

    def _advance(self, sweep_id: str) -> None:
        """Make the trials of a sweep that may be made now."""
        try:
            with self.database.writing() as session:
                made = advance(session, sweep_id)
        except Exception:  # no other work may suffer from it; it is tried again soon
            log.exception("sweep.not_advanced", extra={"sweep_id": sweep_id})
            return
        for job in made:
            log.info("trial.made", extra={"sweep_id": sweep_id, "job_id": job.id})
            self.bells.ring(job)

    def _attempt(self, attempt: "Attempt", work: Callable[[], None]) -> None:
        """Run `work`, and turn whatever ends it into the job's next state."""
        job, claim = attempt.job, attempt.claim
        ended: Callable[[Session], None] | None
        try:
            with (
                log_about(job_id=job.id),
                self.traces.span(
                    f"job {job.kind}",
                    parent=job.traceparent,
                    adap__job_id=job.id,
                    adap__attempt=claim.attempt,
                ),
                attempt.heartbeat(),
            ):
                work()
            return
        except ClaimLostError:
            log.warning("job.claim_lost", extra={"job_id": job.id, "attempt": claim.attempt})
            return
        except CancelledError:
            ended = partial(jobs.finish_cancelled, claim=claim)
        except StoppingError:
            ended = partial(jobs.release, claim=claim)
        except ChildDiedError as error:
            log.warning("job.child_died", extra={"job_id": job.id, "reason": str(error)})
            ended = partial(jobs.lose, claim=claim, max_lost=self.settings.max_lost_attempts)
        except DeviceLostError as error:
            self._retire(job, str(error))
            ended = partial(
                jobs.lose,
                claim=claim,
                max_lost=self.settings.max_lost_attempts,
                reason=JobError(error.code, str(error), retryable=True),
            )
        except TimeLimitError as error:
            ended = _failure(claim, JobError("timeout", str(error), retryable=True))
        except ShardFailedError as error:  # the shard was tried again, if that may have helped
            retryable = error.code in RETRYABLE
            ended = _failure(claim, JobError(error.code, str(error), retryable=retryable))
        except (ChildFailedError, AdapError, ModelFileError) as error:
            ended = self._failed(claim, error.code, str(error))
        except (*DATABASE_AWAY, storage.BlobsAwayError, garbage.ContentGoneError) as error:
            log.warning("job.interrupted", extra={"job_id": job.id, "reason": str(error)})
            ended = partial(
                jobs.release, claim=claim, reason=storage.UNAVAILABLE, wait_s=STORAGE_AWAY_S
            )
        except SQLAlchemyError:
            log.exception("job.abandoned", extra={"job_id": job.id})  # its lease will run out
            return
        except Exception as error:
            log.exception("job.failed", extra={"job_id": job.id})
            unexpected = Trouble(
                "internal_error", "The service met an error that it did not expect."
            )
            trouble = storage.trouble(error) or unexpected
            ended = self._failed(claim, trouble.code, trouble.message)
        try:
            attempt.write(ended)
        except ClaimLostError:
            log.warning("job.claim_lost", extra={"job_id": job.id, "attempt": claim.attempt})
        except SQLAlchemyError:
            log.exception("job.abandoned", extra={"job_id": job.id})

    def _failed(self, claim: Claim, code: str, message: str) -> Callable[[Session], None]:
        """What becomes of a job that met this: what may pass is tried again some times, later."""
        error = JobError(code, message, retryable=code in RETRYABLE)
        if code not in TRANSIENT:
            return _failure(claim, error)
        return partial(
            jobs.lose,
            claim=claim,
            max_lost=self.settings.max_storage_attempts,
            reason=error,
            backoff_s=STORAGE_BACKOFF_S,
        )

    def _pipeline(self, job: JobRow, attempt: "Attempt", child: Child) -> None:
        with self.database.writing() as session:
            prepared = kinds.prepare(session, job)
        result, blobs = attempt.run(prepared, child)
        checkpoint = attempt.checkpoint or job.checkpoint_sha256

        def publish(session: Session) -> bool:
            published = kinds.publish(session, job, result, blobs)
            if isinstance(published, JobError):
                jobs.fail(session, attempt.claim, published)
                return False
            attempt.succeed(session, published, blobs)
            return True

        if attempt.write(publish) and checkpoint is not None:
            attempt.discard(checkpoint)
        self._ring_waiting(job)

    def _audit(self, job: JobRow, attempt: "Attempt", child: Child) -> None:
        """Attack shard by shard, together with every idle worker, then join the shards.

        The audit holds its own lease and takes shards itself, so it goes on if it is alone; shards
        that are done stay done, whoever dies.
        """
        with self.database.writing() as session:
            pieces = [piece.as_json() for piece in kinds.audit_plan(session, job)]
            jobs.add_shards(session, session.get_one(JobRow, job.id), pieces)
        for shard in self.shards(job.id, JobStatus.QUEUED)[1:]:
            self.bells.ring(shard)
        while True:
            attempt.check()
            asked_at = time.monotonic()
            with self.database.writing() as session:
                claim = jobs.claim_shard(
                    session, attempt.claim, worker=self.id, lease_s=self.settings.lease_s
                )
                shard_row = None if claim is None else session.get_one(JobRow, claim.job_id)
            if claim is not None and shard_row is not None:
                inner = Attempt(self, shard_row, claim, since=asked_at, outer=attempt)
                self._attempt(inner, partial(self._pipeline, shard_row, inner, child))
                continue
            shards = self.shards(job.id)
            failed = [shard for shard in shards if shard.status == JobStatus.FAILED]
            if failed:
                error = failed[0].error or {}
                self._cancel_shards(job.id)
                raise ShardFailedError(error["code"], error["message"])
            if all(shard.status == JobStatus.SUCCEEDED for shard in shards):
                break
            if all(shard.status in TERMINAL for shard in shards):
                raise CancelledError
            time.sleep(0.2)  # another worker has the last shards
        attempt.report_shards()
        with self.database.reading() as session:
            prepared = kinds.prepare_report(session, job, self.shards(job.id))
        result, blobs = attempt.run(prepared, child)

        def publish(session: Session) -> None:
            published = kinds.publish(session, job, result, blobs)
            assert not isinstance(published, JobError)
            attempt.succeed(session, published, blobs)

        attempt.write(publish)

    def shards(self, audit_id: str, status: JobStatus | None = None) -> list[JobRow]:
        """The shards of an audit, in order."""
        with self.database.reading() as session:
            query = select(JobRow).where(JobRow.parent_id == audit_id).order_by(JobRow.shard)
            if status is not None:
                query = query.where(JobRow.status == status)
            return list(session.scalars(query))

    def _cancel_shards(self, audit_id: str) -> None:
        with self.database.writing() as session:
            for shard in session.scalars(select(JobRow.id).where(JobRow.parent_id == audit_id)):
                jobs.request_cancel(session, shard)

    def _ring_waiting(self, job: JobRow) -> None:
        """An upload was checked: jobs that came with it in one request can start."""
        if job.queue != "intake":
            return
        with self.database.reading() as session:
            waiting = list(
                session.scalars(
                    select(JobRow).where(
                        JobRow.status == JobStatus.QUEUED,
                        JobRow.queue == "compute",
                        (JobRow.dataset_id == job.dataset_id) | (JobRow.model_id == job.model_id),
                    )
                )
            )
        for row in waiting:
            self.bells.ring(row)

    # --- every few seconds ------------------------------------------------------------------------

    def _regularly(self, work: Callable[[], None]) -> None:
        while not self.stopping.is_set():
            try:
                work()
            except Exception:  # a database or a bucket that is away comes back
                log.exception("worker.%s_failed", work.__name__)
            self.stopping.wait(self.settings.sweep_s)

    def sweep(self) -> None:
        """Say that this worker lives, take back the jobs of those that do not, see to the searches,
        collect garbage."""
        with self.database.writing() as session:
            session.merge(
                WorkerRow(id=self.id, queue=self.queue, sandbox=self.sandbox.walls, seen_at=now())
            )
            session.execute(
                delete(WorkerRow).where(WorkerRow.seen_at < now() - 10 * self.settings.lease_s)
            )
            jobs.cut_leases(session, lease_s=self.settings.lease_s)
            for job_id in jobs.take_back_expired(session, max_lost=self.settings.max_lost_attempts):
                log.warning("job.taken_back", extra={"job_id": job_id})
        if self.queue == "compute":  # trials of searches whose worker died before it made the next
            with self.database.reading() as session:
                waiting = sweeps.unfinished(session)
            for sweep_id in waiting:
                self._advance(sweep_id)
        with self.database.writing() as session:
            mine = chores.take(session, "garbage", every_s=freed.COLLECTED_EVERY_S)
        if mine:
            with self.database.writing(**UNHURRIED) as session:
                jobs.cut_waits(session)
                retries.forget_checkpoints(session, older_s=self.settings.checkpoints_kept_s)
                scores.forget(session, unused_s=self.settings.scores_kept_s)
                webhooks.forget(session)
                idempotency.forget(session, older_s=self.settings.idempotency_kept_s)
                uploads.forget(session)
                freed.forget(session, grace_s=self.settings.blob_grace_s)
            self._forget_old()
            removed = garbage.collect(self.database, self.blobs, grace_s=self.settings.blob_grace_s)
            log.info("blobs.collected", extra={"removed": removed})

    def _forget_old(self) -> None:
        """Let go of old jobs and results, where the settings say how old."""
        files_s, jobs_s = self.settings.results_kept_s, self.settings.jobs_kept_s
        files = 0 if files_s is None else retention.forget_files(self.database, older_s=files_s)
        ended = 0 if jobs_s is None else retention.forget_jobs(self.database, older_s=jobs_s)
        if files or ended:
            log.info("jobs.forgotten", extra={"jobs": ended, "results": files})

    def find_jobs(self) -> None:
        """While this worker is idle, work on queued jobs that nobody rang for."""
        while not self.stopping.is_set() and self.slot.acquire(blocking=False):
            try:
                if not self._run_next():
                    return
            finally:
                self.slot.release()


def is_alive(settings: Settings) -> bool:
    """Whether a worker of this host has said so lately; what a container's health check asks."""
    database = Database(settings)
    with database.reading() as session:
        seen = session.scalar(
            select(
                exists().where(
                    WorkerRow.id.contains(f"@{socket.gethostname()}:", autoescape=True),
                    WorkerRow.seen_at > now() - settings.lease_s,
                )
            )
        )
    database.dispose()
    return bool(seen)


class Attempt:
    """One attempt at a job: its lease, its progress, its limits.

    since: the moment before its lease was asked for. outer: the audit that this is a shard of, if
    the audit's own worker attacks it: what stops the audit stops the shard.
    """

    def __init__(
        self,
        worker: Worker,
        job: JobRow,
        claim: Claim,
        *,
        since: float,
        outer: "Attempt | None" = None,
    ) -> None:
        self.worker = worker
        self.job = job
        self.claim = claim
        self.checkpoint: str | None = None
        self.made_bytes = 0  # of the files that it made
        self._settings = worker.settings
        self._outer = outer
        self._status = JobStatus.RUNNING
        self._lost = False
        self._started = self._renewed = self._moved = since
        self._reported = 0.0
        self._phase: tuple[str, float, int] = ("", self._started, 0)  # name, start, completed then

    @contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Renew the lease until the end of the block, from a thread of its own."""
        done = Event()

        def beat() -> None:
            while not done.wait(self._settings.heartbeat_s):
                self._renew(None)

        thread = Thread(target=beat, name=f"heartbeat-{self.job.id}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def write(self, work: Callable[[Session], Written]) -> Written:
        """Do a transaction; where the database is away, wait for it while the lease holds.

        It may be done twice, if the connection broke after the commit. Raises ClaimLostError.
        """
        while True:
            try:
                with self.worker.database.writing() as session:
                    return work(session)
            except DATABASE_AWAY as error:
                log.warning("database.away", extra={"job_id": self.job.id, "reason": str(error)})
                if self.worker.stopping.is_set():
                    raise
                self._check_lease()
                time.sleep(DATABASE_RETRY_S)

    def _check_lease(self) -> None:
        # silent for most of the lease: stop before somebody else may start
        if self._lost or time.monotonic() - self._renewed > 0.8 * self._settings.lease_s:
            raise ClaimLostError(self.claim)

    def check(self) -> None:
        """Raise whatever stops this attempt: lost, cancelled, shutting down, or too slow."""
        self._check_lease()
        elapsed = time.monotonic()
        if self._status == JobStatus.CANCELLING:
            raise CancelledError
        if self.worker.stopping.is_set():
            raise StoppingError
        if self._outer is not None:
            self._outer.check()
        intake = self.job.queue == "intake"
        limit_s = self._settings.intake_limit_s if intake else self._settings.job_limit_s
        if elapsed - self._started > limit_s:
            raise TimeLimitError(f"The job did not end within its limit of {limit_s:g} s.")
        if elapsed - self._moved > self._settings.stall_limit_s:
            raise TimeLimitError(
                f"The job made no progress for {self._settings.stall_limit_s:g} s and was stopped."
            )

    def run(self, prepared: kinds.Prepared, child: Child) -> tuple[AnyResult, dict[str, str]]:
        """Have a child run a pipeline; returns its result and the blobs of its files."""
        folder = (
            self.worker.folder / f"{self.job.id}-{self.claim.attempt}-{prepared.request.pipeline}"
        )
        self._moved = time.monotonic()
        try:
            folder.mkdir(parents=True)
            request, inputs = self._inputs(prepared)
            if isinstance(request, DatasetCheck):
                limits = IntakeLimits(
                    archive_bytes=self._settings.max_file_bytes,
                    entries=self._settings.max_images,
                    pixels=self._settings.max_image_pixels,
                )
                request = request.model_copy(update={"limits": limits})
            if isinstance(request, ModelCheck):
                cost = CostLimits(
                    flops=self._settings.max_model_flops,
                    bytes=self._settings.max_model_bytes,
                    batch=self._settings.scoring_max_batch,
                )
                request = request.model_copy(update={"limits": cost})
            work = Work(request, inputs, folder, self._settings.device)
            result = child.run(
                work, on_message=lambda message: self._on_message(message, folder), check=self.check
            )
            paths = {name: _inside(folder, file) for name, file in result.files.items()}
            self.made_bytes = sum(path.stat().st_size for path in paths.values())
            return result, {
                name: self.patiently(partial(self.worker.blobs.put, path))
                for name, path in paths.items()
            }
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _inputs(self, prepared: kinds.Prepared) -> tuple[AnyRequest, dict[str, Path]]:
        """The request of a pipeline and its files.

        What can be made again is done without: a checkpoint that is lost, scores of before.
        """
        request, inputs = prepared.request, {}
        known = dict(request.known) if isinstance(request, AuditScores) else {}
        columns = {known_input(column): column for column in known}
        for name, sha256 in prepared.blobs.items():
            try:
                inputs[name] = self.patiently(partial(self.worker.blobs.local_path, sha256))
            except storage.MissingContentError as error:
                log.warning("content.missing", extra={"job_id": self.job.id, "reason": str(error)})
                if name == "checkpoint":
                    self.write(lambda session: jobs.drop_checkpoint(session, self.claim))
                    self._record("checkpoint_lost", {"epoch": self.job.checkpoint_epoch})
                elif name in columns:
                    del known[columns[name]]
                else:
                    raise
        if isinstance(request, AuditScores):
            request = request.model_copy(update={"known": known})
        return request, inputs

    def patiently(self, ask: Callable[[], Written]) -> Written:
        """Ask the blob store; where it is away, wait for it as long as a lease would hold.

        Raises BlobsAwayError in the end, or whatever stops this attempt.
        """
        since = time.monotonic()
        while True:
            try:
                return ask()
            except storage.BlobsAwayError as error:
                log.warning("blobs.away", extra={"job_id": self.job.id, "reason": str(error)})
                self.check()
                if time.monotonic() - since > 0.8 * self._settings.lease_s:
                    raise
                self._moved = time.monotonic()  # it is not the work that stands still
                time.sleep(BLOBS_RETRY_S)

    def report_shards(self) -> None:
        """Show how far all shards of this audit are together, as images done of its images.

        Each image is measured many times over, by every attack and task: its share of that work is
        what is done of it.
        """
        total = completed = 0
        images: Counter[int] = Counter()  # by task
        for shard in self.worker.shards(self.job.id):
            piece = kinds.piece_of(shard)
            total += piece.images
            completed += (shard.progress or {}).get("completed", 0)
            if isinstance(piece, ScoresPiece) and not piece.whole:
                images[piece.task_number] += piece.stop - piece.start
        of = max(images.values(), default=total)
        self._progress("attacking", completed, total, "images", shown_of=of)

    def _on_message(self, message: Message, folder: Path) -> None:
        self._moved = time.monotonic()
        match message["type"]:
            case "progress":
                self._progress(
                    message["phase"], message["completed"], message["total"], message["unit"]
                )
                if self._outer is not None:
                    self._outer.shard_moved()
            case "event":
                self._record(message["name"], message["data"])
            case "checkpoint":
                self._keep_checkpoint(_inside(folder, message["file"]), epoch=message["epoch"])

    def shard_moved(self) -> None:
        """One of this audit's shards has moved: so has the audit."""
        self._moved = time.monotonic()
        if self._moved - self._reported > PROGRESS_EVERY_S:
            self.report_shards()

    def _progress(
        self, phase: str, completed: int, total: int, unit: str, *, shown_of: int | None = None
    ) -> None:
        """Keep how far it is; shown as a share of `shown_of` where work is counted more finely."""
        name, started, first = self._phase
        if name != phase:
            self._phase = name, started, first = phase, time.monotonic(), completed
        if completed < total and time.monotonic() - self._reported < PROGRESS_EVERY_S:
            return
        self._reported = time.monotonic()
        done = completed - first
        eta_s = None
        if done > 0:
            eta_s = round((time.monotonic() - started) / done * (total - completed), 1)
        of = total if shown_of is None else shown_of
        self._renew(
            {
                "phase": phase,
                "completed": completed * of // max(total, 1),
                "total": of,
                "unit": unit,
                "eta_s": eta_s,
            }
        )

    def _keep_checkpoint(self, path: Path, *, epoch: int) -> None:
        try:
            while True:
                sha256 = self.patiently(partial(self.worker.blobs.put, path))
                try:
                    previous = self.write(partial(self._save_checkpoint, sha256, epoch))
                    break
                except garbage.ContentGoneError:  # an earlier attempt had left the same content
                    continue
        except (OSError, storage.BlobsAwayError) as error:
            trouble = storage.trouble(error)
            if trouble is None:
                raise
            log.warning("checkpoint.not_kept", extra={"job_id": self.job.id, "reason": str(error)})
            self._record("checkpoint_not_kept", {"reason": trouble.code})  # the one before stays
            return
        finally:
            path.unlink()  # the next one has a name of its own
        self.checkpoint = sha256
        if previous is not None and previous != sha256:
            self.discard(previous)

    def _save_checkpoint(self, sha256: str, epoch: int, session: Session) -> str | None:
        previous = jobs.save_checkpoint(session, self.claim, sha256, epoch=epoch)
        garbage.refer(session, self.worker.blobs, [sha256])
        return previous

    def discard(self, checkpoint: str) -> None:
        """Delete a checkpoint that the job has let go of; if that fails it is garbage."""
        try:
            self.write(
                lambda session: garbage.discard(session, self.worker.blobs, self.job.id, checkpoint)
            )
        except (OSError, storage.BlobsAwayError) as error:
            log.warning(
                "checkpoint.not_discarded", extra={"job_id": self.job.id, "reason": str(error)}
            )

    def succeed(self, session: Session, result: dict[str, Any], blobs: dict[str, str]) -> None:
        """End the job with its result. Raises ContentGoneError where a file of it is gone."""
        garbage.refer(
            session, self.worker.blobs, {*blobs.values(), *result.get("blobs", {}).values()}
        )
        jobs.succeed(session, self.claim, result)
        results.note_size(session, self.job, self.made_bytes)

    def _record(self, name: str, data: dict[str, Any]) -> None:
        self.write(lambda session: jobs.record(session, self.claim, name, data))

    def _renew(self, progress: dict[str, Any] | None) -> None:
        asked_at = time.monotonic()  # the lease counts from before the commit
        try:
            with self.worker.database.writing() as session:
                self._status = jobs.renew(
                    session, self.claim, lease_s=self._settings.lease_s, progress=progress
                )
            self._renewed = asked_at
        except ClaimLostError:
            self._lost = True
        except SQLAlchemyError as error:
            log.warning("lease.not_renewed", extra={"job_id": self.job.id, "reason": str(error)})


def _failure(claim: Claim, error: JobError) -> Callable[[Session], None]:
    return lambda session: jobs.fail(session, claim, error)


def _inside(folder: Path, name: str) -> Path:
    """A regular file of the work folder; a sandboxed child may have been hijacked."""
    path = folder / name
    if Path(name).name != name or path.is_symlink() or not path.is_file():
        raise ChildFailedError("internal_error", "The process that opened the upload misbehaved.")
    return path


def _remove_folders_of_the_dead(root: Path) -> None:
    """Work folders are named by process id; remove those whose process is gone."""
    for folder in root.glob("[0-9]*"):
        try:
            os.kill(int(folder.name), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except PermissionError:
            continue
