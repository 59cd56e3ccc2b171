"""`python -m adap.worker.scoring`: score single images for the API, until told to stop."""

import argparse
import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial

from adap.store.artifacts import open_blobs
from adap.store.logs import configure_logging
from adap.store.settings import Settings
from adap.worker.sandbox import make_sandbox
from adap.worker.scoring.decoder import Decoder
from adap.worker.scoring.link import ScoringGoneError, ScoringLink
from adap.worker.scoring.server import Server


def main() -> None:
    """Serve on the address of the settings in the foreground."""
    parser = argparse.ArgumentParser(prog="python -m adap.worker.scoring", description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 0 if it answers")
    arguments = parser.parse_args()
    settings = Settings.read()
    if settings.scoring_url is None:
        sys.exit("ADAP_SCORING_URL is not set: expected unix:///path or tcp://host:port")
    if arguments.check:
        sys.exit(not asyncio.run(_answers(settings.scoring_url)))
    configure_logging(settings)
    # see worker.__main__: threads that spin while they wait for each other take the API's core
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    try:
        sandbox = make_sandbox(settings)
    except RuntimeError as error:
        sys.exit(str(error))
    folder = settings.home / "work" / str(os.getpid())
    folder.mkdir(parents=True, exist_ok=True)
    try:
        asyncio.run(_serve(settings, partial(Decoder, sandbox, folder), settings.scoring_url))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _serve(settings: Settings, make_decoder: Callable[[], Decoder], url: str) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await Server(settings, open_blobs(settings), make_decoder).serve(url, stop=stop)


async def _answers(url: str) -> bool:
    link = ScoringLink(url)
    try:
        async with asyncio.timeout(10):
            await link.ask({"ask": "status"})
    except (ScoringGoneError, TimeoutError):
        return False
    finally:
        await link.close()
    return True


if __name__ == "__main__":
    main()
