"""Tenants go through lanes of their own: nobody waits for what another has sent."""

import asyncio
import io
from collections.abc import Sequence
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adap.models.header import InputSpec
from adap.store.settings import Settings
from adap.worker.sandbox import make_sandbox
from adap.worker.scoring.batches import Batches
from adap.worker.scoring.decoder import Decoder
from adap.worker.scoring.lanes import MAX_LANES, Lane, Lanes

SPEC = InputSpec(channels=1, height=4, width=4, mean=[0.5], std=[0.5])


def png() -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 4)).save(file, "PNG")
    return file.getvalue()


async def opened(folder: Path) -> Lanes:
    sandbox = make_sandbox(Settings(home=folder / "home"))
    cores: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    cores.set_result(1)

    def make() -> Lane:
        batches = Batches(max_batch=4, max_wait_s=0, on_batch=lambda *_: None)
        return Lane(Decoder(sandbox, folder), batches)

    return Lanes(make, cores)


def test_a_tenant_whose_work_does_not_end_keeps_nobody_else_waiting(tmp_path: Path) -> None:
    ends, began = Event(), Event()

    def endless(parts: Sequence[NDArray[Any]], /, *, cores: int) -> NDArray[np.float64]:
        began.set()
        ends.wait(60)
        return np.concatenate(parts)

    def quick(parts: Sequence[NDArray[Any]], /, *, cores: int) -> NDArray[np.float64]:
        return np.concatenate(parts)

    async def scenario() -> list[float]:
        lanes = await opened(tmp_path)
        try:
            with lanes.of("attacker") as theirs, lanes.of("victim") as ours:
                stuck = asyncio.create_task(theirs.batches.run_through("m", np.ones(1), endless))
                await asyncio.to_thread(began.wait, 60)
                answer = await ours.batches.run_through("m", np.arange(2.0), quick)
                pixels = await ours.decoder.decode("files", [png()], SPEC)
                assert not stuck.done()
                assert pixels.shape == (1, 1, 4, 4)
                ends.set()
                await stuck
                return answer.tolist()
        finally:
            ends.set()
            await lanes.close()

    assert asyncio.run(scenario()) == [0.0, 1.0]


def test_more_tenants_than_lanes_share_one_and_an_idle_one_gives_way(tmp_path: Path) -> None:
    async def scenario() -> None:
        lanes = await opened(tmp_path)
        try:
            held = [lanes.of(f"tenant {i}") for i in range(MAX_LANES)]
            inside = [each.__enter__() for each in held]
            inside[0].waiting = 1
            with lanes.of("one more") as shared:
                assert shared is inside[1]
            held[2].__exit__(None, None, None)
            with lanes.of("one more") as own:
                assert own not in inside
            assert len(lanes.all) == MAX_LANES + 1
        finally:
            await lanes.close()

    asyncio.run(scenario())
