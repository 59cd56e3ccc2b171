"""The load of `benchmarks.load` on a real bare server: what is counted is what was answered."""

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.load import Row, errors, line
from benchmarks.load_generator import percentile
from benchmarks.load_ground import Server, bare


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with bare(tmp_path_factory.mktemp("load") / "bare") as server:
        yield server


def test_answers_are_counted_by_status_and_only_good_ones_make_a_rate(peer: Server) -> None:
    good = peer.load("/", concurrency=2, seconds=0.3)
    assert set(good["statuses"]) == {"200"}
    assert good["rate"] == pytest.approx(good["statuses"]["200"] / good["seconds"])
    assert 0 < good["p50"] <= good["p99"] < 5
    assert errors(good) == 0

    missing = peer.load("/nowhere", concurrency=2, seconds=0.3)
    assert set(missing["statuses"]) == {"404"}
    assert missing["rate"] == 0
    assert errors(missing) == missing["statuses"]["404"] > 0


def test_a_load_that_does_not_wait_keeps_its_rate(peer: Server) -> None:
    got = peer.load("/", mode="open", rate=20, seconds=1)
    assert sum(got["statuses"].values()) + got["unsent"] + got["unanswered"] == 20


def test_events_are_timed_from_when_they_were_sent(peer: Server) -> None:
    got = peer.load("/events", mode="streams", concurrency=3, seconds=1)
    assert got["events"] >= 3
    assert 0 <= got["p50"] < 5


def test_a_file_that_went_in_parts_comes_back_by_ranges(peer: Server) -> None:
    part = 1 << 20
    sent = peer.load("/bytes/{}", mode="upload", part_bytes=part, parts=2)
    assert len(sent["sha256"]) == 64
    down: dict[str, Any] = {"mode": "download", "part_bytes": part // 4}
    assert peer.load("/bytes/2", size=part, **down)["seconds"] > 0
    with pytest.raises(RuntimeError, match="load generator ended"):
        peer.load("/bytes/2", size=part + 1, **down)


def test_percentiles_and_lines() -> None:
    assert percentile([], 95) is None
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert percentile([float(n) for n in range(100)], 95) == 95.0
    row = Row("a", "1 ms", "<= 2 ms", True, "1 ms", 1.0)
    assert line("L1", row, quick=False) == "| L1: a | 1 ms | 1 ms | 1.00 | <= 2 ms | yes |"
    assert "not judged" in line("L1", row, quick=True)
