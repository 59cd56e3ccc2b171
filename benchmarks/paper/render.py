"""Markdown and pictures from what was computed, the paper's value beside ours."""

import itertools
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from scipy.stats import t as student

from benchmarks.paper import plan

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "adap"  # the same picture gives the same file
mpl.rcParams["svg.fonttype"] = "none"
from matplotlib import pyplot as plt  # noqa: E402

# Every reader answers the same call, though few need all of it.
# ruff: noqa: ARG001

Entry = Mapping[str, Any]
"""As `__main__.run` writes them: experiment, task, method, varied, chosen, results."""

# What the paper claims: the first above each of the others, in clean AP or under this attack.
CLAIMS: Sequence[tuple[str, str, Sequence[str]]] = [
    ("adap_lpn", "pgd", ("pgd", "trades", "mart")),
    ("adap_lpn", "clean", ("pgd", "trades", "mart")),
    ("adap_ln", "pgd", ("pgd", "trades", "mart")),
    ("adap_ln", "clean", ("pgd", "trades", "mart")),
    ("adap_lpn", "black_box", ("pgd", "trades", "mart")),
    ("adap_lpn", "pgd", ("adap_mm", "adap_pz", "adap_lz", "adap_ln")),
]


KINDS = {"pgd": "robust", "clean": "clean", "black_box": "black box"}


def render(entries: Sequence[Entry], *, scale: str, folder: Path) -> Path:
    """Write SCALE.md and its pictures into `folder`; the path of the former."""
    declared = plan.experiments()
    size = plan.scale(scale)
    lines = [f"# The paper's tables at the scale `{scale}`: {size.title}", ""]
    lines += _description(size, entries)
    if size.reading:
        lines += ["", size.reading.strip()]
    by_experiment = {
        name: [entry for entry in entries if entry["experiment"] == name] for name in declared
    }
    for name, experiment in declared.items():
        found = by_experiment[name]
        if not found:
            continue
        lines += ["", f"## {experiment.source}: {experiment.title}", ""]
        lines += READERS[experiment.read](name, experiment, found, folder)
        if experiment.note:
            lines += ["", experiment.note.strip()]
    everything = {
        (e["task"], e["method"]): e
        for name in ("table2", "table5")
        for e in by_experiment.get(name, [])
    }
    if everything:
        lines += ["", "## Which of the paper's orderings appear", "", *_orderings(everything)]
        lines += ["", "## What was tuned", "", *_chosen(everything)]
    path = folder / f"{scale}.md"
    path.write_text("\n".join(lines) + "\n")
    return path


def _description(scale: plan.Scale, entries: Sequence[Entry]) -> list[str]:
    trainings = {
        result["hash"]: result
        for entry in entries
        for result in entry["results"]
        if result["kind"] == "training"
    }
    evaluated = {r["hash"] for e in entries for r in e["results"] if r["kind"] == "evaluation"}
    full = scale.full

    def amount(count: int | None) -> str:
        return "all" if count is None else f"{count:,}"

    return [
        f"Network `{scale.network}` (benchmarks/paper/networks.py), "
        f"{amount(full.train)} training, {amount(full.validation)} validation and "
        f"{amount(full.test)} test images, {full.epochs} epochs, seeds "
        f"{', '.join(map(str, full.seeds))}; tuning and experiments that vary something with "
        f"{amount(scale.small.train)} training images and {scale.small.epochs} epochs, one seed. "
        "Everything else as in the paper: batch 128, Adam, training PGD of 6 steps of 0.01, "
        "epsilon 8/255, the epoch chosen on validation images. CIFAR-10 comes as JPEG of quality "
        "75, so figures are close to those on the original files, not equal.",
        "",
        f"{len(evaluated)} networks evaluated"
        + (f", {len(trainings)} more trained" if trainings else "")
        + ". The data behind this page: the JSON file of the same name, each result with the hash "
        "of all that it depends on.",
    ]


# --- tables ---------------------------------------------------------------------------------------


