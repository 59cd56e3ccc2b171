"""Webhooks against a real receiver: signed, to allowed addresses only, lost by no restart."""

import base64
import hashlib
import hmac
import ipaddress
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from pydantic import SecretStr, ValidationError
from sqlalchemy import select, text, update

from adap.api import deliveries
from adap.api.deliveries import Allowed, RefusedError, send
from adap.store import jobs, keys, webhooks
from adap.store.settings import Settings
from adap.store.signing import SigningKey, signing_key
from adap.store.tables import DeliveryRow, DeliveryStatus, JobKind
from adap.store.webhooks import Sending
from tests.api.conftest import Api, running

Check = Callable[..., dict[str, Any]]
LOCAL = "localhost,127.0.0.0/8"


@dataclass
class Receiver:
    """A server that keeps what comes, and answers what it is told to."""

    url: str = ""
    answers: list[int] = field(default_factory=list)
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    wait_s: float = 0.0


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


@pytest.fixture
def other_receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


@contextmanager
def receiving() -> Iterator[Receiver]:
    kept = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            kept.got.append(({k.lower(): v for k, v in self.headers.items()}, body))
            status = kept.answers.pop(0) if kept.answers else 204
            if kept.wait_s:  # a byte now and then
                with_end = time.monotonic() + kept.wait_s
                while time.monotonic() < with_end:
                    try:
                        self.wfile.write(b"H")
                    except OSError:  # who sent has hung up
                        return
                    time.sleep(0.05)
            self.send_response(status)
            if status == 302:
                self.send_header("Location", kept.url.replace("hook", "elsewhere"))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kept.url = f"http://localhost:{server.server_port}/hook"
    Thread(target=server.serve_forever).start()
    yield kept
    server.shutdown()
    server.server_close()


@contextmanager
def sending(api: Api, hosts: str | None = LOCAL, *, key: str | None = None) -> Iterator[Api]:
    """A second server on the same database, which sends webhooks."""
    signing = key and SecretStr(key)
    update = {"webhook_hosts": hosts, "webhook_key": signing}
    settings = api.settings.model_copy(update=update)
    with running(settings) as url, httpx.Client(base_url=url, timeout=20) as http:
        yield Api(http, api.database, settings, api.folder)


def end_a_job(api: Api, *, tenant: str = "local") -> str:
    with api.database.writing() as session:
        job_id = jobs.enqueue(session, JobKind.RANK, tenant=tenant, request={}).id
        claim = jobs.claim(session, job_id, worker="w", lease_s=30)
        assert claim is not None
        jobs.succeed(session, claim, {})
    return job_id


