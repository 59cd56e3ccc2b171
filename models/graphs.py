"""A network as a list of operations: what is kept of an ONNX file, as JSON beside its tensors.

The list is ours: every name in it is made here (`x` the images, `v0`, `v1`, ... what operations
give, `w0`, `w1`, ... the tensors), every operation is one of `OPERATORS`, every attribute a number,
a text, a list of them or a tensor. There is nothing in it that could run, name a file, branch or
loop. Sizes may follow from the size of the images, never from the values of their pixels.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adap.models.errors import ModelFileError
from adap.models.header import shown

GRAPH = "onnx"
"""The architecture of a model that brings its own graph."""

GRAPH_TENSOR = "graph"
"""The tensor (n,) of bytes that holds the JSON, in the file of such a model."""

MAX_GRAPH_BYTES = 4 * 1024 * 1024
MAX_NODES = 10_000
SMALLEST_OPSET, LARGEST_OPSET = 9, 25

# Each with the places of its inputs that say how large something becomes.
OPERATORS: dict[str, frozenset[int]] = {
    **dict.fromkeys(
        (
            *("Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh"),
            *("AveragePool", "BatchNormalization", "Cast", "Ceil", "Celu", "Clip", "Concat"),
            *("Conv", "IsInf", "IsNaN"),
            *("ConvTranspose", "Cos", "Cosh", "DepthToSpace", "DequantizeLinear", "Div", "Einsum"),
            *("Elu", "Equal", "Erf", "Exp", "Flatten", "Floor", "Gelu", "Gemm"),
            *("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "Greater", "GreaterOrEqual"),
            *(
                "GridSample",
                "GroupNormalization",
                "HardSigmoid",
                "HardSwish",
                "InstanceNormalization",
            ),
            *("LRN", "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log"),
            *("LogSoftmax", "LpNormalization", "LpPool", "MatMul", "Max", "MaxPool", "Mean"),
            *("MeanVarianceNormalization", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or"),
            *(
                "PRelu",
                "Pow",
                "QuantizeLinear",
                "RMSNormalization",
                "RotaryEmbedding",
                "Reciprocal",
                "ReduceL1",
            ),
            *("ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMin"),
            *("ReduceProd", "ReduceSumSquare", "Relu", "Round", "Selu", "Shape", "Shrink"),
            *("Sigmoid", "Sign", "Sin", "Sinh", "Size", "Softmax", "Softplus", "Softsign"),
            *("SpaceToDepth", "Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu"),
            *("Transpose", "Where", "Xor"),
        ),
        frozenset[int](),
    ),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), frozenset({4})),
    "AffineGrid": frozenset({1}),
    "Attention": frozenset({6}),
    "ConstantOfShape": frozenset({0}),
    "CumSum": frozenset({1}),
    "Expand": frozenset({1}),
    "Gather": frozenset({1}),
    "GatherElements": frozenset({1}),
    "GatherND": frozenset({1}),
    "Pad": frozenset({1, 3}),
    "Range": frozenset({0, 1, 2}),
    "ReduceMean": frozenset({1}),
    "ReduceSum": frozenset({1}),
    "Reshape": frozenset({1}),
    "Resize": frozenset({1, 2, 3}),
    "ScatterElements": frozenset({1}),
    "ScatterND": frozenset({1}),
    "Slice": frozenset({1, 2, 3, 4}),
    "Split": frozenset({1}),
    "Squeeze": frozenset({1}),
    "Tile": frozenset({1}),
    "Trilu": frozenset({1}),
    "Unsqueeze": frozenset({1}),
    "Upsample": frozenset({1}),
}

Name = Annotated[str, Field(pattern=r"^(x|[vw]\d{1,6})$")]
Text = Annotated[str, Field(max_length=40)]
Number = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class TensorAttribute(BaseModel):
    """An attribute whose value is one of the tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    tensor: Name


Attribute = (
    Number | float | Text | TensorAttribute | Annotated[list[Number | float], Field(max_length=64)]
)


