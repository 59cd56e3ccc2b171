"""The Celery application: a doorbell, nothing more. Imports no torch, so the API can ring too.

The job is the row in the database; a message only says which row to look at. Losing, doubling or
delaying it changes nothing but latency, because every worker also looks for queued rows by itself.
"""

import logging
import time
from contextlib import suppress
from contextvars import Context, copy_context
from queue import SimpleQueue
from threading import Thread
from typing import Any

import kombu.exceptions
import redis.exceptions
from celery import Celery

from adap.store.settings import Settings
from adap.store.tables import JobRow

log = logging.getLogger(__name__)

TASK = "worker.run_job"
AWAY_S = 1.0  # for so long a broker that was away is not asked again


def make_app(settings: Settings) -> Celery:
    """The Celery application on the broker of the settings."""
    app = Celery("adap", broker=settings.broker_url, set_as_current=False)
    app.conf.update(
        # The message is acknowledged before the work starts: the lease in the database, not the
        # broker, notices a dead worker. Late acknowledgement would run long jobs twice.
        task_acks_late=False,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,  # no bell waits behind a long job while others are idle
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_send_task_events=False,
        worker_enable_remote_control=False,
        worker_soft_shutdown_timeout=settings.lease_s,
        broker_connection_retry_on_startup=True,
        broker_connection_timeout=2,
        broker_transport_options={
            "visibility_timeout": 3600,
            "socket_timeout": 10,
            "socket_connect_timeout": 2,
            "socket_keepalive": True,
            "health_check_interval": 10,
        },
        task_create_missing_queues=True,
        task_default_queue="compute",
    )
    return app


FAULTS = (kombu.exceptions.OperationalError, redis.exceptions.RedisError, OSError)


class Bells:
    """Rings for a process of the API or a worker: from a thread of its own, over a kept connection.

    While the broker is away nobody waits for it, and no bell is kept for its return: workers have
    found the jobs by then.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._asked: SimpleQueue[tuple[Context, str, str] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="bells", daemon=True)
        self._connection: Any = None  # kombu has no types
        self._away_until = 0.0

    def start(self) -> None:
        """Begin to ring."""
        self._thread.start()

    def stop(self) -> None:
        """Ring what was asked for, and end."""
        self._asked.put(None)
        self._thread.join(timeout=5)

    def ring(self, job: JobRow) -> None:
        """Tell the workers of the job's queue that it is there, in a moment."""
        self._asked.put((copy_context(), job.id, job.queue))  # the log names the request

    def _run(self) -> None:
        while (asked := self._asked.get()) is not None:
            context, job_id, queue = asked
            away = time.monotonic() < self._away_until
            if not away and not context.run(self._rung, job_id, queue):
                self._away_until = time.monotonic() + AWAY_S
        self._hang_up()

    def _rung(self, job_id: str, queue: str) -> bool:
        kept = self._connection is not None
        try:
            if self._connection is None:
                self._connection = self._app.connection_for_write()
                self._connection.ensure_connection(max_retries=0)
                self._producer = self._app.amqp.Producer(self._connection)
            self._app.send_task(
                TASK, args=[job_id], queue=queue, producer=self._producer, retry=False
            )
        except FAULTS as error:
            self._hang_up()
            if kept:  # it may have broken long ago
                return self._rung(job_id, queue)
            log.warning("doorbell.failed", extra={"job_id": job_id, "reason": str(error)})
            return False
        return True

    def _hang_up(self) -> None:
        if self._connection is not None:
            with suppress(*FAULTS):
                self._connection.release()
            self._connection = None
