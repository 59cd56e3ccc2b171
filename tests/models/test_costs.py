"""Foreseen costs of networks; those that grow faster than the batch are refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from adap.models import conversion
from adap.models.costs import POOLED, Cost, check_cost, foresee, served_batch
from adap.models.errors import ModelFileError
from adap.models.header import Declaration, InputSpec
from adap.models.limits import CostLimits

SPEC = InputSpec(channels=1, height=8, width=8, mean=[0.0], std=[1.0])
make = helper.make_node


def onnx_file(path: Path, nodes: list[object], **whole: object) -> Path:
    """Scores of the pixels' sum, plus `m`, whatever the nodes make of it."""
    tensors = {"w": np.ones((64, 1), np.float32), **{k: np.array(v) for k, v in whole.items()}}
    graph = helper.make_graph(
        [
            make("Flatten", ["x"], ["f"], axis=1),
            make("MatMul", ["f", "w"], ["s"]),
            make("Shape", ["x"], ["shape"]),
            make("Gather", ["shape", "zero"], ["b"], axis=0),
            *nodes,
            make("Add", ["s", "m"], ["y"]),
        ],
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1])],
        [
            numpy_helper.from_array(value, name)
            for name, value in {**tensors, "zero": np.array([0])}.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def squares(size: str) -> list[object]:
    """Products of matrices as large as the value of this name."""
    return [
        make("Concat", [size, size], ["both"], axis=0),
        make("ConstantOfShape", ["both"], ["m0"]),
        *(make("MatMul", [f"m{i}", f"m{i}"], [f"m{i + 1}"]) for i in range(40)),
        make("ReduceMean", ["m40"], ["m"], keepdims=0),
    ]


def hidden(*numbers: int) -> list[object]:
    """A size of 1 for batches of these sizes, which may be those that are tried."""
    nodes, last = [], "scale"
    for i in range(len(numbers)):
        nodes += [
            make("Sub", ["b", f"c{i}"], [f"d{i}"]),
            make("Mul", [f"d{i}", f"d{i}"], [f"e{i}"]),
            make("Mul", [last, f"e{i}"], [f"p{i}"]),
        ]
        last = f"p{i}"
    return [*nodes, make("Add", [last, "one"], ["n"])]


def squared_cut() -> list[object]:
    """All pixels of some images with those of some images: a square of their number."""
    return [
        make("Slice", ["x", "start", "end", "axis"], ["some"]),
        make("Reshape", ["some", "column"], ["a"]),
        make("Transpose", ["a"], ["t"], perm=[1, 0]),
        make("MatMul", ["a", "t"], ["aa"]),
        make("MatMul", ["aa", "aa"], ["aaa"]),
        make("ReduceMean", ["aaa"], ["m"], keepdims=0),
    ]


def made_of(nodes: list[object], **whole: object) -> Callable[[Path], Path]:
    return lambda path: onnx_file(path, nodes, **whole)


REFUSED = {
    "a cube of the batch": made_of([make("Mul", ["b", "scale"], ["n"]), *squares("n")], scale=[32]),
    "but for the batches that it may be tried with": made_of(
        [*hidden(1, 3, 4, 64), *squares("n")], scale=[4], one=[1], c0=[1], c1=[3], c2=[4], c3=[64]
    ),
    "a square of the batch for half of the largest": made_of(
        squared_cut(), start=[-32], end=[32], axis=[0], column=[-1, 1]
    ),
    "hours of products of constants": made_of(
        [
            make("ConstantOfShape", ["n"], ["m0"]),
            *(make("MatMul", [f"m{i}", "m0"], [f"m{i + 1}"]) for i in range(300)),
            make("ReduceMean", ["m300"], ["m"], keepdims=0),
        ],
        n=[4000, 4000],
    ),
    "hours of constants, whose sizes are computed": made_of(
        [
            make("Add", ["n", "n"], ["nn"]),
            make("ConstantOfShape", ["nn"], ["m0"]),
            *(make("MatMul", [f"m{i}", "m0"], [f"m{i + 1}"]) for i in range(300)),
            make("ReduceMean", ["m300"], ["m"], keepdims=0),
        ],
        n=[2000, 2000],
    ),
    "two gigabytes of zeros": made_of(
        [make("ConstantOfShape", ["n"], ["z"]), make("ReduceMean", ["z"], ["m"], keepdims=0)],
        n=[500, 1000, 1000],
    ),
    "a terabyte by Expand": made_of(
        [
            make("ConstantOfShape", ["one"], ["z"]),
            make("Expand", ["z", "n"], ["e"]),
            make("Exp", ["e"], ["g"]),
            make("ReduceMean", ["g"], ["m"], keepdims=0),
        ],
        one=[1],
        n=[1000, 1000, 250_000],
    ),
    "a terabyte by Pad": made_of(
        [
            make("ConstantOfShape", ["one"], ["z"]),
            make("Pad", ["z", "n"], ["g"]),
            make("ReduceMean", ["g"], ["m"], keepdims=0),
        ],
        one=[1],
        n=[0, 10**12 // 4],
    ),
    "a terabyte by Range": made_of(
        [
            make("Range", ["from", "to", "step"], ["r"]),
            make("Cast", ["r"], ["g"], to=TensorProto.FLOAT),
            make("ReduceMean", ["g"], ["m"], keepdims=0),
        ],
        **{"from": 0, "to": 10**12 // 8, "step": 1},
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_costly_graph_is_refused_without_being_run(tmp_path: Path, what: str) -> None:
    before = psutil.Process().memory_info().rss
    path = REFUSED[what](tmp_path / "m.onnx")
    with pytest.raises(
        ModelFileError, match=r"number of images|ADAP_MAX_MODEL_|cost can be told|to compute"
    ):
        conversion.to_safetensors(
            path, Declaration(architecture="onnx", input=SPEC), folder=tmp_path
        )
    assert psutil.Process().memory_info().rss - before < 2**29


def test_a_graph_that_computes_with_the_batch_and_costs_the_same_an_image_is_taken(
    tmp_path: Path,
) -> None:
    nodes = [
        make("Concat", ["b", "width"], ["n"], axis=0),
        make("Reshape", ["x", "n"], ["rows"]),
        make("ReduceMean", ["rows"], ["m"], axes=[1], keepdims=1),
    ]
    path = onnx_file(tmp_path / "m.onnx", nodes, width=[64])
    manifest = Declaration(architecture="onnx", input=SPEC)
    assert conversion.to_safetensors(path, manifest, folder=tmp_path).onnx_difference is not None


def test_operations_and_bytes_are_those_of_the_formula() -> None:
    network = nn.Sequential(nn.Conv2d(1, 6, 3, bias=False), nn.Flatten(), nn.Linear(216, 2))
    convolution, linear = 2 * 9 * 6 * 36, 2 * 216 * 2
    for batch in (1, 5):
        cost = foresee(network, SPEC, batch, CostLimits())
        views = 2000  # each of them counted as one operation a number
        assert 0 <= cost.flops - batch * (convolution + linear) <= batch * views
        assert batch * 216 * 4 <= cost.bytes <= batch * 2 * (216 + 64 + 2) * 4 + 2 * 216 * 4


@pytest.mark.parametrize(
    "pool", [nn.MaxPool2d(7, 1, 3), nn.AvgPool2d((7, 7), 1, 3), nn.LPPool2d(2, 7, 1)]
)
def test_pooling_is_counted_as_its_window_for_each_number(pool: nn.Module) -> None:
    spec = SPEC.model_copy(update={"height": 32, "width": 32})
    side = pool(torch.zeros(1, 1, 32, 32)).shape[-1]
    cost = foresee(pool, spec, 3, CostLimits())
    pooled = POOLED * 3 * side**2 * 49
    assert 0 <= cost.flops - pooled <= 3 * 32**2 * 10  # and what powers and views take


def test_pooling_over_windows_that_never_end_is_refused() -> None:
    network = nn.Sequential(nn.MaxPool2d(513, 1, 256), nn.AdaptiveAvgPool2d(1))
    spec = SPEC.model_copy(update={"height": 2048, "width": 2048})
    with pytest.raises(ModelFileError, match="ADAP_MAX_MODEL_FLOPS"):
        check_cost(network, spec, CostLimits())


def test_what_depends_on_pixels_is_refused_and_nothing_of_the_network_changes() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(1)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x)[:, :, : int(x.sum())].sum(dim=(1, 2, 3))

    network = Cut().eval()
    with pytest.raises(ModelFileError, match="cost can be told"):
        check_cost(network, SPEC, CostLimits())
    assert torch.equal(network.norm.running_mean, torch.zeros(1))


@pytest.mark.parametrize("size", [4, 16])
def test_a_network_for_other_images_is_refused(size: int) -> None:
    made_for_8 = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    spec = SPEC.model_copy(update={"height": size, "width": size})
    with pytest.raises(
        ModelFileError, match=f"of the declared size, {size}x{size} with 1 channel, got"
    ):
        check_cost(made_for_8, spec, CostLimits())


def test_a_network_that_takes_no_batch_is_refused() -> None:
    class Single(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert len(x) == 1
            return x.sum(dim=(1, 2, 3))

    with pytest.raises(ModelFileError, match="runs on 64 images of the declared size"):
        check_cost(Single(), SPEC, CostLimits())


def test_a_costly_network_is_served_in_small_batches() -> None:
    assert served_batch(Cost(flops=1, bytes=1), 64) == 64
    assert served_batch(Cost(flops=3 * 10**10, bytes=1), 64) == 3
    assert served_batch(Cost(flops=10**12, bytes=2**32), 64) == 1
