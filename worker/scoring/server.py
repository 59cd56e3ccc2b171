"""The scoring process: takes questions over a stream, has images decoded and batched, answers.

A question is a frame with `ask` (see `link`):

- `score`: `tenant`, `model_id`, `sha256`, `positive` (or None), `spec` (an InputSpec), `form` and
  `data`, a list of bytes: image `files`, one `npz`, or one `tensor` of raw numbers (N, C, H, W)
  whose `dtype` and `shape` come with it. The answer holds `scores`, or `error` and `message`, with
  `reasons` where images are refused.
- `smallest`: the same with one file, and `below`. The answer is a `process.Smallest`.
- `cancel`: whoever asked the question of this number has left. No answer.
- `forget`: a model was removed. - `status`: what is in memory and how large batches were.

Whether the caller may use the model is the API's business: this process answers whoever reaches it.
"""

import asyncio
import contextlib
import functools
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from adap.models.header import InputSpec
from adap.store import storage
from adap.store.blobs import Blobs
from adap.store.settings import MIB, Settings
from adap.worker.scoring.batches import Batches
from adap.worker.scoring.decoder import MAX_IMAGES, MAX_PIXEL_BYTES, Decoder, UnusableImagesError
from adap.worker.scoring.lanes import Lane, Lanes
from adap.worker.scoring.link import BUFFER_BYTES, UNIX, Frame, FrameStream
from adap.worker.scoring.network import Network, RefusedError
from adap.worker.scoring.networks import Networks, Wanted
from adap.worker.scoring.priorities import LOOK_S, Priorities
from adap.worker.scoring.process import Positive, measure_machine

log = logging.getLogger(__name__)

STOP_LIMIT_S = 5.0  # to answer what was asked before the end
_SLACK = 1e-4  # floats that were computed overshoot [0, 1] by rounding


