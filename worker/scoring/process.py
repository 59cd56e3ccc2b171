"""The process of one model, as the scoring process sees it: started, asked, ended by force.

It comes from a fork server that has torch loaded already, and ends with the scoring process. It is
asked from threads, over as many pipes as there are passes side by side. Who ends it need not wait
for them: their pipes close with it, and each learns of it there.
"""

import contextlib
import os
import resource
import signal
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from queue import LifoQueue
from typing import Any, Literal

import msgpack
import numpy as np
from numpy.typing import NDArray

from adap.worker.child import die_with_the_worker
from adap.worker.sandbox import die_first
from adap.worker.seccomp import ask_for_little

MAX_PIPES = 64  # a fork server hands on up to 253 descriptors
OUT_OF_MEMORY = "out_of_memory"  # what a process answers, and nobody outside sees
MAX_TASKS = 64  # classes asked for whose scorers one process keeps

_context = get_context("forkserver")
_PRELOAD = ["adap.worker.scoring.passes", "torchvision"]

Positive = tuple[str, ...] | None  # the classes to score
Reason = Literal["late", "left", "too large"]


@dataclass(frozen=True)
class Machine:
    """What the passes run on."""

    device: str  # cpu or cuda
    cores: int  # that batches are for


@dataclass(frozen=True)
class Plan:
    """What a process is started with."""

    path: Path  # of the model's file
    device: str
    threads: int | None  # of torch; None for all
    pipes: int
    max_batch: int
    weights_bytes: int  # of the scorers that it keeps
    heap_bytes: int | None  # besides what torch takes; None for a GPU, whose driver keeps to none


@dataclass(frozen=True)
class Smallest:
    """A change of one image, and the image: (C, H, W) float32 in [0, 1] as bytes.

    size: its largest change of a pixel, in [0, 1]; infinite where none was found.
    score: of the image that was changed.  steps: gradients that it was searched by.
    """

    size: float
    score: float
    steps: int
    image: bytes
    changed: bytes


class EndedError(Exception):
    """The process has ended.

    begun: whether it was asked by then. reason: what it was ended for, None where it ended by
    itself or was killed by somebody else.
    """

    def __init__(self, process: "ModelProcess", *, begun: bool) -> None:
        self.reason = process.reason
        super().__init__(self.reason or "ended by itself, or killed")
        self.process = process
        self.begun = begun


