"""Small uploads whose values unfold to gigabytes are refused, or tried in little memory."""

import io
import os
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper, numpy_helper

from adap.models.header import ONE_LOGIT, Declaration, InputSpec
from adap.models.limits import CostLimits
from adap.store.settings import MIB, Settings
from adap.worker.child import DATASET_HEAP_BYTES, Child
from adap.worker.memory import machine_bytes
from adap.worker.pipelines.requests import AnyRequest, DatasetCheck, ModelCheck
from adap.worker.pipelines.results import AnyResult, ModelOpened, Rejected
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
    result, peak = opened(content, DatasetCheck(), tmp_path)
    assert isinstance(result, Rejected)
    assert all(len(reason) < 800 for reason in result.reasons)
    assert 0 < peak < DATASET_HEAP_BYTES + 256 * MIB


def test_a_network_just_below_the_limit_is_tried_in_the_memory_of_a_small_machine(
    tmp_path: Path,
) -> None:
    """600 bytes that make each image 7000 x 7000 numbers, as many at once as are allowed."""
    side = 7000
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["mean"]),
        helper.make_node("Expand", ["mean", "shape"], ["large"]),
        helper.make_node("ReduceMax", ["large"], ["y"], axes=[2, 3], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(np.array([1, 1, side, side]), "shape")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    spec = InputSpec(channels=1, height=8, width=8, mean=[0.5], std=[0.5])
    limits = CostLimits(bytes=4 * side * side + MIB)
    request = ModelCheck(declared=Declaration(input=spec, output=ONE_LOGIT), limits=limits)
    result, peak = opened(model.SerializeToString(), request, tmp_path)
    assert isinstance(result, ModelOpened), result
    assert 500 * MIB < peak < 1536 * MIB


def opened(content: bytes, request: AnyRequest, tmp_path: Path) -> tuple[AnyResult, int]:
    """What became of an upload in a child as workers have it, and the most memory of a process."""
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
        work = Work(request, {"upload": upload}, folder)
        result = child.run(work, on_message=lambda _: None, check=look, poll_s=0.01)
    return result, peak


def test_the_memory_of_the_machine_is_what_the_kernel_says() -> None:
    total = psutil.virtual_memory().total
    assert 0 < machine_bytes() <= total
    assert np.isclose(machine_bytes(), total, rtol=0.01) or any(
        path.exists() for path in Path("/sys/fs/cgroup").glob("**/memory.max")
    )
