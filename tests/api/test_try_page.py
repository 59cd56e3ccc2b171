"""The page that tries a model on one image, before a real scoring process; PyTorch is the judge."""

import io
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adap.core.standing import Standing
from adap.store import jobs
from adap.store.tables import JobKind
from tests.api.conftest import Scoring, noise
from tests.api.test_looking import tab_of
from tests.api.test_routes import finish
from tests.api.test_standings import put
from tests.core.browser import chromium
from tests.core.pages import HOSTILE


@pytest.mark.browser
def test_an_image_is_scored_and_placed_among_those_of_a_ranking(
    scoring: Scoring,
) -> None:
    api = scoring.api
    model_id = scoring.model(name=HOSTILE[1])
    dataset_id = api.dataset(name=HOSTILE[0])
    pixels = noise(40)  # those of the data set
    scores = np.array(scoring.expected(model_id, pixels / 255))
    order = np.argsort(-scores)
    path = api.folder / "placed"
    Standing(order, scores[order], (order % 2 == 0).astype(np.int64)).save(path)
    request = {"task": {"positive": ["cat"]}}
    with api.database.writing() as session:
        job_id = jobs.enqueue(
            session,
            JobKind.RANK,
            tenant="local",
            request=request,
            dataset_id=dataset_id,
            model_id=model_id,
        ).id
    finish(api, job_id, {"summary": {}, "blobs": {"standing": put(api, path)}})
    mine = noise(1, seed=9)[0]
    (score,) = scoring.expected(model_id, mine[None] / 255)
    rank = 1 + int((scores >= score).sum())
    small, large = (
        {"name": "mine.png", "mimeType": "image/png", "buffer": png(one)}
        for one in (mine, np.repeat(np.repeat(mine, 2, axis=0), 2, axis=1))
    )
    with chromium() as browser, tab_of(browser, api, refused=1) as tab:
        tab.goto(f"/v1/models/{model_id}")
        tab.click("text=Try it on an image")
        tab.locator("#among option", has_text="the ranking of").wait_for(state="attached")
        tab.click("text=Score it")
        tab.get_by_text("Choose an image first, or drop one above.").wait_for()
        tab.set_input_files("#file", small)
        tab.click("text=Score it")
        tab.locator("#place", has_text=f"Rank {rank} among 40 images").wait_for()
        shown = re.search(r"a score of ([-.\de]+);", tab.locator("#place").inner_text())
        assert shown is not None
        assert float(shown[1]) == pytest.approx(score, abs=2e-5)
        assert tab.locator("#neighbours img").count() == (1 if rank in (1, 41) else 2)
        tab.fill("#cut", str(max(rank - 1, 1)))
        if rank > 1:
            tab.click("text=Find the smallest change")
            tab.locator("#found.fail", has_text="It is not among the first").wait_for()
        tab.fill("#cut", str(rank))
        tab.click("text=Find the smallest change")
        moved = tab.locator("#found", has_text=f"takes it from rank {rank} to ")
        moved.wait_for()
        assert int(re.search(r"to (\d+),", moved.inner_text())[1]) > rank
        assert tab.locator("#pictures img").count() == 3
        for choice in ("#among", "#resize"):  # what was found is about the choices of before
            tab.select_option(choice, index=1 if choice == "#resize" else 0)
            tab.locator("#change").wait_for(state="hidden")
            assert not tab.locator("#place").is_visible()
            tab.select_option(choice, index=0 if choice == "#resize" else 1)
            tab.click("text=Score it")
            tab.locator("#change").wait_for()
            assert tab.locator("#pictures img").count() == 0
        tab.set_input_files("#file", large)
        tab.click("text=Score it")
        refused = tab.locator("#said.fail", has_text="16")
        refused.wait_for()  # with what the service says of its size
        assert not tab.locator("#place").is_visible()
        tab.select_option("#resize", "stretch")
        tab.click("text=Score it")
        tab.locator("#place", has_text="Rank").wait_for()
        tab.set_input_files("#file", small)
        tab.select_option("#among", index=0)
        tab.click("text=Score it")
        tab.locator("#place", has_text="Its score is").wait_for()


def png(pixels: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
