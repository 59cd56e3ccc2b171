"""Batches: who shares one, whose turn it is, and what happens to those that leave or fail."""

import asyncio
import threading
from collections.abc import Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from adap.worker.scoring.batches import Batches


class Recorded:
    """A computation that doubles, waits until it may, and remembers what it was given."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.cores: list[int] = []
        self.fail = False

    def __call__(self, parts: Sequence[NDArray[Any]], /, *, cores: int) -> NDArray[np.float64]:
        items = np.concatenate(parts)
        self.cores.append(cores)
        self.batches.append(items.tolist())
        if self.fail:
            raise ValueError("it fails")
        doubled: NDArray[np.float64] = items * 2.0
        return doubled


@asynccontextmanager
async def running(*, cores: int = 1, **options: Any) -> Any:
    sizes: list[tuple[Any, int]] = []
    options = {"max_batch": 4, "max_wait_s": 0.05, **options}
    batches = Batches(**options, on_batch=lambda key, size: sizes.append((key, size)))
    task = asyncio.create_task(batches.run(cores=cores))
    try:
        yield batches, sizes
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def items(*values: float) -> NDArray[np.float64]:
    return np.array(values)


def test_requests_that_come_together_are_computed_together_and_get_their_own() -> None:
    compute = Recorded()

    async def scenario() -> list[list[float]]:
        async with running() as (batches, _):
            results = await asyncio.gather(
                *(batches.run_through("a", items(i, i + 10), compute) for i in (1, 2))
            )
            return [result.tolist() for result in results]

    assert asyncio.run(scenario()) == [[2, 22], [4, 24]]
    assert compute.batches == [[1, 11, 2, 12]]


def test_a_large_request_is_cut_and_its_rest_shares_a_batch() -> None:
    compute = Recorded()

    async def scenario() -> list[list[float]]:
        async with running() as (batches, sizes):
            results = await asyncio.gather(
                batches.run_through("a", items(*range(6)), compute),
                batches.run_through("a", items(7), compute),
            )
            assert sizes == [("a", 4), ("a", 3)]
            return [result.tolist() for result in results]

    assert asyncio.run(scenario()) == [[0, 2, 4, 6, 8, 10], [14]]
    assert compute.batches == [[0, 1, 2, 3], [4, 5, 7]]


def test_keys_take_turns_whoever_sends_more() -> None:
    compute = Recorded()

    async def scenario() -> list[str]:
        async with running() as (batches, sizes):
            await asyncio.gather(
                batches.run_through("greedy", items(*range(12)), compute),
                batches.run_through("modest", items(100), compute),
            )
            return [key for key, _ in sizes]

    assert asyncio.run(scenario()) == ["greedy", "modest", "greedy", "greedy"]


def test_cores_share_what_waits_and_one_item_has_all_of_them() -> None:
    compute, together = Recorded(), threading.Barrier(2)  # nobody passes it alone

    def side_by_side(parts: Any, /, *, cores: int) -> NDArray[np.float64]:
        together.wait(10)
        return compute(parts, cores=cores)

    async def scenario() -> None:
        async with running(cores=2, max_batch=8) as (batches, sizes):
            results = await batches.run_through("a", items(*range(5)), side_by_side)
            assert (results.tolist(), sizes) == ([0, 2, 4, 6, 8], [("a", 3), ("a", 2)])
            assert (await batches.run_through("b", items(7), compute)).tolist() == [14]
            both = (batches.run_through(key, items(1, 2), side_by_side) for key in "cd")
            assert [result.tolist() for result in await asyncio.gather(*both)] == [[2, 4]] * 2
            assert sizes[2:] == [("b", 1), ("c", 2), ("d", 2)]  # no key is cut for another's core

    asyncio.run(scenario())
    assert compute.cores == [1, 1, 2, 1, 1]


@pytest.mark.parametrize(
    ("cores", "requests", "images", "sizes"),
    [
        (1, 64, 1, [32, 16, 16]),  # the last ones would be too small
        (1, 40, 4, [64, 48, 24, 16, 8]),
        (1, 1, 40, [40]),  # one client has nothing to send meanwhile
        (2, 32, 1, [16, 16]),
    ],
)
def test_a_batch_leaves_requests_for_the_next(
    cores: int, requests: int, images: int, sizes: list[int]
) -> None:
    """Whoever gets an answer sends the next request while the others are computed."""
    compute = Recorded()

    async def scenario() -> list[int]:
        async with running(cores=cores, max_batch=64) as (batches, made):
            together = (
                batches.run_through("a", items(*range(images)), compute) for _ in range(requests)
            )
            for result in await asyncio.gather(*together):
                assert result.tolist() == [2.0 * i for i in range(images)]
            return [size for _, size in made]

    assert asyncio.run(scenario()) == sizes


def test_a_batch_that_is_not_full_waits_but_not_long() -> None:
    async def scenario(max_wait_s: float) -> tuple[float, int]:
        compute, loop = Recorded(), asyncio.get_running_loop()
        async with running(max_wait_s=max_wait_s) as (batches, sizes):
            started = loop.time()
            first = asyncio.create_task(batches.run_through("a", items(1), compute))
            await asyncio.sleep(0.02)
            await batches.run_through("a", items(2), compute)
            await first
            return loop.time() - started, len(sizes)

    elapsed_s, count = asyncio.run(scenario(2.0))
    assert (elapsed_s >= 1.99, count) == (True, 1)
    assert asyncio.run(scenario(0))[1] == 2


def test_who_leaves_is_not_computed() -> None:
    compute = Recorded()

    async def scenario() -> list[float]:
        async with running(max_wait_s=600) as (batches, _):
            leaves = asyncio.create_task(batches.run_through("a", items(1), compute))
            stays = asyncio.create_task(batches.run_through("a", items(2), compute))
            await asyncio.sleep(0.01)
            leaves.cancel()
            await batches.run_through("a", items(3, 4, 5), compute)  # now it is full
            return list((await stays).tolist())

    assert asyncio.run(scenario()) == [4]
    assert compute.batches == [[2, 3, 4, 5]]


def test_an_error_reaches_everybody_of_the_batch_and_nobody_else() -> None:
    compute = Recorded()

    async def scenario() -> None:
        async with running() as (batches, _):
            compute.fail = True
            failed = await asyncio.gather(
                *(batches.run_through("a", items(i), compute) for i in (1, 2)),
                return_exceptions=True,
            )
            assert [str(error) for error in failed] == ["it fails"] * 2
            compute.fail = False
            assert (await batches.run_through("a", items(3), compute)).tolist() == [6]

    asyncio.run(scenario())


@pytest.mark.parametrize("count", [5, 9])
def test_an_error_ends_a_request_of_several_batches_once(count: int) -> None:
    compute = Recorded()
    compute.fail = True

    async def scenario() -> None:
        async with running() as (batches, _):
            with pytest.raises(ValueError, match="it fails"):
                await batches.run_through("a", items(*range(count)), compute)
            await asyncio.sleep(0.1)

    asyncio.run(scenario())
    assert len(compute.batches) == 1, "the rest is dropped"
