"""Data sets and models: lists of them, and one with its reading and its origin."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from adap.client.client import Json
from adap.client.show.parts import facts, figure, name_list, status, table, value_list, when


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
                name_list((item["manifest"] or {}).get("positive")),
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
            ("input", input_spec(manifest.get("input"))),
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


def _method(value: Json | None) -> str:
    if value is None:
        return ""
    parameters = {key: value[key] for key in value if key != "name"}
    return f"{value['name']} ({value_list(parameters)})" if parameters else str(value["name"])


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


def input_spec(spec: Json | None) -> str:
    if spec is None:
        return ""
    channels = "1 channel" if spec["channels"] == 1 else f"{spec['channels']} channels"
    values = f", pixels in {spec['value_range']}" if "value_range" in spec else ""
    order = ", as blue, green, red" if spec.get("channel_order") == "bgr" else ""
    order_of_sides = "" if spec["width"] == spec["height"] else " (width x height)"
    return f"{spec['width']}x{spec['height']}{order_of_sides}, {channels}{values}{order}"


def _side(manifest: Json) -> str:
    """Which classes a model ranks first; of a single logit, that nobody said it."""
    known = name_list(manifest.get("positive"))
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
    return f"{spec['kind']}: {name_list(classes[:20])}{more}"


def _dataset_counts(summary: Json | None) -> tuple[str, str, str]:
    if summary is None:
        return "", "", ""
    return (
        f"{summary['examples']:,}",
        f"{len(summary['classes']):,}",
        input_spec(summary),
    )