class Node(BaseModel):
    """One operation; an input that is left out is an empty name."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    operator: Annotated[str, Field(max_length=40)]
    inputs: list[Name | Annotated[str, Field(max_length=0)]] = Field(max_length=1000)
    outputs: list[Name] = Field(min_length=1, max_length=1000)
    attributes: dict[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z_]{0,39}$")], Attribute] = (
        Field(max_length=20)
    )

    def whole_number(self, name: str, default: int = 0) -> int:
        """An attribute that ONNX defines as a whole number. Raises ModelFileError for another."""
        value = self.attributes.get(name, default)
        if not isinstance(value, int):
            raise ModelFileError(
                f"expected a whole number as {name} of {self.operator}, got {value!r:.60}"
            )
        return value


class Graph(BaseModel):
    """Operations in the order in which they run, from the images `x` to `output`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    opset: int = Field(ge=SMALLEST_OPSET, le=LARGEST_OPSET)
    output: Name
    rank: int = Field(2, ge=1, le=2, description="of the output: (B,) or (B, K)")
    nodes: list[Node] = Field(min_length=1, max_length=MAX_NODES)

    def encode(self) -> bytes:
        """The text that is kept: equal graphs, equal bytes. ModelFileError if it is too long."""
        content = self.model_dump_json().encode()
        if len(content) > MAX_GRAPH_BYTES:
            raise ModelFileError(
                f"expected operations that take at most {MAX_GRAPH_BYTES} bytes to write down, got "
                f"{len(content)}"
            )
        return content

    def check(self, tensors: set[str]) -> None:
        """Every name is made before it is used, and no size depends on a pixel.

        tensors: the names of those beside the graph. Raises ModelFileError.
        """
        made = {"x", *tensors}
        known = set(tensors)  # values that are the same for all images of a size
        for node in self.nodes:
            sizes = OPERATORS.get(node.operator)
            if sizes is None:
                raise ModelFileError(refused_operator(node.operator))
            named = [name for name in node.inputs if name]
            named += [
                value.tensor
                for value in node.attributes.values()
                if isinstance(value, TensorAttribute)
            ]
            for name in named:
                if name not in made:
                    raise _unsound(f"{name} to be made before {node.operator} uses it")
            for place, name in enumerate(node.inputs):
                if name and place in sizes and name not in known:
                    raise ModelFileError(
                        f"expected sizes and positions that do not depend on pixel values, got "
                        f"{node.operator} with one that does (input {place})"
                    )
            if not made.isdisjoint(node.outputs) or len(set(node.outputs)) < len(node.outputs):
                raise _unsound(f"{node.operator} to make new names, got {node.outputs[0]} again")
            made.update(node.outputs)
            if node.operator == "Shape" or known.issuperset(n for n in node.inputs if n):
                known.update(node.outputs)
        if self.output not in made - known - {"x"}:
            raise ModelFileError("expected an output that depends on the images, got a constant")


def decode(content: bytes) -> Graph:
    """Read what `Graph.encode` wrote. Raises ModelFileError for anything else."""
    if len(content) > MAX_GRAPH_BYTES:
        raise _unsound(f"at most {MAX_GRAPH_BYTES} bytes, got {len(content)}")
    try:
        return Graph.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"][:3])
        raise _unsound(f"valid operations, got {where}: {first['msg']}") from error


def refused_operator(name: str, scores: str = "") -> str:
    """Why an operation that is not known here is refused.

    scores: the value that it is fed, where it is behind everything that scores.
    """
    what = {
        "If": "a branch",
        "Loop": "a loop",
        "Scan": "a loop",
        "NonMaxSuppression": "a part of an object detector",
        "TopK": "the choice of the best, which is post-processing",
        "ArgMax": "the choice of the best, which is post-processing",
        "ai.onnx.ml.ZipMap": "which names probabilities: convert with options={'zipmap': False}",
    }.get(name)
    if what is None and name.startswith("ai.onnx.ml."):
        what = (
            "a decision tree or forest, which has no gradient to attack"
            if "Tree" in name
            else "of classical learning: write it as layers (torch.nn.Linear of the same weights)"
        )
    if what is None and name.startswith("com.microsoft."):
        what = "which onnxruntime's optimisation or quantisation made: send the file from before it"
    known = "" if what else f". Known: {', '.join(sorted(OPERATORS))}"
    what = what or "which is not known here"
    before = ""
    if scores:
        before = f", or name the scores that it is fed: --output-name {shown(scores)}"
    return (
        f"expected ONNX operators that are known here, got {name!r:.60}, {what}; export the "
        f"network that scores images alone, without pre- and post-processing{before}{known}"
    )


def _unsound(expected_and_got: str) -> ModelFileError:
    return ModelFileError(f"damaged graph: expected {expected_and_got}")
