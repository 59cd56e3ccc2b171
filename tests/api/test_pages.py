"""The pages of models, data sets and jobs, read back by a parser and by a browser."""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from adap.api.routes.pages import PAGES
from adap.store import jobs
from adap.store.tables import AssetStatus, JobKind, JobRow
from tests.api.conftest import CLASSIFIER, MANIFEST, SUMMARY, Api
from tests.api.test_routes import finish, train
from tests.core.browser import chromium
from tests.core.pages import HOSTILE, Page

Check = Callable[..., dict[str, Any]]

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
OWN = list(PAGES)  # of no one thing
FIGURES = {"clean_ap": 0.9312, "worst_case_ap": 0.4127, "chance": 0.125, "trust": "caution"}
FINDINGS = {
    "format": "onnx",
    "onnx_difference": 1.25e-6,
    "images": 6,
    "lowest": -3.5,
    "highest": 2.25,
    "batch_difference": 4.5e-7,
    "smallest_gradient": 0.0625,
    "largest_gradient": 1.75,
    "blind_images": 0,
    "problems": [],
    "warnings": ["something to know"],
}
TRAINING = {
    "method": {"name": "adap_lpn", "lambda": 4.0},
    "task": {"positive": ["cat"]},
    "dataset": {"id": "ds_1", "name": "pets", "sha256": "0" * 64},
    "config": {"epochs": 3},
    "train_examples": 1200,
    "validation_examples": 300,
    "best": {"epoch": 2, "clean_ap": 0.75, "robust_ap": 0.5},
    "history": [
        {"epoch": i, "clean_ap": clean, "robust_ap": robust}
        for i, clean, robust in ((1, 0.5, 0.25), (2, 0.75, 0.5), (3, 0.7, 0.4))
    ],
}
SPLIT = {
    **SUMMARY,
    "examples": 40,
    "classes": {"cat": 10, "dog": 30},
    "splits": {"train": {"cat": 6, "dog": 14}, "test": {"cat": 4, "dog": 16}},
    "groups": {"north": 15, "south": 25},
    "duplicates": 3,
    "conflicting": 2,
    "across_splits": 1,
    "clusters": 12,
    "reading": {"summary": "zip: 2 splits from folders `a`, `b`", "steps": [], "facts": []},
    "warnings": ["2 duplicates have other labels", "1 image equals one in another split"],
}


def get(api: Api, path: str, **headers: str) -> httpx.Response:
    """An answer to a browser, whose request is as Chromium's."""
    return api.http.get(path, headers={"Accept": BROWSER, **headers})


def seen(api: Api, path: str) -> Page:
    answer = get(api, path)
    assert answer.status_code == 200, answer.text
    return Page(answer.text)


def words(api: Api, path: str) -> str:
    return seen(api, path).one("main").words


def audited(api: Api, model_id: str, dataset_id: str, figures: dict[str, Any] = FIGURES) -> str:
    request = {"model_id": model_id, "dataset_id": dataset_id, "task": {"positive": ["cat"]}}
    job_id = str(api.http.post("/v1/audits", json=request).json()["id"])
    finish(api, job_id, {"summary": figures, "blobs": {}})
    return job_id


def paths(api: Api) -> list[str]:
    return [
        f"/v1/models/{api.model()}",
        f"/v1/datasets/{api.dataset()}",
        train(api)["links"]["self"],
    ]


def bars(page: Page) -> dict[str, list[float]]:
    """The widths of all that is drawn, by kind."""
    found: dict[str, list[float]] = {}
    for rect in page.all("rect"):
        found.setdefault(rect.attributes["class"], []).append(float(rect.attributes["width"]))
    return found


def corners(path: str) -> list[tuple[float, float]]:
    """Of a line: across and down, as shares of its plot."""
    return [(int(x) / 10_000, int(y) / 10_000) for x, y in re.findall(r"[ML](\d+) (\d+)", path)]


# --- which form -----------------------------------------------------------------------------------