class PassError(Exception):
    """The process answered that it cannot: a code of the API, and a sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ModelProcess:
    """A process that computes passes of one model. Raises OSError if it cannot be started."""

    def __init__(self, plan: Plan) -> None:
        self.reason: Reason | None = None
        self.batch = 1  # images of a pass, once something is loaded
        self.weights_bytes = 0
        self.loaded: set[Positive] = set()
        self._deadlines: dict[Connection, float] = {}  # of those that wait for an answer
        self._free: LifoQueue[Connection] = LifoQueue()
        pairs = [Pipe() for _ in range(plan.pipes)]
        for ours, _ in pairs:
            self._free.put(ours)
        theirs = [pair[1] for pair in pairs]
        process = _context.Process(target=_forked, args=(plan, theirs), daemon=True)
        try:
            process.start()  # waits for the fork server
        except EOFError as error:
            raise OSError("the fork server ended") from error
        finally:
            for their in theirs:
                their.close()
        assert process.pid is not None
        self.pid = process.pid
        self._handle = os.pidfd_open(self.pid)  # a number may come to mean another process
        weakref.finalize(self, os.close, self._handle)

    def load(self, positive: Positive, *, limit_s: float) -> None:
        """Get ready to score for these classes. Raises as `score` does."""
        answer = self._ask({"positive": positive}, limit_s=limit_s)
        self.batch, self.weights_bytes = int(answer["batch"]), int(answer["bytes"])
        if len(self.loaded) >= MAX_TASKS:
            self.loaded.clear()
        self.loaded.add(positive)

    def score(
        self, positive: Positive, parts: Sequence[NDArray[Any]], *, cores: int, limit_s: float
    ) -> NDArray[np.float64]:
        """(N,) logits of (N, C, H, W) images in parts, which all have one dtype.

        limit_s: after which `is_late`. Raises EndedError, PassError.
        """
        shape = [sum(map(len, parts)), *parts[0].shape[1:]]
        question = {
            "positive": positive,
            "cores": cores,
            "images": {"shape": shape, "dtype": parts[0].dtype.str},
        }
        answer = self._ask(question, parts, limit_s=limit_s)
        return np.frombuffer(answer["scores"], np.float64, count=shape[0])

    def smallest(
        self, positive: Positive, image: NDArray[Any], *, below: float, limit_s: float
    ) -> Smallest:
        """The smallest change found by which the logit of (1, C, H, W) falls below this.

        Raises as `score` does; a PassError where memory runs out, as passes may need less.
        """
        question = {
            "positive": positive,
            "below": below,
            "limit_s": limit_s / 2,  # what is left is for a machine that others use
            "images": {"shape": list(image.shape), "dtype": image.dtype.str},
        }
        return Smallest(**self._ask(question, [image], limit_s=limit_s))

    @property
    def asked(self) -> bool:
        """Whether somebody waits for an answer."""
        return bool(self._deadlines)

    def is_late(self) -> bool:
        """Whether an answer takes longer than its limit."""
        now = time.monotonic()
        return any(deadline < now for deadline in list(self._deadlines.values()))

    def end(self, reason: Reason) -> None:
        """Kill it, whatever it does; whoever waits for an answer gets the reason."""
        self.reason = self.reason or reason
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def _ask(
        self, question: dict[str, Any], parts: Sequence[NDArray[Any]] = (), *, limit_s: float
    ) -> dict[str, Any]:
        """The answer to a question, with images in parts; waits for a pipe that is free."""
        pipe = self._free.get()
        try:
            if pipe.poll():  # it says nothing unasked: this is its end
                raise EndedError(self, begun=False)
            self._deadlines[pipe] = time.monotonic() + limit_s
            pipe.send_bytes(msgpack.packb(question))
            for part in parts:
                pipe.send_bytes(np.ascontiguousarray(part).data.cast("B"))
            answer: dict[str, Any] = msgpack.unpackb(pipe.recv_bytes())
        except (EOFError, OSError) as error:
            raise EndedError(self, begun=True) from error
        finally:
            self._deadlines.pop(pipe, None)
            self._free.put(pipe)
        if (
            answer.get("error") == OUT_OF_MEMORY and "below" not in question
        ):  # what is left of it may be in pieces
            self.end("too large")
            raise EndedError(self, begun=True)
        if "error" in answer:
            raise PassError(answer["error"], answer["message"])
        return answer


def measure_machine(device: str, threads: int | None) -> Machine:
    """What a process finds, asked of one: the fork server has loaded torch then.

    device: auto, cpu or cuda. Raises OSError if none can be started.
    """
    _context.set_forkserver_preload(_PRELOAD)
    ours, theirs = Pipe()
    process = _context.Process(target=_measured, args=(device, threads, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        machine = Machine(*msgpack.unpackb(ours.recv_bytes()))
    except EOFError as error:
        raise OSError("expected a process that loads torch, got its end") from error
    process.join()
    return machine


def _measured(device: str, threads: int | None, pipe: Connection) -> None:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    cores = torch.get_num_threads() if device == "cpu" else 1
    pipe.send_bytes(msgpack.packb([device, cores]))


def _forked(plan: Plan, pipes: list[Connection]) -> None:
    """Entry of the process."""
    os.setsid()
    die_with_the_worker(pipes[0])
    die_first()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import torch

    from adap.worker.scoring import passes

    if plan.heap_bytes is not None:
        limit = _data_bytes() + plan.heap_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    if plan.device == "cpu":  # the driver of a GPU asks the kernel for more
        ask_for_little()
    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    passes.serve(plan, pipes)


def _data_bytes() -> int:
    """Memory of its own that this process has already, torch included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["VmData"].removesuffix("kB")) * 1024
