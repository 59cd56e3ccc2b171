"""How long a large data set takes to be checked, and how much memory.

    python -m benchmarks.intake --images 100000 --form zip

Random 32x32 colour images, all different: as JPEG files in a zip of class folders, as JPEG files in
Parquet (row groups of 10,000), or as an NPZ that is not compressed. The pipeline runs as a worker
runs it, in its sandboxed child; seconds from the start of the child to its result, and the child's
peak of resident memory as the kernel counts it (VmHWM), looked at twenty times a second.
"""

import argparse
import io
import re
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

import numpy as np
import psutil
from PIL import Image

from store.settings import Settings
from worker.child import Child
from worker.sandbox import make_sandbox
from worker.work import Work

SIDE = 32
CLASSES = [f"class {i}" for i in range(10)]


def files(count: int) -> Iterator[tuple[int, bytes]]:
    """JPEG files with the number of each one's class."""
    random = np.random.default_rng(0)
    for i in range(count):
        buffer = io.BytesIO()
        pixels = random.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(pixels).save(buffer, "JPEG", quality=75)
        yield i % len(CLASSES), buffer.getvalue()


def write_zip(path: Path, count: int) -> None:
    """Class folders."""
    with zipfile.ZipFile(path, "w") as archive:
        for i, (label, data) in enumerate(files(count)):
            archive.writestr(f"{CLASSES[label]}/{i:06d}.jpg", data)


def write_parquet(path: Path, count: int) -> None:
    """As the Hugging Face library writes it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [(CLASSES[label], {"bytes": data, "path": None}) for label, data in files(count)]
    labels, images = zip(*rows, strict=True)
    pq.write_table(pa.table({"image": images, "label": labels}), path, row_group_size=10_000)


def write_npz(path: Path, count: int) -> None:
    """Pixels as they are."""
    images = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
    with path.open("wb") as file:
        np.savez(file, images=images, labels=np.arange(count) % len(CLASSES))


WRITE: dict[str, Callable[[Path, int], None]] = {
    "zip": write_zip,
    "parquet": write_parquet,
    "npz": write_npz,
}


class Peak:
    """The largest resident memory of any process below this one, while it is watched."""

    def __init__(self) -> None:
        self.kib = 0
        self._end = Event()
        self._thread = Thread(target=self._watch)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(0.05):
            for process in psutil.Process().children(recursive=True):
                with suppress(OSError):  # it has ended
                    status = Path(f"/proc/{process.pid}/status").read_text()
                    found = re.search(r"VmHWM:\s+(\d+) kB", status)
                    self.kib = max(self.kib, int(found[1]) if found else 0)


def main() -> None:
    """Measure one form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--form", choices=WRITE, default="zip")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        upload = folder / "upload"
        WRITE[arguments.form](upload, arguments.images)
        (folder / "work").mkdir()
        (folder / "home").mkdir()
        sandbox = make_sandbox(Settings(home=folder / "home"))
        work = Work("validate_dataset", {}, {"upload": upload}, folder / "work")
        peak = Peak()
        started = time.perf_counter()
        with peak, Child(sandbox=sandbox, threads=2) as child:
            result = child.run(work, on_message=lambda _: None, check=lambda: None)
            seconds = time.perf_counter() - started
        summary = result["summary"]
        stored = (folder / "work" / "content.safetensors").stat().st_size / 2**20
        print(
            f"{arguments.form}: {summary['examples']} images, {upload.stat().st_size / 2**20:.0f} "
            f"MiB sent, {stored:.0f} MiB stored, {seconds:.1f} s, peak {peak.kib / 1024:.0f} MiB "
            f"({sandbox.kind})"
        )


if __name__ == "__main__":
    main()
