"""Tables for people of the service's answers."""

import json
import textwrap
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from adap.client.client import Json
from adap.client.watch import duration

STYLES = {
    "ready": "green",
    "succeeded": "green",
    "rejected": "red",
    "failed": "red",
    "cancelled": "yellow",
    "cancelling": "yellow",
    "running": "cyan",
    "validating": "cyan",
    "trustworthy": "green",
    "caution": "yellow",
    "not trustworthy": "red",
}

REQUEST_COLUMNS = 85  # beside the names of facts, within 100
LEVELS = ("not trustworthy", "caution", "trustworthy")  # as thresholds on trust count them


def table(*columns: str, rows: Iterable[Sequence[Any]], right: Sequence[str] = ()) -> Table:
    """A plain table: no lines, values as they are. `right` names the columns of numbers."""
    made = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for column in columns:
        made.add_column(
            column,
            justify="right" if column in right else "left",
            no_wrap=column.lower() in ("id", "model", "data set", "job"),
        )
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(_plain(cell)) for cell in row))
    return made


def facts(pairs: Iterable[tuple[str, Any]]) -> Table:
    """Names and values, one a line; without a value no line."""
    made = Table.grid(padding=(0, 3, 0, 0))
    made.add_column(style="bold", no_wrap=True)
    made.add_column()
    for name, value in pairs:
        if value not in (None, "", [], {}):
            made.add_row(name, value if isinstance(value, Text) else Text(_plain(value)))
    return made


def status(value: str) -> Text:
    """A status in its colour."""
    return Text(value, style=STYLES.get(value, ""))


def when(timestamp: str | None) -> str:
    """A time of the service in this machine's time zone."""
    if timestamp is None:
        return ""
    return datetime.fromisoformat(timestamp).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def size(count: int) -> str:
    """A number of bytes."""
    for unit, word in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {word}"
    return f"{count} B"


def figure(value: float | None) -> str:
    """A figure with the digits that mean something."""
    return "" if value is None else f"{value:.4f}"


# --- data sets and models -------------------------------------------------------------------------


def reasons(found: Sequence[str]) -> list[str]:
    """Why an upload was rejected, one a line; at a hundred the service stops looking for more."""
    return [*found, *(["(the first 100; there may be more)"] if len(found) >= 100 else [])]


def datasets(items: Sequence[Json]) -> RenderableType:
    """A list of data sets."""
    return table(
        *("id", "name", "status", "examples", "classes", "image", "added"),
        rows=(
            (
                item["id"],
                item["name"],
                status(item["status"]),
                *_dataset_counts(item["summary"]),
                when(item["created_at"]),
            )
            for item in items
        ),
        right=("examples", "classes"),
    )


def dataset(item: Json) -> RenderableType:
    """One data set."""
    summary = item["summary"]
    parts: list[RenderableType] = [
        facts(
            (
                ("id", item["id"]),
                ("name", item["name"]),
                ("note", item["note"]),
                ("status", status(item["status"])),
                ("reasons", "\n".join(reasons(item["reasons"]))),
                ("added", when(item["created_at"])),
                ("checked by", item["job_id"]),
                ("sha256", item["sha256"]),
                ("images", None if summary is None else _dataset_counts(summary)[2]),
                ("resized", summary and _resized(summary)),
                ("labels", "any number an image" if (summary or {}).get("multilabel") else None),
                ("duplicates", summary and _duplicates(summary)),
                ("clusters", summary and summary.get("clusters")),
                ("read as", summary and _reading(summary)),
                ("to know", summary and "\n".join(summary.get("warnings") or [])),
            )
        )
    ]
    if summary is not None:
        splits = summary["splits"]
        prevalence = summary["prevalence"]
        sums = summary["split_examples"]
        parts += [
            Text(),
            table(
                *("class", "examples", *splits, "prevalence"),
                rows=[
                    (
                        *(name, count, *(split.get(name, 0) for split in splits.values())),
                        f"{prevalence[name]:.2%}",
                    )
                    for name, count in summary["classes"].items()
                ]
                + [("all", summary["examples"], *(sums[split] for split in splits), "")],
                right=("examples", *splits, "prevalence"),
            ),
        ]
        if summary.get("groups"):
            rows = summary["groups"].items()
            parts += [Text(), table("group", "examples", rows=rows, right=("examples",))]
    return Group(*parts)


