"""A device that fails in the middle of a training, and one that never works.

No device fails at will, so torch does it: in the processes of one worker `Tensor.backward` raises
what torch raises for a device that is gone, as soon as a file is there.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adap.store.tables import JobStatus
from adap.worker.devices import is_lost, is_out_of_memory
from tests.worker.conftest import Plant, same_weights

FAILING = """
import pathlib, torch

backward = torch.Tensor.backward

def fail(self, *args, **kwargs):
    if pathlib.Path({flag!r}).exists():
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")
    return backward(self, *args, **kwargs)

torch.Tensor.backward = fail
"""


def failing_torch(folder: Path, flag: Path) -> dict[str, str]:
    """The environment of a process whose torch fails once the flag is there."""
    (folder / "sitecustomize.py").write_text(FAILING.format(flag=str(flag)))
    return {"PYTHONPATH": os.pathsep.join((str(folder), os.environ.get("PYTHONPATH", "")))}


def test_a_worker_whose_device_fails_gives_its_job_back_and_ends(
    plant: Plant, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("torch")
    flag = folder / "lost"
    dataset = plant.dataset()
    job, other = (plant.train(dataset, epochs=40) for _ in range(2))
    bad = plant.start_worker(**failing_torch(folder, flag))
    plant.wait_epoch(job, 2)
    flag.touch()
    assert bad.wait(120) == 1
    assert '"device.lost"' in plant.log_of(0)
    row = plant.read(job)
    assert (row.status, row.lost) == (JobStatus.QUEUED, 1)
    assert plant.events(job)[-1] == ("queued", {"reason": "device_error"})
    assert plant.read(other).status == JobStatus.QUEUED, "no other job met this device"

    plant.start_worker()
    assert plant.wait_done(other).status == JobStatus.SUCCEEDED
    row = plant.wait_done(job)
    assert row.status == JobStatus.SUCCEEDED
    assert "resumed" in [name for name, _ in plant.events(job)]
    assert same_weights(*(plant.model_path(plant.read(name)) for name in (job, other)))


def test_a_worker_that_must_have_a_gpu_takes_no_job_without(plant: Plant) -> None:
    job = plant.train(plant.dataset(), epochs=1)
    worker = plant.start_worker(ADAP_DEVICE="cuda", CUDA_VISIBLE_DEVICES="")
    assert worker.wait(300) == 1
    assert "ADAP_DEVICE" in plant.log_of(0).splitlines()[-1]
    assert (plant.read(job).status, plant.read(job).attempt) == (JobStatus.QUEUED, 0)


def test_what_torch_says_without_a_driver_is_the_devices_fault() -> None:
    code = "import torch; torch.zeros(1, device='cuda')"
    script = (
        "from worker.devices import is_lost\n"
        f"try:\n    exec({code!r})\nexcept Exception as error:\n    print(is_lost(error))"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    said = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert said.stdout == "True\n"


@pytest.mark.parametrize(
    ("error", "lost", "memory"),
    [
        (torch.AcceleratorError("CUDA error: unspecified launch failure"), True, False),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), False, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling gemm"), True, False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"), True, False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), False, True),
        (MemoryError(), False, True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False, False),
        (ValueError("CUDA error"), False, False),
    ],
)
def test_errors_of_the_work_are_not_the_devices(error: Exception, lost: bool, memory: bool) -> None:
    assert (is_lost(error), is_out_of_memory(error)) == (lost, memory)