def until(condition: Callable[[], Any], *, limit_s: float = 15) -> Any:
    """What is true within seconds."""
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def add(api: Api, receiver: Receiver, **fields: Any) -> dict[str, Any]:
    answer = api.http.post("/v1/webhooks", json={"url": receiver.url, **fields})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def log(api: Api, webhook: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api.http.get(f"/v1/webhooks/{webhook['id']}/deliveries").json()[
        "data"
    ]
    return found


def test_the_end_of_a_job_is_told_with_a_signature_by_the_standard(
    api: Api, receiver: Receiver
) -> None:
    with sending(api) as on:
        webhook = add(on, receiver)
        job_id = end_a_job(api)
        until(lambda: log(on, webhook)[0]["status"] == "delivered")
    ((headers, body),) = receiver.got
    told = json.loads(body)
    assert told["type"] == "job.succeeded"
    assert told["data"]["job_id"] == job_id
    # the scheme of standardwebhooks.com, written out
    key = base64.b64decode(webhook["secret"].removeprefix("whsec_"))
    signed = b".".join(
        (headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body)
    )
    signature = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{signature}"
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
    assert headers["host"] == receiver.url.split("/")[2]


def test_only_the_events_that_were_asked_for_and_only_of_the_tenant(
    api: Api, receiver: Receiver
) -> None:
    with sending(api) as on:
        webhook = add(on, receiver, events=["job.cancelled"])
        end_a_job(api)
        end_a_job(api, tenant="other")
        with api.database.writing() as session:
            job_id = jobs.enqueue(session, JobKind.RANK, tenant="local", request={}).id
            jobs.request_cancel(session, job_id)
        until(lambda: receiver.got)
        assert [entry["event"] for entry in log(on, webhook)] == ["job.cancelled"]
        assert [json.loads(body)["data"]["job_id"] for _, body in receiver.got] == [job_id]


def test_what_was_not_taken_is_sent_again_and_can_be_asked_for_again(
    api: Api, receiver: Receiver, problem: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "BACKOFF_S", (0.1, 0.1))
    receiver.answers = [500, 302, 503, 200]
    with sending(api) as on:
        webhook = add(on, receiver)
        end_a_job(api)
        entry = until(lambda: [e for e in log(on, webhook) if e["status"] == "failed"])[0]
        assert (entry["attempt"], entry["answered"], entry["next_at"]) == (3, 503, None)
        path = f"/v1/webhooks/{webhook['id']}/deliveries/{entry['id']}/redeliver"
        answer = on.http.post(path)
        assert (answer.status_code, answer.json()["status"]) == (202, "pending")
        until(lambda: log(on, webhook)[0]["status"] == "delivered")
        assert len(receiver.got) == 4  # the redirect was not followed
        assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
        assert len({body for _, body in receiver.got}) == 1
        assert on.http.delete(f"/v1/webhooks/{webhook['id']}").status_code == 204
        problem(on.http.get(f"/v1/webhooks/{webhook['id']}"), 404, "not_found")
        end_a_job(api)
    with api.database.reading() as session:
        assert session.scalars(select(DeliveryRow)).all() == []


def test_deliveries_survive_a_restart(api: Api, receiver: Receiver) -> None:
    with sending(api) as on:
        webhook = add(on, receiver)
    job_id = end_a_job(api)  # while nobody sends
    with api.database.writing() as session:  # and somebody who had taken it died
        (delivery_id,) = webhooks.due(session, limit=10)
        assert webhooks.take(session, delivery_id) is not None
        assert webhooks.take(session, delivery_id) is None
        assert webhooks.due(session, limit=10) == []
        session.execute(update(DeliveryRow).values(next_at=DeliveryRow.next_at - 61))
    with sending(api) as on:
        until(lambda: log(on, webhook)[0]["status"] == "delivered")
    assert [json.loads(body)["data"]["job_id"] for _, body in receiver.got] == [job_id]


def test_a_sender_that_was_taken_for_dead_settles_nothing(api: Api, receiver: Receiver) -> None:
    with sending(api) as on:
        add(on, receiver)
    end_a_job(api)
    with api.database.writing() as session:
        (delivery_id,) = webhooks.due(session, limit=10)
        first = webhooks.take(session, delivery_id)
        session.execute(update(DeliveryRow).values(next_at=0))
        second = webhooks.take(session, delivery_id)
        assert first is not None
        assert second is not None
        webhooks.settle(session, first, answered=200, error=None)
        session.expire_all()
        row = session.get_one(DeliveryRow, delivery_id)
        assert (row.status, row.attempt) == (DeliveryStatus.PENDING, 2)


def test_webhooks_are_off_until_a_host_is_named(
    api: Api, receiver: Receiver, problem: Check
) -> None:
    answer = api.http.post("/v1/webhooks", json={"url": "https://hooks.example.com"})
    body = problem(answer, 403, "webhooks_off")
    assert "ADAP_WEBHOOK_HOSTS" in body["detail"]


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example",
        "https://localhost.evil.example",
        "https://localhost@evil.example",
        "https://user:password@localhost/",
        "https://localhost/#fragment",
        "https://[::1]/",
        "https://169.254.169.254/latest",
        "https://2130706433/",
        "https://0x7f.1/",
        "ftp://localhost/",
        "file:///etc/passwd",
        "localhost",
        "https://",
        "https://xn--/",
        "https://localhost/\u202e",
        "https://localhost/ x",
        "https://localhost:\u0668\u0660/",
        "http://127\u30020\u30020\u30021/",
        "http://[",
    ],
)
def test_a_url_outside_of_the_list_is_refused(api: Api, problem: Check, url: str) -> None:
    with sending(api) as on:
        problem(on.http.post("/v1/webhooks", json={"url": url}), 422, "url_refused")
        assert on.http.get("/v1/webhooks").json()["data"] == []


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
        *("0.0.0.0", "224.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1"),
        *("::1", "::", "fe80::1", "fc00::1", "ff02::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1"),
        *("64:ff9b:1::7f00:1", "::127.0.0.1", "::10.0.0.1", "fec0::1", "5f00::1", "3fff::1"),
        *("::ffff:0:127.0.0.1", "100:0:0:1::1"),
    ],
)
def test_a_name_that_means_an_inner_machine_is_not_connected_to(address: str) -> None:
    allowed = Allowed("hooks.example.com")
    url = allowed.check("https://hooks.example.com/x")
    inner, public = ipaddress.ip_address(address), ipaddress.ip_address("93.184.215.14")
    for addresses in ([inner], [public, inner]):
        with pytest.raises(RefusedError, match="expected a public address"):
            allowed.choose(url, addresses)
    assert allowed.choose(url, [public]) == public
    with pytest.raises(RefusedError, match="expected https"):  # in the clear, to nobody listed
        allowed.check("http://hooks.example.com/x")
    listed = Allowed(f"hooks.example.com,{address}")
    with pytest.raises(RefusedError, match="expected a public address by https"):
        listed.choose(listed.check("http://hooks.example.com/x"), [public])
    assert listed.choose(url, [inner]) == inner


