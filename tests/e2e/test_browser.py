"""The main job in a browser: upload, audit, report, with refusals mended on the way.

Chromium on the running service, with real workers. Every page that is met is judged by axe-core
(WCAG 2 A and AA), must fit into 400 pixels, says nothing on the console, and asks nobody but the
service for anything.
"""

import io
import re
import zipfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from adap.models import architectures, loading
from adap.models.header import Manifest
from tests.api.take_pictures import take
from tests.conftest import embedded_service
from tests.core.browser import chromium
from tests.s3 import Line
from tests.worker.archives import grouped, pack

pytestmark = [pytest.mark.slow, pytest.mark.browser]

SIZE = 8
PARTS_ABOVE = 4 * 2**20  # bytes: what is larger is sent in parts
MANIFEST = {
    "architecture": "small_cnn",
    "input": {"channels": 1, "height": SIZE, "width": SIZE, "mean": [0.5], "std": [0.5]},
    "positive": ["cat"],
}


class Visitor:
    """A tab of a browser and what it complained of."""

    def __init__(self, context: Any, service: str) -> None:
        self.tab = context.new_page()
        self.service = service
        self.complaints: list[str] = []
        self.expected: list[str] = []
        self.tab.on("console", self._console)
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("request", self._request)

    def _console(self, message: Any) -> None:
        signs = ("the server responded with a status of 422", "net::ERR_CONNECTION_FAILED")
        refused = any(sign in message.text for sign in signs)
        (self.expected if refused else self.complaints).append(message.text)

    def _request(self, request: Any) -> None:
        if not request.url.startswith((f"{self.service}/", "data:", "blob:")):
            self.complaints.append(f"asked {request.url}")

    def judge(self) -> None:
        """Assert that this page is fit for everybody."""
        from axe_playwright_python.sync_playwright import Axe

        options = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}
        found = Axe().run(self.tab, options=options).response["violations"]
        told = [(one["id"], [node["html"] for node in one["nodes"]]) for one in found]
        assert told == [], self.tab.url
        assert self.tab.evaluate("document.documentElement.scrollWidth") <= 400, self.tab.url
        assert self.complaints == []


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service that nobody has used yet."""
    with embedded_service(tmp_path_factory.mktemp("home")) as (url, _):
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as made:
        yield made


@contextmanager
def visiting(browser: Any, url: str) -> Iterator[Visitor]:
    narrow = {"width": 400, "height": 800}
    with closing(
        browser.new_context(base_url=url, color_scheme="dark", viewport=narrow)
    ) as context:
        context.set_default_timeout(90_000)
        yield Visitor(context, url)


@pytest.fixture(scope="module")
def visitor(browser: Any, service: str) -> Iterator[Visitor]:
    with visiting(browser, service) as made:
        yield made


def png(rng: np.random.Generator, mean: int, size: int) -> bytes:
    pixels = np.clip(rng.normal(mean, 30, (size, size)), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cats and dogs of two sizes, which is refused until somebody says how they become one."""
    path = tmp_path_factory.mktemp("photos") / "photos.zip"
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for name, mean in (("cat", 80), ("dog", 170)):
            for i in range(10):
                archive.writestr(f"{name}/{i}.png", png(rng, mean, 560 + 40 * (i % 2)))
    assert path.stat().st_size > PARTS_ABOVE
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "ranker.safetensors"
    network = architectures.build("small_cnn", channels=1, seed=0)
    loading.save(network, path, Manifest.model_validate(MANIFEST))
    return path


def test_on_an_empty_service_a_button_runs_the_demonstration(
    visitor: Visitor, service: str
) -> None:
    tab = visitor.tab
    tab.goto("/")
    tab.wait_for_selector("text=Nothing yet: three steps")
    visitor.judge()
    tab.click("#demo")
    tab.wait_for_selector("#demo-said:has-text('1 of 3')")
    visitor.judge()
    tab.wait_for_url("**/report", timeout=400_000)
    assert "ring finder (demonstration)" in tab.inner_text("main")
    visitor.judge()
    done = httpx.get(f"{service}/v1/jobs?kind=audit", timeout=60).json()["data"]
    (figures,) = [job["result"]["summary"] for job in done]
    assert figures["clean_ap"] > 0.9 > figures["worst_case_ap"]
    tab.goto("/")
    tab.wait_for_selector("#ended li:has-text('Audit of ring finder')")
    assert tab.locator("#begin").is_hidden()


