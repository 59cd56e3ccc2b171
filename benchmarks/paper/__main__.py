"""The command: `python -m benchmarks.paper run|render --scale cpu`."""

import argparse
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from adap.core.errors import TrainingError
from adap.core.training.together import MOST_AT_ONCE
from benchmarks.paper import plan
from benchmarks.paper.compute import compute, compute_trainings
from benchmarks.paper.runs import Piece, Training, digest

RESULTS = Path(__file__).parents[1] / "results" / "paper"


@dataclass(frozen=True)
class _Share:
    """Where the result of a piece will be."""

    future: "Future[list[dict[str, Any] | TrainingError]]"
    place: int

    def result(self) -> dict[str, Any]:
        """Returns when it is there. Raises what went wrong with this piece."""
        found = self.future.result()[self.place]
        if isinstance(found, TrainingError):
            raise found
        return found


def _alone(piece: Piece, *, root: Path, out: Path) -> list[dict[str, Any]]:
    return [compute(piece, root=root, out=out)]


class Pool:
    """Computes pieces in processes of one thread each, every piece once.

    One worker is this process itself: a card is then held by one process, which starts once. It
    makes up to `at_once` of the trainings that are asked for together a step of each in turn: the
    seeds of an entry, the candidates of a stage of tuning.
    """

    def __init__(self, root: Path, out: Path, workers: int, at_once: int = 1) -> None:
        self._root, self._out, self._at_once = root, out, at_once
        context = multiprocessing.get_context("spawn")
        self._executor: Executor = (
            ThreadPoolExecutor(1)
            if workers == 1
            else ProcessPoolExecutor(workers, mp_context=context)
        )
        self._shares: dict[str, _Share] = {}
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._done = 0

    def __call__(self, pieces: Sequence[Piece]) -> list[dict[str, Any]]:
        """The results of these pieces, in their order; returns when all are there."""
        with self._lock:
            new = {digest(p): p for p in pieces if digest(p) not in self._shares}
            trainings = [p for p in new.values() if isinstance(p, Training)]
            for start in range(0, len(trainings), self._at_once):
                chunk = trainings[start : start + self._at_once]
                self._submit(chunk, compute_trainings, chunk)
            for piece in new.values():
                if not isinstance(piece, Training):
                    self._submit([piece], _alone, piece)
            shares = [self._shares[digest(piece)] for piece in pieces]
        return [share.result() for share in shares]

    def _submit(self, pieces: Sequence[Piece], work: Any, argument: Any) -> None:
        future = self._executor.submit(work, argument, root=self._root, out=self._out)
        for place, piece in enumerate(pieces):
            share = self._shares[digest(piece)] = _Share(future, place)
            future.add_done_callback(partial(self._report, digest(piece), share))

    def _report(self, name: str, share: _Share, _: "Future[Any]") -> None:
        self._done += 1
        minutes = (time.monotonic() - self._started) / 60
        counted = f"{minutes:6.1f} min  {self._done}/{len(self._shares)}"
        try:
            result = share.result()
        except Exception as error:  # noqa: BLE001  whoever asks for the result gets it
            print(f"{counted}  {name} failed: {error!r}", flush=True)
            return
        piece = result["piece"]
        training = piece.get("training", piece)
        print(
            f"{counted}  {result['kind']} {training['config']['method']['name']} "
            f"{training['data']['positive'][0]} {result['cpu_s']} s",
            flush=True,
        )


def run(
    names: Sequence[str], scale: str, *, root: Path, out: Path, workers: int, at_once: int
) -> Path:
    """Compute the experiments and write what they found to benchmarks/results/paper/SCALE.json."""
    pool = Pool(root, out, workers, at_once)
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
    running.add_argument(
        "--at-once",
        type=int,
        default=1,
        choices=range(1, MOST_AT_ONCE + 1),
        metavar="N",
        help="trainings in a process, a step of each in turn, for a GPU that one does not fill; "
        "the weights are the same, times are then of all of them",
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
            at_once=arguments.at_once,
        )
    )


if __name__ == "__main__":
    main()
