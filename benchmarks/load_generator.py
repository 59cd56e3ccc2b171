"""The load, in a process of its own: reads what to do as JSON, prints what came of it as JSON.

    python -m benchmarks.load_generator < load.json

Connections are kept, requests are bytes made beforehand, and of an answer only the status and
length are read, so that little of the two cores goes to the generator. What it does take is in its
answer (`cpu_s`), and hammering a bare route with it says what it can do at most.
"""

import asyncio
import hashlib
import http.client
import json
import os
import re
import sys
import time
from collections import defaultdict
from typing import Any

LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
SENT = re.compile(rb'"sent": ?([0-9.]+)')
MOST_OPEN = 400  # connections of a load that comes whether it is answered or not
IDLE_S = 5.0  # then a connection is not used again, as clients do it: the server may just end it

Spec = dict[str, Any]
Answer = dict[str, Any]


class Tally:
    """What came back."""

    def __init__(self) -> None:
        self.latencies: dict[int, list[float]] = defaultdict(list)  # by status
        self.broken = 0  # connections that ended in the middle
        self.without_retry_after = 0  # 429 and 503 that do not say when to come back
        self.unsent = 0  # no connection was free

    def answer(self, seconds: float) -> Answer:
        """As JSON: latencies in seconds."""
        good = [x for status, found in self.latencies.items() if status < 400 for x in found]
        refused = [x for status in (429, 503) for x in self.latencies.get(status, ())]
        return {
            "seconds": seconds,
            "rate": len(good) / seconds,
            "sent_rate": sum(map(len, self.latencies.values())) / seconds,
            "statuses": {status: len(found) for status, found in self.latencies.items()},
            "broken": self.broken,
            "unsent": self.unsent,
            "without_retry_after": self.without_retry_after,
            **{f"p{share}": percentile(good, share) for share in (50, 95, 99)},
            "refused_p95": percentile(refused, 95),
        }


def percentile(values: list[float], share: float) -> float | None:
    """The smallest value that this share in per cent does not exceed; None of no values."""
    if not values:
        return None
    return sorted(values)[min(len(values) - 1, int(len(values) * share / 100))]


def request_bytes(spec: Spec, number: int) -> bytes:
    """One HTTP/1.1 request; with `unique`, one that nobody has sent before."""
    body = spec.get("body", "").encode()
    headers = {"Host": f"127.0.0.1:{spec['port']}", **spec.get("headers", {})}
    if body:
        headers |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
    if spec.get("unique"):
        headers["Idempotency-Key"] = f"{os.getpid()}-{number}"
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{spec.get('method', 'GET')} {spec['path']} HTTP/1.1\r\n{lines}\r\n".encode() + body


class Connection:
    """A kept connection."""

    def __init__(self, spec: Spec, tally: Tally) -> None:
        self.spec = spec
        self.tally = tally
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.used_at = 0.0

    async def send(self, request: bytes) -> None:
        """Send a request and count its answer."""
        started = time.perf_counter()
        if started - self.used_at > IDLE_S:
            self.close()
        try:
            if self.streams is None:
                self.streams = await asyncio.open_connection("127.0.0.1", self.spec["port"])
            reader, writer = self.streams
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            status, length = int(head[9:12]), LENGTH.search(head)
            if length is not None and status not in (204, 304):
                await reader.readexactly(int(length[1]))
        except (OSError, asyncio.IncompleteReadError):
            self.tally.broken += 1
            self.close()
            return
        self.used_at = time.perf_counter()
        self.tally.latencies[status].append(self.used_at - started)
        if status in (429, 503) and b"retry-after:" not in head.lower():
            self.tally.without_retry_after += 1

    def close(self) -> None:
        """Close it; the next request opens another."""
        if self.streams is not None:
            self.streams[1].close()
        self.streams = None


async def closed(spec: Spec) -> Answer:
    """`concurrency` connections that each send on when they are answered, after `pause_s`."""
    tally, count = Tally(), 0
    pause_s, fixed = spec.get("pause_s", 0), request_bytes(spec, 0)
    started = time.perf_counter()
    end = started + spec["seconds"]

    async def one() -> None:
        nonlocal count
        connection = Connection(spec, tally)
        while time.perf_counter() < end:
            count += 1
            await connection.send(request_bytes(spec, count) if spec.get("unique") else fixed)
            if pause_s:
                await asyncio.sleep(pause_s)
        connection.close()

    await asyncio.gather(*(one() for _ in range(spec["concurrency"])))
    return tally.answer(time.perf_counter() - started)


