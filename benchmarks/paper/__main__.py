"""The command: `python -m benchmarks.paper run|render --scale cpu`."""

import argparse
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.paper import plan
from benchmarks.paper.compute import compute
from benchmarks.paper.runs import Piece, digest

RESULTS = Path(__file__).parents[1] / "results" / "paper"


class Pool:
    """Computes pieces in processes of one thread each, every piece once.

    One worker is this process itself: a card is then held by one process, which starts once.
    """

    def __init__(self, root: Path, out: Path, workers: int) -> None:
        self._root, self._out = root, out
        context = multiprocessing.get_context("spawn")
        self._executor: Executor = (
            ThreadPoolExecutor(1)
            if workers == 1
            else ProcessPoolExecutor(workers, mp_context=context)
        )
        self._futures: dict[str, Future[dict[str, Any]]] = {}
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._done = 0

    def __call__(self, pieces: Sequence[Piece]) -> list[dict[str, Any]]:
        """The results of these pieces, in their order; returns when all are there."""
        return [future.result() for future in [self._submit(piece) for piece in pieces]]

    def _submit(self, piece: Piece) -> "Future[dict[str, Any]]":
        name = digest(piece)
        with self._lock:
            if name not in self._futures:
                future = self._executor.submit(compute, piece, root=self._root, out=self._out)
                future.add_done_callback(lambda done: self._report(name, done))
                self._futures[name] = future
            return self._futures[name]

    def _report(self, name: str, future: "Future[dict[str, Any]]") -> None:
        self._done += 1
        minutes = (time.monotonic() - self._started) / 60
        counted = f"{minutes:6.1f} min  {self._done}/{len(self._futures)}"
        if future.cancelled() or (error := future.exception()) is not None:
            print(f"{counted}  {name} failed: {error!r}", flush=True)
            return
        result = future.result()
        piece = result["piece"]
        training = piece.get("training", piece)
        print(
            f"{counted}  {result['kind']} {training['config']['method']['name']} "
            f"{training['data']['positive'][0]} {result['cpu_s']} s",
            flush=True,
        )


def run(names: Sequence[str], scale: str, *, root: Path, out: Path, workers: int) -> Path:
    """Compute the experiments and write what they found to benchmarks/results/paper/SCALE.json."""
    pool = Pool(root, out, workers)
    declared_scale = plan.scale(scale)
    read = declared_scale.of_what_is_in(root)
    for name, source in declared_scale.sources.items():
        if read.sources[name] != source:
            print(f"{name}: {read.sources[name]}, as {source} is not in {root}", flush=True)
    planner = plan.Planner(read, pool)
    declared = plan.experiments()
    entries = [(name, *cell) for name in names for cell in planner.cells(declared[name])]

    def entry(name: str, task: str, method: str, varied: plan.Values) -> dict[str, Any]:
        cell = planner.cell(declared[name], task, method, varied)
        return {
            "experiment": name,
            "task": task,
            "method": method,
            "varied": dict(varied),
            "chosen": dict(cell.chosen),
            "results": planner.compute(cell.pieces),
        }

    # Threads only wait: one for each entry, so that all that can be computed is in the queue.
    with ThreadPoolExecutor(max(len(entries), 1)) as threads:
        found = list(threads.map(lambda arguments: entry(*arguments), entries))
    path = RESULTS / f"{scale}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1))
    return path


def _workers(scale: str) -> int:
    return 1 if plan.scale(scale).device == "cuda" else os.cpu_count() or 1


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="compute experiments; goes on where it stopped")
    running.add_argument("experiments", nargs="*", help="names in experiments/; by default all")
    running.add_argument("--data", type=Path, default=Path("../shared/data"))
    running.add_argument("--out", type=Path, default=Path("build/paper"))
    running.add_argument(
        "--workers", type=int, help="processes; by default one a core, and one for a GPU"
    )
    rendering = commands.add_parser("render", help="Markdown and pictures from the JSON")
    for command in (running, rendering):
        command.add_argument("--scale", default="cpu", help="a name in scales/")
    arguments = parser.parse_args()
    if arguments.command == "render":
        from benchmarks.paper.render import render  # needs matplotlib

        found = json.loads((RESULTS / f"{arguments.scale}.json").read_text())
        print(render(found, scale=arguments.scale, folder=RESULTS))
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    names = arguments.experiments or list(plan.experiments())
    unknown = sorted(set(names) - set(plan.experiments()))
    if unknown:
        parser.error(f"expected experiments among {', '.join(plan.experiments())}; got {unknown}")
    print(
        run(
            names,
            arguments.scale,
            root=arguments.data,
            out=arguments.out,
            workers=arguments.workers or _workers(arguments.scale),
        )
    )


if __name__ == "__main__":
    main()
