"""`python -m adap.api`: serve until told to stop."""

import gc
import os
import resource
import sys

import uvicorn

from adap.api.arriving import patient_protocol
from adap.api.deps import is_loopback
from adap.api.main import create_app
from adap.api.strangers import Connections
from adap.store import keys
from adap.store.logs import configure_logging
from adap.store.settings import Settings
from adap.store.start import UnusableDatabaseError, open_database

SWITCH_S = 0.001  # until a thread that computes lets the event loop go on; 5 ms by default


def main() -> None:
    """Serve on the address of the settings; refuse to serve strangers without keys."""
    settings = Settings.read()
    _stay_on_one_core()
    _open_many_files()
    configure_logging(settings)
    try:
        database = open_database(settings, wait_s=settings.database_wait_s)
    except UnusableDatabaseError as error:
        sys.exit(str(error))
    with database.reading() as session:
        protected = keys.any_made(session)
    database.dispose()
    if not protected and not is_loopback(settings.host):
        sys.exit(
            f"Refusing to listen on {settings.host} without API keys: anybody who can reach it "
            "could use it. Start on 127.0.0.1, run `adap key create me --scope admin`, then start "
            "again."
        )
    app = create_app(settings)
    gc.collect()
    sys.setswitchinterval(SWITCH_S)
    gc.freeze()  # what is here will stay: to look through it again and again stops every request
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        http=patient_protocol(
            settings.request_patience_s, overload=app.overload, connections=Connections()
        ),
        proxy_headers=settings.trusted_proxies is not None,
        forwarded_allow_ips=settings.trusted_proxies or "",
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=64 * 1024,
    )


def _open_many_files() -> None:
    """As many connections as the system lets a process have, not as many as a shell does."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _stay_on_one_core() -> None:
    """Where the system can: docs/decisions/0012-the-api-stays-on-one-core.md has the figures."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[os.getpid() % len(cores)]})


if __name__ == "__main__":
    main()
