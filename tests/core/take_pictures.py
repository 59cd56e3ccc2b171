"""Take the documents' pictures of a report's page.

    .venv/bin/python -m tests.core.take_pictures report.html docs/images

writes `report-light.png` and `report-dark.png`, the top of the page, and one picture of each
section in SECTIONS that the page has, such as `report-evidence.png`: the name of the page, then the
name of the picture. Needs Chromium.
"""

import argparse
import io
from pathlib import Path
from typing import Any

from PIL import Image

from tests.core.browser import chromium

WIDTH, HEIGHT = 1280, 1900
SECTIONS = {
    "ap": "h-ap",
    "evidence": "h-cards",
    "epsilon": "h-epsilon",
    "budget": "h-budget",
    "groups": "h-groups",
    "checks": "h-checks",
    "tasks": "h-tasks",
}
SECTION_HEIGHT = 760
EDGE = 16  # of the page around a section
SECTION_BOX = """heading => {
    const box = document.getElementById(heading)?.closest("section").getBoundingClientRect();
    return box && [box.left, box.top + scrollY, box.right, box.bottom + scrollY].map(Math.round);
}"""


def save(picture: Image.Image, file: Path) -> None:
    """Keep a picture as a small PNG."""
    # A palette makes it a third as large; this way of choosing one keeps hues and greys.
    small = picture.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    small.save(file, optimize=True)


def take(page: Path, folder: Path, *, browser: Any) -> list[Path]:
    """The pictures of a page, and where they are."""
    written = []

    def keep(name: str, picture: Image.Image) -> None:
        file = folder / f"{page.stem}-{name}.png"
        save(picture, file)
        written.append(file)

    for scheme in ("light", "dark"):
        tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme)
        tab.goto(page.resolve().as_uri())
        light = scheme == "light"
        shot = Image.open(io.BytesIO(tab.screenshot(full_page=light))).convert("RGB")
        keep(scheme, shot.crop((0, 0, WIDTH, HEIGHT)))
        for name, heading in SECTIONS.items() if light else ():
            box = tab.evaluate(SECTION_BOX, heading)
            if box is not None:
                left, top, right, bottom = box
                bottom = min(bottom, top + SECTION_HEIGHT)
                keep(name, shot.crop((left - EDGE, top - EDGE, right + EDGE, bottom + EDGE)))
        tab.close()
    return written


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Take the pictures of a report's page.")
    parser.add_argument("page", type=Path, help="report.html, as the service wrote it")
    parser.add_argument("folder", type=Path, help="where the pictures go")
    arguments = parser.parse_args()
    with chromium() as started:
        for picture in take(arguments.page, arguments.folder, browser=started):
            print(f"{picture}  {picture.stat().st_size / 1000:.0f} kB")  # noqa: T201
