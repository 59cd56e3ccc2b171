"""Take the documents' pictures of the pages of a service that runs.

    .venv/bin/python -m tests.api.take_pictures http://127.0.0.1:8000 docs/images

writes `page-home.png`, `page-audit.png`, `page-compare.png` and `page-model.png`, of the newest
audit that succeeded, such as the one of the demonstration on the first page. Needs Chromium.
"""

import argparse
import io
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from tests.core.browser import chromium
from tests.core.take_pictures import save

WIDTH, HEIGHT = 1120, 1000  # at most so high


def pages(service: str) -> dict[str, tuple[str, str]]:
    """By the name of its picture: the address of a page, and what is there once it is complete."""
    asked = {"kind": "audit", "status": "succeeded", "limit": "1"}
    (audit,) = httpx.get(f"{service}/v1/jobs", params=asked).json()["data"]
    model, dataset = (audit["links"][what].rpartition("/")[2] for what in ("model", "dataset"))
    return {
        "home": ("/", "#ended li"),
        "audit": (f"/audits/new?model_id={model}&dataset_id={dataset}", "#extent:not([hidden])"),
        "compare": (f"/v1/leaderboard?dataset_id={dataset}", "tbody tr"),
        "model": (f"/v1/models/{model}", "#h-takes"),
    }


def take(service: str, folder: Path, *, browser: Any) -> list[Path]:
    """The pictures of the pages of a service, and where they are."""
    written = []
    tab = browser.new_page(
        base_url=service, viewport={"width": WIDTH, "height": 200}, color_scheme="light"
    )
    for name, (path, complete) in pages(service).items():
        tab.goto(path)
        tab.wait_for_selector(complete)
        shot = Image.open(io.BytesIO(tab.screenshot(full_page=True))).convert("RGB")
        file = folder / f"page-{name}.png"
        save(shot.crop((0, 0, WIDTH, min(shot.height, HEIGHT))), file)
        written.append(file)
    tab.close()
    return written


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Take the pictures of the pages of a service.")
    parser.add_argument("service", help="its address, such as http://127.0.0.1:8000")
    parser.add_argument("folder", type=Path, help="where the pictures go")
    arguments = parser.parse_args()
    with chromium() as started:
        for picture in take(arguments.service, arguments.folder, browser=started):
            print(f"{picture}  {picture.stat().st_size / 1000:.0f} kB")  # noqa: T201
