"""Time and memory that checking a large data set or model takes.

    python -m benchmarks.intake --images 100000 --form jpeg
    python -m benchmarks.intake --images 24 --side 3464 --form jpeg --resize 224
    python -m benchmarks.intake --model

Random colour images, all different: as JPEG or PNG files in a zip of class folders, as JPEG files
in Parquet (row groups of 10,000), or as an NPZ that is not compressed. Small images (32x32) are
noise; larger ones are noise of an eighth of their size made larger, so that their files are as
large as those of photographs (3464x3464 are 12 Mpixel). The pipeline runs as a worker runs it, in
its sandboxed child.

Beside it, in the same run, the bare cost: Pillow decodes the same files in one thread, NumPy loads
the same NPZ. Seconds of wall clock are those of the machine's state; seconds of CPU less so. Memory
is the child's peak as the kernel counts it (VmHWM) and, of it, what the kernel could not take back
(RssAnon, looked at twenty times a second).
"""

import argparse
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Literal

import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image

from adap.client.client import Client
from adap.core.config.data import DatasetOptions, Resize
from adap.models.header import Declaration, InputSpec, OutputSpec
from adap.store.settings import Settings
from adap.worker.child import Child
from adap.worker.pipelines.requests import DatasetCheck, ModelCheck
from adap.worker.pipelines.results import DatasetOpened, ModelOpened
from adap.worker.sandbox import make_sandbox
from adap.worker.work import Work

CLASSES = [f"class {i}" for i in range(10)]
MIB = 2**20