def _reading(summary: Json) -> str | None:
    """How the upload was understood, in a line."""
    reading = summary.get("reading")
    return None if reading is None else str(reading["summary"])


def _resized(summary: Json) -> str | None:
    """By which rule, and from which sizes."""
    rule = summary.get("resize")
    if rule is None:
        return None
    sizes = list(summary["sizes"].items())
    came = ", ".join(f"{count} of {size}" for size, count in sizes[:5])
    return f"{rule['fit']}, from {came}{', …' if len(sizes) > 5 else ''}"


def _duplicates(summary: Json) -> str:
    text = str(summary["duplicates"])
    notes = [
        f"{summary[key]} {what}"
        for key, what in (("conflicting", "with other labels"), ("across_splits", "across splits"))
        if summary.get(key)
    ]
    return f"{text} ({', '.join(notes)})" if notes else text


def models(items: Sequence[Json]) -> RenderableType:
    """A list of models."""
    return table(
        *("id", "name", "status", "architecture", "positive", "added"),
        rows=(
            (
                item["id"],
                item["name"],
                status(item["status"]),
                (item["manifest"] or {}).get("architecture", ""),
                _names((item["manifest"] or {}).get("positive")),
                when(item["created_at"]),
            )
            for item in items
        ),
    )


def model(item: Json) -> RenderableType:
    """One model."""
    manifest, findings = item["manifest"] or {}, item["findings"] or {}
    training = manifest.get("training") or {}
    best = training.get("best") or {}
    return facts(
        (
            ("id", item["id"]),
            ("name", item["name"]),
            ("note", item["note"]),
            ("status", status(item["status"])),
            ("reasons", "\n".join(item["reasons"])),
            ("added", when(item["created_at"])),
            ("made by", item["job_id"]),
            ("sha256", item["sha256"]),
            ("architecture", manifest.get("architecture")),
            ("input", _input(manifest.get("input"))),
            ("output", _output(manifest.get("output"))),
            ("positive", _side(manifest)),
            ("method", _method(training.get("method"))),
            ("trained on", _trained_on(training)),
            ("started from", _start(training.get("warm_start"))),
            ("optimiser", _method((training.get("config") or {}).get("optimizer"))),
            ("best epoch", best and f"{best['epoch']} of {len(training.get('history', []))}"),
            ("chosen by", _rule(training)),
            ("clean AP", figure(best.get("clean_ap"))),
            ("robust AP", figure(best.get("robust_ap"))),
            ("to know", "\n".join(fact["message"] for fact in training.get("facts", []))),
            *_read(findings),
            *_probed(findings),
            ("warnings", "\n".join(findings.get("warnings", []))),
        )
    )


def _trained_on(training: Json) -> str | None:
    name: str | None = (training.get("dataset") or {}).get("name")
    if name is None or training.get("sample") is None:
        return name
    return f"{name}, a sample of about {training['sample']:,} images"


def _read(findings: Json) -> list[tuple[str, str]]:
    """How the file was understood; facts of level caution are among the warnings."""
    reading = findings.get("reading") or {"steps": [], "facts": []}
    said = [fact["message"] for fact in reading["facts"] if fact["level"] == "info"]
    return [("read as", "\n".join([*reading["steps"], *said]))]


def _probed(findings: Json) -> list[tuple[str, str]]:
    """What trying the model on probe images showed."""
    if findings.get("lowest") is None:
        return []
    seeing = findings["images"] - findings["blind_images"]
    lines = [
        ("came as", findings["format"]),
        ("probe: logits", f"{findings['lowest']:.4g} to {findings['highest']:.4g}, finite"),
        ("probe: batch", f"moves a logit by at most {findings['batch_difference']:.2g}"),
        ("probe: gradient", f"at {seeing} of {findings['images']} images"),
    ]
    if findings["onnx_difference"] is not None:
        lines.append(("onnxruntime", f"differs by at most {findings['onnx_difference']:.2g}"))
    return lines


# --- jobs -----------------------------------------------------------------------------------------


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


# --- sweeps ---------------------------------------------------------------------------------------


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


# --- results --------------------------------------------------------------------------------------


