"""Hostile requests: nothing holds the loop, answers are short, nothing is an error of ours.

The judge of work is the clock of the loop's own thread, which counts its CPU alone; of what a route
takes, the OpenAPI.
"""

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest

from adap.api.main import create_app
from adap.api.routes.pages import PAGES
from adap.store import jobs, keys
from adap.store.settings import Settings
from adap.store.tables import JobKind
from tests.api.conftest import Api, running_in
from tests.api.test_standings import audit, ranking

Check = Callable[..., dict[str, Any]]

HELD_S = 0.05
MOST = 90_000  # bytes of a body, below the limit of the server that these tests ask
SCHEMA = create_app(Settings()).app.openapi()
TEXTS = {
    "spaces": lambda n: "a>" + " " * (n - 3) + "<",
    "backslashes": lambda n: "\\" * n,
    "turned": lambda n: "\u202e" * (n // 3) or "\u202e",
    "quotes": lambda n: '"' * n,
    "almost": lambda n: "a" * (n - 1) + "!",
    "commas": lambda n: "a," * (n // 2),
}
Text = Callable[[int], str]


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = SCHEMA["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def filled(schema: dict[str, Any], text: Text, *, room: int, depth: int = 0) -> Any:
    """A value that fills every string and list of a schema to its bound, or the room there is."""
    schema = resolved(schema)
    for choices in ("anyOf", "oneOf", "allOf"):
        if choices in schema:
            kept = [one for one in schema[choices] if resolved(one).get("type") != "null"]
            longest = max(kept, key=lambda one: resolved(one).get("type") in ("object", "array"))
            return filled(longest, text, room=room, depth=depth + 1)
    match schema.get("type"):
        case "string":
            return text(max(4, min(schema.get("maxLength", room), room)))
        case "array":
            items = schema.get("items", {"type": "string", "maxLength": 10})
            count = min(schema.get("maxItems", 2000), max(room // 60, 1), 1000)
            one = filled(items, text, room=room // count, depth=depth + 1)
            return [one] * count
        case "object" if depth < 6:
            fields = schema.get("properties") or {f"k{i}": {"type": "string"} for i in range(200)}
            each = room // len(fields)
            return {
                name: filled(field, text, room=each, depth=depth + 1)
                for name, field in fields.items()
            }
        case "integer" | "number":
            return schema.get("maximum", 1)
        case "boolean":
            return True
    return text(4)


def loop_seconds() -> Callable[[], float]:
    """A clock of the CPU that the event loops of these tests' servers have used."""
    clocks = [
        time.pthread_getcpuclockid(thread.ident)
        for thread in threading.enumerate()
        if thread.name == "api loop" and thread.ident is not None
    ]
    assert clocks
    return lambda: sum(map(time.clock_gettime, clocks))


def held(ask: Callable[[], httpx.Response]) -> float:
    """The loop's CPU for one request, the least of a few tries, as the first may make something."""
    clock, least = loop_seconds(), float("inf")
    for _ in range(4):
        begun = clock()
        answer = ask()
        least = min(least, clock() - begun)
        assert answer.status_code != 500, answer.text
        assert len(answer.content) < 100_000
        if least < HELD_S:
            break
    return least


OPERATIONS = [
    (method.upper(), path, operation)
    for path, methods in SCHEMA["paths"].items()
    for method, operation in methods.items()
]
ID = {
    "dataset_id": "ds",
    "model_id": "mdl",
    "job_id": "job",
    "sweep_id": "swp",
    "upload_id": "upl",
    "webhook_id": "whk",
    "key_id": "key",
    "delivery_id": "msg",
}


def address(path: str, ids: Mapping[str, str] = MappingProxyType({})) -> str:
    """With the ids of nothing where none are given."""
    nothing = {name: f"{of}_{'0' * 26}" for name, of in ID.items()}
    given = {"number": "1", "index": "0", "queue": "compute", **nothing, **ids}
    return path.format(**given)


def requests(text: Text) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for method, path, operation in OPERATIONS:
        for kind, body in operation.get("requestBody", {}).get("content", {}).items():
            if kind == "application/octet-stream":
                continue
            value = filled(body["schema"], text, room=MOST // 2)
            if kind == "application/json":
                content = json.dumps(value, ensure_ascii=False).encode()[:MOST]
                yield method, path, {"content": content, "headers": {"Content-Type": kind}}
            else:
                fields = {
                    name: [str(one)[:60_000] for one in (of if isinstance(of, list) else [of])]
                    for name, of in value.items()
                }
                parts = [(name, (None, one)) for name, of in fields.items() for one in of[:900]]
                yield method, path, {"files": parts}
        for parameter in operation.get("parameters", []):
            value = filled(parameter["schema"], text, room=4000)
            values = value if isinstance(value, list) else [value]
            if parameter["in"] == "query":
                query = urlencode([(parameter["name"], one) for one in values])[:50_000]
                yield method, f"{path}?{query}", {}
            elif parameter["in"] == "header":
                ascii_only = str(values[0]).encode("ascii", "ignore").decode() or "x"
                yield method, path, {"headers": {parameter["name"]: ascii_only.strip() or "x"}}


@pytest.mark.parametrize("name", TEXTS)
def test_no_text_at_its_bound_holds_the_loop(api: Api, name: str) -> None:
    slow = {}
    api.http.get("/v1/jobs")
    for method, path, content in requests(TEXTS[name]):
        place, _, query = path.partition("?")
        target = address(place) + (f"?{query}" if query else "")
        seconds = held(lambda m=method, t=target, c=content: api.http.request(m, t, **c))
        if seconds >= HELD_S:
            slow[f"{method} {place}"] = seconds
    assert slow == {}


UNDOCUMENTED = [*PAGES, "/compare", "/sign-in", "/docs", "/static/page.js"]
TEXTUAL = re.compile(r'"type": "(string|array)"')


def asked_of_what_is_there(api: Api, text: Text) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Queries about things that there are: those of the tests above end at a 404."""
    ranked, audited = ranking(api), audit(api, tasks=2)
    ids = {"dataset_id": ranked.dataset_id, "model_id": api.model(), "index": "0"}
    for method, path, operation in OPERATIONS:
        of = audited if path.startswith("/v1/audits/") else ranked
        job = {"job_id": of.path.rpartition("/")[2]}
        if method != "GET" or "{" not in path or "stream" in path:
            continue
        target = address(path, ids | job)
        for parameter in operation.get("parameters", []):
            if parameter["in"] != "query" or not TEXTUAL.search(json.dumps(parameter["schema"])):
                continue
            value = filled(parameter["schema"], text, room=4000)
            values = value if isinstance(value, list) else [value]
            told = [(parameter["name"], one) for one in values]
            for more in ({}, {"task": "dog"}) if of is audited else ({},):
                query = urlencode([*told, *more.items()])[:50_000]
                yield method, f"{target}?{query}", {}
    for path in UNDOCUMENTED:
        for names in (["next"], ["ids"] * 200):
            query = urlencode([(name, text(40_000 // len(names))) for name in names])[:50_000]
            yield "GET", f"{path}?{query}", {"headers": {"Accept": "text/html"}}
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    for path in ("/sign-in", "/sign-out"):
        for form in ({"key": text(2500), "next": text(2500)}, {"a" * i: "" for i in range(170)}):
            yield "POST", path, {"content": urlencode(form)[:16_000], "headers": kind}
        yield "POST", path, {"content": "&" * 16_000, "headers": kind}
        yield "POST", path, {"content": "%" * 16_000, "headers": kind}
    for cookie in (text(7000), "a=" + text(7000), ";" * 7000, "=" * 7000, 'a="' + "\\" * 7000):
        plain = cookie.encode("ascii", "ignore").decode().strip() or "x"
        yield "GET", "/v1/jobs", {"headers": {"Cookie": plain}}


@pytest.mark.parametrize("name", ["backslashes", "turned", "commas"])
def test_no_text_holds_the_loop_where_there_is_something_to_look_at(api: Api, name: str) -> None:
    slow, seen = {}, set()
    api.http.get("/v1/jobs")
    for method, target, content in asked_of_what_is_there(api, TEXTS[name]):
        seconds = held(lambda m=method, t=target, c=content: api.http.request(m, t, **c))
        seen.add(target.partition("?")[0])
        if seconds >= HELD_S:
            slow[f"{method} {target[:100]}"] = seconds
    assert slow == {}
    assert len(seen) > 20


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/datasets", "/v1/models", "/v1/audits", "/sign-in"),
        f"/v1/models/mdl_{'0' * 26}/scores",
    ],
)
@pytest.mark.parametrize("file_name", ["a", '"' * 40])
def test_no_form_of_very_many_files_or_fields_holds_the_loop(
    api: Api, path: str, file_name: str
) -> None:
    for field in ("file", "images"):
        files = [(field, (file_name, b"x")) for _ in range(450)]
        fields = [(field, (None, "x")) for _ in range(450)]
        for form in (files, fields):
            assert held(lambda f=form: api.http.post(path, files=f)) < HELD_S, (field, form[0])


MANY_KEYS = b"{" + b",".join(b'"k%d":1' % i for i in range(8_000)) + b"}"
BODIES = {
    "unknown keys": MANY_KEYS,
    "few enough unknown keys": b"{" + b",".join(b'"k%d":1' % i for i in range(1_900)) + b"}",
    "a key of 90 kB": b'{"' + b"k" * 90_000 + b'":1}',
    "empty lists": b"[" + b"[]," * 29_000 + b"[]]",
    "a deep list": b"[" * 45_000 + b"]" * 45_000,
    "a deep object": b'{"a":' * 15_000 + b"1" + b"}" * 15_000,
    "a number of many digits": b'{"seed": ' + b"9" * 80_000 + b"}",
    "a number below": b'{"epochs": -' + b"9" * 5_000 + b"}",
    "a number of 4,000 digits": b'{"seed": ' + b"9" * 4_000 + b"}",
    "a large exponent": b'{"epochs": 1e999999999}',
    "NaN": b'{"epochs": NaN, "threat": {"epsilon": NaN}}',
    "infinity": b'{"threat": {"epsilon": -Infinity}}',
    "null": b"null",
    "nulls": b'{"dataset_id": null, "model_id": null, "name": null, "scopes": null, "url": null}',
    "a zero byte": b'{"name": "a\\u0000b"}',
    "half a surrogate": b'{"name": "\\ud800", "file_name": "\\ud800", "\\udfff": 1}',
    "a byte order mark": b'\xef\xbb\xbf{"name": "a"}',
    "UTF-16": '{"name": "a"}'.encode("utf-16"),
    "no UTF-8": b'{"name": "\xff\xfe"}',
    "a list": b"[1, 2, 3]",
    "a text": b'"' + b"x" * 90_000 + b'"',
    "the same key again": b"{" + b'"seed":1,' * 1_900 + b'"seed":2}',
    "a name twice": b'{"dataset_id": "a", "dataset_id": "b"}',
    "a prototype": b'{"__proto__": {"admin": true}, "constructor": 1}',
    "nothing": b"",
    "half of it": b'{"name": ',
    "colons": b'{"name": "' + b":" * 80_000 + b'"}',
}
WRITES = [
    (path, operation)
    for method, path, operation in OPERATIONS
    if method == "POST"
    and "application/json" in operation.get("requestBody", {}).get("content", {})
]


@pytest.mark.parametrize("name", BODIES)
def test_a_hostile_body_is_refused_shortly_by_every_route_that_takes_json(
    api: Api, name: str
) -> None:
    assert len(WRITES) >= 8
    for path, _ in WRITES:

        def ask(path: str = path) -> httpx.Response:
            headers = {"Content-Type": "application/json"}
            return api.http.post(address(path), content=BODIES[name], headers=headers)

        assert held(ask) < HELD_S, path
        answer = ask()
        assert 400 <= answer.status_code < 500, (path, answer.text)
        assert len(answer.content) < 60_000
        assert len(answer.json()["errors"]) <= 100


def test_a_name_twice_in_one_object_is_refused_by_name(api: Api) -> None:
    headers = {"Content-Type": "application/json"}
    body = b'{"name": "a", "scopes": ["admin"], "name": "b"}'
    answer = api.http.post("/v1/api-keys", content=body, headers=headers)
    assert answer.status_code == 422
    assert "the name 'name' twice in one object" in answer.text


def test_a_name_twice_in_a_query_is_refused_by_name(api: Api) -> None:
    answer = api.http.get("/v1/jobs?limit=1&limit=2")
    assert answer.status_code == 422
    assert answer.json()["detail"] == "/query/limit: expected one value, got several"


def test_chunks_are_refused_of_a_client_that_cannot_know_them(api: Api) -> None:
    answer = raw(
        api,
        "POST /v1/audits HTTP/1.0",
        "Content-Type: application/json",
        "Transfer-Encoding: chunked",
        body=b"2\r\n{}\r\n0\r\n\r\n",
    )
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"Expected Content-Length in a request of HTTP/1.0" in answer


def raw(api: Api, *lines: str, body: bytes = b"", head_only: bool = False) -> bytes:
    """What comes back until the connection is closed, or the head of it alone."""
    url = httpx.URL(str(api.http.base_url))
    with socket.create_connection((url.host, url.port or 80), 10) as connection:
        connection.sendall("".join(f"{line}\r\n" for line in (*lines, "")).encode("latin-1") + body)
        connection.settimeout(10)
        answer = b""
        while data := connection.recv(65536):
            answer += data
            if head_only and b"\r\n\r\n" in answer:
                break
        return answer


def test_who_may_not_send_is_told_before_a_byte_of_the_body_comes(api: Api) -> None:
    """The head alone is sent: an answer that needed the body would never come."""
    with api.database.writing() as session:
        _, reader = keys.create(session, name="r", scopes=["read"])
        keys.create(session, name="a", scopes=["admin"])
    assert len(BODIED) >= 14
    for who, status in ((None, 401), ("adap_" + "0" * 43, 401), (reader, 403)):
        for method, path, kind in BODIED:
            answer = raw(
                api,
                f"{method} {address(path)} HTTP/1.1",
                "Host: localhost",
                f"Content-Type: {kind}",
                "Content-Length: 50000",
                *([] if who is None else [f"Authorization: Bearer {who}"]),
                head_only=True,
            )
            assert answer.startswith(f"HTTP/1.1 {status} ".encode()), (method, path, answer[:200])


BODIED = [
    (method, path, f"{kind}; boundary=x")
    for method, path, operation in OPERATIONS
    for kind in operation.get("requestBody", {}).get("content", {})
]


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: 4", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked", "Content-Length: 4"],
        ["Authorization: Bearer a", "Authorization: Bearer b"],
        ["Content-Type: application/json", "Content-Type: multipart/form-data"],
        ["Idempotency-Key: a", "Idempotency-Key: b"],
        ["X-CSRF-Token: a", "X-CSRF-Token: b"],
        ["Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: cross-site"],
        ["Accept: " + "a," * 5000],
    ],
)
def test_a_head_that_reads_in_two_ways_is_refused_and_the_connection_closed(
    api: Api, lines: list[str]
) -> None:
    answer = raw(
        api,
        "POST /v1/audits HTTP/1.1",
        "Host: localhost",
        *lines,
        body=b"2\r\n{}\r\n0\r\n\r\nGET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
    )
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    "sign",
    [
        *("\u202e", "\x9b", "\x85", "\u2066", "\u200f", "\u2028", "\u061c", "\ufeff"),
        *("\u200b", "\u200d", "\u00ad", "\u2060", "\u3164", "\u034f", "\ufe0f", "\U000e0041"),
    ],
)
def test_a_name_that_reads_otherwise_is_refused(api: Api, problem: Check, sign: str) -> None:
    name = f"report {sign}gnp.exe"
    files = {"file": ("a.npz", b"x")}
    problem(api.http.post("/v1/datasets", data={"name": name}, files=files), 422, "invalid_request")
    request = {"file_name": name, "size": 1}
    problem(api.http.post("/v1/uploads", json=request), 422, "invalid_request")
    request = {"name": name, "scopes": ["admin"]}
    problem(api.http.post("/v1/api-keys", json=request), 422, "invalid_request")
    made = api.http.post("/v1/datasets", files={"file": (f"{name}.npz", b"x")}).json()
    assert made["name"] == "report gnp.exe.npz"


def test_what_a_refused_request_brought_is_gone(api: Api) -> None:
    def kept() -> list[Path]:
        return [path for path in api.settings.home.rglob("*") if path.is_file()]

    def large() -> list[Path]:
        return [
            path for path in kept() if path.stat().st_size >= 100_000 and "adap.db" not in path.name
        ]

    files = {"model": ("m", b"m" * 100_000), "dataset": ("d", b"")}
    assert api.http.post("/v1/audits", files=files).status_code == 422
    files = {"model": ("m", b"m" * 100_000), "dataset": ("d", b"d" * 100_000)}
    lost = {"surrogate": {"model_id": f"mdl_{'0' * 26}"}}
    answer = api.http.post("/v1/audits", files=files, data={"config": json.dumps(lost)})
    assert answer.status_code == 404
    assert large() == []
    assert api.http.post("/v1/audits", files=files).status_code == 201
    assert len(large()) == 2


def test_streams_of_one_tenant_leave_room_for_another(tmp_path: Path, problem: Check) -> None:
    with running_in(tmp_path, max_tenant_streams=2, broker_url="redis://127.0.0.1:1/0") as api:
        job_ids = {}
        headers = {}
        with api.database.writing() as session:
            for tenant in ("a", "b"):
                key = keys.create(session, name="k", tenant=tenant, scopes=["read"])[1]
                headers[tenant] = {"Authorization": f"Bearer {key}"}
                job = jobs.enqueue(session, JobKind.AUDIT, tenant=tenant, request={})
                job_ids[tenant] = job.id

        def follow(tenant: str) -> Any:
            wanted = {**headers[tenant], "Accept": "text/event-stream"}
            return api.http.stream("GET", f"/v1/jobs/{job_ids[tenant]}/events", headers=wanted)

        with follow("a") as first, follow("a") as second:
            assert (first.status_code, second.status_code) == (200, 200)
            with follow("a") as third:
                third.read()
                assert third.headers["connection"] == "close"
                problem(third, 429, "too_many_streams")
            with follow("b") as other:
                assert other.status_code == 200
            assert api.http.get("/v1/jobs", headers=headers["a"]).status_code == 200


def test_an_address_without_a_key_has_its_share_and_health_is_always_told(
    tmp_path: Path, problem: Check
) -> None:
    with running_in(
        tmp_path, max_address_requests_per_s=0.01, broker_url="redis://127.0.0.1:1/0"
    ) as api:
        with api.database.writing() as session:
            _, key = keys.create(session, name="k", scopes=["read"])
        mine = {"Authorization": f"Bearer {key}"}
        assert api.http.get("/v1/jobs", headers=mine).status_code == 200
        problem(api.http.get("/v1/jobs"), 401, "unauthorized")
        problem(api.http.get("/v1/jobs"), 429, "rate_limited")
        problem(api.http.get("/nowhere"), 429, "rate_limited")
        for _ in range(3):
            assert api.http.get("/livez").status_code == 200
            assert api.http.get("/readyz").status_code == 200
            assert api.http.get("/v1/jobs", headers=mine).status_code == 200
