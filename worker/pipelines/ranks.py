"""The further processes of a training on several devices, beside the one that does the job.

They are of the job's process group, so whatever ends the job's process ends them; and one that ends
before its time ends the group: the job is then lost as with any process that dies, and goes on from
its last checkpoint. They have no pipe to the worker and write no files. What they need they make
from the same inputs as the first process, whose weights are then given to all.

    python -m adap.worker.pipelines.ranks RANK THREADS

reads its work from stdin, and ends when that does.
"""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread

import torch

from adap.core.errors import AdapError, ConfigError
from adap.core.training import loop
from adap.core.training.ranks import ALONE, Ranks, group
from adap.worker.pipelines.inputs import device
from adap.worker.pipelines.learning import Learning, learning_of
from adap.worker.pipelines.requests import Training
from adap.worker.work import Work, decode

log = logging.getLogger(__name__)

END_LIMIT_S = 60.0  # in which a rank whose training is done has ended
BROKEN_LIMIT_S = 5.0  # in which a rank is gone whose connection broke


def refuse_more_than_there_are(work: Work[Training]) -> None:
    """Raise ConfigError for more devices than this machine has for ranks."""
    wanted, on_gpus = work.request.devices, device(work) == "cuda"
    there = torch.cuda.device_count() if on_gpus else len(os.sched_getaffinity(0))
    if wanted > there:
        kind = "GPUs" if on_gpus else "CPU cores"
        raise ConfigError(
            f"expected at most {there} devices, the {kind} of this worker, got {wanted}"
        )


@contextmanager
def ranks_of(work: Work[Training]) -> Iterator[Ranks]:
    """This process as the first of a training's ranks; the others train on `work` meanwhile."""
    count = work.request.devices
    if count == 1:
        yield ALONE
        return
    threads = torch.get_num_threads()
    others: list[subprocess.Popen[bytes]] = []
    done: set[int] = set()

    def watch(process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        if process.pid not in done:
            _end_for(code)

    try:
        for rank in range(1, count):
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "adap.worker.pipelines.ranks",
                    str(rank),
                    str(threads),
                ],
                stdin=subprocess.PIPE,
            )
            others.append(process)
            assert process.stdin is not None
            process.stdin.write(work.encode() + b"\n")
            process.stdin.flush()
            Thread(target=watch, args=(process,), daemon=True).start()
        with _meeting(work, Ranks(0, count), threads=threads) as ranks:
            try:
                yield ranks
            except RuntimeError:  # as a connection that broke, maybe before its process was gone
                _end_with(others)
                raise
            finally:
                done.update(process.pid for process in others)
        for process in others:
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_LIMIT_S)
    finally:
        done.update(process.pid for process in others)
        for process in others:
            process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()
        torch.set_num_threads(threads)


def _end_with(others: Iterable[subprocess.Popen[bytes]]) -> None:
    """End the group if one of them ends before long: its end is the reason, not what came of it."""
    for process in others:
        with suppress(subprocess.TimeoutExpired):
            _end_for(process.wait(BROKEN_LIMIT_S))


def _end_for(code: int) -> None:
    """End the group unless this is the exit status of a rank that had done its part."""
    if code != 0:
        log.error("rank.died", extra={"exit_code": code})
        os.killpg(os.getpgrp(), signal.SIGKILL)


def device_of(work: Work[Training], ranks: Ranks) -> torch.device:
    """Where a rank computes: each on a GPU of its own."""
    kind = device(work)
    return (
        torch.device(kind, ranks.rank) if kind == "cuda" and ranks.count > 1 else torch.device(kind)
    )


@contextmanager
def _meeting(work: Work[Training], ranks: Ranks, *, threads: int) -> Iterator[Ranks]:
    """The group of all ranks of this work, who share its threads."""
    torch.set_num_threads(max(1, threads // ranks.count))
    where = device_of(work, ranks)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    with group(ranks, meeting=work.folder / "ranks", device=where):
        yield ranks


def _main() -> None:
    line = sys.stdin.buffer.readline()
    Thread(target=_end_with_stdin, daemon=True).start()
    work: Work[Training] = decode(line)  # type: ignore[assignment]
    assert isinstance(work.request, Training)
    ranks = Ranks(int(sys.argv[1]), work.request.devices)
    with _meeting(work, ranks, threads=int(sys.argv[2])):
        try:
            learning: Learning = learning_of(work)
            loop.fit(
                learning.scorer,
                learning.objective,
                images=learning.images,
                targets=learning.targets,
                validation=learning.validation,
                config=work.request.config,
                device=device_of(work, ranks),
                on_epoch=lambda _: None,
                ranks=ranks,
            )
        except AdapError as error:  # which the first rank meets too, and reports
            log.info("rank.ended", extra={"reason": str(error)})


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    _main()