def test_a_page_whose_line_is_lost_says_so_and_goes_on_when_it_is_back(
    browser: Any, service: str
) -> None:
    line = Line(service)
    with closing(line), visiting(browser, line.endpoint) as away, httpx.Client(timeout=60) as http:
        pets = pack(grouped("noon", per_class=200))  # so many that it trains until it is cancelled
        dataset = http.post(f"{service}/v1/datasets", files={"file": ("a.zip", pets)}).json()
        waited = {"Prefer": "wait=30"}
        while not http.get(f"{service}/v1/jobs/{dataset['job_id']}", headers=waited).json()["done"]:
            pass
        asked = {"dataset_id": dataset["id"], "task": {"positive": ["cat"]}, "epochs": 1000}
        job_id = http.post(f"{service}/v1/training-jobs", json=asked).json()["id"]
        away.tab.goto(f"/v1/jobs/{job_id}")
        away.tab.wait_for_selector("#progress-words:has-text('epochs')")
        line.be("reset")
        away.tab.wait_for_selector("text=The connection is lost")
        http.post(f"{service}/v1/jobs/{job_id}/cancel").raise_for_status()
        while not http.get(f"{service}/v1/jobs/{job_id}", headers=waited).json()["done"]:
            pass
        line.be("open")
        away.tab.wait_for_selector("main header >> text=cancelled")
        assert not away.tab.is_visible("text=The connection is lost")