def test_the_address_that_was_checked_is_the_one_connected_to(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    resolve = socket.getaddrinfo

    def flip(host: Any, *arguments: Any, **options: Any) -> Any:
        """A name server that answers well the first time only."""
        asked.append(str(host))
        if host == "rebinding.test":
            host = "127.0.0.1" if asked.count("rebinding.test") == 1 else "169.254.169.254"
        return resolve(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", flip)
    url = receiver.url.replace("localhost", "rebinding.test")
    key = SigningKey(b"k" * 32)
    allowed = Allowed("rebinding.test,127.0.0.0/8")
    assert send(Sending("msg_1", "wh_1", 1, url, key.name, "{}"), allowed, key) == (204, None)
    assert asked.count("rebinding.test") == 1
    assert receiver.got[0][0]["host"].startswith("rebinding.test:")


def test_a_receiver_that_never_ends_is_left(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "TIMEOUT_S", 0.5)
    receiver.wait_s = 60.0
    key = SigningKey(b"k" * 32)
    one = Sending("msg_1", "wh_1", 1, receiver.url, key.name, "{}")
    started = time.monotonic()
    answered, error = send(one, Allowed(LOCAL), key)
    assert (answered, error) == (None, "no answer within 0.5 s")
    assert time.monotonic() - started < 30, "it does not wait for the receiver"


def test_a_receiver_that_never_ends_keeps_no_job_and_no_other_receiver_waiting(
    api: Api, receiver: Receiver, other_receiver: Receiver
) -> None:
    receiver.wait_s = 60.0
    with sending(api) as on:
        hanging, well = add(on, receiver), add(on, other_receiver)
        started = time.monotonic()
        ended = {end_a_job(api) for _ in range(100)}
        until(lambda: len(other_receiver.got) == 100, limit_s=300)
        turns = 1 + (time.monotonic() - started) / deliveries.TIMEOUT_S
        assert len(receiver.got) <= 2 * turns, "two at once, as docs/webhooks.md says"
        assert {json.loads(body)["data"]["job_id"] for _, body in other_receiver.got} == ended
        until(lambda: {entry["status"] for entry in log(on, well)} == {"delivered"})
        assert {entry["status"] for entry in log(on, hanging)} == {"pending"}


def test_another_tenants_webhooks_are_not_found(
    api: Api, receiver: Receiver, problem: Check
) -> None:
    with sending(api) as on:
        webhook = add(on, receiver)
        end_a_job(api)
        delivery = log(on, webhook)[0]["id"]
        with api.database.writing() as session:
            key = keys.create(session, name="k", scopes=["read", "write"], tenant="other")[1]
        other = {"Authorization": f"Bearer {key}"}
        path = f"/v1/webhooks/{webhook['id']}"
        for method, url in (
            ("GET", path),
            ("GET", f"{path}/deliveries"),
            ("POST", f"{path}/deliveries/{delivery}/redeliver"),
            ("DELETE", path),
        ):
            problem(on.http.request(method, url, headers=other), 404, "not_found")
        assert on.http.get("/v1/webhooks", headers=other).json()["data"] == []


def test_a_secret_is_shown_once(api: Api, receiver: Receiver, problem: Check) -> None:
    with sending(api) as on:
        headers = {"Idempotency-Key": "hook"}
        made = on.http.post("/v1/webhooks", json={"url": receiver.url}, headers=headers).json()
        again = on.http.post("/v1/webhooks", json={"url": receiver.url}, headers=headers)
        assert made["id"] in problem(again, 409, "shown_once")["detail"]
        for shown in (
            again,
            on.http.get("/v1/webhooks"),
            on.http.get(f"/v1/webhooks/{made['id']}"),
        ):
            assert made["secret"] not in shown.text


def test_the_secret_is_the_same_at_every_process_and_stands_in_no_table(
    api: Api, receiver: Receiver
) -> None:
    with sending(api) as on:
        made = add(on, receiver)
    key = (api.settings.home / "webhook.key").read_bytes()
    expected = hmac.new(key, b"webhook:" + made["id"].encode(), hashlib.sha256).digest()
    assert base64.b64decode(made["secret"].removeprefix("whsec_")) == expected
    with api.database.reading() as session:
        row = session.execute(text("SELECT * FROM webhooks")).one()
    assert made["secret"] not in repr(row)
    assert base64.b64encode(expected).decode() not in repr(row)


def test_what_another_key_was_made_for_is_not_signed_and_says_so(
    api: Api, receiver: Receiver
) -> None:
    with sending(api) as on:
        webhook = add(on, receiver)
    end_a_job(api)
    with sending(api, key="another key, of at least 32 characters") as on:
        failed = until(lambda: log(on, webhook)[0]["error"])
    assert "ADAP_WEBHOOK_KEY" in failed
    assert receiver.got == []
    with api.database.writing() as session:
        session.execute(update(DeliveryRow).values(next_at=0))
    with sending(api) as on:  # the key is back
        until(lambda: log(on, webhook)[0]["status"] == "delivered")


def test_beside_a_database_server_a_key_has_to_be_set(tmp_path: Path) -> None:
    server = Settings(home=tmp_path, database_url="postgresql+psycopg://u@db/adap")
    assert signing_key(server) is None
    assert list(tmp_path.iterdir()) == []
    key = SecretStr("one key, the same for every process of it")
    set_ = server.model_copy(update={"webhook_key": key})
    assert signing_key(set_) == SigningKey(b"one key, the same for every process of it")
    with pytest.raises(ValidationError, match="at least 32"):
        Settings(home=tmp_path, webhook_key=SecretStr("short"))
