"""Small uploads whose values unfold to gigabytes: the child is told no, and grows no further."""

import io
import os
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adap.store.settings import MIB, Settings
from adap.worker.child import DATASET_HEAP_BYTES, Child
from adap.worker.memory import machine_bytes
from adap.worker.pipelines.requests import DatasetCheck
from adap.worker.pipelines.results import Rejected
from adap.worker.sandbox import make_sandbox
from adap.worker.work import Work
from tests.worker.archives import encode, pixels

ROWS = 1024


def repeated() -> pa.Array:
    """One text of 2 MiB in each row, stored once."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * ROWS, pa.int32()), ["x" * 2 * MIB])


def sharing() -> pa.Array:
    """Texts of 2 MiB that differ in their ends, which is all that is stored of them."""
    return pa.array([f"{'x' * 2 * MIB}{i}" for i in range(ROWS // 4)])


def table(labels: pa.Array, **options: object) -> bytes:
    images = pa.array([encode(pixels(1)[0])] * len(labels))
    out = io.BytesIO()
    pq.write_table(pa.table({"image": images, "label": labels}), out, compression="zstd", **options)
    return out.getvalue()


@pytest.mark.parametrize("shared", [False, True])
def test_a_table_that_unfolds_to_gigabytes_is_refused_within_little_memory(
    tmp_path: Path, shared: bool
) -> None:
    options = {"use_dictionary": ["image"], "column_encoding": {"label": "DELTA_BYTE_ARRAY"}}
    content = table(sharing(), **options) if shared else table(repeated())
    assert len(content) < MIB
    upload, folder = tmp_path / "upload", tmp_path / "work"
    upload.write_bytes(content)
    folder.mkdir()
    peak = 0

    def look() -> None:
        nonlocal peak
        for process in psutil.Process(os.getpid()).children(recursive=True):
            try:
                peak = max(peak, process.memory_info().rss)
            except psutil.NoSuchProcess:
                continue

    sandbox = make_sandbox(Settings(home=tmp_path / "home"))
    with Child(sandbox=sandbox) as child:
        work = Work(DatasetCheck(), {"upload": upload}, folder)
        result = child.run(work, on_message=lambda _: None, check=look, poll_s=0.01)
    assert isinstance(result, Rejected)
    assert all(len(reason) < 800 for reason in result.reasons)
    assert 0 < peak < DATASET_HEAP_BYTES + 256 * MIB


def test_the_memory_of_the_machine_is_what_the_kernel_says() -> None:
    total = psutil.virtual_memory().total
    assert 0 < machine_bytes() <= total
    assert np.isclose(machine_bytes(), total, rtol=0.01) or any(
        path.exists() for path in Path("/sys/fs/cgroup").glob("**/memory.max")
    )
