"""The Celery application: a doorbell, nothing more. Imports no torch, so the API can ring too.

The job is the row in the database; a message only says which row to look at. Losing, doubling or
delaying it changes nothing but latency, because every worker also looks for queued rows by itself.
"""

import logging
from typing import Any

import kombu.exceptions
import redis.exceptions
from celery import Celery

from store.settings import Settings
from store.tables import JobRow

log = logging.getLogger(__name__)

TASK = "worker.run_job"


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


def ring(app: Celery, job: JobRow | Any) -> bool:
    """Tell the workers of the job's queue that it is there; False if the broker is away."""
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=0)  # else it waits for a broker that is away
            app.send_task(TASK, args=[job.id], queue=job.queue, connection=connection, retry=False)
    except (kombu.exceptions.OperationalError, redis.exceptions.RedisError, OSError) as error:
        log.warning("doorbell.failed", extra={"job_id": job.id, "reason": str(error)})
        return False
    return True