def report(item: Json) -> RenderableType:
    """The figures of an audit, and whether to rely on them."""
    parts: list[RenderableType] = []
    provenance = item["provenance"]
    for task in item["tasks"]:
        threat = provenance["config"]["threat"]
        split = provenance["dataset"]["split"]
        title = (
            f"{provenance['model']['name']}: {_names(task['positive'])} against the rest, "
            f"{task['examples']:,} images{f' of the {split} split' if split else ''}, "
            f"{task['positives']:,} positive; {threat['norm']} epsilon {threat['epsilon']:.4g}"
        )
        clean, floor = task["clean"], task.get("certified_floor")
        rows = [("clean", clean), *task["attacks"].items(), ("worst case", task["worst_case"])]
        if floor is not None:
            rows.append(("certified floor", floor))
        if task.get("universal") is not None:
            rows.append(("universal", task["universal"]))
        corruptions = task.get("corruptions")
        if corruptions is not None:
            rows.append(("corruptions, mean", {"ap": corruptions["mean"], "interval": None}))
            rows.append(("corruptions, worst", corruptions["worst_case"]))
        smallest = task.get("smallest_changes")
        parts += [
            Text(title, style="bold"),
            Text(),
            table(
                *("", "AP", "95 % interval", "lost", "interval of the loss"),
                rows=[
                    *((name, *_ap_row(value, clean)) for name, value in rows),
                    ("chance", figure(task["chance"]), "", "", ""),
                    ("floor", figure(task["floor"]), "", "", ""),
                ],
                right=("AP", "lost"),
            ),
            *([] if smallest is None else [Text(smallest_changes(smallest))]),
            Text(),
        ]
    if len(item["tasks"]) > 1:
        means = "  ".join(f"{name} {figure(value)}" for name, value in item["mean"].items())
        parts.append(Text(f"Mean over the tasks: {means}"))
    if item.get("thresholds"):  # reports of version 1 have none, and no verdict
        parts += [_thresholds(item["thresholds"]), Text()]
    if item.get("trust") is not None:
        parts.append(_trust(item["trust"]))
    parts += [Text(f"Note: {warning}", style="yellow") for warning in item["warnings"]]
    return Group(*parts)


def smallest_changes(found: Json) -> str:
    """How little moves positives out of the first k."""
    if found["kept_at_epsilon"] is None:
        return f"No positive is among the first {found['k']:,}, so no change moves one out of them"
    median = found["median"]
    half = "half of them or more were not moved" if median is None else f"median {median:.4g}"
    return (
        f"Smallest changes ({found['norm']}) that move a positive out of the first "
        f"{found['k']:,}, as found, not proven: {half}; {found['kept_at_epsilon']:.0%} of "
        f"{found['searched']:,} stay at the audited epsilon"
    )


def estimate(found: Json, noun: str) -> str:
    """What a job would do and cost, that was not started."""
    seconds, most, longest = found["seconds"], found["most_passes"], found["most_seconds"]
    trials = "" if found["trials"] is None else f"of {found['trials']:,} trials "
    time = "unknown" if seconds is None else f"about {duration(seconds)} of one worker"
    more, longer = "", ""
    if most is not None:
        by = " and ".join(found["search_on"])
        more = f", up to {most:,} where the gradient hides something and {by} go on"
        longer = "" if longest is None else f", up to {duration(longest)}"
    return "\n".join(
        [
            f"Nothing was started. This {noun} {trials}takes {found['images']:,} images, and "
            f"{found['passes']:,} passes of one image through the network{more}.",
            *(f"it        {words}" for words in found["understood"]),
            *([f"attacks   {', '.join(found['attacks'])}"] if found["attacks"] else []),
            *([f"corrupted {found['corruptions']} times"] if found["corruptions"] else []),
            f"time      {time}{longer}. {found['basis']}",
            *(f"caution   {warning}" for warning in found["warnings"]),
        ]
    )


def verification(lines: Sequence[Json]) -> RenderableType:
    """Every figure of a report beside the same computed again."""
    return table(
        *("figure", "reported", "recomputed", ""),
        rows=(
            (
                line["figure"],
                _either(line["reported"]),
                _either(line["recomputed"]),
                Text("ok", style="green") if line["ok"] else Text("differs", style="red"),
            )
            for line in lines
        ),
    )