def test_who_asks_for_html_gets_a_page_and_all_others_json(api: Api, problem: Check) -> None:
    for path in paths(api):
        page = get(api, path)
        assert page.headers["content-type"] == "text/html; charset=utf-8", page.text
        told = api.http.get(path).json()
        for accept in (
            "*/*",
            "",
            "application/json",
            "application/json, text/html",
            "text/*;q=0, */*",
        ):
            answer = api.http.get(path, headers={"Accept": accept})
            assert answer.headers["content-type"] == "application/json", accept
            assert answer.headers["vary"] == page.headers["vary"] == "Accept"
            assert answer.json() == told
        refused = api.http.get(path, headers={"Accept": "image/png"})
        assert "application/json or text/html" in problem(refused, 406, "not_acceptable")["detail"]
        assert refused.headers["vary"] == "Accept"
        problem(api.http.get(path[:-4] + "0000"), 404, "not_found")
    problem(api.http.get("/", headers={"Accept": "application/json"}), 406, "not_acceptable")


def test_a_browser_is_told_in_words_what_is_refused_and_led_back(api: Api) -> None:
    for path, status, said, back in (
        ("/nowhere", 404, "There is nothing at /nowhere", {"/"}),
        (f"/v1/models/mdl_{'0' * 26}", 404, "There is no model", {"/models", "/"}),
        ("/v1/leaderboard", 422, "dataset_id: expected a value", {"/datasets", "/"}),
        ("/v1/jobs?limit=<b>&colour=1", 422, "colour", {"/jobs", "/"}),
        ("/static/nothing.js", 404, "There is no file nothing.js", {"/"}),
    ):
        answer = get(api, path)
        assert answer.status_code == status, path
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert answer.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "<b>" not in answer.text
        page = Page(answer.text)
        assert said in page.one("main").words, path
        ways = {a.attributes["href"] for a in page.all("a", class_="button")}
        assert ways | {a.attributes["href"] for a in page.all("a", class_="button second")} == back
    refused = api.http.get("/nowhere", headers={"Accept": "application/json"})
    assert refused.json()["code"] == "not_found"
    assert refused.headers["vary"] == "Accept"


def test_a_page_is_kept_nowhere_and_runs_nothing_but_files_of_the_service(api: Api) -> None:
    for path in [*OWN, "/docs", *paths(api)]:
        answer = get(api, path)
        headers = answer.headers
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        assert "etag" not in headers
        page = Page(answer.text)
        assert not {e.tag for e in page.elements} & {"style", "img", "iframe", "base"}
        assert not [n for e in page.elements for n in e.attributes if n[:2] == "on" or n == "style"]
        scripts = page.all("script")
        assert scripts
        for script in scripts:
            assert script.text == ""
            held = api.http.get(script.attributes["src"])
            assert held.headers["content-type"].startswith("text/javascript")
            assert held.headers["x-content-type-options"] == "nosniff"
            known = {"If-None-Match": held.headers["etag"]}
            assert api.http.get(script.attributes["src"], headers=known).status_code == 304
        for element in page.elements:
            target = element.attributes.get("href", "/")
            assert target[0] in "/#" or (element.tag == "link" and target == "data:,")
            assert element.attributes.get("action", "/")[0] == "/"


def test_nothing_but_the_files_of_pages_is_served_with_them(api: Api, problem: Check) -> None:
    for name in (
        "../__init__.py",
        "..%2f__init__.py",
        "%2e%2e/static.py",
        "",
        "pages.css/..",
        "x.js",
    ):
        assert api.http.get(f"/static/{name}").status_code == 404, name


def test_every_link_of_a_page_leads_to_something(api: Api) -> None:
    dataset_id, model_id = api.dataset(), api.model()
    job_id = audited(api, model_id, dataset_id)
    for path in (
        f"/v1/models/{model_id}",
        f"/v1/datasets/{dataset_id}",
        f"/v1/jobs/{job_id}",
        *OWN,
    ):
        targets = {a.attributes["href"] for a in seen(api, path).all("a")} - {"#page"}
        assert len(targets) > 3
        for target in targets:
            # no worker runs here, so that there is nothing behind these
            if not re.search("/report$|format=onnx$|/leaderboard|/audits/.*/images$", target):
                answer = get(api, target)
                assert answer.status_code == 200, target
                kept = "attachment" in answer.headers.get("content-disposition", "")
                assert kept or answer.headers["content-type"].startswith("text/html"), target


