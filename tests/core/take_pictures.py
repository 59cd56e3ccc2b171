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
    "evidence": "h-cards",
    "epsilon": "h-epsilon",
    "budget": "h-budget",
    "groups": "h-groups",
    "checks": "h-checks",
    "tasks": "h-tasks",
}
SECTION_HEIGHT = 760
SURROUND = 24


def take(page: Path, folder: Path, *, browser: Any) -> list[Path]:
    """The pictures of a page, and where they are."""
    written = []

    def keep(name: str, png: bytes) -> None:
        file = folder / f"{page.stem}-{name}.png"
        # Few colours beside the evidence's greys: a palette is a third of the size, and looks same.
        Image.open(io.BytesIO(png)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
            file, optimize=True
        )
        written.append(file)

    for scheme in ("light", "dark"):
        tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme)
        tab.goto(page.resolve().as_uri())
        tab.wait_for_selector(".chart .main-svg")
        keep(scheme, tab.screenshot())
        if scheme == "light":
            for name, heading in SECTIONS.items():
                box = tab.evaluate(
                    """id => {
                        const section = document.getElementById(id)?.closest("section");
                        const { x, y, width, height } = section?.getBoundingClientRect() ?? {};
                        return section && { x, y: y + scrollY, width, height };
                    }""",
                    heading,
                )
                if box is not None:
                    clip = {
                        "x": max(box["x"] - SURROUND, 0),
                        "y": max(box["y"] - SURROUND / 2, 0),
                        "width": box["width"] + 2 * SURROUND,
                        "height": min(box["height"] + SURROUND, SECTION_HEIGHT),
                    }
                    keep(name, tab.screenshot(full_page=True, clip=clip))
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