def test_from_files_to_a_report_with_what_is_refused_mended_in_place(
    visitor: Visitor, service: str, photos: Path, weights: Path, tmp_path: Path
) -> None:
    tab = visitor.tab
    tab.goto("/")
    tab.wait_for_selector("#state:has-text('worker')")
    visitor.judge()

    tab.click("text=Add a data set >> nth=0")
    tab.click("button:text-is('Upload')")
    tab.wait_for_selector("text=Choose a file first")
    tab.set_input_files("#file", photos)
    tab.fill("[name=name]", "our photos")
    parts: list[str] = []
    tab.on("requestfinished", lambda one: parts.append(one.url) if one.method == "PUT" else None)
    lost = "**/v1/uploads/*/parts/2"
    tab.route(lost, lambda route: route.abort("connectionfailed"))
    tab.click("button:text-is('Upload')")
    tab.wait_for_selector("text=goes on by itself")
    visitor.judge()
    tab.click("button:text-is('Stop')")
    tab.wait_for_selector("#said:has-text('nothing was kept')")
    tab.click("button:text-is('Upload')")
    tab.wait_for_selector("text=goes on by itself")
    parts.clear()
    tab.unroute(lost)
    tab.wait_for_selector("#reasons li:has-text('`resize`')")
    assert [url[-1] for url in parts] == ["2"], "the first part had stayed there"
    left = httpx.get(f"{service}/v1/uploads", timeout=60).json()["data"]
    assert [one["complete"] for one in left] == [True], "the one that was stopped is forgotten"
    visitor.judge()
    # the options are open by now, and what was typed is still there
    assert tab.input_value("[name=name]") == "our photos"
    tab.fill("[name='resize.height']", "eight")
    tab.fill("[name='resize.width']", str(SIZE))
    tab.select_option("[name='resize.fit']", "stretch")
    tab.click("button:text-is('Upload')")
    tab.wait_for_selector("text=expected a whole number")
    assert tab.evaluate("document.activeElement.name") == "resize.height"
    tab.fill("[name='resize.height']", str(SIZE))
    tab.click("button:text-is('Upload')")
    tab.wait_for_url("**/v1/datasets/ds_*")
    assert [url[-1] for url in parts] == ["2"], "what had come was not sent again"
    assert tab.inner_text("h1") == "our photos"
    visitor.judge()

    tab.goto("/models/new")
    tab.wait_for_selector("[name='input.mean']")
    visitor.judge()
    tab.set_input_files("#file", weights)
    tab.keyboard.press("Tab")
    tab.click("button:text-is('Upload')")
    tab.wait_for_url("**/v1/models/mdl_*")
    visitor.judge()

    for path in ("/v1/leaderboard", "/docs"):  # refused, without a data set; long
        tab.goto(path)
        visitor.judge()
    tab.goto("/models")
    tab.click("#list a")
    tab.click("text=Audit it")
    tab.wait_for_selector("option:text-is('our photos')", state="attached")
    assert tab.locator("[name=model_id] option:checked").inner_text() == "ranker.safetensors"
    tab.select_option("[name=dataset_id]", label="our photos")
    tab.fill("[name='threat.epsilon']", "8")
    assert tab.locator("text=cat, as the model says").is_visible()
    tab.click("text=More settings")
    tab.check("[name=corruptions]")
    tab.fill("[name='corruptions.kinds']", "fog")
    tab.click("text=The same without this page")
    assert "--set 'corruptions.kinds=[\"fog\"]'" in tab.inner_text("#same pre >> nth=0")
    tab.check("[name='pipeline.jpeg']")
    tab.check("[name='pipeline.resize']")
    tab.fill("[name='pipeline.resize.height']", "8")
    pipeline = '--set \'pipeline=[{"name":"jpeg"},{"name":"resize","height":8}]\''
    assert pipeline in tab.inner_text("#same pre >> nth=0")
    tab.uncheck("[name='pipeline.jpeg']")
    tab.uncheck("[name='pipeline.resize']")
    tab.uncheck("[name=corruptions]")  # so that none are tried: the command below has none
    tab.click("button:text-is('Start the audit')")
    tab.wait_for_selector("text=write 8/255")
    assert tab.evaluate("document.activeElement.name") == "threat.epsilon"
    visitor.judge()
    tab.fill("[name='threat.epsilon']", "8/255")
    tab.select_option("[name=preset]", "quick")
    tab.reload()  # nothing that was typed is lost
    tab.wait_for_selector("#extent:has-text('20 images, by pgd and apgd')")
    assert tab.input_value("[name='threat.epsilon']") == "8/255"
    tab.click("text=The same without this page")
    command = tab.inner_text("#same pre >> nth=0")
    assert re.fullmatch(
        r"adap audit --model mdl_\w+ --dataset ds_\w+ --preset quick --epsilon 8/255 --watch",
        command,
    )
    tab.click("button:text-is('Start the audit')")
    tab.wait_for_url("**/v1/jobs/job_*")
    tab.wait_for_selector("a:text-is('The report')")  # until then the page changes by itself
    visitor.judge()
    tab.click("a:text-is('The report')")
    tab.wait_for_url("**/report")
    assert "our photos" in tab.inner_text("main")

    tab.goto("/datasets")
    tab.click("#list a:has-text('our photos')")
    tab.click("text=Its name and a note")
    tab.fill("#change [name=note]", "from the old gate")
    tab.click("button:text-is('Save')")
    tab.wait_for_selector(".note:has-text('from the old gate')")
    visitor.judge()

    tab.goto("/models")
    tab.click("#list a")
    tab.click("text=Its name and a note")
    tab.fill("#change [name=name]", "")
    tab.click("button:text-is('Save')")
    tab.wait_for_selector("#change-said:has-text('name expected at least 1')")
    tab.fill("#change [name=name]", "gatekeeper")
    tab.fill("#change [name=note]", "runs at the gate\nsince May")
    tab.click("button:text-is('Save')")
    tab.wait_for_selector(".note")
    assert tab.inner_text("h1") == "gatekeeper"
    assert tab.inner_text(".note") == "runs at the gate\nsince May"
    visitor.judge()
    tab.click("text=Rank images by it")
    tab.select_option("[name=dataset_id]", label="our photos")
    visitor.judge()
    tab.click("button:text-is('Start the ranking')")
    tab.wait_for_url("**/v1/jobs/job_*")
    tab.click("text=The images in order of score")
    tab.wait_for_selector(".grid li:has-text('cat')")

    tab.goto("/")
    tab.wait_for_selector("#ended li:has-text('worst-case AP')")
    for path in ("/datasets?search=PHOTOS", "/models?sort=name", "/jobs?status=failed"):
        tab.goto(path)
        tab.wait_for_selector("#list tbody tr")
        visitor.judge()
    assert "expected images of one size" in tab.inner_text("#list")
    assert visitor.expected, "the refusal was one of the API"
    pictures = take(service, tmp_path, browser=tab.context.browser)
    assert [picture.name for picture in pictures] == [
        *("page-home.png", "page-audit.png", "page-compare.png", "page-model.png")
    ]
    assert all(5_000 < picture.stat().st_size < 150_000 for picture in pictures)