def test_pages_need_the_key_that_json_needs_and_show_the_tenants_own(
    api: Api, problem: Check
) -> None:
    dataset_id, model_id = api.dataset(name="our photos"), api.model(name="our ranker")
    job_id = audited(api, model_id, dataset_id)
    first = api.http.post("/v1/api-keys", json={"name": "first", "scopes": ["admin"]}).json()
    mine, other = (
        api.http.post(
            "/v1/api-keys",
            json={"name": "k", "scopes": ["read"], "tenant": tenant},
            headers={"Authorization": f"Bearer {first['key']}"},
        ).json()["key"]
        for tenant in ("local", "other")
    )
    for path in (f"/v1/models/{model_id}", f"/v1/datasets/{dataset_id}", f"/v1/jobs/{job_id}"):
        assert get(api, path).headers["location"].startswith("/sign-in?next=")
        problem(api.http.get(path), 401, "unauthorized")
        assert get(api, path, Authorization=f"Bearer {other}").status_code == 404
        page = get(api, path, Authorization=f"Bearer {mine}").text
        assert mine not in page
        assert '"Authorization: Bearer $ADAP_API_KEY"' in Page(page).one("main").text
    problem(get(api, "/", Accept="*/*"), 401, "unauthorized")
    # what is of no one thing holds nothing of anybody: scripts ask for it with the same key
    for path in OWN:
        ours, theirs = (get(api, path, Authorization=f"Bearer {key}").text for key in (mine, other))
        assert ours == theirs
        assert "our photos" not in ours


# --- what they show -------------------------------------------------------------------------------


def test_the_page_of_a_model_shows_what_is_known_of_it(api: Api) -> None:
    dataset_id = api.dataset(name="street scenes")
    job = train(api, dataset_id=dataset_id)
    manifest = {**MANIFEST, "training": TRAINING}
    model_id = api.model(name="night", manifest=manifest, findings=FINDINGS, job_id=job["id"])
    finish(api, job["id"], {"model_id": model_id, "summary": {}})
    job_id = audited(api, model_id, dataset_id)
    page = seen(api, f"/v1/models/{model_id}")
    shown = page.one("main").words
    for text in (
        *(
            "night",
            "ready",
            "small_cnn",
            "8 \N{MULTIPLICATION SIGN} 8",
            "1 channel",
            "0 to 1",
            "0.5",
            "one logit",
            "cat",
        ),
        *("6 probe images", "-3.5 to 2.25", "4.5e-07", "0.0625 to 1.75", "1.25e-06", "onnx"),
        *("something to know", "Trained here by this job", "adap_lpn, lambda 4"),
        *("1,200 images to train, 300 to validate", "2 of 3, clean AP 0.750, under attack 0.500"),
        *("street scenes", "0.931", "0.413", "0.125", "caution", "norm L-inf, epsilon 8/255"),
        *(f"adap score {model_id} image.png", f"/v1/models/{model_id}/scores"),
        f"adap audit --model {model_id}",
    ):
        assert text in shown, text
    targets = {a.attributes["href"] for a in page.all("a")}
    content = f"/v1/models/{model_id}/content"
    report = f"/v1/audits/{job_id}/report"
    assert targets >= {content, f"{content}?format=onnx", report, job["links"]["self"]}
    clean, robust = page.all("path", class_="curve")
    assert corners(clean.attributes["d"]) == [(0, 0.5), (0.5, 0.25), (1, 0.3)]
    assert corners(robust.attributes["d"]) == [(0, 0.75), (0.5, 0.5), (1, 0.6)]
    assert bars(page) == {"clean": [93.12], "worst": [41.27], "chance": [0.5]}


def test_the_page_of_a_rejected_upload_shows_every_reason(api: Api) -> None:
    reasons = [f"photos/{i}.png: expected a picture, got <b>{i}</b>" for i in range(12)]
    rejected = {"status": AssetStatus.REJECTED, "reasons": reasons, "content_sha256": None}
    for path in (
        f"/v1/datasets/{api.dataset(summary=None, **rejected)}",
        f"/v1/models/{api.model(manifest=None, **rejected)}",
    ):
        page = seen(api, path)
        shown = [item.text for item in page.all("li")]
        assert shown[-len(reasons) :] == reasons
        assert "12 reasons" in page.one("main").words
        assert "data-follow" not in page.one("body").attributes


