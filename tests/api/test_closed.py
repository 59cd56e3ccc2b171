"""That the service is closed: open without keys on this machine alone, and only before the first.

The judge of where a caller is: the kernel, which gives a connection its address.
"""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from adap.api.main import create_app
from adap.store import keys
from adap.store.database import Database
from adap.store.migrate import migrate
from adap.store.settings import Settings
from tests.api.conftest import Api, running_in, serving

Check = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("end", [{"expires_in_s": -1.0}, {}])
def test_a_service_that_had_keys_stays_closed_when_the_last_one_ends(
    api: Api, problem: Check, end: dict[str, float]
) -> None:
    with api.database.writing() as session:
        row, _ = keys.create(session, name="k", scopes=["read", "write", "admin"], **end)
        if not end:
            keys.revoke(session, row.id)
    first = {"name": "x", "scopes": ["admin"]}
    problem(api.http.get("/v1/jobs"), 401, "unauthorized")
    problem(api.http.post("/v1/api-keys", json=first), 401, "unauthorized")


@pytest.mark.parametrize(
    "header",
    [
        *("Forwarded", "Via", "X-Real-IP", "x-forwarded-for", "X-Forwarded-Host"),
        *("X-Forwarded-Anything", "X-Forwarded", "True-Client-IP", "CF-Connecting-IP"),
        *("X-Forwarded-Proto", "X-Original-URL", "X-Original-Host", "X-Rewrite-URL", "X-Host"),
        *("Fastly-Client-IP", "X-Envoy-External-Address", "X-Azure-ClientIP"),
        *("X-ARR-SSL", "CDN-Loop", "Client-IP", "WL-Proxy-Client-IP", "X-Scheme", "Max-Forwards"),
        *("X-ProxyUser-Ip", "X-Originating-IP", "X-Request-Start", "X-Varnish", "Fly-Client-IP"),
    ],
)
def test_without_keys_what_a_proxy_has_passed_on_is_refused(
    api: Api, problem: Check, header: str
) -> None:
    for value in ("127.0.0.1", "", "for=127.0.0.1", "localhost"):
        problem(api.http.get("/v1/jobs", headers={header: value}), 403, "forbidden")


def test_without_keys_a_caller_from_another_address_is_refused_whatever_it_writes(
    tmp_path: Path, problem: Check
) -> None:
    """The peer is an address of this machine that is none of the loopback ones."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent
        except OSError:
            pytest.skip("this machine has no other address")
        outer = probe.getsockname()[0]
    settings = Settings(home=tmp_path, port=0, broker_url="redis://127.0.0.1:1/0")
    migrate(Database(settings))
    with serving(create_app(settings), host="0.0.0.0") as url:
        port = httpx.URL(url).port
        for name in ("localhost", "127.0.0.1", "[::1]"):
            answer = httpx.get(
                f"http://{outer}:{port}/v1/jobs", headers={"Host": name}, trust_env=False
            )
            problem(answer, 403, "forbidden")
        assert httpx.get(f"{url}/v1/jobs", trust_env=False).status_code == 200


def test_what_listens_for_others_serves_nobody_without_a_key(
    tmp_path: Path, problem: Check
) -> None:
    """As the start refuses it: so it holds too where the keys go while the service runs."""
    with running_in(tmp_path, host="0.0.0.0", broker_url="redis://127.0.0.1:1/0") as api:
        problem(api.http.get("/v1/jobs"), 403, "forbidden")


@pytest.mark.parametrize(
    "headers",
    [
        *(
            {"Host": "evil.example"},
            {"Host": "localhost.evil.example"},
            {"Host": "127.0.0.1.nip.io"},
        ),
        *({"Origin": "http://evil.example"}, {"Origin": "null"}),
        *({"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}),
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
    ],
)
def test_without_keys_no_web_page_elsewhere_is_served(
    api: Api, problem: Check, headers: dict[str, str]
) -> None:
    problem(api.http.get("/v1/jobs", headers=headers), 403, "forbidden")
    response = api.http.post("/v1/datasets", files={"file": ("a.zip", b"x")}, headers=headers)
    problem(response, 403, "forbidden")
    if "Host" not in headers:  # this machine needs no key, whatever it is called: nothing happens
        problem(api.http.post("/sign-in", data={"key": "x"}, headers=headers), 403, "forbidden")


def test_without_keys_an_origin_of_another_scheme_or_port_is_elsewhere(
    api: Api, problem: Check
) -> None:
    own = str(api.http.base_url).rstrip("/")
    assert api.http.get("/v1/jobs", headers={"Origin": own}).status_code == 200
    for origin in (own.replace("http:", "https:"), f"{own}0", own.rpartition(":")[0], f"{own}/"):
        problem(api.http.get("/v1/jobs", headers={"Origin": origin}), 403, "forbidden")


def test_a_link_elsewhere_leads_to_a_page_and_a_form_elsewhere_does_nothing(
    api: Api, problem: Check
) -> None:
    """What a browser says of itself when somebody clicks on a link, or sends a form."""
    clicked = {
        "Sec-Fetch-Site": "cross-site",
        "Sec-Fetch-Mode": "navigate",
        "Sec-Fetch-Dest": "document",
    }
    assert api.http.get("/v1/jobs", headers=clicked).status_code == 200
    response = api.http.post("/v1/datasets", files={"file": ("a.zip", b"x")}, headers=clicked)
    problem(response, 403, "forbidden")
