"""Figures of a page read back as a reader does: by the labels of their own axes."""

import math
import re
from dataclasses import dataclass
from functools import cached_property
from xml.etree import ElementTree as ET

import numpy as np
import pytest

# Positions are written to a tenth of a pixel down, and to a hundredth of a percent across.
CLOSE = 2e-3


def close(values: object) -> object:
    """What a value read from a figure equals, as sharp as the figure is drawn."""
    return pytest.approx(values, abs=CLOSE)


@dataclass(frozen=True)
class Mark:
    """Something drawn: its class, its title, and its corners in the units of the axes."""

    kind: str
    title: str
    color: str
    points: list[tuple[float, float]]

    @property
    def x(self) -> list[float]:
        return [x for x, _ in self.points]

    @property
    def y(self) -> list[float]:
        return [y for _, y in self.points]


def number(label: str) -> float:
    plain = label.replace("\N{MINUS SIGN}", "-").replace(",", "")
    return float(plain.removesuffix(" %")) / (100 if plain.endswith(" %") else 1)


def drawings(page: str) -> dict[str, "Drawing"]:
    """The figures of a page by their ids; each must be well-formed XML."""
    found = re.findall(r'(<div class="chart" id="([\w-]+)".*?)\s*</figure>', page, re.DOTALL)
    return {name: Drawing(ET.fromstring(markup)) for markup, name in found}


class Drawing:
    """One figure. Across, positions are percents of the plot; down, they are pixels."""

    def __init__(self, root: ET.Element) -> None:
        (self.plot,) = root.findall("div[@class='plot']/svg")
        self.names = ["".join(it.itertext()) for it in root.findall("div[@class='names']/span")]
        self.log = root.attrib["id"].endswith("chart-budget")

    @cached_property
    def marks(self) -> list[Mark]:
        return list(self._marks())

    def of(self, kind: str, title: str = "") -> list[Mark]:
        """Marks of this class whose title begins so."""
        return [it for it in self.marks if it.kind == kind and it.title.startswith(title)]

    def one(self, kind: str, title: str = "") -> Mark:
        (mark,) = self.of(kind, title)
        return mark

    def texts(self, kind: str) -> list[str]:
        return [
            "".join(it.itertext()) for it in self.plot.iter("text") if kind in it.attrib["class"]
        ]

    @property
    def readings(self) -> list[str]:
        return [it.findtext("title") or "" for it in self.plot.findall("g[@class='reading']")]

    def curve(self, name: str) -> tuple[list[float], list[float]]:
        """Recall and precision where the steps of a curve end, from recall 0 on."""
        mark = next(it for it in self.of("curve") if it.title == name)
        # Up or down at the point before, then on: the steps reach back.
        ups, ons = mark.points[1::2], mark.points[2::2]
        assert all(up[0] == before[0] for up, before in zip(ups, mark.points[::2], strict=False))
        assert all(up[1] == on[1] for up, on in zip(ups, ons, strict=True))
        ends = [mark.points[0], *ons]
        return [x for x, _ in ends], [y for _, y in ends]

    def _marks(self) -> "list[Mark]":
        found = []
        for outer in self.plot:
            for element in outer if outer.tag == "svg" else [outer]:
                kind, points = element.get("class", ""), self._points(outer, element)
                if kind == "grid" or element.tag in ("text", "g"):
                    continue
                color = (element.get("fill") or "") + (element.get("stroke") or "")
                found.append(
                    Mark(
                        kind,
                        element.findtext("title") or "",
                        color,
                        [(self._scale_across(x), self._scale_down(y)) for x, y in points],
                    )
                )
        return found

    def _points(self, outer: ET.Element, element: ET.Element) -> list[tuple[float, float]]:
        def value(name: str, of: ET.Element = element) -> float:
            return float(of.attrib[name].rstrip("%"))

        match element.tag:
            case "circle":
                return [(value("cx"), value("cy"))]
            case "line":
                return [(value("x1"), value("y1")), (value("x2"), value("y2"))]
            case "rect":
                x, y = value("x"), value("y")
                return [(x, y), (x + value("width"), y + value("height"))]
            case "path" if "viewBox" not in outer.attrib:  # a symbol at one place
                return [(value("x", outer), value("y", outer))]
            case "path":
                units = float(outer.attrib["viewBox"].split()[2])
                top, height = value("y", outer), value("height", outer)
                points, x, y = list[tuple[float, float]](), 0.0, 0.0
                for command, rest in re.findall(r"([MLHV])([-\d ]+)", element.attrib["d"]):
                    numbers = [float(it) for it in rest.split()]
                    x = numbers[0] if command in "MLH" else x
                    y = numbers[-1] if command in "MLV" else y
                    points.append((100 * x / units, top + y * height / units))
                return points
        return []

    def _ticks(self, axis: str) -> list[tuple[float, float]]:
        """Where a label stands, and the number it says."""
        return [
            (float(it.attrib[axis].rstrip("%")), number(it.text))
            for it in self.plot.iter("text")
            if it.attrib["class"].split()[:2] == [axis, "tick"] and it.text
        ]

    def _scale_across(self, x: float) -> float:
        places, numbers = np.array(self._ticks("x")).T
        if self.log:
            return float(10 ** _along(x, places, np.log10(numbers)))
        return _along(x, places, numbers)

    def _scale_down(self, y: float) -> float:
        """By the labels of the area where y lies; where there are names, the number of its line."""
        if self.names:
            return y / (float(self.plot.attrib["height"]) / len(self.names)) - 0.5
        ticks = self._ticks("y")
        zeros = [place for place, value in ticks if value == 0]  # at the bottom of each area
        bottom = min((it for it in zeros if it >= y - 0.2), default=max(zeros))
        above = max((it for it in zeros if it < bottom), default=-math.inf)
        inside = [(place, value) for place, value in ticks if above < place <= bottom]
        return _along(y, *np.array(inside).T)


def _along(place: float, places: np.ndarray, numbers: np.ndarray) -> float:
    """The number at a place of a linear axis, of which the first and last label are known."""
    if len(places) == 1:
        return float(numbers[0])
    slope = (numbers[-1] - numbers[0]) / (places[-1] - places[0])
    return float(numbers[0] + slope * (place - places[0]))