def test_the_page_of_a_data_set_draws_its_classes_by_split(api: Api) -> None:
    page = seen(api, f"/v1/datasets/{api.dataset(name='pets', summary=SPLIT)}")
    shown = page.one("main").words
    for text in (
        *(
            "pets",
            "ready",
            "Images 40",
            "Classes 2",
            "8\N{MULTIPLICATION SIGN}8",
            "1 channel",
            "Duplicates 3 7.5 %",
        ),
        *(
            "train 20",
            "test 20",
            "north 15 37.5 %",
            "south 25 62.5 %",
            "8 \N{MULTIPLICATION SIGN} 8",
        ),
        *("2 duplicates have other labels", "1 image equals one in another split"),
        *("zip: 2 splits from folders `a`, `b`", "Clusters 12"),
        *("cat 10 25 % 6 30 % 4 20 %", "dog 30 75 % 14 70 % 16 80 %", "--positive cat"),
    ):
        assert text in shown, text
    longest = 30
    assert bars(page)["train"] == pytest.approx([100 * 6 / longest, 100 * 14 / longest], abs=1e-3)
    assert bars(page)["test"] == pytest.approx([100 * 4 / longest, 100 * 16 / longest], abs=1e-3)
    assert bars(page)["all"] == pytest.approx([60, 100])  # the groups
    plain = seen(api, f"/v1/datasets/{api.dataset(summary={**SUMMARY, 'splits': {}})}")
    assert bars(plain) == {"all": [100, 100]}


def test_the_page_of_a_job_says_how_far_it_is_and_follows_it_until_the_end(api: Api) -> None:
    first, job = train(api), train(api)
    path = job["links"]["self"]
    queued = seen(api, path)
    assert "It waits: no worker of the queue 'compute' is alive." in queued.one("main").words
    assert "1 ahead of it in the queue." in queued.one("main").words
    assert first["id"] not in queued.one("main").text
    assert queued.one("body").attributes["data-follow"] == f"{path}/events"

    with api.database.writing() as session:
        claim = jobs.claim(session, job["id"], worker="w", lease_s=30)
        assert claim is not None
        told = {"epoch": 3, "lr": 0.001, "loss": 0.123456, "images_per_s": 99.5}
        jobs.record(session, claim, "epoch", told)
        progress = {"phase": "training", "completed": 3, "total": 8, "unit": "epochs", "eta_s": 200}
        session.execute(update(JobRow).where(JobRow.id == job["id"]).values(progress=progress))
    running = seen(api, path)
    assert "Training: 3 of 8 epochs, about 3 min 20 s left" in running.one("main").words
    bar = running.one("progress").attributes
    assert (bar["value"], bar["max"]) == ("3", "8")
    assert "epoch 3, learning rate 0.001, loss 0.1235" in running.one("main").words
    assert "99.5" not in running.one("main").words

    with api.database.writing() as session:
        error = jobs.JobError("worker_lost", "The worker died 3 times.", retryable=True)
        jobs.fail(session, claim, error)
    failed = seen(api, path)
    for text in (
        *("failed", "Worker lost", "The worker died 3 times.", "may well succeed when it is run"),
        f"adap jobs retry {job['id']}",
    ):
        assert text in failed.one("main").words, text
    assert "data-follow" not in failed.one("body").attributes
    assert failed.all("progress") == []


def test_the_page_of_an_audit_links_to_what_it_made(api: Api) -> None:
    required = {"threshold": "worst_case_ap >= 0.5", "figure": "worst_case_ap", "got": 0.4127}
    unmoved = {"threshold": "smallest_median >= 8/255", "figure": "smallest_median", "got": None}
    met = [{**unmoved, "passed": True}, {"threshold": "trust >= caution", "figure": "trust"}]
    met[1] |= {"got": 2, "passed": True}
    figures = {**FIGURES, "thresholds": [{**required, "passed": False}, *met]}
    job_id = audited(api, api.model(name="ranker"), api.dataset(name="photos"), figures)
    page = seen(api, f"/v1/jobs/{job_id}")
    for text in (
        *("succeeded", "0.931", "0.413", "0.125", "not met", "ranker", "photos"),
        *("got infinite, as no change was found", "got trustworthy"),
    ):
        assert text in page.one("main").words, text
    targets = {a.attributes["href"] for a in page.all("a")}
    assert targets >= {f"/v1/audits/{job_id}/{name}" for name in ("report", "images")}


