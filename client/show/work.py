"""Jobs and sweeps: lists of them, and one with what it was asked to do."""

import json
import textwrap
from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from adap.client.client import Json
from adap.client.show.parts import REQUEST_COLUMNS, facts, figure, status, table, when


def jobs(items: Sequence[Json]) -> RenderableType:
    """A list of jobs."""
    return table(
        *("id", "name", "kind", "status", "progress", "created"),
        rows=(
            (
                item["id"],
                item["request"].get("name"),
                item["kind"],
                status(item["status"]),
                job_progress(item),
                when(item["created_at"]),
            )
            for item in items
        ),
    )


def job(item: Json) -> RenderableType:
    """One job."""
    result = item["result"] or {}
    summary = result.get("summary") or {}
    best = summary.get("best") or {}
    return facts(
        (
            ("id", item["id"]),
            ("name", item["request"].get("name")),
            ("kind", item["kind"]),
            ("status", status(item["status"])),
            ("progress", job_progress(item)),
            ("waiting for", item["waiting_for"]),
            ("error", item["error"] and item["error"]["message"]),
            ("created", when(item["created_at"])),
            ("started", when(item["started_at"])),
            ("finished", when(item["finished_at"])),
            ("attempt", item["attempt"]),
            ("retry of", item["retry_of"]),
            ("model", item["links"].get("model", "").rpartition("/")[2]),
            ("data set", item["links"].get("dataset", "").rpartition("/")[2]),
            ("clean AP", figure(best.get("clean_ap", summary.get("clean_ap")))),
            ("robust AP", figure(best.get("robust_ap"))),
            ("worst-case AP", figure(summary.get("worst_case_ap"))),
            ("request", _request(item["request"])),
        )
    )


def job_progress(item: Json) -> str:
    """How far a job is, in a few words."""
    done = ""
    if item["progress"] is not None:
        done = "{phase} {completed:,}/{total:,} {unit}".format(**item["progress"])
    if item["status"] == "queued":
        place = f"{item['queue_position']} ahead" if item["queue_position"] else "next"
        return f"{place}, goes on from {done}" if done else place
    return "" if item["done"] else done


def sweeps(items: Sequence[Json]) -> RenderableType:
    """A list of sweeps."""
    return table(
        *("id", "name", "status", "trials", "of", "created"),
        rows=(
            (
                item["id"],
                item["name"],
                status(item["status"]),
                sum(item["counts"].values()),
                item["planned"],
                when(item["created_at"]),
            )
            for item in items
        ),
        right=("trials", "of"),
    )


def sweep(item: Json) -> RenderableType:
    """One sweep: its trials, the best of them and the Pareto front."""
    trials = item["trials"]
    paths = list(dict.fromkeys(path for trial in trials for path in trial["parameters"]))
    counts = ", ".join(f"{count} {name}" for name, count in item["counts"].items())
    return Group(
        facts(
            (
                ("id", item["id"]),
                ("name", item["name"]),
                ("status", status(item["status"])),
                ("data set", item["dataset_id"]),
                ("trials", f"{counts} of {item['planned']}"),
                ("best", None if item["best"] is None else f"trial {item['best']}"),
            )
        ),
        Text(),
        table(
            *("trial", "status", *paths, "clean AP", "robust AP", "epoch", "Pareto", "model"),
            rows=(
                (
                    trial["number"],
                    status(trial["status"]),
                    *(_parameter(trial["parameters"].get(path)) for path in paths),
                    figure(trial["clean_ap"]),
                    figure(trial["robust_ap"]),
                    trial["best_epoch"],
                    Text("*", style="green") if trial["on_front"] else "",
                    trial["model_id"],
                )
                for trial in trials
            ),
            right=("trial", "clean AP", "robust AP", "epoch"),
        ),
        Text(),
        Text("* on the Pareto front: no other trial has both APs as high."),
    )


def _parameter(value: Any) -> str:
    """A varied value: numbers with the digits that mean something."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _request(request: Json) -> str:
    """What a job was asked to do, a field a line, but for what stands beside it."""
    beside = ("name", "model_id", "dataset_id")
    lines = [
        textwrap.wrap(
            f"{key} {_said(value)}",
            REQUEST_COLUMNS,
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for key, value in request.items()
        if value is not None and key not in beside
    ]
    return "\n".join(line for wrapped in lines for line in wrapped)


def _said(value: Any) -> str:
    """A value of a request: what is nested in brackets, floats to six digits."""
    match value:
        case {"name": str(name), **parameters}:
            return f"{name} ({_said(parameters)})" if parameters else name
        case dict():
            said = [f"{key} {_said(each)}" for key, each in value.items() if each is not None]
            return ", ".join(said)
        case list():
            return ", ".join(_said(each) for each in value)
        case float():
            return f"{value:.6g}"
        case str():
            return value
    return json.dumps(value)
