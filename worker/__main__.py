"""`python -m adap.worker --queue compute`: one worker, until it is told to stop."""

import argparse
import logging
import os
import sys
from typing import Any

from celery.signals import worker_ready, worker_shutting_down

from adap.store.logs import configure_logging
from adap.store.settings import Settings
from adap.store.start import UnusableDatabaseError, open_database
from adap.store.tables import QUEUES
from adap.worker.app import TASK, make_app
from adap.worker.runner import UnusableDeviceError, Worker, is_alive

ROUND_S = 0.05


def main() -> None:
    """Run a worker of one queue in the foreground."""
    parser = argparse.ArgumentParser(prog="python -m adap.worker", description=__doc__)
    parser.add_argument("--queue", choices=QUEUES, default="compute")
    parser.add_argument(
        "--check", action="store_true", help="exit 0 if a worker of this host is alive"
    )
    arguments = parser.parse_args()
    queue = arguments.queue
    settings = Settings.read()
    if arguments.check:
        sys.exit(not is_alive(settings))
    configure_logging(settings)
    # Inherited by the children that compute. Threads that spin while they wait for each other slow
    # small networks by an order of magnitude as soon as anything else wants a core.
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    if settings.broker_url is None:
        sys.exit("ADAP_BROKER_URL is not set: expected redis://host:port/0")
    app = make_app(settings)
    try:
        open_database(settings, wait_s=settings.database_wait_s).dispose()
        worker = Worker(settings, app, queue=queue)
    except (UnusableDatabaseError, RuntimeError) as error:
        sys.exit(str(error))

    app.task(name=TASK)(worker.run_job)
    # a signal handler of Celery's only starts its own shutdown; ours gives the job back
    worker_shutting_down.connect(lambda **_: worker.stop(), weak=False)

    def ready(sender: Any, **_: Any) -> None:
        logging.getLogger(__name__).info("worker.ready", extra={"queue": queue})
        # Celery's loop asks for the next bell in its rounds: let it go round soon after a job
        sender.timer.call_repeatedly(ROUND_S, lambda: None)

    worker_ready.connect(ready, weak=False)
    try:
        worker.start()
    except UnusableDeviceError as error:
        sys.exit(str(error))
    try:
        app.worker_main(
            [
                *("worker", "--pool", "threads", "--concurrency", "1", "--queues", queue),
                *("--hostname", f"{queue}@%h", "--without-gossip", "--without-mingle"),
                *("--without-heartbeat", "--loglevel", settings.log_level),
            ]
        )
    except SystemExit:  # Celery's, whose status is 0 after some errors too
        pass
    finally:
        told = worker.stopping.is_set()
        worker.stop()
        worker.join()
    if worker.lost_device:
        sys.exit("The device failed; the job that met this was given back. The log says more.")
    if not told:  # for example by bytes in the broker that are no message
        sys.exit("The worker ended without being told to; its log says why.")


if __name__ == "__main__":
    main()