# --- strangers ------------------------------------------------------------------------------------


def shapes(page: Page) -> list[tuple[str, list[str]]]:
    return [(element.tag, list(element.attributes)) for element in page.elements]


def of_names(api: Api, names: list[str]) -> Iterator[str]:
    """Paths of pages on which these six names stand wherever a stranger may put one."""
    everything = " ".join(names)
    counts = {name: i + 1 for i, name in enumerate(names)}
    printable = ["".join(filter(str.isprintable, name)) for name in names]  # as outputs must be
    summary = {**SPLIT, "classes": counts, "splits": {"train": counts}, "groups": counts}
    dataset_id = api.dataset(name=everything, summary=summary)
    training = {
        **TRAINING,
        "method": {"name": everything, everything: everything},
        "task": {"positive": names},
        "dataset": {"name": everything},
    }
    model_id = api.model(
        name=everything,
        manifest={
            **CLASSIFIER,
            "architecture": everything[:64],
            "output": {"kind": "multiclass", "classes": printable},
            "positive": names,
            "training": training,
        },
        findings={**FINDINGS, "problems": names, "warnings": names},
    )
    rejected = {"status": AssetStatus.REJECTED, "reasons": names, "content_sha256": None}
    with api.database.writing() as session:
        job_id = jobs.enqueue(
            session,
            JobKind.AUDIT,
            tenant="local",
            request={"threat": {everything: everything}},
            dataset_id=dataset_id,
            model_id=model_id,
        ).id
        claim = jobs.claim(session, job_id, worker="w", lease_s=30)
        assert claim is not None
        jobs.record(session, claim, everything, {everything: everything})
        jobs.fail(session, claim, jobs.JobError(everything, everything))
    yield f"/v1/models/{model_id}"
    yield f"/v1/datasets/{dataset_id}"
    yield f"/v1/jobs/{job_id}"
    yield f"/v1/datasets/{api.dataset(name=everything, summary=None, **rejected)}"


def test_hostile_names_change_no_element_of_a_page(api: Api) -> None:
    tame = [seen(api, path) for path in of_names(api, list("abcdef"))]
    hostile = [HOSTILE[0][:150], *HOSTILE[1:]]
    for expected, path in zip(tame, of_names(api, hostile), strict=True):
        page = seen(api, path)
        assert shapes(page) == shapes(expected)
        shown = page.one("main").text
        assert all(name in shown for name in HOSTILE), path


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"history": 5},
        {**TRAINING, "history": [{"epoch": 1, "clean_ap": 1e308}] * 2},
        {**TRAINING, "history": []},
        {**TRAINING, "dataset": {}, "method": {"name": [None]}, "task": {"positive": [5, {}]}},
        {**TRAINING, "train_examples": 10**400},
        {**TRAINING, "best": {"epoch": 1}},
    ],
)
def test_whatever_a_file_says_of_its_training_is_shown_and_not_believed(
    api: Api, training: dict[str, Any]
) -> None:
    shown = words(api, f"/v1/models/{api.model(manifest={**MANIFEST, 'training': training})}")
    assert "this service did not train it" in shown
    assert "All of it, figures to six digits" in shown


def test_an_epoch_that_was_not_validated_has_no_figure_in_the_table(api: Api) -> None:
    history = [{"epoch": 1, "clean_ap": None, "robust_ap": None}, *TRAINING["history"][1:]]
    training = {**TRAINING, "history": history}
    page = seen(api, f"/v1/models/{api.model(manifest={**MANIFEST, 'training': training})}")
    (table,) = [t for t in page.all("table", class_="figures") if "Under attack" in t.words]
    head = "Epoch Clean AP Under attack Surrogate AP Learning rate"
    assert table.words == f"{head} 1 2 0.750 0.500 3 0.700 0.400"


