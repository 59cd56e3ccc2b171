"""The library that makes PyTorch networks of ONNX files: what it must not cost."""

import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from adap.models import onnx_files
from adap.models.header import InputSpec
from tests.models.exports import export

# exits with what was imported, and sees that torchvision is whole afterwards
IN_A_PROCESS_OF_ITS_OWN = """
import sys
from pathlib import Path
from adap.models import onnx_files
from adap.models.header import InputSpec
spec = InputSpec(channels=3, height=8, width=8, mean=[0.5] * 3, std=[0.25] * 3)
onnx_files.read(Path(sys.argv[1]), spec)
came = sorted({"torchvision", "torchvision.ops", "torch._dynamo"} & sys.modules.keys())
from torchvision.ops import nms
print(came, callable(nms))
"""


def test_a_file_becomes_a_network_without_torchvision_and_the_compiler(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 1))
    path = tmp_path / "m.onnx"
    path.write_bytes(export(network, torch.rand(2, 3, 8, 8), legacy=True))
    said = subprocess.run(
        [sys.executable, "-P", "-c", IN_A_PROCESS_OF_ITS_OWN, str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == "[] True"


def test_weights_are_in_memory_once_and_equal_ones_too(tmp_path: Path) -> None:
    block = nn.Conv2d(8, 8, 9, padding=4)  # large enough to be held beside the model
    twin = nn.Conv2d(8, 8, 9, padding=4)
    twin.load_state_dict(block.state_dict())
    network = nn.Sequential(
        nn.Conv2d(3, 8, 1), block, nn.ReLU(), twin, nn.Flatten(), nn.Linear(512, 1)
    )
    spec = InputSpec(channels=3, height=8, width=8, mean=[0.5] * 3, std=[0.25] * 3)
    path = tmp_path / "m.onnx"
    path.write_bytes(export(network, torch.rand(2, 3, 8, 8), legacy=True))
    read = onnx_files.take_in(path, spec, onnx_files.ONE_LOGIT, check=lambda _: None).network
    held = {value.data_ptr() for value in read.tensors().values()}
    layers = [layer for layer in read.modules() if isinstance(layer, nn.Conv2d)]
    assert len(layers) == 3
    for layer in layers:
        assert layer.weight.data_ptr() in held
    with torch.no_grad():
        images = torch.rand(2, 3, 8, 8)
        assert torch.allclose(read(images), network.eval()(images), atol=1e-5)
