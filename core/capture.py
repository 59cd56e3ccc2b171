"""A function of tensors whose work is recorded once, as a CUDA graph, and replayed from then on.

At 32x32 a step of training is more than a thousand small kernels, and launching them one by one
takes longer than computing them. A replay launches all of them at once. It is the device's work
that is recorded: no line of Python runs again. So a function may be captured if what it does hangs
on tensors alone, which it may change in place, and on generators that the recorder knows.
"""

import logging
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger(__name__)

WARM_UPS = 3  # calls before the recording, in which libraries choose kernels and states are made

Result = TypeVar("Result")  # a tensor, or several
Work = Callable[[], Result]


class Recorder(Protocol):
    """What turns work into something to replay."""

    def warm_up(self, work: Work[Result]) -> Result:
        """Do the work, as it will be recorded."""

    def record(self, work: Work[Result], generators: Sequence[torch.Generator]) -> Work[Result]:
        """What does the work anew whenever it is called, with a result in the same tensors.

        The work itself is not done meanwhile; generators are all that it draws from, beside torch's
        own. Raises whatever hinders the recording.
        """


class Captured(Generic[Result]):
    """A function of tensors, of one shape each, run by replaying what it did.

    Calls with other shapes than the first run it as it is; so do all of them without a recorder,
    and from then on if recording it fails. What a call returns is overwritten by the next.
    """

    def __init__(
        self,
        function: Callable[..., Result],
        recorder: Recorder | None,
        generators: Sequence[torch.Generator] = (),
    ) -> None:
        """generators: that the function draws from, beside torch's own."""
        self._function: Callable[..., Result] = function
        self._recorder, self._generators = recorder, generators
        self._shapes: list[torch.Size] = []
        self.refused: str | None = None
        """Why it could not be recorded, if it could not."""
        self.forget()

    def forget(self) -> None:
        """Record anew: the function does something else from now on."""
        self._calls = 0
        self._inputs: Sequence[Tensor] = ()
        self._replay: Work[Result] | None = None

    def __call__(self, *inputs: Tensor) -> Result:
        recorder, shapes = self._recorder, [value.shape for value in inputs]
        self._shapes = self._shapes or shapes
        if recorder is None or self.refused is not None or shapes != self._shapes:
            return self._function(*inputs)
        self._calls += 1
        if self._calls <= WARM_UPS:
            return recorder.warm_up(partial(self._function, *inputs))
        if self._replay is None:
            self._inputs, around = [value.clone() for value in inputs], sys.exception()
            try:
                work = partial(self._function, *self._inputs)
                self._replay = recorder.record(work, self._generators)
            except Exception as error:  # noqa: BLE001  the same work, one kernel after the other
                first = _first_of(error, around)
                self.refused = f"{type(first).__name__}: {first}".splitlines()[0]
                log.warning("graph.not_captured", extra={"reason": self.refused})
            if self._replay is None:  # and nothing holds on to what was broken off
                return self._function(*inputs)
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        return self._replay()


def _first_of(error: BaseException, around: BaseException | None) -> BaseException:
    """What went wrong first: a capture that is broken off fails once more as it is left.

    around: what was being handled before.
    """
    while error.__context__ is not None and error.__context__ is not around:
        error = error.__context__
    return error


@contextmanager
def no_draws_on_the_host() -> Iterator[None]:
    """Refuse what draws random numbers on the CPU: a replay would repeat them for ever.

    Their generators are left as they were. Raises RuntimeError for numbers of torch, Python's
    `random` or NumPy.
    """
    before = _HostState.now()
    try:
        yield
    finally:
        moved = before.moved()
        before.put_back()
    if moved:
        raise RuntimeError(f"it draws random numbers on the CPU, by {' and '.join(moved)}")


@dataclass(frozen=True)
class _HostState:
    """Of the generators that a network may draw from on the CPU."""

    torch: Tensor
    python: tuple[Any, ...]
    numpy: tuple[Any, ...]

    @classmethod
    def now(cls) -> "_HostState":
        numpy = np.random.get_state()  # the generator that networks draw from
        return cls(torch.get_rng_state(), random.getstate(), tuple(numpy))

    def moved(self) -> list[str]:
        now = _HostState.now()
        moved = {
            "torch": not torch.equal(now.torch, self.torch),
            "random": now.python != self.python,
            "NumPy": now.numpy[2] != self.numpy[2] or not (now.numpy[1] == self.numpy[1]).all(),
        }
        return [name for name, other in moved.items() if other]

    def put_back(self) -> None:
        torch.set_rng_state(self.torch)
        random.setstate(self.python)
        np.random.set_state(self.numpy)


class CudaGraphs:
    """Records CUDA graphs, on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def warm_up(self, work: Work[Result]) -> Result:
        """See `Recorder`."""
        here = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            result = work()
        here.wait_stream(self._stream)
        return result

    def record(self, work: Work[Result], generators: Sequence[torch.Generator]) -> Work[Result]:
        """See `Recorder`."""
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        # other threads of the process may do with the GPU what they like meanwhile
        recording = torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local")
        with no_draws_on_the_host(), recording:
            result = work()

        def replay() -> Result:
            graph.replay()
            return result

        return replay


def graphs_of(device: torch.device) -> Recorder | None:
    """What records on this device; nothing where there are no graphs."""
    return CudaGraphs(device) if device.type == "cuda" else None
