"""The networks that scoring holds in memory: loaded on first use, least recently used out first."""

import asyncio
import copy
import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from adap.core.attacks.acceleration import accelerate
from adap.models import loading
from adap.models.costs import foresee, served_batch
from adap.models.errors import ModelFileError
from adap.models.header import InputSpec
from adap.models.limits import CostLimits
from adap.models.wrappers import Scorer
from adap.store.blobs import Blobs
from adap.store.settings import Settings
from adap.store.storage import MissingContentError

log = logging.getLogger(__name__)

NO_LIMITS = CostLimits(flops=2**62, bytes=2**62)
FOR_EVER = 2**62  # passes that a network is prepared for
PROBES = 8  # images on which a rewritten network is compared
SAME = 3e-6  # float32 rounds by up to 8e-7 in a ResNet-18, more or less by processor


@dataclass(frozen=True)
class Wanted:
    """A network for a task: the model by its id and content, and the classes to score."""

    model_id: str
    sha256: str
    positive: tuple[str, ...] | None


class Networks:
    """Scorers by what was asked for. For use within one event loop."""

    def __init__(self, settings: Settings, blobs: Blobs) -> None:
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        device = settings.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.cores = torch.get_num_threads() if device == "cpu" else 1  # that batches are for
        self.evicted = 0
        self._blobs = blobs
        self._max_bytes = settings.scoring_memory_bytes
        self._loaded: OrderedDict[Wanted, nn.Module] = OrderedDict()
        self._max_batch = settings.scoring_max_batch
        self._batch: dict[Wanted, int] = {}
        self._loading: dict[Wanted, asyncio.Task[nn.Module]] = {}
        self._thread = ThreadPoolExecutor(1, "loading")

    @property
    def in_memory(self) -> list[str]:
        """The ids of the models whose weights are in memory, the next to leave first."""
        return list(dict.fromkeys(wanted.model_id for wanted in self._loaded))

    async def get(self, wanted: Wanted) -> nn.Module:
        """The network, from memory or from its file, once for all who ask at the same time.

        Raises ModelError or ModelFileError where it cannot be loaded.
        """
        if wanted in self._loaded:
            self._loaded.move_to_end(wanted)
            return self._loaded[wanted]
        if wanted not in self._loading:
            task = self._loading[wanted] = asyncio.create_task(self._load(wanted))
            task.add_done_callback(lambda _: self._loading.pop(wanted))
        return await asyncio.shield(self._loading[wanted])  # who asked first may leave

    def batch(self, wanted: Wanted) -> int:
        """How many images to score in a pass of a network that is in memory, or was."""
        return self._batch.get(wanted, 1)

    def forget(self, model_id: str) -> None:
        """Give back the memory of a model that was removed."""
        for wanted in [wanted for wanted in self._loaded if wanted.model_id == model_id]:
            del self._loaded[wanted]
            self._batch.pop(wanted, None)

    async def _load(self, wanted: Wanted) -> nn.Module:
        loop = asyncio.get_running_loop()
        scorer = await loop.run_in_executor(self._thread, self._read, wanted)
        self._loaded[wanted] = scorer
        while len(self._loaded) > 1 and sum(map(_bytes, self._loaded.values())) > self._max_bytes:
            left, _ = self._loaded.popitem(last=False)
            self._batch.pop(left, None)
            self.evicted += 1
            log.info("network.evicted", extra={"model_id": left.model_id})
        return scorer

    def _read(self, wanted: Wanted) -> nn.Module:
        try:
            path = self._blobs.local_path(wanted.sha256)
            scorer, manifest = loading.load(
                path, None, device=self.device, positive=wanted.positive
            )
        except FileNotFoundError as error:
            raise MissingContentError(wanted.sha256) from error
        try:
            one = foresee(scorer.network, manifest.input, 1, NO_LIMITS)
            self._batch[wanted] = served_batch(one, self._max_batch)
        except ModelFileError as error:  # one by one, then
            log.warning("network.cost_unknown", extra={"reason": str(error)})
        log.info("network.loaded", extra={"model_id": wanted.model_id})
        return _faster(scorer.requires_grad_(False), manifest.input, self.device)


def _faster(scorer: Scorer, spec: InputSpec, device: torch.device) -> nn.Module:
    """The scorer rewritten to cost less, where its scores stay the same to a third of 1e-5."""
    size = (PROBES, spec.channels, spec.height, spec.width)
    probes = torch.rand(size, generator=torch.Generator().manual_seed(0)).to(device)
    fast = accelerate(scorer, probes, passes=FOR_EVER)
    with torch.inference_mode():
        difference = float((fast(probes) - scorer(probes)).abs().max())
    if not difference <= SAME:
        log.warning("network.not_rewritten", extra={"difference": difference})
        return scorer
    return fast


def forward(
    scorer: nn.Module, images: Sequence[NDArray[Any]], *, device: torch.device, cores: int
) -> NDArray[np.float64]:
    """(N,) logits of (N, C, H, W) images in parts, uint8 or float32 in [0, 1], all of one dtype.

    cores: how many to use, which holds for the calling thread from then on.
    """
    if torch.get_num_threads() != cores:
        torch.set_num_threads(cores)
    x = torch.from_numpy(np.concatenate(images)).to(device)
    if x.dtype == torch.uint8:
        x = x.float() / 255
    with torch.inference_mode():
        logits: NDArray[np.float64] = _of_this_thread(scorer)(x).double().cpu().numpy()
    return logits


_local = threading.local()


def _of_this_thread(scorer: nn.Module) -> nn.Module:
    """Layers of its own for each thread over the same weights, as some keep notes in a pass."""
    if not hasattr(_local, "copies"):
        _local.copies = WeakKeyDictionary()
    copies: WeakKeyDictionary[nn.Module, nn.Module] = _local.copies
    if scorer not in copies:
        weights = {id(tensor): tensor for tensor in (*scorer.parameters(), *scorer.buffers())}
        copies[scorer] = copy.deepcopy(scorer, weights)
    return copies[scorer]


def _bytes(scorer: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in scorer.state_dict().values())