def _ap_row(value: Json, clean: Json) -> tuple[str, str, str, str]:
    drop = value.get("drop") or {}
    return (
        figure(value["ap"]),
        _interval(value["interval"]),
        "" if value is clean else figure(drop.get("value", clean["ap"] - value["ap"])),
        _interval(drop.get("interval")),
    )


def _thresholds(results: Sequence[Json]) -> RenderableType:
    return table(
        *("threshold", "got", ""),
        rows=(
            (
                result["threshold"],
                LEVELS[int(result["got"])]
                if result["figure"] == "trust"
                else figure(result["got"]) or "infinite",
                Text("met", style="green") if result["passed"] else Text("not met", style="red"),
            )
            for result in results
        ),
        right=("got",),
    )


def _trust(trust: Json) -> RenderableType:
    """The verdict, and the checks that speak against it."""
    lines = [Text(f"Trust in the audit: {trust['verdict']}.", style=STYLES[trust["verdict"]])]
    lines += [
        Text(f"  {check['name']} ({check['status']}): {check['message']}")
        for check in trust["checks"]
        if check["status"] != "pass"
    ]
    return Group(*lines)


def _extent(setting: Json) -> str:
    """Of which pipeline and sample audits are, where not of all images as they are stored."""
    found = ""
    if setting["pipeline"]:
        found += f", through {', '.join(map(pipeline_step, setting['pipeline']))}"
    if setting["sample"] is not None:
        found += f", a sample of {setting['sample']:,} (seed {setting['sample_seed']})"
    return found


def pipeline_step(step: Json) -> str:
    """A step of a pipeline as `--pipeline` takes it; what is left out there is left out here."""
    name = step["name"]
    if name in ("resize", "crop"):
        return f"{name}:{step['width']}x{step['height']}"
    if name == "jpeg":
        least = step["least_quality"]
        return f"jpeg:{'' if least is None else f'{least}-'}{step['quality']}"
    return f"{name}:{step['levels']}"


def leaderboard(item: Json) -> RenderableType:
    """Models compared on one data set."""
    setting = item["setting"]
    if setting is None:
        return Text("No finished audit on this data set fits.")
    title = (
        f"{_names(setting['positive']) or 'Each class'} against the rest"
        f"{', ' + setting['split'] + ' split' if setting['split'] else ''}; "
        f"{setting['norm']} epsilon {setting['epsilon']:.4g}{_extent(setting)}"
    )
    below = [row for row in item["contenders"] if row["rank"] is None]
    lines = [
        f"{row['model_name']} has no rank, missing {'; '.join(row['missing'])}." for row in below
    ]
    others = [
        f"{_names(other['positive']) or 'each class'}, {other['split'] or 'no split'}, "
        f"{other['norm']} {other['epsilon']:.4g}{_extent(other)}"
        for other in item["other_settings"]
    ]
    if others:
        lines.append(
            f"Not shown, as audits in other settings do not compare: {'; '.join(others)}. "
            "Ask for one by --norm, --epsilon, --pipeline, --sample, --split, --positive or "
            "--each."
        )
    return Group(
        Text(title, style="bold"),
        Text(),
        table(
            *("rank", "model", "name", "clean", "worst case", "95 % interval", "to the leader"),
            *("interval", "trust"),
            rows=(
                (
                    row["rank"] or "-",
                    row["model_id"],
                    row["model_name"],
                    figure(row["clean"]["ap"]),
                    figure(row["worst_case"]["ap"]),
                    _interval(row["worst_case"]["interval"]),
                    *_to_leader(row),
                    row["trust"] or "",
                )
                for row in item["contenders"]
            ),
            right=("rank", "clean", "worst case", "to the leader"),
        ),
        *map(Text, lines),
    )


def _to_leader(row: Json) -> tuple[str, str]:
    difference = row["to_leader"]
    if difference is None:
        return "", ""
    return f"{difference['value']:+.4f}", _interval(difference["interval"])


def ranking(rows: Sequence[Json]) -> RenderableType:
    """The images of a ranking, best first."""
    return table(
        *("rank", "score", "label", "positive", "example"),
        rows=(
            (
                row["rank"],
                figure(row["score"]),
                row["label"],
                {True: "yes", False: "", None: ""}[row["positive"]],
                row["example_id"],
            )
            for row in rows
        ),
        right=("rank", "score"),
    )


