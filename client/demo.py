"""The demonstration: what an attack does to an ordinary ranker, and to one trained against it.

It starts a service of its own, and then does all through the public HTTP API: it uploads
scikit-learn's 1,797 handwritten digits as PNG files, trains three small networks to rank the eights
first, attacks two of them, and ranks the test images. The third is the attacker's own model.

What it must show is checked at the end, and a run that does not show it fails.
"""

import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text

from adap.client import show, watch
from adap.client.client import Client, ClientError, Json

POSITIVE = "8"
EPSILON = 0.1
SEED = 0
ATTACKS = ("pgd", "apgd", "transfer")
TOP = 10

TRAININGS: dict[str, Json] = {
    "CE": {"method": "ce", "seed": SEED},
    "AdAP_LPN": {
        "method": {"name": "adap_lpn", "gamma1": 0.9, "gamma2": 0.9, "lambda": 4.0},
        "positives_per_batch": 16,  # of 128: a little above their share of the images
        "attack": {"epsilon": EPSILON, "steps": 4, "step_size": 0.04},
        "seed": SEED,
    },
    "attacker's CE": {"method": "ce", "seed": SEED + 1},
}
TRAINING: Json = {"epochs": 20, "batch_size": 128, "optimizer": {"lr": 3e-3}}
AUDITED = ("CE", "AdAP_LPN")

# What the demonstration is there to show: AP on clean images, and worst-case AP over the attacks.
CLEAN_AT_LEAST = 0.95
CE_AT_MOST = 0.25
ADAP_AT_LEAST = 0.7


class ServiceDiedError(ClientError):
    """The service of the demonstration did not start."""


@dataclass(frozen=True)
class Outcome:
    """What came of it."""

    reports: dict[str, Json]
    ranking: list[Json]
    pages: dict[str, Path]
    faults: list[str] = field(default_factory=list)

    def as_json(self) -> Json:
        """All of it as plain values."""
        return {
            "reports": self.reports,
            "ranking": self.ranking,
            "pages": {name: str(path) for name, path in self.pages.items()},
            "faults": self.faults,
        }

    def shown(self) -> RenderableType:
        """The table, the top of the ranking, where the reports are, and what the table shows."""
        tasks = {name: report["tasks"][0] for name, report in self.reports.items()}
        any_task = next(iter(tasks.values()))
        figures = table_rows(tasks)
        return Group(
            Text(),
            Text(
                f"Average precision: the {any_task['positives']} eights among "
                f"{any_task['examples']} test images, attacked within L-inf {EPSILON}",
                style="bold",
            ),
            Text(),
            show.table(*figures[0], rows=figures[1:], right=figures[0][1:]),
            Text(),
            Text(f"The first {TOP} of the test images, as AdAP_LPN ranks them", style="bold"),
            Text(),
            show.ranking(self.ranking[:TOP]),
            Text(),
            *(Text(f"Report on {name}: {path}") for name, path in self.pages.items()),
            Text(),
            Text(sentence(tasks)),
        )


def run(console: Console, *, output: Path, home: Path | None) -> Outcome:
    """The whole demonstration; progress goes to the console."""
    output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="adap-demo-") as scratch:
        folder = Path(scratch)
        digits = folder / "digits.zip"
        write_digits(digits)
        with (
            watch.open_board(console) as board,
            _service(board.line("start the service"), home or folder / "home") as client,
        ):
            names = [
                "check the images",
                *(f"train {name}" for name in TRAININGS),
                *(f"attack {name}" for name in AUDITED),
                "rank with AdAP_LPN",
            ]
            lines = {name: board.line(name) for name in names}
            return _work(client, digits, lines, output=output)


