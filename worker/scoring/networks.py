"""The models that have a process: as many as may be in memory, least recently used out first.

Only those leave that compute nothing: above so many of them, or so many bytes of weights, or after
nobody has asked for so long.
"""

import asyncio
import contextlib
import functools
import logging
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass

from adap.store.blobs import Blobs
from adap.store.settings import Settings
from adap.worker.memory import machine_bytes
from adap.worker.scoring.network import Network
from adap.worker.scoring.process import MAX_PIPES, Machine, Plan, Positive

log = logging.getLogger(__name__)

WATCH_S = 0.2  # between two looks at who is late or idle


@dataclass(frozen=True)
class Wanted:
    """A network for a task: the model by its id and content, and the classes to score."""

    model_id: str
    sha256: str
    positive: Positive


class Networks:
    """The models by what was asked for. For use within one event loop."""

    def __init__(self, settings: Settings, blobs: Blobs, machine: Machine) -> None:
        self.evicted = 0
        self.cores = machine.cores
        self._settings = settings
        self._blobs = blobs
        self._machine = machine
        self._of: OrderedDict[tuple[str, str], Network] = OrderedDict()  # last used, last

    @property
    def in_memory(self) -> list[str]:
        """The ids of the models whose weights are in memory, the next to leave first."""
        return [model_id for (model_id, _), network in self._of.items() if network.process]

    @property
    def pids(self) -> list[int]:
        """Of the processes that there are."""
        processes = [network.process for network in self._of.values()]
        return [process.pid for process in processes if process is not None]

    @contextlib.contextmanager
    def holding(self, wanted: Wanted) -> Iterator[Network]:
        """The network of a model, for one request."""
        key = (wanted.model_id, wanted.sha256)
        if key not in self._of:
            plan = functools.partial(self._plan, wanted.sha256)
            self._of[key] = Network(plan, self._settings.scoring_pass_limit_s)
        network = self._of[key]
        self._of.move_to_end(key)
        network.holders += 1
        try:
            yield network
        finally:
            network.holders -= 1

    async def load(self, network: Network, positive: Positive, thread: Executor) -> int:
        """How many images to score in a pass of a network, which a thread waits to be ready.

        Raises as `Network.load` does.
        """
        loop = asyncio.get_running_loop()
        batch = await loop.run_in_executor(thread, network.load, positive)
        self._make_room()
        return batch

    def forget(self, model_id: str) -> None:
        """Give back the memory of a model that was removed."""
        for key in [key for key in self._of if key[0] == model_id]:
            self._of.pop(key).forget()

    async def watch(self) -> None:
        """End whatever is late or was idle for long, until cancelled; then all."""
        try:
            while True:
                await asyncio.sleep(WATCH_S)
                for network in self._of.values():
                    network.end_if_late()
                    if network.idle_s > self._settings.scoring_idle_s:
                        network.leave()
                self._make_room()
        finally:
            for network in self._of.values():
                network.forget()

    def _make_room(self) -> None:
        """Let those go that are too many, the last one asked for excepted."""
        settings = self._settings
        for key, network in list(self._of.items())[:-1]:
            running = [each for each in self._of.values() if each.process is not None]
            weights = sum(each.weights_bytes for each in running)
            if (
                len(running) > settings.scoring_max_networks
                or weights > settings.scoring_memory_bytes
            ) and network.leave():
                self.evicted += 1
                log.info("network.evicted", extra={"model_id": key[0]})
            if network.dispensable:
                del self._of[key]

    def _plan(self, sha256: str) -> Plan:
        """Fetch the model's file."""
        settings, device = self._settings, self._machine.device
        path = self._blobs.local_path(sha256)
        heap = settings.scoring_network_bytes + 4 * path.stat().st_size
        return Plan(
            path,
            device,
            settings.threads,
            pipes=min(self._machine.cores + 1, MAX_PIPES),  # one for a search
            max_batch=settings.scoring_max_batch,
            weights_bytes=settings.scoring_network_bytes // 4,
            heap_bytes=min(heap, machine_bytes() * 3 // 4) if device == "cpu" else None,
        )