def scores(rows: Sequence[Json], files: Sequence[Path]) -> RenderableType:
    """Scored images, in the order in which they were sent."""
    return table(
        *("file", "score", "rank"),
        rows=(
            (file, figure(row["score"]), row["rank"]) for file, row in zip(files, rows, strict=True)
        ),
        right=("score", "rank"),
    )


def queues(items: Sequence[Json]) -> RenderableType:
    """Queues: whether workers take jobs, what waits and what runs."""
    return table(
        *("queue", "workers take jobs", "queued", "running", "reason"),
        rows=(
            (
                item["name"],
                f"no, paused since {when(item['paused_at'])}" if item["paused"] else "yes",
                item["queued"],
                item["running"],
                item["reason"] or "",
            )
            for item in items
        ),
        right=("queued", "running"),
    )


def keys(items: Sequence[Json]) -> RenderableType:
    """API keys, without the keys themselves."""
    return table(
        *("id", "name", "tenant", "scopes", "created", "expires", "revoked"),
        rows=(
            (
                item["id"],
                item["name"],
                item["tenant"],
                ", ".join(item["scopes"]),
                when(item["created_at"]),
                when(item["expires_at"]),
                when(item["revoked_at"]),
            )
            for item in items
        ),
    )


def problem(title: str, details: Iterable[str]) -> str:
    """A problem and its single faults, as console markup."""
    return "\n".join((f"[red]{escape(title)}[/]", *(f"  - {escape(text)}" for text in details)))


def _plain(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _names(values: Sequence[str] | None) -> str:
    return ", ".join(values or [])


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


def _values(values: Json | None) -> str:
    return ", ".join(
        f"{key} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for key, value in (values or {}).items()
        if value is not None
    )


def _method(value: Json | None) -> str:
    if value is None:
        return ""
    parameters = {key: value[key] for key in value if key != "name"}
    return f"{value['name']} ({_values(parameters)})" if parameters else str(value["name"])


def _start(value: Json | None) -> str:
    if value is None:
        return ""
    return f"{value['model']['id']}{', with a fresh last layer' if value['fresh_head'] else ''}"


def _rule(training: Json) -> str:
    """By which figure the epoch was chosen, and of what."""
    config = training.get("config")
    if config is None or "select_by" not in training:
        return ""
    rule = f"validation {training['select_by'].replace('_ap', ' AP')}"
    if config.get("ema") is not None:
        rule += f" of averaged weights (decay {config['ema']:g})"
    if training.get("stopped_early"):
        rule += f", stopped after {config['validation']['patience']} epochs without a better one"
    return rule


def _either(value: Any) -> str:
    """A figure with all its digits, or whatever stands in its place."""
    if isinstance(value, dict):
        return _values(value)
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)


def _interval(value: Json | None) -> str:
    return "" if value is None else f"{value['low']:.3f} to {value['high']:.3f}"


def _input(spec: Json | None) -> str:
    if spec is None:
        return ""
    channels = "1 channel" if spec["channels"] == 1 else f"{spec['channels']} channels"
    values = f", pixels in {spec['value_range']}" if "value_range" in spec else ""
    order = ", as blue, green, red" if spec.get("channel_order") == "bgr" else ""
    order_of_sides = "" if spec["width"] == spec["height"] else " (width x height)"
    return f"{spec['width']}x{spec['height']}{order_of_sides}, {channels}{values}{order}"


def _side(manifest: Json) -> str:
    """Which classes a model ranks first; of a single logit, that nobody said it."""
    known = _names(manifest.get("positive"))
    if known or not manifest or manifest["output"]["classes"] is not None:
        return known
    return "not known: `adap model add --positive` says which class its logit ranks first"


def _output(spec: Json | None) -> str:
    if spec is None:
        return ""
    classes = spec["classes"]
    if classes is None:
        return f"one {spec['kind']}"
    more = f", and {len(classes) - 20:,} more" if len(classes) > 20 else ""
    return f"{spec['kind']}: {_names(classes[:20])}{more}"


def _dataset_counts(summary: Json | None) -> tuple[str, str, str]:
    if summary is None:
        return "", "", ""
    return (
        f"{summary['examples']:,}",
        f"{len(summary['classes']):,}",
        _input(summary),
    )
