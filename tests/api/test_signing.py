"""Browsers that are signed in: a key in a cookie, and what other sites cannot do with it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from tests.api.conftest import Api
from tests.api.test_hostile import loop_seconds
from tests.api.test_pages import BROWSER
from tests.core.browser import chromium
from tests.core.pages import Page

Check = Callable[..., dict[str, Any]]
ELSEWHERE = [
    *(
        "https://evil.example/",
        "//evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "javascript:x",
    ),
    *("evil.example", "", "/a b", "/\nx", "https:evil.example", "/\x00", "x" * 3000, "/" * 3000),
]


def made_key(api: Api, *scopes: str, bearer: str | None = None) -> dict[str, str]:
    headers = {} if bearer is None else {"Authorization": f"Bearer {bearer}"}
    body = {"name": "k", "scopes": list(scopes)}
    answer = api.http.post("/v1/api-keys", json=body, headers=headers)
    assert answer.status_code == 201, answer.text
    made: dict[str, str] = answer.json()
    return made


Browser = Callable[[], httpx.Client]


@pytest.fixture
def browser(api: Api) -> Iterator[Browser]:
    """Make what keeps cookies and asks for pages, and does not follow where it is led."""
    with ExitStack() as made:
        yield lambda: made.enter_context(
            httpx.Client(base_url=api.http.base_url, headers={"Accept": BROWSER})
        )


def signed_in(made: httpx.Client, key: str) -> httpx.Client:
    answer = made.post("/sign-in", data={"key": key})
    assert answer.status_code == 303, answer.text
    return made


def token(client: httpx.Client) -> dict[str, str]:
    (value,) = (one.value for one in client.cookies.jar if one.name.startswith("adap_csrf"))
    return {"X-CSRF-Token": str(value)}


def test_with_keys_a_browser_is_led_to_the_sign_in_and_back(api: Api, browser: Browser) -> None:
    dataset_id = api.dataset()
    key = made_key(api, "admin", "read", "write")["key"]
    for path in ("/", "/jobs?status=failed", f"/v1/datasets/{dataset_id}", "/v1/jobs"):
        led = browser().get(path)
        assert led.status_code == 303
        asked = httpx.URL(led.headers["location"])
        assert (asked.path, asked.params["next"]) == ("/sign-in", path)
    page = browser().get(led.headers["location"])
    assert page.status_code == 200
    assert Page(page.text).one("input", type="hidden").attributes["value"] == "/v1/jobs"
    answer = browser().post("/sign-in", data={"key": f" {key}\n", "next": "/v1/jobs"})
    assert answer.headers["location"] == "/v1/jobs"
    client = signed_in(browser(), key)
    assert client.get("/").status_code == 200
    assert client.get("/sign-in?next=/jobs").headers["location"] == "/jobs"
    # what programs send is answered as ever
    assert api.http.get("/v1/jobs", headers={"Accept": "*/*"}).status_code == 401


def test_the_key_is_kept_where_no_script_and_no_other_site_gets_it(
    api: Api, browser: Browser
) -> None:
    key = made_key(api, "admin")["key"]
    for headers, secure in (({}, False), ({"X-Forwarded-Proto": "https"}, True)):
        answer = browser().post("/sign-in", data={"key": key}, headers=headers)
        kept, readable = answer.headers.get_list("set-cookie")
        assert key in kept
        assert "HttpOnly" in kept
        assert "HttpOnly" not in readable
        assert key not in readable
        for cookie in (kept, readable):
            assert "samesite=strict" in cookie.lower()
            assert "domain" not in cookie.lower()
            assert ("secure" in cookie.lower()) == secure
        assert key not in answer.text


def test_a_wrong_key_is_refused_in_a_sentence_and_not_shown_again(
    api: Api, browser: Browser
) -> None:
    made_key(api, "admin")
    for key in ("adap_wrong", "", " ", "x" * 100, "\u00e9\u4e2d"):
        answer = browser().post("/sign-in", data={"key": key, "next": "/jobs"})
        assert answer.status_code == 401
        assert "set-cookie" not in answer.headers
        page = Page(answer.text)
        said = page.one("p", role="status").text
        assert "API key" in said
        assert "value" not in page.one("input", id="key").attributes
        assert page.one("input", type="hidden").attributes["value"] == "/jobs"


@pytest.mark.parametrize("target", ELSEWHERE)
def test_the_way_back_stays_on_the_service(api: Api, browser: Browser, target: str) -> None:
    key = made_key(api, "admin")["key"]
    answer = browser().post("/sign-in", data={"key": key, "next": target[:2400]})
    assert answer.headers["location"] == "/"
    if target.isprintable():
        page = browser().get("/sign-in", params={"next": target})
        assert Page(page.text).one("input", type="hidden").attributes["value"] == "/"


def test_what_changes_something_needs_the_token_of_a_page_of_ours(
    api: Api, browser: Browser, problem: Check
) -> None:
    dataset_id = api.dataset()
    admin = made_key(api, "admin", "read", "write")["key"]
    other = made_key(api, "read", "write", bearer=admin)["key"]
    job = {"dataset_id": dataset_id, "task": {"positive": ["cat"]}}
    client, second = signed_in(browser(), admin), signed_in(browser(), other)
    client.headers["Accept"] = "application/json"
    of_another = token(second)
    own = token(client)
    for headers in (
        {},
        {"X-CSRF-Token": ""},
        {"X-CSRF-Token": "0" * 64},
        {"X-CSRF-Token": "\u00e9".encode()},
        of_another,
        {**own, "Origin": "https://evil.example"},
        {**own, "Origin": "null"},
        {**own, "Sec-Fetch-Site": "cross-site"},
        {**own, "Sec-Fetch-Site": "same-site"},
    ):
        problem(client.post("/v1/training-jobs", json=job, headers=headers), 403, "forbidden")
        removed = client.delete(f"/v1/datasets/{dataset_id}", headers=headers)
        problem(removed, 403, "forbidden")
        problem(client.post("/sign-out", headers=headers), 403, "forbidden")
    assert client.get("/v1/jobs").json()["data"] == []
    assert client.post("/v1/training-jobs", json=job, headers=own).status_code == 201
    assert client.get("/v1/jobs").status_code == 200  # reading needs none
    # a key in the header is untouched, whatever the cookie is
    bearer = {"Authorization": f"Bearer {admin}"}
    assert client.post("/v1/training-jobs", json=job, headers=bearer).status_code == 201


def test_another_site_can_sign_nobody_in(api: Api, browser: Browser, problem: Check) -> None:
    key = made_key(api, "admin")["key"]
    for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        answer = browser().post("/sign-in", data={"key": key}, headers=headers)
        problem(answer, 403, "forbidden")
        assert "set-cookie" not in answer.headers


def test_the_scopes_of_the_key_hold_in_a_browser_too(
    api: Api, browser: Browser, problem: Check
) -> None:
    dataset_id = api.dataset()
    admin = made_key(api, "admin")["key"]
    reader = signed_in(browser(), made_key(api, "read", bearer=admin)["key"])
    assert reader.get(f"/v1/datasets/{dataset_id}").status_code == 200
    refused = reader.delete(f"/v1/datasets/{dataset_id}", headers=token(reader))
    assert "'write'" in problem(refused, 403, "forbidden")["detail"]


def test_a_service_without_keys_asks_for_none(api: Api, browser: Browser) -> None:
    answer = browser().get("/sign-in?next=/jobs")
    assert (answer.status_code, answer.headers["location"]) == (303, "/jobs")


@pytest.mark.browser
def test_a_browser_signs_in_works_signs_out_and_is_told_when_its_key_has_ended(api: Api) -> None:
    api.dataset(name="our photos")
    admin = made_key(api, "admin")["key"]
    made = made_key(api, "read", "write", bearer=admin)
    with chromium() as opened:
        tab = opened.new_page(base_url=str(api.http.base_url))
        tab.goto("/datasets?sort=name")
        tab.fill("#key", "adap_wrong")
        tab.keyboard.press("Enter")
        tab.wait_for_selector("text=unknown, or was revoked or has expired")
        tab.fill("#key", made["key"])
        tab.keyboard.press("Enter")
        tab.wait_for_url("**/datasets?sort=name")
        tab.wait_for_selector("text=our photos")
        assert made["key"] not in tab.evaluate("document.cookie")
        tab.click("text=Sign out")
        tab.wait_for_selector("text=You are signed out.")
        tab.goto("/datasets")
        tab.wait_for_url("**/sign-in?next=%2Fdatasets")
        tab.fill("#key", made["key"])
        tab.click("main button")
        tab.wait_for_selector("text=our photos")
        gone = api.http.delete(
            f"/v1/api-keys/{made['id']}", headers={"Authorization": f"Bearer {admin}"}
        )
        assert gone.status_code == 204
        tab.select_option("#sort", "name")  # a call of the page is what finds it out
        tab.wait_for_selector("text=unknown, or was revoked or has expired")
        assert tab.context.cookies() == []


def test_a_cookie_costs_its_length_and_no_quotes_are_taken_off(api: Api) -> None:
    key = made_key(api, "admin", "read", "write")["key"]
    name = f"adap_key_{api.http.base_url.port}"
    for text, status in ((f'{name}="{key}"', 401), (f"a=b; {name}={key}", 200)):
        assert api.http.get("/v1/jobs", headers={"Cookie": text}).status_code == status
    slow = 'a="' + "\\" * 8000 + '"'
    loop = loop_seconds()
    begun = loop()
    assert api.http.get("/v1/jobs", headers={"Cookie": slow}).status_code == 401
    assert loop() - begun < 0.1


def test_no_other_site_signs_anybody_out(api: Api, browser: Browser) -> None:
    made_key(api, "admin", "read", "write")
    elsewhere = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
    answer = browser().post("/sign-out", headers=elsewhere)
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


def test_the_sign_in_takes_short_fields_alone_and_reads_no_other_form(
    api: Api, problem: Check
) -> None:
    made_key(api, "admin")
    files = [("key", (f"{i}", b"x")) for i in range(600)]
    loop = loop_seconds()
    begun = loop()
    problem(api.http.post("/sign-in", files=files), 415, "unsupported_media_type")
    assert loop() - begun < 0.05
    answer = api.http.post("/sign-in", data={"key": "x" * 20_000})
    said = problem(answer, 415, "unsupported_media_type")["detail"]
    assert "at most 16384" in said
    assert "20004" in said
    unsized = api.http.post(
        "/sign-in",
        content=iter([b"key=x"]),
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )
    problem(unsized, 415, "unsupported_media_type")


@pytest.mark.parametrize("charset", ["punycode", "idna", '"utf-7"', "utf-16"])
def test_a_form_in_another_charset_is_refused_unread(api: Api, charset: str) -> None:
    kind = f"multipart/form-data; boundary=XX; charset={charset}"
    part = '--XX\r\nContent-Disposition: form-data; name="key"\r\n\r\nbbb\r\n--XX--\r\n'
    answer = api.http.post("/sign-in", content=part, headers={"Content-Type": kind})
    assert answer.status_code == 400
    assert "UTF-8" in answer.json()["detail"]


@pytest.mark.parametrize("host", ["a{b.evil.example", "evil.example:", "x:123456", 'a"b', "a b"])
def test_a_host_that_no_url_has_is_refused(api: Api, host: str) -> None:
    assert api.http.get("/v1/jobs").status_code == 200
    answer = api.http.get("/v1/jobs", headers={"Host": host})
    assert answer.status_code == 400
    assert "Host" in answer.json()["detail"]


def test_two_keys_in_cookies_are_refused_as_a_neighbour_may_have_set_one(
    api: Api, browser: Browser
) -> None:
    key = made_key(api, "admin", "read", "write")["key"]
    other = made_key(api, "read", bearer=key)["key"]
    client = signed_in(browser(), key)
    (kept,) = (name for name in client.cookies if name.startswith("adap_key_"))
    ours = f"{kept}={key}"
    for cookies, status in (
        (ours, 200),
        (f"{ours}; {ours}", 200),
        (f"{kept}={other}; {ours}", 400),
        (f"{ours}; {kept}={other}", 400),
    ):
        answer = api.http.get("/v1/jobs", headers={"Cookie": cookies})
        assert answer.status_code == status
        if status == 400:
            assert "remove the cookies of this site" in answer.json()["detail"]
