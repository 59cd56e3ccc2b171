"""Forward passes, in the process of one model: its network by the classes asked for, and loops.

Each loop answers on a pipe of its own, so as many passes run side by side as there are pipes. What
goes wrong is answered by a code and a sentence; time and memory are limited from outside.
"""

import copy
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any
from weakref import WeakKeyDictionary

import msgpack
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adap.core.attacks.acceleration import accelerate
from adap.core.attacks.base import loss_and_gradient
from adap.core.attacks.smallest import HALVINGS, smallest_change
from adap.core.errors import AdapError
from adap.core.precision import float32_products
from adap.models import loading
from adap.models.costs import foresee, served_batch
from adap.models.errors import ModelFileError
from adap.models.header import InputSpec
from adap.models.limits import CostLimits
from adap.models.wrappers import Scorer
from adap.store import storage
from adap.worker import devices
from adap.worker.scoring.process import MAX_TASKS, OUT_OF_MEMORY, Plan, Positive

log = logging.getLogger(__name__)

NO_LIMITS = CostLimits(flops=2**62, bytes=2**62)
FOR_EVER = 2**62  # passes that a network is prepared for
PROBES = 8  # images on which a rewritten network is compared
SMALLEST_STEPS = 60  # gradients of a search for a smallest change
SAME = 3e-6  # float32 rounds by up to 8e-7 in a ResNet-18, more or less by processor


class Passes:
    """The scorers of one model by the classes asked for, the least recently used out first."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._device = torch.device(plan.device)
        self._scorers: OrderedDict[Positive, tuple[nn.Module, int]] = OrderedDict()
        self._loading = threading.Lock()

    def answer(self, pipe: Connection) -> None:
        """Read one question and answer it. EOFError when the other end has left."""
        question = msgpack.unpackb(pipe.recv_bytes())
        images = _read(pipe, question["images"]) if "images" in question else None
        positive = None if question["positive"] is None else tuple(question["positive"])
        answer: dict[str, Any]
        try:
            scorer, batch = self._scorer(positive)
            if images is None:
                answer = {"batch": batch, "bytes": self._weights()}
            elif "below" in question:
                answer = smallest(
                    scorer,
                    images,
                    below=question["below"],
                    limit_s=question["limit_s"],
                    device=self._device,
                )
            else:
                logits = forward(scorer, [images], device=self._device, cores=question["cores"])
                answer = {"scores": logits.tobytes()}
        except (AdapError, ModelFileError) as error:
            answer = {"error": error.code, "message": str(error)}
        except Exception as error:
            if devices.is_lost(error):
                raise  # ends this process: the next one finds the device again, or does not
            if devices.is_out_of_memory(error):
                answer = {"error": OUT_OF_MEMORY, "message": str(error)}
            elif (met := storage.trouble(error)) is not None:
                answer = {"error": met.code, "message": met.message}
            else:
                log.exception("pass.failed")
                message = f"The service met an error that it did not expect: {error!r}"
                answer = {"error": "internal_error", "message": message}
        pipe.send_bytes(msgpack.packb(answer))

    def _scorer(self, positive: Positive) -> tuple[nn.Module, int]:
        """The network and how many images to score in a pass of it."""
        with self._loading:
            if positive not in self._scorers:
                self._scorers[positive] = self._read(positive)
                while len(self._scorers) > 1 and (
                    len(self._scorers) > MAX_TASKS or self._weights() > self._plan.weights_bytes
                ):
                    self._scorers.popitem(last=False)
            self._scorers.move_to_end(positive)
            return self._scorers[positive]

    def _weights(self) -> int:
        return sum(_bytes(scorer) for scorer, _ in list(self._scorers.values()))

    def _read(self, positive: Positive) -> tuple[nn.Module, int]:
        scorer, manifest = loading.load(
            self._plan.path, None, device=self._device, positive=positive
        )
        batch = 1  # one by one where the cost is unknown
        try:
            one = foresee(scorer.network, manifest.input, 1, NO_LIMITS)
            batch = served_batch(one, self._plan.max_batch)
        except ModelFileError as error:
            log.warning("network.cost_unknown", extra={"reason": str(error)})
        return faster(scorer.requires_grad_(False), manifest.input, self._device), batch


def _read(pipe: Connection, head: dict[str, Any]) -> NDArray[Any]:
    """The images that follow a question, which come in parts."""
    images = np.empty(head["shape"], np.dtype(head["dtype"]))
    room, position = images.data.cast("B"), 0
    while position < len(room):
        position += pipe.recv_bytes_into(room, position)
    return images


@float32_products("float32")
def serve(plan: Plan, pipes: Sequence[Connection]) -> None:
    """Answer on every pipe until the other end has left."""
    passes = Passes(plan)

    def loop(pipe: Connection) -> None:
        try:
            while True:
                passes.answer(pipe)
        except (EOFError, OSError):
            os._exit(0)
        except BaseException:  # of a library in Rust, say: whoever waits learns of the end
            log.exception("pass.failed")
            os._exit(1)

    for pipe in pipes[1:]:
        threading.Thread(target=loop, args=[pipe], daemon=True).start()
    loop(pipes[0])


def faster(scorer: Scorer, spec: InputSpec, device: torch.device) -> nn.Module:
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
    _use(cores)
    x = _pixels(np.concatenate(images), device)
    with torch.inference_mode():
        logits: NDArray[np.float64] = _of_this_thread(scorer)(x).double().cpu().numpy()
    return logits


def smallest(
    scorer: nn.Module,
    images: NDArray[Any],
    *,
    below: float,
    limit_s: float,
    device: torch.device,
) -> dict[str, Any]:
    """The smallest L-inf change found by which the logit of an image falls below this.

    images: (1, C, H, W), uint8 or float32 in [0, 1].  limit_s: within which the search ends, with
    fewer steps where a step takes long. It uses one core, as others are to be scored meanwhile.
    """
    _use(1)
    network = _of_this_thread(scorer)
    x = _pixels(images, device)

    def height(at: Tensor) -> Tensor:
        height: Tensor = network(at) - below
        return height

    began = time.monotonic()
    loss_and_gradient(height, x)
    within = int(limit_s / (time.monotonic() - began)) - HALVINGS
    steps = max(1, min(SMALLEST_STEPS, within))
    changed, size = smallest_change(height, x, norm="linf", steps=steps)
    with torch.no_grad():
        score = float(network(changed)[0])
    return {
        "size": float(size[0]),
        "score": score,
        "steps": steps,
        "image": x[0].cpu().numpy().tobytes(),
        "changed": changed[0].cpu().numpy().tobytes(),
    }


def _use(cores: int) -> None:
    """For the calling thread, from now on."""
    if torch.get_num_threads() != cores:
        torch.set_num_threads(cores)


def _pixels(images: NDArray[Any], device: torch.device) -> Tensor:
    """(N, C, H, W) float32 in [0, 1]"""
    x = torch.from_numpy(images).to(device)
    return x.float() / 255 if x.dtype == torch.uint8 else x


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