def test_a_class_in_a_command_is_one_word_for_a_shell(api: Api) -> None:
    evil = "x'; rm -rf ~ #"
    output = {"kind": "multiclass", "classes": [evil, "b"]}
    model_id = api.model(manifest={**CLASSIFIER, "output": output})
    summary = {**SUMMARY, "classes": {"a": 20, evil: 20}, "splits": {}}
    quoted = "'x'\"'\"'; rm -rf ~ #'"
    model, dataset = (
        seen(api, path)
        for path in (f"/v1/models/{model_id}", f"/v1/datasets/{api.dataset(summary=summary)}")
    )
    assert f"adap score {model_id} --positive {quoted} image.png" in [
        line.text for line in model.all("pre", class_="command")
    ]
    assert all(
        f"--positive {quoted} --watch" in line.text
        for line in dataset.all("pre", class_="command")[:2]
    )


# --- in a browser --------------------------------------------------------------------------------


# in one look, as a page may load itself again between two
LOOKS_RIGHT = """
([title, background]) =>
    document.readyState === "complete"
    && document.querySelector("h1").innerText === title
    && document.documentElement.scrollWidth <= 400
    && getComputedStyle(document.body).backgroundColor === background
    && window.pwned === undefined
"""


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_goes_from_page_to_page_until_a_job_has_ended(api: Api, scheme: Any) -> None:
    everything = " ".join(HOSTILE)
    complaints: list[str] = []
    with (
        chromium() as browser,
        contextlib.closing(
            browser.new_context(
                base_url=str(api.http.base_url),
                color_scheme=scheme,
                viewport={"width": 400, "height": 800},
            )
        ) as context,
    ):
        tab = context.new_page()
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))

        def follow(path: str, title: str) -> None:
            tab.click(f'a[href="{path}"] >> nth=0')
            tab.wait_for_url(f"**{path}")
            looks_right(title)

        def looks_right(title: str) -> None:
            background = {"light": "rgb(245, 246, 248)", "dark": "rgb(14, 17, 22)"}[scheme]
            tab.wait_for_function(LOOKS_RIGHT, arg=[title, background])

        tab.goto("/")
        tab.wait_for_selector("text=Nothing yet: three steps")
        dataset_id = api.dataset(name=everything, summary=SPLIT)
        manifest = {**MANIFEST, "training": TRAINING}
        model_id = api.model(name="a ranker", manifest=manifest, findings=FINDINGS)
        request = {"model_id": model_id, "dataset_id": dataset_id}
        job_id = api.http.post("/v1/audits", json=request).json()["id"]
        # it looks again by itself
        tab.wait_for_selector("#live li:has-text('Audit of a ranker on')")
        assert tab.locator("#begin").is_hidden()
        looks_right("What is going on")
        follow(f"/v1/datasets/{dataset_id}", everything)
        assert tab.locator("svg.bar rect.train").first.bounding_box()["width"] > 20
        tab.go_back()
        follow(f"/v1/models/{model_id}", "a ranker")
        assert tab.locator("path.curve").first.bounding_box()["width"] > 200
        follow(f"/v1/jobs/{job_id}", "Audit")
        tab.wait_for_selector("body[data-follow]")
        finish(api, job_id, {"summary": FIGURES, "blobs": {}})
        tab.wait_for_selector("text=succeeded >> nth=0")  # it has followed the job
        looks_right("Audit")
        assert tab.locator("body[data-follow]").count() == 0
    assert complaints == []


def test_the_calls_are_described_by_a_page_that_needs_nothing_from_elsewhere(api: Api) -> None:
    schema = api.http.get("/openapi.json").json()
    answer = api.http.get("/docs")
    assert answer.headers["x-frame-options"] == "DENY"
    page = Page(answer.text)
    assert not {e.tag for e in page.elements} & {"img", "iframe", "base"}
    for path, methods in schema["paths"].items():
        for method in methods:
            assert f"<code>{method.upper()} {path}</code>" in answer.text
    assert api.http.get("/redoc").headers["location"] == "/docs"


def test_every_answer_says_that_it_is_no_other_type_and_in_no_frame(api: Api) -> None:
    for path in ("/", "/docs", "/openapi.json", "/livez", "/v1/jobs", "/nowhere"):
        headers = api.http.get(path, headers={"Accept": "*/*"}).headers
        assert headers["x-content-type-options"] == "nosniff", path
        assert "frame-ancestors 'none'" in headers["content-security-policy"], path
