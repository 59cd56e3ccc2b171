"""Pages that people look at, in a browser: images, rankings, comparisons, curves, trying.

The judge of what is shown is the API, whose answers have tests of their own, and the browser.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from adap.core.datasets import ImageSet
from adap.core.standing import Standing
from adap.store import jobs
from adap.store.tables import JobKind, JobRow, ModelRow
from tests.api.conftest import SUMMARY, Api
from tests.api.test_pages import get, seen
from tests.api.test_routes import finish, finished_audit, train
from tests.api.test_standings import put
from tests.core.browser import chromium
from tests.core.pages import HOSTILE

MANY = 100_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@contextlib.contextmanager
def tab_of(browser: Any, api: Api, *, refused: int = 0, **options: Any) -> Iterator[Any]:
    """A narrow tab, of whose page nobody complains and which asks nobody but the service.

    refused: how many calls of the page are to be refused, which a browser complains of.
    """
    complaints: list[str] = []
    viewport = {"width": 400, "height": 800}
    context = browser.new_context(
        base_url=str(api.http.base_url), **{"viewport": viewport, **options}
    )
    with contextlib.closing(context):
        tab = context.new_page()
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on(
            "request",
            lambda request: (
                complaints.append(request.url)
                if not request.url.startswith((str(api.http.base_url), "data:", "blob:"))
                else None
            ),
        )
        yield tab
        assert tab.evaluate("document.documentElement.scrollWidth") <= 400
        assert tab.evaluate("window.pwned") is None
    refusals = [one for one in complaints if one.startswith("Failed to load resource")]
    assert len(refusals) == refused
    assert complaints == refusals


@pytest.fixture
def crowd(api: Api) -> tuple[str, str]:
    """A data set of very many images, one in ten a cat, and a ranking of it; names are hostile."""
    classes = [HOSTILE[0], "dog"]
    image_set = ImageSet(
        images=np.arange(4 * MANY, dtype=np.uint32).astype(np.uint8).reshape(MANY, 1, 2, 2),
        labels=(np.arange(MANY) % 10 != 0).astype(np.int64),
        classes=classes,
        example_ids=[f"{HOSTILE[2]} {i}" for i in range(MANY)],
    )
    counts = {classes[0]: MANY // 10, "dog": MANY - MANY // 10}
    summary = {**SUMMARY, "examples": MANY, "classes": counts, "splits": {}, "groups": None}
    dataset_id = api.dataset(content_sha256=api.keep(image_set), summary=summary, name="crowd")
    model_id = api.model(name=HOSTILE[1])
    order = np.arange(MANY)[::-1].copy()
    path = api.folder / "crowd"
    Standing(order, order / 1000, (order % 10 == 0).astype(np.int64)).save(path)
    with api.database.writing() as session:
        job_id = jobs.enqueue(
            session,
            JobKind.RANK,
            tenant="local",
            request={},
            dataset_id=dataset_id,
            model_id=model_id,
        ).id
    finish(api, job_id, {"summary": {}, "blobs": {"standing": put(api, path)}})
    return dataset_id, job_id


@pytest.mark.browser
def test_any_part_of_a_hundred_thousand_images_is_a_keystroke_away(
    browser: Any, api: Api, crowd: tuple[str, str]
) -> None:
    _, job_id = crowd
    with tab_of(browser, api, color_scheme="dark") as tab:
        tab.goto(f"/v1/rankings/{job_id}/images")
        first = tab.locator("#grid li", has_text=f"#1 {MANY / 1000 - 0.001:.2f}")
        first.locator("img").wait_for()
        assert tab.locator("#grid-total").inner_text() == "100,000 images; 10,000 are positive"
        assert tab.locator("#grid li").count() < 60, "only what is in sight is there"
        tab.fill("#place", "77778")
        tab.press("#place", "Enter")
        tab.locator("#grid li", has_text="#77,778").locator("img").wait_for()
        assert tab.locator("#grid li").count() < 60
        shown = tab.locator("#grid li:has(img)").evaluate_all(
            "items => items.map(item => [item.ariaPosInSet, item.querySelector('b').innerText])"
        )
        assert all(rank == f"#{int(place):,}" for place, rank in shown)
        tab.wait_for_url("**start=777*")
        tab.reload()  # and the place is kept
        tab.locator("#grid li", has_text="#77,778").locator("img").wait_for()

        tab.select_option("#mistake", "missed")
        tab.locator("#grid-total", has_text="9,000 of 100,000 images").wait_for()
        tab.select_option("#positive", "false")
        tab.locator("#grid-said", has_text="No image fits these filters.").wait_for()
        tab.go_back()
        tab.locator("#grid-total", has_text="9,000 of 100,000 images").wait_for()

        # by keyboard: closer, and away
        tab.locator("#grid li button").first.focus()
        tab.keyboard.press("Enter")
        assert tab.locator("#closer").get_by_text("positive").is_visible()
        tab.keyboard.press("Escape")
        assert not tab.locator("#closer").is_visible()
        tab.uncheck("#show-labels")
        assert not tab.locator("#grid .labels").first.is_visible()


@pytest.mark.browser
def test_images_of_a_class_are_shown_as_they_are_stored(
    browser: Any, api: Api, crowd: tuple[str, str]
) -> None:
    dataset_id, _ = crowd
    with tab_of(browser, api) as tab:
        tab.goto(f"/v1/datasets/{dataset_id}/images")
        tab.select_option("#label", HOSTILE[0])
        tab.locator("#grid-total", has_text="10,000 of 100,000 images").wait_for()
        second = tab.locator('#grid li[aria-posinset="2"]')
        second.locator("img").wait_for()
        tab.wait_for_function("document.querySelectorAll('#grid img')[1].complete")
        assert second.locator(".labels").inner_text() == HOSTILE[0]
        # the eleventh image, whose first pixel is 40
        seen = second.locator("img").evaluate(
            """image => {
                const canvas = new OffscreenCanvas(2, 2).getContext("2d");
                canvas.drawImage(image, 0, 0);
                return [...canvas.getImageData(0, 0, 2, 2).data];
            }"""
        )
        assert [seen[i] for i in (0, 4, 8, 12)] == [40, 41, 42, 43]


@pytest.mark.browser
def test_curves_of_a_training_grow_while_it_runs(browser: Any, api: Api) -> None:
    job = train(api)
    path = job["links"]["self"]
    with tab_of(browser, api, color_scheme="dark") as tab:
        with api.database.writing() as session:
            claim = jobs.claim(session, job["id"], worker="w", lease_s=3600)
            assert claim is not None
        tab.goto(path)
        tab.get_by_text("No epoch has ended yet.").wait_for()
        for number in (1, 2, 3):
            epoch = {
                "epoch": number,
                "clean_ap": 0.2 * number,
                "robust_ap": 0.1 * number,
                "lr": 0.001 / number,
                "metrics": {"surrogate_ap": 0.25 * number},
            }
            with api.database.writing() as session:
                jobs.record(session, claim, "epoch", epoch)
            tab.locator(f"#curves circle >> nth={4 * number - 1}").wait_for(state="attached")
        titles = tab.locator("#curves circle title").evaluate_all(
            "all => all.map(t => t.innerHTML)"
        )
        assert sorted(titles) == sorted(
            f"{name}, epoch {number}: {value * number:.4g}"
            for number in (1, 2, 3)
            for name, value in (
                ("clean AP", 0.2),
                ("AP under attack", 0.1),
                ("surrogate AP, on the training images", 0.25),
                ("learning rate", 0.001 / number**2),
            )
        )
        tab.get_by_text("Epoch by epoch").last.click()
        assert tab.locator("#curves tbody tr").count() == 3


def test_a_report_leads_back_to_what_it_is_about_in_a_browser_alone(api: Api) -> None:
    job_id, _, _ = finished_audit(api)
    name = HOSTILE[2]
    kept = api.folder / "kept.html"
    kept.write_text("<!DOCTYPE html><html><body><main>\n<h1>A report</h1></main></body></html>")
    with api.database.writing() as session:
        job = session.get_one(JobRow, job_id)
        blobs = {**job.result["blobs"], "page": put(api, kept)}
        job.result = {**job.result, "blobs": blobs}
        session.get_one(ModelRow, job.model_id).name = name
        dataset_id = job.dataset_id
    path = f"/v1/audits/{job_id}/report"
    page = seen(api, path)
    nav = page.one("nav")
    assert name in nav.text
    targets = [a.attributes["href"] for a in page.all("a")]
    assert f"/v1/jobs/{job_id}" in targets
    assert f"/v1/datasets/{dataset_id}" in targets
    for target in targets:
        if "leaderboard" not in target:  # this audit has no figures to compare
            assert get(api, target).status_code == 200, target
    saved = api.http.get(path, headers={"Accept": "text/html"})
    assert saved.text == kept.read_text(), "a report that is sent as a file stands for itself"
    assert saved.headers["etag"] != get(api, path).headers["etag"]