async def opened(spec: Spec) -> Answer:
    """`rate` requests a second, whether those before are answered or not."""
    tally, request = Tally(), request_bytes(spec, 0)
    idle = [Connection(spec, tally) for _ in range(MOST_OPEN)]
    busy: set[asyncio.Task[None]] = set()
    started = time.perf_counter()
    sent = 0

    async def one(connection: Connection) -> None:
        await connection.send(request)
        idle.append(connection)

    wanted = int(spec["seconds"] * spec["rate"])
    while sent < wanted:
        passed = time.perf_counter() - started
        for _ in range(min(wanted, int(passed * spec["rate"])) - sent):
            sent += 1
            if not idle:
                tally.unsent += 1
                continue
            task = asyncio.create_task(one(idle.pop()))
            busy.add(task)
            task.add_done_callback(busy.discard)
        await asyncio.sleep(0.002)
    seconds = time.perf_counter() - started
    in_time = tally.answer(seconds)
    if busy:
        await asyncio.wait(busy, timeout=30)
    rates = {name: in_time[name] for name in ("rate", "sent_rate")}  # not of the stragglers
    return {**tally.answer(seconds), **rates, "unanswered": len(busy)}


async def streams(spec: Spec) -> Answer:
    """`concurrency` clients of an event stream: how late events come."""
    delays: list[float] = []
    ends = 0
    request = request_bytes(spec, 0)

    async def one() -> None:
        nonlocal ends
        reader, writer = await asyncio.open_connection("127.0.0.1", spec["port"])
        writer.write(request)
        try:
            while line := await reader.readline():
                if sent := SENT.search(line):
                    delays.append(time.time() - float(sent[1]))
        except OSError:
            pass
        ends += 1

    clients = [asyncio.create_task(one()) for _ in range(spec["concurrency"])]
    await asyncio.wait(clients, timeout=spec["seconds"])
    answer = {"ended": ends, "events": len(delays)}
    for client in clients:
        client.cancel()
    return answer | {f"p{share}": percentile(delays, share) for share in (50, 95, 99)}


def upload(spec: Spec) -> Answer:
    """PUT the parts of a file one after another: `path` has the number of a part for {}."""
    part = bytearray(os.urandom(1 << 20) * (spec["part_bytes"] >> 20))
    digest = hashlib.sha256()
    connection = http.client.HTTPConnection("127.0.0.1", spec["port"], timeout=300)
    seconds = 0.0
    for number in range(1, spec["parts"] + 1):
        part[:8] = number.to_bytes(8, "big")  # no two parts are the same
        digest.update(part)
        started = time.perf_counter()
        connection.request("PUT", spec["path"].format(number), body=part, headers=spec["headers"])
        response = connection.getresponse()
        answer = response.read()
        seconds += time.perf_counter() - started
        if response.status >= 300:
            raise SystemExit(f"part {number}: {response.status} {answer[:300]!r}")
    return {"seconds": seconds, "sha256": digest.hexdigest()}


def download(spec: Spec) -> Answer:
    """GET a file by ranges of `part_bytes`."""
    connection = http.client.HTTPConnection("127.0.0.1", spec["port"], timeout=300)
    started, got = time.perf_counter(), 0
    for first in range(0, spec["size"], spec["part_bytes"]):
        last = min(first + spec["part_bytes"], spec["size"]) - 1
        headers = {**spec["headers"], "Range": f"bytes={first}-{last}"}
        connection.request("GET", spec["path"], headers=headers)
        response = connection.getresponse()
        while chunk := response.read(1 << 20):
            got += len(chunk)
        if response.status not in (200, 206):
            raise SystemExit(f"range from {first}: {response.status}")
    if got != spec["size"]:
        raise SystemExit(f"expected {spec['size']} bytes, got {got}")
    return {"seconds": time.perf_counter() - started}


def main() -> None:
    """Do what standard input says."""
    spec: Spec = json.load(sys.stdin)
    match spec["mode"]:
        case "closed":
            answer = asyncio.run(closed(spec))
        case "open":
            answer = asyncio.run(opened(spec))
        case "streams":
            answer = asyncio.run(streams(spec))
        case "upload":
            answer = upload(spec)
        case "download":
            answer = download(spec)
        case other:
            raise SystemExit(f"expected a mode of load, got {other!r}")
    print(json.dumps(answer | {"cpu_s": time.process_time()}))


if __name__ == "__main__":
    main()
