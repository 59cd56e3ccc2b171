"""Names, ids, keys and cursors that want to be paths, headers or lines of a log.

Sent over plain sockets, as clients of HTTP put most of these right. The judges: a secret file that
no answer may show, the files of the home before and after, and the lines of the log.
"""

import http.client
import io
import itertools
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from adap.store.ids import new_id
from adap.store.logs import configure_logging
from tests.api.conftest import Api, wait_for
from tests.api.test_access import GUARDED, own

Check = Callable[..., dict[str, Any]]
SECRET = b"root:x:0:0"  # of /etc/passwd

UP = ["..", "%2e%2e", ".%2e", "%252e%252e", "%c0%ae%c0%ae", "..%00", "..;", "....//..", "..\\.."]
SLASH = ["/", "%2f", "%2F", "%5c", "//", "%252f", "\\"]
TARGET = ["etc/passwd", "etc%2fpasswd", "proc/self/root/etc/passwd", "adap.db"]
CLIMBING = [
    (up + slash) * depth + target
    for up, slash, target, depth in itertools.product(UP, SLASH, TARGET, (1, 8))
]
ODD = [
    *("", ".", "..", "/", "//", "%00", "%0a", "%0d%0aX-Evil:1", "%ff", "%", "%zz", "*", "~", "-"),
    *("/etc/passwd", "//etc/passwd", "//proc/self/root/etc/passwd", "file:///etc/passwd"),
    *("http://127.0.0.1:1/", "#/etc/passwd", "?/../../etc/passwd", "ds_%23", "ds_%3f/../x"),
    *("%E2%80%AE", "%F0%9F%92%A5", "%EF%BC%8E%EF%BC%8E", "a" * 5000, "%41" * 1000, "nul", "con"),
    *("' OR 1=1 --", "%27%20OR%201=1", "{{7*7}}", "${7*7}", "<script>", "null", "undefined", "0"),
]


def ids_almost() -> list[str]:
    good = new_id("ds")
    odd = [good.upper(), good[:-1], f"{good}0", f"{good}%00", f"{good}%0a", f"{good}.", f"{good} "]
    return [*odd, f" {good}", f"%20{good}", good.replace("_", "-"), f"..%2f{good}", f"{good}/../x"]


@contextmanager
def logged(api: Api) -> Iterator[io.StringIO]:
    """What the service logs, in its own format."""
    root = logging.getLogger()
    handlers, level, stream = root.handlers[:], root.level, io.StringIO()
    try:
        configure_logging(api.settings)
        (handler,) = root.handlers
        assert isinstance(handler, logging.StreamHandler)
        handler.setStream(stream)
        yield stream
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def files(folder: Path) -> set[Path]:
    """All files but those of the database, which come and go."""
    return {path for path in folder.rglob("*") if not path.name.startswith("adap.db")}


def raw(api: Api, method: str, path: str) -> tuple[int, bytes]:
    """Send a path exactly as it is written; the status and the whole answer."""
    connection = http.client.HTTPConnection(
        api.http.base_url.host, api.http.base_url.port, timeout=20
    )
    # it would refuse what is to be sent, and has no public switch for that
    connection._validate_path = lambda _path: None  # type: ignore[attr-defined]
    try:
        connection.putrequest(method, path.encode().decode("latin-1"), skip_accept_encoding=True)
        connection.putheader("Content-Length", "0")
        connection.endheaders()
        answer = connection.getresponse()
        body = answer.read()
        assert "x-evil" not in {name.lower() for name, _ in answer.getheaders()}
        return answer.status, body
    finally:
        connection.close()


def test_no_spelling_of_an_id_leads_to_a_file(api: Api) -> None:
    ids = own(api)
    before = files(api.folder)
    names = [*CLIMBING, *ODD, *ids_almost()]
    assert len(names) > 500
    by_id = [operation for operation in GUARDED if "_id}" in operation]
    with logged(api) as log:
        for number, name in enumerate(names):
            # each name on two of the routes in turn, so that each route sees dozens
            for operation in (by_id[number % len(by_id)], by_id[(7 * number + 3) % len(by_id)]):
                method, path = operation.split()
                head, _, tail = path.partition("{")
                tail = tail.partition("}")[2].format(**ids)
                spelled = (head + name + tail).replace(" ", "%20")
                status, body = raw(api, method, spelled)
                assert 400 <= status < 500 or (status, name) == (200, ""), (spelled, status)
                assert SECRET not in body
                assert b"SQLite format" not in body
    assert files(api.folder) == before
    for line in log.getvalue().splitlines():
        assert json.loads(line)["level"] != "error", line


def test_a_cursor_is_no_path_and_no_query(api: Api) -> None:
    own(api)
    for path in ("/v1/datasets", "/v1/jobs", "/v1/models", "/v1/uploads"):
        for cursor in (*ODD[1:], *CLIMBING[:40], "Li4vLi4vZXRjL3Bhc3N3ZA", "JyBPUiAxPTE"):
            status, body = raw(api, "GET", f"{path}?after={quote(cursor)}")
            assert status in (200, 422), (cursor, status)
            assert SECRET not in body


def test_the_name_of_a_file_is_only_ever_shown(api: Api) -> None:
    before = files(api.folder)
    with logged(api) as log:
        for name in (
            "../../evil",
            "/etc/passwd",
            "a\\..\\b",
            "\u202egpj.exe",
            "=1+1",
            "<b>",
            "nul",
        ):
            content = name.encode()
            answer = api.http.post("/v1/datasets", files={"file": (name, content)})
            assert answer.status_code == 201, answer.text
            shown = answer.json()["name"]
            assert "/" not in shown
            assert "\\" not in shown
    made = files(api.folder) - before
    assert {path.name for path in made if path.is_file()} <= {
        path.name for path in (api.settings.home / "blobs").glob("??/*")
    }
    assert all(len(path.name) in (2, 64) or path.is_dir() for path in made)
    for line in log.getvalue().splitlines():
        json.loads(line)


def test_no_request_writes_a_line_of_its_own_into_the_log(api: Api) -> None:
    forged = '{"level": "error", "event": "forged"}'
    with logged(api) as log:
        for path in (f"/v1/{quote(chr(10) + forged + chr(10))}", "/v1/jobs?x=%0a%0dforged"):
            raw(api, "GET", path)
        for key in ("forged\\n", "forged\x85", "forged\u2028"):
            api.http.get("/v1/jobs", headers={"Authorization": f"Bearer {key}".encode()})
        api.http.get("/v1/jobs", headers={"traceparent": "forged", "x-request-id": "forged"})
        # an answer may come before its line
        wait_for(lambda: log.getvalue().count("request.done") == 6, because="six lines")
    lines = [json.loads(line) for line in log.getvalue().split("\n") if line]
    assert len([line for line in lines if line["event"] == "request.done"]) == 6
    assert all(line["event"] != "forged" for line in lines)
    assert all("forged" not in line.get("request_id", "") for line in lines)
