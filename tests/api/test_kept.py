"""What is kept of large files: bounded, fair between tenants, made once."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from adap.api.errors import ApiError
from adap.api.kept import MOST_WAITING, Kept
from tests.api.conftest import wait_for


def test_who_looks_at_many_things_loses_its_own_and_nobody_elses() -> None:
    """Two tenants and three things, of which two fit: the many make room for each other."""
    kept, made = Kept(most_bytes=100), list[str]()

    def look(tenant: str, key: str, size: int) -> str:
        def make() -> str:
            made.append(f"{tenant} {key}")
            return key

        return kept.get(tenant, key, make, weigh=lambda _: size)

    assert look("a", "small", 40) == "small"
    for key in ("x", "y", "z", "x", "y", "z"):
        look("b", key, 60)
        look("a", "small", 40)
    assert made == ["a small", "b x", "b y", "b z", "b x", "b y", "b z"]
    look("b", "z", 60)
    assert made.count("b z") == 2
    for _ in range(2):
        look("b", "larger than all there is", 101)
    look("a", "small", 40)
    look("b", "z", 60)
    assert made[-2:] == ["b larger than all there is"] * 2


def test_of_one_tenant_one_thing_is_made_at_a_time_and_few_wait_for_it() -> None:
    kept, go = Kept(), threading.Event()
    made: list[str] = []

    def make() -> str:
        go.wait(60)
        made.append("once")
        return "value"

    def ask(tenant: str) -> str:
        return kept.get(tenant, "key", make, weigh=len)

    with ThreadPoolExecutor(MOST_WAITING + 1) as threads:
        waiting: list[Future[str]] = [threads.submit(ask, "a") for _ in range(MOST_WAITING)]
        wait_for(lambda: kept._waiting["a"] == MOST_WAITING, because="all of them wait")
        with pytest.raises(ApiError, match="ask again") as refused:
            ask("a")
        assert refused.value.code == "rate_limited"
        assert kept.get("b", "key", lambda: "at once", weigh=len) == "at once"
        go.set()
        assert [future.result() for future in waiting] == ["value"] * MOST_WAITING
    assert made == ["once"]
    assert kept._waiting == {}


def test_what_could_not_be_made_is_tried_again() -> None:
    kept = Kept()
    with pytest.raises(OSError, match="gone"):
        kept.get("a", "key", lambda: (_ for _ in ()).throw(OSError("gone")), weigh=len)
    assert kept.get("a", "key", lambda: "there", weigh=len) == "there"