class Server:
    """Everything that the scoring process holds. It has no torch; its models' processes have."""

    def __init__(
        self, settings: Settings, blobs: Blobs, make_decoder: Callable[[], Decoder]
    ) -> None:
        self._settings = settings
        self._blobs = blobs
        self._make_decoder = make_decoder
        self._sizes: dict[str, Counter[int]] = {}  # of batches, by model
        self._questions: set[asyncio.Task[None]] = set()  # and answers that are being sent
        self._lines: dict[asyncio.StreamWriter, asyncio.Event] = {}  # and whether each has ended

    async def serve(self, url: str, *, stop: asyncio.Event) -> None:
        """Listen until `stop`, then answer what was asked; raises if a part of it breaks."""
        self._networks = asyncio.create_task(self._open_networks())
        self._lanes = Lanes(self._make_lane, asyncio.ensure_future(self._cores()))
        parts: list[asyncio.Future[Any]] = [
            self._lanes.broken,
            asyncio.create_task(stop.wait()),
            asyncio.create_task(self._watch()),
            asyncio.create_task(self._share()),
        ]
        server = await self._listen(url)
        log.info("scoring.ready", extra={"url": url})
        try:
            done, _ = await asyncio.wait(parts, return_when="FIRST_COMPLETED")
            for task in done:
                await task
            server.close()
            if self._questions:
                await asyncio.wait(self._questions, timeout=STOP_LIMIT_S)
        finally:
            server.close()
            for task in (*parts, *self._questions):
                task.cancel()
            await asyncio.gather(*parts, *self._questions, return_exceptions=True)
            await self._lanes.close()
            for writer, ended in list(self._lines.items()):
                writer.close()
                await ended.wait()

    async def _listen(self, url: str) -> asyncio.Server:
        if url.startswith(UNIX):
            path = Path(url.removeprefix(UNIX))
            path.unlink(missing_ok=True)  # of one that was killed
            server = await asyncio.start_unix_server(self._connection, path, limit=BUFFER_BYTES)
            path.chmod(0o600)
            return server
        parts = urlsplit(url)
        return await asyncio.start_server(
            self._connection, parts.hostname, parts.port, limit=BUFFER_BYTES
        )

    def _make_lane(self) -> Lane:
        batches = Batches(
            max_batch=self._settings.scoring_max_batch,
            max_wait_s=self._settings.scoring_max_wait_s,
            on_batch=self._count_batch,
        )
        return Lane(self._make_decoder(), batches)

    async def _cores(self) -> int:
        return (await asyncio.shield(self._networks)).cores

    async def _open_networks(self) -> Networks:
        settings = self._settings
        machine = await asyncio.to_thread(measure_machine, settings.device, settings.threads)
        return Networks(settings, self._blobs, machine)

    async def _watch(self) -> None:
        await (await asyncio.shield(self._networks)).watch()

    async def _share(self) -> None:
        """Have whoever computes much yield to whoever computes little, until cancelled."""
        priorities = Priorities()
        networks = await asyncio.shield(self._networks)
        while True:
            await asyncio.sleep(LOOK_S)
            contended = self._lanes.contended
            if contended or priorities.any_low:
                decoders = [lane.decoder.pid for lane in self._lanes.all]
                pids = [*networks.pids, *(pid for pid in decoders if pid is not None)]
                await asyncio.to_thread(priorities.look, pids, contended=contended)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one API process; its questions end with its connection."""
        stream = FrameStream(reader, writer)
        mine: dict[int, asyncio.Task[None]] = {}
        ended = self._lines[writer] = asyncio.Event()
        answers: dict[str, Callable[[Frame], Awaitable[Frame]]] = {
            "score": self._score,
            "smallest": self._smallest,
            "forget": self._forget,
            "status": self._status,
        }
        max_bytes = self._settings.max_scoring_bytes + MIB
        try:
            while True:
                question = await stream.read(max_bytes=max_bytes)
                number = question["number"]
                if question["ask"] == "cancel":
                    if number in mine:
                        mine[number].cancel()
                    continue
                task = asyncio.create_task(self._answer(question, answers[question["ask"]], stream))
                mine[number] = task
                self._questions.add(task)
                task.add_done_callback(self._questions.discard)
                task.add_done_callback(functools.partial(_drop, mine, number))
        except (EOFError, OSError):
            pass
        except (ValueError, KeyError) as error:
            log.warning("scoring.bad_frame", extra={"reason": repr(error)})
        finally:
            for task in list(mine.values()):
                task.cancel()
            writer.close()
            del self._lines[writer]
            ended.set()

    async def _answer(
        self,
        question: Frame,
        answer: Callable[[Frame], Awaitable[Frame]],
        stream: FrameStream,
    ) -> None:
        try:
            frame = await answer(question)
        except UnusableImagesError as error:
            frame = {
                "error": "invalid_data",
                "message": str(error),
                "reasons": [list(reason) for reason in error.reasons],
            }
        except RefusedError as error:
            frame = {"error": error.code, "message": str(error)}
        except Exception as error:
            met = storage.trouble(error)
            if met is not None:
                log.warning("storage.trouble", extra={"code": met.code, "reason": str(error)})
                frame = {"error": met.code, "message": met.message}
            else:
                log.exception("scoring.failed", extra={"model_id": question.get("model_id")})
                message = f"The service met an error that it did not expect: {error!r}"
                frame = {"error": "internal_error", "message": message}
        frame = {**frame, "number": question["number"]}
        if stream.send_at_once(frame):
            return
        sending = asyncio.create_task(_send(stream, frame))
        self._questions.add(sending)
        sending.add_done_callback(self._questions.discard)
        await asyncio.shield(sending)  # whoever asked may leave; half an answer ends the line

    async def _score(self, question: Frame) -> Frame:
        spec = InputSpec.model_validate(question["spec"])
        form, data = question["form"], question["data"]
        count = {"files": len(data), "tensor": (question.get("shape") or [1])[0]}.get(form, 1)
        _check_count(count, spec)
        with self._lanes.of(question["tenant"]) as lane, self._counted(lane, count):
            if form == "tensor":
                images = await asyncio.to_thread(
                    _tensor, data[0], question["dtype"], question["shape"], spec
                )
            else:
                images = await self._decoded(lane, form, data, spec, fit=question.get("fit"))
            with self._counted(lane, len(images) - count):
                scores = await self._scored(lane, question, images)
        return {"scores": scores.tolist()}

    async def _smallest(self, question: Frame) -> Frame:
        spec = InputSpec.model_validate(question["spec"])
        positive = None if question["positive"] is None else tuple(question["positive"])
        wanted = Wanted(question["model_id"], question["sha256"], positive)
        with self._lanes.of(question["tenant"]) as lane, self._counted(lane, 1):
            image = await self._decoded(
                lane, question["form"], question["data"], spec, fit=question.get("fit")
            )
            networks = await asyncio.shield(self._networks)
            with networks.holding(wanted) as network:
                await _batch(networks, network, positive, lane)
                search = functools.partial(
                    network.smallest, positive, image, below=question["below"]
                )
                loop = asyncio.get_running_loop()
                found = await loop.run_in_executor(lane.searching, search)
        _check_finite(found.score)
        return asdict(found)

    async def _decoded(
        self, lane: Lane, form: str, data: list[bytes], spec: InputSpec, *, fit: str | None
    ) -> NDArray[Any]:
        try:
            return await lane.decoder.decode(form, data, spec, fit=fit)
        except TimeoutError as error:
            message = (
                "Expected the images to be decoded, got a decoder that stood still. Try again."
            )
            raise RefusedError("timed_out", message) from error

    async def _scored(
        self, lane: Lane, question: Frame, images: NDArray[Any]
    ) -> NDArray[np.float64]:
        networks = await asyncio.shield(self._networks)
        positive = None if question["positive"] is None else tuple(question["positive"])
        wanted = Wanted(question["model_id"], question["sha256"], positive)
        with networks.holding(wanted) as network:
            most = await _batch(networks, network, positive, lane)
            compute = functools.partial(network.score, positive)
            key = (wanted, images.dtype.str)
            scores = await lane.batches.run_through(key, images, compute, most=most)
        _check_finite(scores)
        return scores

    @contextlib.contextmanager
    def _counted(self, lane: Lane, images: int) -> Any:
        """Count images as waiting. Raises RefusedError where too many wait already."""
        limit = self._settings.scoring_max_waiting
        if lane.waiting and lane.waiting + images > limit:
            raise RefusedError(
                "overloaded",
                f"Expected at most {limit} images waiting to be scored, got {images} more than "
                f"{lane.waiting} that wait. Try again in a moment.",
            )
        lane.waiting += images
        try:
            yield
        finally:
            lane.waiting -= images

    async def _forget(self, question: Frame) -> Frame:
        networks = await asyncio.shield(self._networks)
        networks.forget(question["model_id"])
        self._sizes.pop(question["model_id"], None)
        return {}

    async def _status(self, question: Frame) -> Frame:
        """What this process holds, and has done with one model or with all of them."""
        networks = self._networks.result() if self._networks.done() else None
        model_id = question.get("model_id")
        sizes: Counter[int] = Counter()
        for each, counted in self._sizes.items():
            if model_id in (None, each):
                sizes += counted
        return {
            "loaded_torch": networks is not None,
            "waiting": sum(lane.waiting for lane in self._lanes.all),
            "images": sum(size * count for size, count in sizes.items()),
            "batch_sizes": {str(size): count for size, count in sizes.items()},
            "in_memory": [] if networks is None else networks.in_memory,
            "evicted": 0 if networks is None else networks.evicted,
            "decoder_restarts": self._lanes.restarts
            + sum(lane.decoder.restarts for lane in self._lanes.all),
        }

    def _count_batch(self, key: Any, size: int) -> None:
        wanted, _ = key
        self._sizes.setdefault(wanted.model_id, Counter())[size] += 1


def _drop(tasks: dict[int, asyncio.Task[None]], number: int, _: asyncio.Task[None]) -> None:
    del tasks[number]


async def _send(stream: FrameStream, frame: Frame) -> None:
    with contextlib.suppress(OSError):
        await stream.send(frame)


async def _batch(networks: Networks, network: Network, positive: Positive, lane: Lane) -> int:
    """How many images to score in a pass of a network, which is loaded then."""
    batch = network.batch(positive)
    return batch if batch is not None else await networks.load(network, positive, lane.loading)


def _check_finite(scores: float | NDArray[np.float64]) -> None:
    if not np.isfinite(scores).all():
        raise RefusedError(
            "invalid_model", "expected finite scores, got NaN or infinity from the model"
        )


def _check_count(count: int, spec: InputSpec) -> None:
    """As many images as one request may have, by number and by memory."""
    largest = MAX_PIXEL_BYTES // (spec.channels * spec.height * spec.width * 4)
    if not 1 <= count <= min(MAX_IMAGES, max(largest, 1)):
        raise UnusableImagesError(
            [(None, f"expected 1 to {min(MAX_IMAGES, largest)} images of this size, got {count}")]
        )


def _tensor(data: bytes, dtype: str, shape: list[int], spec: InputSpec) -> NDArray[Any]:
    """(N, C, H, W) raw numbers, uint8 or float32 in [0, 1]."""
    if dtype not in ("uint8", "float32"):
        raise UnusableImagesError([(None, f"expected uint8 or float32, got {dtype}")])
    size = [spec.channels, spec.height, spec.width]
    wanted = shape[0] * spec.channels * spec.height * spec.width * np.dtype(dtype).itemsize
    if shape[1:] != size or len(data) != wanted:
        raise UnusableImagesError(
            [
                (
                    None,
                    f"expected the shape {[-1, *size]} and as many numbers, got {shape} and "
                    f"{len(data)} bytes of {dtype}",
                )
            ]
        )
    images = np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).reshape(shape)
    if dtype == "uint8":
        return images
    low, high = images.min(), images.max()
    if not (low >= -_SLACK and high <= 1 + _SLACK):  # NaN fails both
        raise UnusableImagesError(
            [(None, f"expected floats in [0, 1], got values from {low:g} to {high:g}")]
        )
    return images.astype(np.float32).clip(0, 1)
