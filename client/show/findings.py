"""What came out: reports, estimates, verifications, leaderboards, rankings, scores."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from adap.client.client import Json
from adap.client.show.parts import (
    LEVELS,
    STYLES,
    all_digits,
    figure,
    interval_text,
    name_list,
    table,
)
from adap.client.watch import duration


def report(item: Json) -> RenderableType:
    """The figures of an audit, and whether to rely on them."""
    parts: list[RenderableType] = []
    provenance = item["provenance"]
    for task in item["tasks"]:
        threat = provenance["config"]["threat"]
        split = provenance["dataset"]["split"]
        title = (
            f"{provenance['model']['name']}: {name_list(task['positive'])} against the rest, "
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
                all_digits(line["reported"]),
                all_digits(line["recomputed"]),
                Text("ok", style="green") if line["ok"] else Text("differs", style="red"),
            )
            for line in lines
        ),
    )


def _ap_row(value: Json, clean: Json) -> tuple[str, str, str, str]:
    drop = value.get("drop") or {}
    return (
        figure(value["ap"]),
        interval_text(value["interval"]),
        "" if value is clean else figure(drop.get("value", clean["ap"] - value["ap"])),
        interval_text(drop.get("interval")),
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
        f"{name_list(setting['positive']) or 'Each class'} against the rest"
        f"{', ' + setting['split'] + ' split' if setting['split'] else ''}; "
        f"{setting['norm']} epsilon {setting['epsilon']:.4g}{_extent(setting)}"
    )
    below = [row for row in item["contenders"] if row["rank"] is None]
    lines = [
        f"{row['model_name']} has no rank, missing {'; '.join(row['missing'])}." for row in below
    ]
    others = [
        f"{name_list(other['positive']) or 'each class'}, {other['split'] or 'no split'}, "
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
                    interval_text(row["worst_case"]["interval"]),
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
    return f"{difference['value']:+.4f}", interval_text(difference["interval"])


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