def test_somebody_elses_model_is_refused_until_the_form_says_what_no_file_can(
    visitor: Visitor, tmp_path: Path
) -> None:
    path = tmp_path / "theirs.safetensors"
    save_file(architectures.build("small_cnn", channels=1, seed=0).state_dict(), path)
    tab = visitor.tab
    tab.goto("/models/new")
    tab.wait_for_selector("[name='input.mean']")
    tab.set_input_files("#file", path)
    tab.fill("[name=name]", "from elsewhere")
    tab.click("button:text-is('Upload')")
    tab.wait_for_selector("#reasons li")
    visitor.judge()
    assert tab.input_value("[name=name]") == "from elsewhere"
    tab.fill("[name='input.channels']", "1")
    tab.fill("[name='input.height']", "eight")
    tab.fill("[name='input.width']", str(SIZE))
    tab.select_option("#main-fields select", label="from 0 to 1, as they are")
    assert tab.input_value("[name='input.mean']") == "0"
    assert tab.input_value("[name='input.std']") == "1"
    tab.click("button:text-is('Upload')")
    tab.wait_for_selector("text=expected a whole number")
    assert tab.evaluate("document.activeElement.name") == "input.height"
    tab.fill("[name='input.height']", str(SIZE))
    tab.click("button:text-is('Upload')")
    tab.wait_for_url("**/v1/models/mdl_*")
    assert tab.inner_text("h1") == "from elsewhere"
    visitor.judge()


def test_a_training_is_started_cancelled_and_gone_on_with(
    visitor: Visitor, service: str, photos: Path
) -> None:
    tab = visitor.tab
    resize = '{"height": 8, "width": 8, "fit": "stretch"}'
    with httpx.Client(base_url=service, timeout=60) as http, photos.open("rb") as file:
        form = {"name": "to train on", "resize": resize}
        dataset = http.post("/v1/datasets", files={"file": file}, data=form).json()
        http.get(f"/v1/jobs/{dataset['job_id']}", headers={"Prefer": "wait=60"})
        tab.goto(f"/trainings/new?dataset_id={dataset['id']}")
        tab.wait_for_selector("[name='task.positive'][value=cat]")
        tab.click("button:text-is('Start the training')")
        tab.wait_for_selector("text=expected at least one class ticked")
        tab.check("[name='task.positive'][value=cat]")
        tab.fill("[name=epochs]", "1000")
        tab.select_option("[name=method]", "adap_lpn")
        tab.fill("[name='method.lambda']", "2")
        visitor.judge()
        tab.click("button:text-is('Start the training')")
        tab.wait_for_url("**/v1/jobs/job_*")
        tab.wait_for_selector("progress")
        visitor.judge()
        first = tab.url
        tab.click("button:text-is('Cancel')")
        tab.wait_for_selector("text=cancelled >> nth=0")
        request = http.get(first[len(service) :]).json()["request"]
        assert request["method"]["lambda"] == 2
        assert request["task"] == {"positive": ["cat"]}
        tab.click("button:text-is('Go on')")
        tab.wait_for_url(lambda url: "/v1/jobs/job_" in url and url != first)
        again = http.get(tab.url[len(service) :]).json()
        assert again["retry_of"] == first.rpartition("/")[2]
        http.post(f"/v1/jobs/{again['id']}/cancel")
        tab.wait_for_selector("text=cancelled >> nth=0")  # the page has followed it
        tab.goto(f"/sweeps/new?dataset_id={dataset['id']}")
        tab.wait_for_selector("[name=dataset_id], [name='training.dataset_id']")
        tab.check("[name='task.positive'][value=cat]")
        tab.fill("[name='search.path.0']", "epochs")
        tab.fill("[name='search.parameters.0']", "1, 2")
        tab.wait_for_selector("text=2 models would be trained")
        assert tab.text_content("#same pre >> nth=0") == (
            f"adap sweep --dataset {dataset['id']} --positive cat --vary 'epochs=[1,2]' --watch"
        )
        visitor.judge()
