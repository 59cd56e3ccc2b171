"""Figures of all tasks together, and the thresholds, computed again from those of each task."""

import math
import operator
import re
from collections.abc import Mapping, Sequence

from adap.client.client import Json
from adap.client.show.parts import LEVELS
from adap.client.verify.book import Book

OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
LEAST = ("smallest_least", "smallest_median")  # over tasks: where none was found it is infinite
SIGN = re.compile(r"(>=|<=|>|<)[^<>=]*\Z")  # the last one; no character is looked at twice


def means(book: Book, report: Json, tasks: Sequence[dict[str, float]]) -> None:
    for name, value in report["mean"].items():
        figure = name if name == "certified_floor" else f"{name}_ap"
        of_tasks = [task[figure] for task in tasks]
        book.number(f"mean.{name}", value, sum(of_tasks) / len(of_tasks))


def thresholds_again(book: Book, report: Json, tasks: Mapping[str, dict[str, float]]) -> None:
    first, *others = tasks.values()
    found = {
        name: _of_all(name, [task[name] for task in tasks.values()])
        for name in first
        if all(name in other for other in others)
    }
    found |= {f"{task}.{name}": own[name] for task, own in tasks.items() for name in own}
    if report["trust"] is not None:
        found["trust"] = LEVELS.index(report["trust"]["verdict"])
    asked = report["provenance"]["config"].get("thresholds", [])
    results = report["thresholds"]
    book.same("thresholds", [result["threshold"] for result in results], asked)
    for result in results:
        text = result["threshold"]
        parsed = SIGN.search(text)
        figure = text[: parsed.start()].strip() if parsed else ""
        limit = _bound(text[parsed.end(1) :].strip(), figure) if parsed else None
        if parsed is None or limit is None or not figure or figure[-1] in "<>=":
            book.same(f"threshold {text}", "present", "cannot be read")
            continue
        sign = parsed[1]
        value = found.get(figure, 0.0)
        known = None if math.isinf(value) else value  # infinite: no change was found
        book.number(f"threshold {text}: got", result["got"], known)
        # Compared as reported: `got` was found equal above, and rounding may decide at the limit.
        got = math.inf if result["got"] is None else result["got"]
        passed = figure in found and OPERATORS[sign](got, limit)
        book.same(f"threshold {text}: passed", result["passed"], passed)


def _of_all(name: str, of_tasks: Sequence[float]) -> float:
    """The figure that a name without a task stands for."""
    return min(of_tasks) if name in LEAST else sum(of_tasks) / len(of_tasks)


def _bound(text: str, figure: str) -> float | None:
    """The number that a figure is compared with, or the place of the level for trust."""
    above, of, below = text.partition("/")
    try:
        if figure == "trust":
            return LEVELS.index(text)
        return float(above) / float(below) if of else float(text)
    except (ValueError, ZeroDivisionError):
        return None
