"""Seconds until a child of a worker's warm fork server answers for the first and second time.

    python -c "from benchmarks.load_child import main; main()" FOLDER COUNT

Not to be started with `-m`: each child would then import this module's main again, which those of
`python -m adap.worker` do not.
"""

import json
import sys
import time
from pathlib import Path

from adap.worker.child import Child
from adap.worker.pipelines.requests import ModelCheck
from adap.worker.work import Work


def answers(folder: Path, count: int) -> list[tuple[float, float]]:
    """Both times of so many children. The work: to find that a file holds no model."""
    upload, times = folder / "upload", []
    upload.write_bytes(b"no weights")
    work = Work(ModelCheck(), {"upload": upload}, folder)
    for _ in range(count + 1):
        pair = []
        with Child(threads=1) as child:
            for _ in range(2):
                started = time.perf_counter()
                answer = child.run(work, on_message=lambda _: None, check=lambda: None, poll_s=1)
                pair.append(time.perf_counter() - started)
                assert "rejected" in answer
        times.append((pair[0], pair[1]))
    return times[1:]  # torch was loaded for the first one


def main() -> None:
    """Print them as JSON."""
    print(json.dumps(answers(Path(sys.argv[1]), int(sys.argv[2]))))