def _aps(entry: Entry, attack: str) -> list[tuple[float, float]]:
    """Robust and clean AP of each seed."""
    return [(r["ap"][attack], r["ap"]["clean"]) for r in entry["results"] if attack in r["ap"]]


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def _papers(mean: float | None, sd: float | None) -> str:
    if mean is None:
        return "-"
    return f"{mean:.3f}" + (f" ± {sd:.3f}" if sd is not None else "")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def _label(entry: Entry) -> str:
    method = plan.methods()[entry["method"]].label
    varied = entry["varied"].items()
    return " ".join([method, *(f"{name} {value:g}" for name, value in varied)])


def _by_task(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    tasks: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        tasks[entry["task"]].append(entry)
    return tasks


def _read_test(
    name: str, experiment: plan.Experiment, entries: Sequence[Entry], folder: Path
) -> list[str]:
    lines: list[str] = []
    for task, found in _by_task(entries).items():
        rows = []
        for entry in found:
            aps = _aps(entry, experiment.attack)
            paper = experiment.of_paper(task, entry["method"], entry["varied"])
            rows.append(
                [
                    _label(entry),
                    _mean([robust for robust, _ in aps]),
                    _papers(paper.robust, paper.robust_sd),
                    _mean([clean for _, clean in aps]),
                    _papers(paper.clean, paper.clean_sd),
                ]
            )
        positives, examples = (found[0]["results"][0][key] for key in ("positives", "examples"))
        about = f"**{task}** ({positives} of {examples} test images are positive)"
        if task not in experiment.paper:
            about += "; the paper has no figures class by class here, so its mean over the classes"
        lines += [about, ""]
        lines += [*_table(["method", "robust AP", "paper", "clean AP", "paper"], rows), ""]
    if experiment.vary:
        lines += [_tradeoff(name, experiment, entries, folder), ""]
    return lines[:-1]


def _read_validation(
    name: str, experiment: plan.Experiment, entries: Sequence[Entry], folder: Path
) -> list[str]:
    rows = []
    for entry in entries:
        found = [result["best"]["robust_ap"] for result in entry["results"]]
        paper = experiment.of_paper(entry["task"], entry["method"], entry["varied"])
        rows.append([entry["task"], _label(entry), _mean(found), _papers(paper.robust, None)])
    return _table(["task", "method", "robust AP (validation)", "paper, mean of the classes"], rows)


def _read_time(
    name: str, experiment: plan.Experiment, entries: Sequence[Entry], folder: Path
) -> list[str]:
    (paper,) = experiment.paper.values()
    rates: dict[str, list[float]] = defaultdict(list)
    for entry in entries:
        for result in entry["results"]:
            rates[entry["method"]] += [epoch["images_per_s"] for epoch in result["history"]]
    ce = statistics.median(rates["ce"])
    seconds = {method: paper[method].seconds or 0.0 for method in rates}
    return _table(
        ["method", "time over CE", "paper"],
        [
            [
                plan.methods()[method].label,
                f"{ce / statistics.median(found):.2f}",
                f"{seconds[method] / seconds['ce']:.2f}",
            ]
            for method, found in rates.items()
        ],
    )


def _read_history(
    name: str, experiment: plan.Experiment, entries: Sequence[Entry], folder: Path
) -> list[str]:
    figure, axes = plt.subplots(figsize=(7, 4))
    for entry in entries:
        for key in ("surrogate_ap", "robust_ap", "clean_ap"):
            histories = [result["history"] for result in entry["results"]]
            curve = [
                statistics.fmean(epoch.get(key) or epoch["metrics"].get(key) for epoch in epochs)
                for epochs in zip(*histories, strict=True)
            ]
            label = f"{entry['task'].split('/')[1]}: {key.replace('_', ' ')}"
            axes.plot(range(1, len(curve) + 1), curve, marker="o", label=label)
    axes.set(xlabel="epoch", ylabel="AP", title=experiment.title)
    return [_picture(figure, axes, folder, name, experiment.title)]


READERS: Mapping[str, Callable[[str, plan.Experiment, Sequence[Entry], Path], list[str]]] = {
    "test": _read_test,
    "validation": _read_validation,
    "time": _read_time,
    "history": _read_history,
}


# --- pictures -------------------------------------------------------------------------------------


def _tradeoff(
    name: str, experiment: plan.Experiment, entries: Sequence[Entry], folder: Path
) -> str:
    """Robust AP over clean AP, a line for each method along what is varied."""
    tasks = _by_task(entries)
    figure, panels = plt.subplots(1, len(tasks), figsize=(6 * len(tasks), 4.5), squeeze=False)
    for axes, (task, found) in zip(panels[0], tasks.items(), strict=True):
        for method, line in itertools.groupby(found, key=lambda entry: entry["method"]):
            points = []
            for entry in line:
                aps = _aps(entry, experiment.attack)
                robust, clean = (statistics.fmean(values) for values in zip(*aps, strict=True))
                points.append((clean, robust, next(iter(entry["varied"].values()))))
            xs, ys, values = zip(*points, strict=True)
            axes.plot(xs, ys, marker="o", label=plan.methods()[method].label)
            for x, y, value in zip(xs, ys, values, strict=True):
                axes.annotate(
                    f"{value:g}", (x, y), textcoords="offset points", xytext=(4, 4), fontsize=7
                )
        axes.set(xlabel="clean AP", ylabel=f"robust AP ({experiment.attack})", title=task)
    return _picture(figure, panels[0][-1], folder, name, experiment.title)


def _picture(figure: Any, axes: Any, folder: Path, name: str, title: str) -> str:
    axes.legend(fontsize=8)
    figure.tight_layout()
    path = folder / f"{name}.svg"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return f"![{title}]({path.name})"


# --- what it says ---------------------------------------------------------------------------------


def _orderings(entries: Mapping[tuple[str, str], Entry]) -> list[str]:
    """The paper's claims, each as paired differences over all tasks and seeds."""
    tasks = sorted({task for task, _ in entries})
    rows = []
    for first, kind, others in CLAIMS:
        for second in others:
            differences = [
                a["ap"][kind] - b["ap"][kind]
                for task in tasks
                if {(task, first), (task, second)} <= entries.keys()
                for a, b in zip(
                    entries[task, first]["results"], entries[task, second]["results"], strict=True
                )
                if kind in a["ap"] and kind in b["ap"]
            ]
            if not differences:
                continue
            rows.append(
                [f"{_name(first)} above {_name(second)}", KINDS[kind], *_verdict(differences)]
            )
    head = ["the paper says", "AP", "difference, 95 % interval", "pairs won", "here"]
    return [
        "Differences between networks of the same task, seed and split; the interval is Student's "
        "over these pairs, which share their test images, so it speaks of training, not of other "
        "data.",
        "",
        *_table(head, rows),
    ]


def _name(method: str) -> str:
    return plan.methods()[method].label


def _verdict(differences: Sequence[float]) -> list[str]:
    mean = statistics.fmean(differences)
    won = f"{sum(d > 0 for d in differences)} of {len(differences)}"
    if len(differences) < 2:
        return [f"{mean:+.3f}", won, "one pair says nothing"]
    half = float(
        student.ppf(0.975, len(differences) - 1)
        * statistics.stdev(differences)
        / len(differences) ** 0.5
    )
    said = "appears" if mean > half else "the reverse" if mean < -half else "not decided"
    return [f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]", won, said]


def _chosen(entries: Mapping[tuple[str, str], Entry]) -> list[str]:
    rows = [
        [
            _name(method),
            task,
            ", ".join(f"{name} {value:g}" for name, value in entry["chosen"].items()),
        ]
        for (task, method), entry in sorted(entries.items(), key=lambda item: item[0][::-1])
    ]
    return _table(["method", "task", "chosen on validation images"], rows)
