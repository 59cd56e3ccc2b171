"""Each model scores in a process of its own, whose end costs its own requests and no others."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray

from adap.models import architectures, loading
from adap.models.header import InputSpec, Manifest
from adap.models.wrappers import Scorer
from adap.store.artifacts import open_blobs
from adap.store.blobs import Blobs
from adap.store.settings import MIB, Settings
from adap.worker.scoring.network import ENDS, RefusedError
from adap.worker.scoring.networks import Networks, Wanted
from adap.worker.scoring.process import measure_machine
from adap.worker.seccomp import filters
from tests.standstill import suspend

SPEC = InputSpec(channels=1, height=8, width=8, mean=[0.5], std=[0.5])
LOADING = ThreadPoolExecutor(4)
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), np.uint8)


def stored(blobs: Blobs, folder: Path, *, seed: int) -> tuple[Wanted, NDArray[np.float64]]:
    """A model, and what torch alone says of the images."""
    network = architectures.build("small_cnn", channels=1, seed=seed).eval()
    path = folder / f"{seed}.safetensors"
    loading.save(network, path, Manifest(architecture="small_cnn", input=SPEC))
    with torch.inference_mode():
        expected = Scorer(network, SPEC).eval()(torch.from_numpy(IMAGES) / 255)
    return Wanted(f"mdl_{seed}", blobs.put(path), None), expected.double().numpy()


@contextlib.asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Networks]:
    machine = await asyncio.to_thread(measure_machine, "cpu", 1)
    networks = Networks(settings, open_blobs(settings), machine)
    watching = asyncio.create_task(networks.watch())
    try:
        yield networks
    finally:
        watching.cancel()
        await asyncio.wait([watching])


async def score(networks: Networks, wanted: Wanted) -> list[float]:
    with networks.holding(wanted) as network:
        await networks.load(network, wanted.positive, LOADING)
        scores = await asyncio.to_thread(network.score, wanted.positive, [IMAGES], cores=1)
    return list(scores.tolist())


async def process_of(networks: Networks, wanted: Wanted) -> psutil.Process:
    """The process of a model that is loaded."""
    with networks.holding(wanted) as network:
        await networks.load(network, wanted.positive, LOADING)
        assert network.process is not None
        return psutil.Process(network.process.pid)


async def gone(process: psutil.Process) -> None:
    await asyncio.to_thread(process.wait, 60)


async def killed_in_a_pass(networks: Networks, wanted: Wanted) -> None:
    process = await process_of(networks, wanted)
    suspend(process)
    asked = asyncio.create_task(score(networks, wanted))
    with networks.holding(wanted) as network:
        await until(lambda: network.process is not None and network.process.asked)
    process.kill()
    with pytest.raises(RefusedError, match="ended while it computed") as refused:
        await asked
    assert refused.value.code == "scoring_unavailable"


async def until(what: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not what():
            await asyncio.sleep(0.02)


def run(
    scenario: Callable[[Networks, list[Any]], Awaitable[None]], folder: Path, **of: Any
) -> None:
    """A scenario with two models, each with what is expected of it."""
    settings = Settings(home=folder, device="cpu", threads=1, **of)
    models = [stored(open_blobs(settings), folder, seed=seed) for seed in (1, 2)]

    async def inside() -> None:
        async with opened(settings) as networks:
            await scenario(networks, models)

    asyncio.run(inside())


def test_a_pass_that_does_not_end_is_ended_and_no_other_model_waits_for_it(tmp_path: Path) -> None:
    async def scenario(networks: Networks, models: list[Any]) -> None:
        (stuck, first), (other, second) = models
        process = await process_of(networks, stuck)
        suspend(process)  # it will never answer
        asked = asyncio.create_task(score(networks, stuck))
        assert await score(networks, other) == pytest.approx(second, abs=1e-5)
        with pytest.raises(RefusedError, match="ADAP_SCORING_PASS_LIMIT_S") as refused:
            await asked
        assert refused.value.code == "timed_out"
        await gone(process)
        assert await score(networks, stuck) == pytest.approx(first, abs=1e-5)

    run(scenario, tmp_path, scoring_pass_limit_s=10)


def test_a_process_that_is_killed_loses_its_own_requests_only(tmp_path: Path) -> None:
    async def scenario(networks: Networks, models: list[Any]) -> None:
        (killed, first), (other, second) = models
        bystander = await process_of(networks, other)
        await killed_in_a_pass(networks, killed)
        assert await score(networks, other) == pytest.approx(second, abs=1e-5)
        assert await process_of(networks, other) == bystander
        again = await process_of(networks, killed)
        again.kill()  # while it is idle, which costs nobody anything
        await gone(again)
        assert await score(networks, killed) == pytest.approx(first, abs=1e-5)

    run(scenario, tmp_path)


def test_a_model_whose_process_ends_again_and_again_is_refused_for_a_while(tmp_path: Path) -> None:
    async def scenario(networks: Networks, models: list[Any]) -> None:
        (bad, _), (other, expected) = models
        for _ in range(ENDS):
            await killed_in_a_pass(networks, bad)
        with pytest.raises(RefusedError, match=f"ended {ENDS} times in a row") as refused:
            await score(networks, bad)
        assert refused.value.code == "scoring_unavailable"
        assert await score(networks, other) == pytest.approx(expected, abs=1e-5)
        assert networks.in_memory == [other.model_id]

    run(scenario, tmp_path)


def test_a_network_that_takes_more_memory_than_it_may_is_ended(tmp_path: Path) -> None:
    settings = Settings(
        home=tmp_path,
        device="cpu",
        threads=1,
        scoring_network_bytes=150 * MIB,
        scoring_pass_limit_s=600,
    )
    wanted, expected = stored(open_blobs(settings), tmp_path, seed=1)
    many = np.zeros((300_000, 1, 8, 8), np.uint8)  # 1.2 GB after a layer

    async def scenario() -> None:
        async with opened(settings) as networks:
            process = await process_of(networks, wanted)
            with (
                networks.holding(wanted) as network,
                pytest.raises(RefusedError, match="ADAP_SCORING_NETWORK_BYTES") as refused,
            ):
                await asyncio.to_thread(network.score, None, [many], cores=1)
            assert refused.value.code == "invalid_model"
            await gone(process)
            assert await score(networks, wanted) == pytest.approx(expected, abs=1e-5)

    asyncio.run(scenario())


def test_a_search_that_runs_out_of_memory_is_refused_and_its_model_scores(tmp_path: Path) -> None:
    many = np.zeros((300_000, 1, 8, 8), np.uint8)  # in place of one image with a large gradient

    async def scenario(networks: Networks, models: list[Any]) -> None:
        (wanted, expected), _ = models
        with networks.holding(wanted) as network:
            for _ in range(ENDS):
                with pytest.raises(RefusedError, match="search the smallest change") as refused:
                    await asyncio.to_thread(network.smallest, None, many, below=0.0)
                assert refused.value.code == "invalid_model"
        assert await score(networks, wanted) == pytest.approx(expected, abs=1e-5)

    run(scenario, tmp_path, scoring_network_bytes=150 * MIB, scoring_pass_limit_s=600)


def test_a_search_that_succeeds_ends_the_count_of_ends_in_a_row(tmp_path: Path) -> None:
    async def scenario(networks: Networks, models: list[Any]) -> None:
        (wanted, expected), _ = models
        for _ in range(ENDS - 1):
            await killed_in_a_pass(networks, wanted)
        with networks.holding(wanted) as network:
            found = await asyncio.to_thread(network.smallest, None, IMAGES[:1], below=1e6)
        assert found.size == 0
        await killed_in_a_pass(networks, wanted)
        assert await score(networks, wanted) == pytest.approx(expected, abs=1e-5)

    run(scenario, tmp_path)


def test_a_removed_model_ends_its_process_and_its_requests_whatever_it_does(tmp_path: Path) -> None:
    async def scenario(networks: Networks, models: list[Any]) -> None:
        wanted, _ = models[0]
        process = await process_of(networks, wanted)
        suspend(process)
        with networks.holding(wanted) as network:
            asked = asyncio.create_task(score(networks, wanted))
            await until(lambda: network.process is not None and network.process.asked)
            networks.forget(wanted.model_id)
            with pytest.raises(RefusedError, match="removed meanwhile") as refused:
                await asked
            assert refused.value.code == "not_found"
        await gone(process)
        assert networks.in_memory == []

    run(scenario, tmp_path)


def test_without_the_process_that_starts_others_models_score_and_start(tmp_path: Path) -> None:
    async def scenario(networks: Networks, models: list[Any]) -> None:
        (running, first), (other, second) = models
        process = await process_of(networks, running)
        starter = process.parent()
        assert starter is not None
        starter.kill()
        await until(lambda: starter.status() == psutil.STATUS_ZOMBIE)
        assert await score(networks, running) == pytest.approx(first, abs=1e-5)
        assert await process_of(networks, running) == process
        assert await score(networks, other) == pytest.approx(second, abs=1e-5)
        networks.forget(running.model_id)  # which nobody else could end any more
        await gone(process)

    run(scenario, tmp_path)


@pytest.mark.skipif(not filters(), reason="no filter of system calls for this machine")
def test_the_process_of_a_model_asks_the_kernel_for_little(tmp_path: Path) -> None:
    async def scenario(networks: Networks, models: list[Any]) -> None:
        process = await process_of(networks, models[0][0])
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert "Seccomp:\t2\n" in status

    run(scenario, tmp_path)


def test_the_process_that_was_used_least_recently_makes_room(tmp_path: Path) -> None:
    async def scenario(networks: Networks, models: list[Any]) -> None:
        first, _ = [await process_of(networks, wanted) for wanted, _ in models]
        await gone(first)
        assert networks.evicted == 1
        assert networks.in_memory == [models[1][0].model_id]

    run(scenario, tmp_path, scoring_max_networks=1)


def test_a_process_that_is_idle_ends_and_starts_again_when_it_is_asked(tmp_path: Path) -> None:
    async def scenario(networks: Networks, models: list[Any]) -> None:
        for wanted, expected in models:
            assert await score(networks, wanted) == pytest.approx(expected, abs=1e-5)
            await until(lambda: not networks.in_memory)
            assert await score(networks, wanted) == pytest.approx(expected, abs=1e-5)

    run(scenario, tmp_path, scoring_idle_s=0.001)