def write_digits(path: Path) -> None:
    """scikit-learn's digits as a zip of PNG files: split folders, a folder a class in each."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    index = np.arange(len(digits.target))
    rest, test = train_test_split(index, test_size=0.2, stratify=digits.target, random_state=SEED)
    train, validation = train_test_split(
        rest, test_size=0.25, stratify=digits.target[rest], random_state=SEED
    )
    with zipfile.ZipFile(path, "w") as archive:
        for split, members in {"train": train, "validation": validation, "test": test}.items():
            for i in sorted(members):
                png = BytesIO()
                pixels = np.rint(digits.images[i] * 255 / 16).astype(np.uint8)  # were 0 to 16
                Image.fromarray(pixels).save(png, "png")
                archive.writestr(f"{split}/{digits.target[i]}/{i:04d}.png", png.getvalue())


def table_rows(tasks: dict[str, Json]) -> list[tuple[str, ...]]:
    """A header, and below it a line a model; chance and floor at the end."""
    any_task = next(iter(tasks.values()))
    rows: list[tuple[str, ...]] = [("model", "clean", *ATTACKS, "worst case")]
    rows += [
        (
            name,
            *(
                f"{figure['ap']:.3f}"
                for figure in (
                    task["clean"],
                    *(task["attacks"][attack] for attack in ATTACKS),
                    task["worst_case"],
                )
            ),
        )
        for name, task in tasks.items()
    ]
    width = len(rows[0]) - 1
    rows.append(("chance", *[f"{any_task['chance']:.3f}"] * width))
    rows.append(("floor", *[f"{any_task['floor']:.3f}"] * width))
    return rows


def sentence(tasks: dict[str, Json]) -> str:
    """What the table shows, in its own figures."""
    (plain, ce), (robust, adap) = tasks.items()
    return (
        f"Unattacked, both rank well: {plain} {ce['clean']['ap']:.3f}, "
        f"{robust} {adap['clean']['ap']:.3f}. Attacked, {plain} falls to "
        f"{ce['worst_case']['ap']:.3f}, where a random ranking has {ce['chance']:.3f}, "
        f"and {robust} keeps {adap['worst_case']['ap']:.3f}."
    )


def faults(tasks: dict[str, Json]) -> list[str]:
    """Why these figures do not show what they are there to show; empty if they do."""
    found = [
        f"expected {name} to reach a clean AP of {CLEAN_AT_LEAST}, got {task['clean']['ap']:.3f}: "
        "its training does not work"
        for name, task in tasks.items()
        if task["clean"]["ap"] < CLEAN_AT_LEAST
    ]
    ce, adap = (task["worst_case"]["ap"] for task in tasks.values())
    if ce > CE_AT_MOST:
        found.append(
            f"expected attacks to leave CE a worst-case AP of at most {CE_AT_MOST}, got {ce:.3f}: "
            "the attacks are too weak"
        )
    if adap < ADAP_AT_LEAST:
        found.append(
            f"expected AdAP_LPN to keep a worst-case AP of {ADAP_AT_LEAST}, got {adap:.3f}: "
            "its training does not work"
        )
    return found


def _work(client: Client, digits: Path, lines: dict[str, watch.Line], *, output: Path) -> Outcome:
    dataset = client.datasets.add(digits, name="handwritten digits")
    check = client.jobs.show(dataset["job_id"])
    watch.follow(client, check, lines["check the images"])

    task = {"positive": [POSITIVE]}
    trainings = [
        client.train({**TRAINING, **own, "dataset_id": dataset["id"], "task": task, "name": name})
        for name, own in TRAININGS.items()
    ]
    trained = watch.follow_all(
        client, trainings, [lines[f"train {name}"] for name in TRAININGS], epochs=False
    )
    models = {name: job["result"]["model_id"] for name, job in zip(TRAININGS, trained, strict=True)}
    audits = [
        client.audit(
            {
                "model_id": models[name],
                "dataset_id": dataset["id"],
                "threat": {"norm": "linf", "epsilon": EPSILON},
                "attacks": list(ATTACKS),
                "surrogate": {"model_id": models["attacker's CE"]},
                "seed": SEED,
            }
        )
        for name in AUDITED
    ]
    ranking = client.rank({"model_id": models["AdAP_LPN"], "dataset_id": dataset["id"]})
    watch.follow_all(
        client,
        [*audits, ranking],
        [*(lines[f"attack {name}"] for name in AUDITED), lines["rank with AdAP_LPN"]],
    )

    reports, pages = {}, {}
    for name, audit in zip(AUDITED, audits, strict=True):
        reports[name] = client.report(audit["id"])
        pages[name] = output / f"{name.lower()}.html"
        pages[name].write_bytes(client.report_as(audit["id"], "text/html"))
    ranked = list(client.pages(f"/v1/rankings/{ranking['id']}", limit=100))
    return Outcome(
        reports,
        ranked,
        pages,
        faults({name: report["tasks"][0] for name, report in reports.items()}),
    )


@contextmanager
def _service(line: watch.Line, home: Path) -> Iterator[Client]:
    """A service for the length of the block; it ends with this process, however that ends."""
    line.show("starting", completed=0, total=None, text="starting")
    command = [sys.executable, "-P", "-m", "adap.worker.embedded", "--with-parent", "--json"]
    process = subprocess.Popen(
        [*command, "--port", "0", "--home", str(home)],
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for this process; the service is stopped below
    )
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        if not ready:
            line.end("failed", well=False)
            raise ServiceDiedError("The service did not start; the reason is above.")
        service: dict[str, Any] = json.loads(ready)
        line.end(f"at {service['url']}", well=True)
        with Client(service["url"]) as client:
            yield client
    finally:
        process.terminate()
        process.wait()