def pictures(count: int, side: int) -> Iterator[NDArray[np.uint8]]:
    """(side, side, 3), one after the other."""
    random = np.random.default_rng(0)
    for _ in range(count):
        if side <= 32:
            yield random.integers(0, 256, (side, side, 3), np.uint8)
        else:
            rough = random.integers(0, 256, (side // 8, side // 8, 3), np.uint8)
            image = Image.fromarray(rough).resize((side, side), Image.Resampling.BICUBIC)
            yield np.asarray(image)


def files(count: int, side: int, kind: Literal["JPEG", "PNG"]) -> Iterator[tuple[int, bytes]]:
    """Image files with the number of each one's class."""
    options: dict[str, int] = {"quality": 75} if kind == "JPEG" else {"compress_level": 1}
    for i, pixels in enumerate(pictures(count, side)):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind, **options)
        yield i % len(CLASSES), buffer.getvalue()


def write_zip(path: Path, count: int, side: int, kind: Literal["JPEG", "PNG"]) -> None:
    """Class folders."""
    with zipfile.ZipFile(path, "w") as archive:
        for i, (label, data) in enumerate(files(count, side, kind)):
            archive.writestr(f"{CLASSES[label]}/{i:06d}.{kind.lower()}", data)


def write_parquet(path: Path, count: int, side: int) -> None:
    """As the Hugging Face library writes it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [(CLASSES[k], {"bytes": data, "path": None}) for k, data in files(count, side, "JPEG")]
    labels, images = zip(*rows, strict=True)
    pq.write_table(pa.table({"image": images, "label": labels}), path, row_group_size=10_000)


def write_npz(path: Path, count: int, side: int) -> None:
    """Pixels as they are."""
    images = np.empty((count, side, side, 3), np.uint8)
    for i, pixels in enumerate(pictures(count, side)):
        images[i] = pixels
    with path.open("wb") as file:
        np.savez(file, images=images, labels=np.arange(count) % len(CLASSES))


def _decode(data: bytes) -> None:
    with Image.open(io.BytesIO(data)) as image:
        np.asarray(image)


def read_zip(path: Path) -> None:
    """The bare cost."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            _decode(archive.read(member))


def read_parquet(path: Path) -> None:
    """The bare cost."""
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(path).iter_batches(columns=["image"], use_threads=False):
        for value in batch["image"].to_pylist():
            _decode(value["bytes"])


def read_npz(path: Path) -> None:
    """The bare cost: loaded, and laid out as (N, C, H, W)."""
    with np.load(path) as arrays:
        np.ascontiguousarray(arrays["images"].transpose(0, 3, 1, 2))


FORMS: dict[str, tuple[Callable[[Path, int, int], None], Callable[[Path], None]]] = {
    "jpeg": (lambda path, count, side: write_zip(path, count, side, "JPEG"), read_zip),
    "png": (lambda path, count, side: write_zip(path, count, side, "PNG"), read_zip),
    "parquet": (write_parquet, read_parquet),
    "npz": (write_npz, read_npz),
}


class Usage:
    """What the processes below this one have used, while they are watched."""

    def __init__(self) -> None:
        self.peak_kib = self.anonymous_kib = 0
        self.of_part: dict[str, int] = {}  # the largest VmHWM in KiB of each `python -m part`
        self._cpu_s: dict[int, float] = {}
        self._end = Event()
        self._thread = Thread(target=self._watch)

    @property
    def cpu_s(self) -> float:
        """User and system time of all of them."""
        return sum(self._cpu_s.values())

    def __enter__(self) -> "Usage":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def look(self) -> None:
        """Count once more."""
        for process in psutil.Process().children(recursive=True):
            with suppress(OSError, psutil.NoSuchProcess):  # it has ended
                status = Path(f"/proc/{process.pid}/status").read_text()
                peak, command = _kib(status, "VmHWM"), process.cmdline()
                self.peak_kib = max(self.peak_kib, peak)
                if "-m" in command and "bwrap" not in command[0]:
                    part = command[command.index("-m") + 1]
                    self.of_part[part] = max(self.of_part.get(part, 0), peak)
                self.anonymous_kib = max(self.anonymous_kib, _kib(status, "RssAnon"))
                times = process.cpu_times()
                self._cpu_s[process.pid] = times.user + times.system

    def _watch(self) -> None:
        while not self._end.wait(0.05):
            self.look()


def _kib(status: str, name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", status)
    return int(found[1]) if found else 0


def measure(form: str, count: int, side: int, folder: Path, resize: int | None = None) -> str:
    """A row of the table; resize: the side that all images are made, in pixels."""
    write, read = FORMS[form]
    upload = folder / "upload"
    write(upload, count, side)
    sent = upload.stat().st_size
    started, before = time.perf_counter(), time.process_time()
    read(upload)
    bare_s, bare_cpu_s = time.perf_counter() - started, time.process_time() - before

    (folder / "work").mkdir()
    (folder / "home").mkdir()
    sandbox = make_sandbox(Settings(home=folder / "home"))
    made = None if resize is None else Resize(height=resize, width=resize, fit="crop")
    check = DatasetCheck(options=DatasetOptions(resize=made))
    work = Work(check, {"upload": upload}, folder / "work")
    usage = Usage()
    started = time.perf_counter()
    with Child(sandbox=sandbox) as child, usage:
        result = child.run(work, on_message=lambda _: None, check=lambda: None)
        seconds = time.perf_counter() - started
        usage.look()
    assert isinstance(result, DatasetOpened), result
    assert result.summary.examples == count
    stored = (folder / "work" / "content.safetensors").stat().st_size
    cells = [
        f"{form}, {side}x{side}{'' if resize is None else f' to {resize}x{resize}'}",
        f"{count:,}",
        f"{sent / MIB:.0f}",
        f"{stored / MIB:.0f}",
        f"{seconds:.1f}",
        f"{usage.cpu_s:.1f}",
        f"{bare_s:.1f}",
        f"{bare_cpu_s:.1f}",
        f"{usage.cpu_s / bare_cpu_s:.2f}",
        f"{usage.peak_kib / 1024:.0f}",
        f"{usage.anonymous_kib / 1024:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def measure_service(form: str, count: int, side: int, folder: Path) -> str:
    """A row: a file sent to the whole service by its client, in parts where it is large."""
    upload = folder / f"upload.{form}"
    FORMS[form][0](upload, count, side)
    service = subprocess.Popen(
        [
            *(sys.executable, "-P", "-m", "adap.worker.embedded", "--json", "--with-parent"),
            *("--port", "0", "--home", str(folder / "home")),
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert service.stdout is not None
        url = json.loads(service.stdout.readline())["url"]
        before, usage = Usage(), Usage()
        before.look()
        started = time.perf_counter()
        with Client(url) as client, usage:
            added = client.datasets.add(upload)
            sent_s = time.perf_counter() - started
            client.jobs.wait(added["job_id"])
            seconds = time.perf_counter() - started
            dataset = client.datasets.show(added["id"])
            usage.look()
    finally:
        service.terminate()
        service.wait()
    assert dataset["summary"]["examples"] == count
    parts = [
        f"{before.of_part.get(part, 0) / 1024:.0f} to {usage.of_part[part] / 1024:.0f}"
        for part in PARTS
    ]
    cells = [
        f"{form}, {side}x{side}",
        f"{count:,}",
        f"{upload.stat().st_size / MIB:.0f}",
        f"{sent_s:.1f}",
        f"{seconds:.1f}",
        *parts,
    ]
    return f"| {' | '.join(cells)} |"


ORT = """
import sys, onnxruntime, numpy
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options)
for count in (2, 3, 1):
    session.run(None, {"x": numpy.zeros((count, 3, 224, 224), numpy.float32)})
"""


def measure_model(name: str, folder: Path) -> str:
    """A row: a network as ONNX, taken in, beside onnxruntime on the same file and images.

    name: ResNet-50, or a convolution alone, of which nearly all is the start of the child.
    """
    import torch
    from torch import nn
    from torchvision.models import resnet50

    upload = folder / "upload"
    network: nn.Module = resnet50(num_classes=2)
    if name != RESNET:
        head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=8), nn.ReLU(), *head)
    network.eval()
    axes = {"x": {0: "batch"}, "y": {0: "batch"}}
    images = torch.rand(2, 3, 224, 224)
    torch.onnx.export(
        *(network, (images,), str(upload)),
        dynamo=False,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes=axes,
    )
    bare = Usage()
    with bare:
        process = subprocess.Popen([sys.executable, "-c", ORT, str(upload)])
        while process.poll() is None:
            bare.look()
            time.sleep(0.01)
    assert process.returncode == 0
    (folder / "work").mkdir()
    (folder / "home").mkdir()
    spec = InputSpec(channels=3, height=224, width=224, mean=[0.5] * 3, std=[0.25] * 3)
    output = OutputSpec(kind="multiclass", classes=["cat", "dog"])
    check = ModelCheck(declared=Declaration(architecture="onnx", input=spec, output=output))
    usage = Usage()
    started = time.perf_counter()
    with Child(sandbox=make_sandbox(Settings(home=folder / "home"))) as child, usage:
        result = child.run(
            Work(check, {"upload": upload}, folder / "work"),
            on_message=lambda _: None,
            check=lambda: None,
        )
        seconds = time.perf_counter() - started
        usage.look()
    assert isinstance(result, ModelOpened), result
    sent = upload.stat().st_size / MIB
    cells = [
        name,
        f"{sent:.1f}",
        f"{seconds:.1f}",
        f"{usage.cpu_s:.1f}",
        f"{bare.cpu_s:.1f}",
        f"{usage.cpu_s / bare.cpu_s:.1f}",
        f"{usage.peak_kib / 1024:.0f}",
        f"{usage.anonymous_kib / 1024:.0f}",
        f"{bare.peak_kib / 1024:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


RESNET = "ResNet-50"

MODEL_HEAD = """\
| network | MiB sent | s | CPU s | onnxruntime: CPU s | CPU ratio | peak MiB | of it anonymous | \
onnxruntime: peak MiB |
|---|---|---|---|---|---|---|---|---|"""

PARTS = ("adap.api", "adap.worker", "adap.worker.child")

SERVICE_HEAD = """\
| form | images | MiB sent | s to send | s until ready | API: MiB before, peak | worker | sandbox |
|---|---|---|---|---|---|---|---|"""

HEAD = """\
| form | images | MiB sent | MiB stored | s | CPU s | bare: s | bare: CPU s | CPU ratio | peak MiB \
| of it anonymous |
|---|---|---|---|---|---|---|---|---|---|---|"""


def main() -> None:
    """Measure forms, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--side", type=int, default=32, help="pixels")
    parser.add_argument("--form", choices=FORMS, nargs="+", default=list(FORMS))
    parser.add_argument(
        "--service", action="store_true", help="sent to the whole service, for the memory of each"
    )
    parser.add_argument("--resize", type=int, help="side that images are made, in pixels")
    parser.add_argument("--model", action="store_true", help="ResNet-50 as ONNX instead")
    arguments = parser.parse_args()
    if arguments.model:
        print(f"load average {os.getloadavg()[0]:.1f}\n\n{MODEL_HEAD}")
        for name in ("a convolution", RESNET):
            with tempfile.TemporaryDirectory() as home:
                print(measure_model(name, Path(home)), flush=True)
        return
    measured = partial(measure, resize=arguments.resize)
    row, head = (measure_service, SERVICE_HEAD) if arguments.service else (measured, HEAD)
    print(f"load average {os.getloadavg()[0]:.1f} before, {os.cpu_count()} cores\n\n{head}")
    for form in arguments.form:
        with tempfile.TemporaryDirectory() as home:
            print(row(form, arguments.images, arguments.side, Path(home)), flush=True)
    print(f"\nload average {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
