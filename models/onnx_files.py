"""ONNX in and out: a file to a `Graph` with tensors, and such a graph to a torch network.

A file is parsed in the sandboxed child alone, once. What goes on from there is the graph and the
tensors, from which the same torch network is built (by onnx2pytorch) wherever the model is used:
nothing of the file itself is kept, and no pickle is made.
"""

import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adap import rounding
from adap.models import onnx_fitting, onnx_plain, onnx_weights
from adap.models.errors import ModelFileError
from adap.models.graphs import (
    LARGEST_OPSET,
    MAX_NODES,
    OPERATORS,
    SMALLEST_OPSET,
    Graph,
    Node,
    TensorAttribute,
    refused_operator,
)
from adap.models.header import MANIFEST_KEY, ONE_LOGIT, InputSpec, OutputSpec, shown
from adap.models.onnx_endings import Ending

MAX_BYTES = 1024**3  # protobuf itself ends at 2 GiB
MAX_TENSORS = 9_000  # the header of the stored form holds as many
MAX_DIMENSIONS = 8
TOLERANCE = 1e-4  # of the largest output: float32 sums in another order stay far below
TOLERANCE_QUANTISED = 0.05  # a sum that falls on the other side of a step moves by all of it
TOLERANCE_WIDENED = 0.05  # half precision rounds numbers at 2^-11, bfloat16 at 2^-8

_KEPT = (np.float32, np.int64, np.int32, np.bool_, np.int8, np.uint8)
_UNFOLDED = ("Constant", "Dropout", "Identity")  # of a file, gone from the graph
_DOMAINS = ("", "ai.onnx")
_CHOICES = ("ArgMax", "TopK", "ZipMap", "Hardmax")  # of one class, behind its score
_NOT_ONNX = (
    "expected a sound ONNX file, got one that was cut or damaged (fetch or export it again), or "
    "another format that begins so (Core ML, TensorFlow's SavedModel: python -m tf2onnx.convert "
    "--saved-model FOLDER --output model.onnx)"
)
_DYNAMIC = (
    "export it with one: torch.onnx.export(model, (x,), 'model.onnx', dynamo=True, "
    "external_data=False, dynamic_shapes=({0: torch.export.Dim('batch')},)) with 2 images in x"
)


class GraphNetwork(nn.Module):
    """(B, C, H, W) to the graph's output; the tensors are held under their names in the graph."""

    def __init__(self, graph: Graph, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        from adap.models import onnx_library  # onnx takes a while to import: only where used

        self.graph = graph
        self.names = sorted(tensors)
        _check_layers(graph, tensors)
        written = _written_out(graph)
        model = as_onnx(written, tensors)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about how numbers are shared, not about the network
            try:
                self.converted = onnx_library.convert(model, tensors.values())
            except Exception as error:  # whatever the library cannot do is a reason for the user
                raise ModelFileError(
                    f"expected a graph that PyTorch can repeat, got one that it cannot: {error!r}"
                ) from error
        makers = {name: node for node in graph.nodes for name in node.outputs}
        self.rounds = False
        for node in model.graph.node:  # of which the library has left out what it joined
            given = [tensors[name] for name in node.input if name in tensors]
            _share(getattr(self.converted, self.converted.mapping[node.output[0]]), given)
        for node in graph.nodes:
            module = _rounding(node, tensors) or _rounding_of_two(node, makers)
            if module is not None:
                self.rounds = True
                setattr(self.converted, self.converted.mapping[node.outputs[0]], module)
            elif node.operator == "Resize" and node.attributes.get("antialias"):
                setattr(self.converted, self.converted.mapping[node.outputs[0]], _shrinking(node))
            elif node.operator == "Clip":
                name = self.converted.mapping[node.outputs[0]]
                setattr(self.converted, name, _Clipping(getattr(self.converted, name)))
        for name, value in tensors.items():  # one copy of each tensor is enough
            setattr(self.converted, _buffer(name), value)
        # the library keeps the model for its list of nodes alone; a list that is emptied keeps
        # the memory of what was in it
        self.converted.onnx_model = type(model)()
        self.converted.onnx_model.graph.node.extend(model.graph.node)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> the output, by torch operations alone."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library's Slice warns of its own indexing
            output: Tensor = self.converted(images)
        return output

    def without_rounding(self) -> AbstractContextManager[None]:
        """Inside it answers what it would if nothing in it rounded: its gradient's own function."""
        return rounding.left_out()

    def tensors(self) -> dict[str, Tensor]:
        """What the graph was built from."""
        return {name: getattr(self.converted, _buffer(name)) for name in self.names}


_LAYERS = ("Conv", "ConvTranspose", "BatchNormalization", "InstanceNormalization")


def _check_layers(graph: Graph, tensors: Mapping[str, Tensor]) -> None:
    """Raise ModelFileError for a layer whose weights are not in the file."""
    for node in graph.nodes:
        if node.operator in _LAYERS and any(n and n not in tensors for n in node.inputs[1:]):
            raise ModelFileError(
                f"expected weights that are constants, got {node.operator} with computed ones, as "
                "from the size of the images or their pixels: export it with fixed sizes of images "
                "and with constants folded (torch.onnx.export with dynamo=True does both)"
            )


def _share(operator: Any, tensors: list[Tensor]) -> None:
    """Weights that the library copied into a layer are made those of the graph."""
    if not isinstance(operator, nn.Module):
        return
    for own in (*operator.parameters(), *operator.buffers()):
        for value in tensors:
            if value.dtype == own.dtype and value.shape == own.shape and torch.equal(value, own):
                own.data = value


class _Rounding(nn.Module):
    """An operator that rounds, with a gradient that a search can follow."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


class _Clipping(nn.Module):
    """A Clip whose gradient reaches values on its very bounds, too."""

    def __init__(self, clip: Callable[..., Tensor]) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, values: Tensor, *bounds: Tensor) -> Tensor:
        return rounding.at_the_walls(self.clip(values, *bounds), values)


def _shrinking(node: Node) -> nn.Module:
    """A Resize that takes the mean of what it leaves out, which the library leaves out."""
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(str(node.attributes.get("mode")))
    if mode is None or not node.attributes.get("exclude_outside"):
        raise ModelFileError(
            "expected an antialiased Resize as PyTorch exports it, linear or cubic with "
            "exclude_outside, got another: resize the images before the network, or leave out "
            "antialias"
        )

    def shrink(values: Tensor, *given: Tensor | None) -> Tensor:
        _, scales, sizes = [*given, None, None, None][:3]
        height, width = values.shape[2:]
        if sizes is not None and sizes.numel():
            height, width = (int(size) for size in sizes[-2:])
        elif scales is not None:
            height, width = int(height * float(scales[-2])), int(width * float(scales[-1]))
        return nn.functional.interpolate(values, (height, width), mode=mode, antialias=True)

    return _Rounding(shrink)


# Of ONNX, for Cast: the whole numbers that a network may round to.
_WHOLE = {2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64}
_FLOAT = 1


def _rounding_of_two(node: Node, makers: Mapping[str, Node]) -> _Rounding | None:
    """What stands in for the second of two operators that round together; None for all others.

    `a - a mod b` rounds a down to multiples of b, and a cast to whole numbers and back rounds too.
    Either operator by itself is no rounding: a remainder has a slope of its own.
    """
    if node.operator == "Sub" and len(node.inputs) == 2:
        values, less = node.inputs
        remainder = makers.get(less)
        if remainder and remainder.operator == "Mod" and remainder.inputs[0] == values:
            return _Rounding(rounding.less_remainder)
    if (kind := _whole(node, makers)) is not None:
        return _Rounding(lambda a: rounding.straight_through(a.to(kind).to(torch.float32), a))
    return None


def _whole(node: Node, makers: Mapping[str, Node]) -> torch.dtype | None:
    """The kind of whole number that this cast to floats comes back from, if it does."""
    if node.operator != "Cast" or node.attributes.get("to") != _FLOAT:
        return None
    first = makers.get(node.inputs[0])
    if first is None or first.operator != "Cast":
        return None
    return _WHOLE.get(first.whole_number("to"))


def _written_out(graph: Graph) -> Graph:
    """The graph with each cast back from whole numbers fed by what the first cast was fed: so what
    stands in for it sees the floats."""
    makers = {name: node for node in graph.nodes for name in node.outputs}
    nodes = [
        node
        if _whole(node, makers) is None
        else node.model_copy(update={"inputs": list(makers[node.inputs[0]].inputs)})
        for node in graph.nodes
    ]
    return graph.model_copy(update={"nodes": nodes})


_ROUNDING: dict[str, Callable[..., Tensor]] = {
    "Ceil": rounding.ceil,
    "Floor": rounding.floor,
    "Round": rounding.round_half_even,
    "Sign": rounding.sign,
}


def _rounding(node: Node, tensors: Mapping[str, Tensor]) -> _Rounding | None:
    """What stands in for an operator that rounds; None for all others."""
    if node.operator in _ROUNDING:
        return _Rounding(_ROUNDING[node.operator])
    if node.operator not in ("QuantizeLinear", "DequantizeLinear"):
        return None
    axis = node.whole_number("axis", 1)
    if len(node.inputs) > 2 and node.inputs[2] not in tensors:
        raise ModelFileError("expected zero points that are constants, got computed ones")
    kind = tensors[node.inputs[2]].dtype if len(node.inputs) > 2 else torch.uint8
    if node.operator == "QuantizeLinear" and kind not in (torch.int8, torch.uint8):
        raise ModelFileError(f"expected quantisation to int8 or uint8, got {kind}")

    def wide(values: Tensor, like: Tensor) -> Tensor:
        shape = [1] * like.ndim
        if values.numel() > 1:
            shape[axis] = -1
        return values.float().reshape(shape)

    def quantise(values: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        zeros = torch.zeros(()) if zero is None else zero
        bounds = torch.iinfo(kind)
        whole = rounding.round_half_even(values / wide(scale, values)) + wide(zeros, values)
        return rounding.at_the_walls(whole.clamp(bounds.min, bounds.max), whole)

    def dequantise(values: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        zeros = torch.zeros(()) if zero is None else zero
        return (values.float() - wide(zeros, values)) * wide(scale, values)

    return _Rounding(quantise if node.operator == "QuantizeLinear" else dequantise)


@dataclass(frozen=True)
class Read:
    """What an ONNX file became, and the file as it came, to compare with."""

    network: GraphNetwork
    original: onnx_fitting.Original
    fit: onnx_fitting.Fit
    manifest: str | None
    """What our own export has written into the metadata."""


def read(path: Path, spec: InputSpec) -> tuple[Graph, dict[str, NDArray[Any]]]:
    """The operations and tensors of a file of one logit that its reader trusts.

    What it costs to run is not looked at: uploads are taken in by `take_in`.
    """
    network = take_in(path, spec, ONE_LOGIT, check=lambda _: None).network
    return network.graph, {name: value.numpy() for name, value in network.tensors().items()}


def embedded_manifest(path: Path) -> str | None:
    """What our own export has written into the metadata of a file; None of others."""
    return _manifest(_opened(path))


def _manifest(model: Any) -> str | None:
    return next((it.value for it in model.metadata_props if it.key == MANIFEST_KEY), None)


def _opened(path: Path) -> Any:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ModelFileError(f"expected an ONNX file of at most {MAX_BYTES} bytes, got {size}")
    from google.protobuf.message import DecodeError
    from onnx import ModelProto

    model = ModelProto()
    try:
        model.ParseFromString(path.read_bytes())  # of bytes: it knows no folder to read beside
    except DecodeError as error:
        raise ModelFileError(f"{_NOT_ONNX}: {error}") from error
    if not model.graph.node and not model.graph.output:
        raise ModelFileError(f"{_NOT_ONNX}: it holds no network")
    return model


def take_in(
    path: Path, spec: InputSpec, output: OutputSpec, *, check: Callable[[GraphNetwork], object]
) -> Read:
    """The network of an ONNX file for images of this size.

    check: looks at the network before it is run, and raises where it would cost too much.
    For the sandboxed child alone. Raises ModelFileError for a file that is not one network with
    all its tensors inside, made of known operators, of one input and one output.
    """
    model = _opened(path)
    _check_plain(model)
    said, functions = _manifest(model), len(model.functions)
    if functions:
        model = onnx_plain.inlined(model)
        _check_plain(model)
    older = onnx_plain.read_as_opset_9(model)
    model, held = onnx_weights.take_out(model)
    onnx_weights.give_back()
    branches = onnx_fitting.settle_branches(model, spec)
    if branches:
        _check_plain(model)
    fit = onnx_fitting.simplify(model, held, spec, output, path)
    if functions:
        fit.steps.insert(0, "local functions put in place of their calls")
    if branches:
        fit.steps.insert(0, f"branches taken as the size of the images decides: {branches}")
    if older:
        fit.steps.insert(0, f"opset {older} read as 9, which defines its operators alike")
    _Reader(fit).read()  # every operator and size is known before the network is run
    takes = onnx_fitting.arrange(fit)
    network = _network(fit)
    onnx_weights.give_back()
    check(network)
    original, flattened = onnx_fitting.ask(fit, takes)
    return Read(_network(fit) if flattened else network, original, fit, said)


def _network(fit: onnx_fitting.Fit) -> GraphNetwork:
    graph, arrays = _Reader(fit).read()
    tensors = {
        # copied where they are views of the file's own bytes, as onnx hands them out
        name: torch.from_numpy(array if array.flags.writeable else array.copy())
        for name, array in arrays.items()
    }
    return GraphNetwork(graph, tensors).eval()


def _check_plain(model: Any) -> None:
    """One graph with all its tensors inside, without anything that branches, loops or calls."""
    from onnx import AttributeProto

    graph = model.graph
    for found, what in (
        (model.training_info, "training information"),
        (graph.sparse_initializer, "sparse tensors"),
    ):
        if len(found):
            raise ModelFileError(
                f"expected a plain ONNX network, got one with {what}: export it in eval mode and "
                "with dense tensors"
            )
    if len(graph.node) > MAX_NODES:
        raise ModelFileError(f"expected at most {MAX_NODES} operators, got {len(graph.node)}")
    # all of them before one is read: what lies outside the file is refused by its name
    for tensor in graph.initializer:
        _refuse_external(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            _refuse_external(attribute.t)
            if attribute.HasField("sparse_tensor") or attribute.ref_attr_name:
                raise ModelFileError(
                    f"expected plain attributes, got another kind in {node.op_type}"
                )
            if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
                if node.op_type == "If":
                    continue  # settled, or refused by its name where operators are read
                if node.op_type in ("Loop", "Scan"):
                    raise ModelFileError(refused_operator(node.op_type))
                raise ModelFileError(
                    "expected numbers, texts and tensors as attributes, got another kind in "
                    f"{node.op_type}: branches and loops are not taken"
                )


def as_onnx(graph: Graph, tensors: Mapping[str, Tensor | NDArray[Any]]) -> Any:
    """The ModelProto of a graph: `x` (batch, C, H, W) to its output."""
    from onnx import TensorProto, checker, helper, numpy_helper

    arrays = {
        name: np.ascontiguousarray(np.asarray(value)).reshape(tuple(value.shape))
        for name, value in tensors.items()
    }
    large = {name: array for name, array in arrays.items() if array.size > onnx_weights.SMALL}

    def value(attribute: Any) -> Any:
        if not isinstance(attribute, TensorAttribute):
            return attribute
        return numpy_helper.from_array(arrays[attribute.tensor], attribute.tensor)

    output = ["batch", None][: graph.rank]
    try:
        nodes = [helper.make_node(node.operator, node.inputs, node.outputs) for node in graph.nodes]
        for made_node, node in zip(nodes, graph.nodes, strict=True):
            made_node.attribute.extend(
                helper.make_attribute(key, value(item)) for key, item in node.attributes.items()
            )
        made = helper.make_graph(
            nodes,
            "network",
            [
                helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", None, None, None]),
                # for the checker, which would copy their numbers
                *(
                    helper.make_tensor_value_info(
                        name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
                    )
                    for name, array in large.items()
                ),
            ],
            [helper.make_tensor_value_info(graph.output, TensorProto.FLOAT, output)],
            initializer=[
                numpy_helper.from_array(array, name)
                for name, array in arrays.items()
                if name not in large
            ],
        )
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", graph.opset)])
        checker.check_model(model)
        del model.graph.input[1:]
        onnx_weights.add(model.graph, large)
    except (checker.ValidationError, ValueError, TypeError) as error:
        raise ModelFileError(
            f"expected operators used as ONNX defines them, got {str(error)[:300]}"
        ) from error
    return model


def compare(
    original: onnx_fitting.Original,
    network: nn.Module,
    spec: InputSpec,
    *,
    ending: Ending | None = None,
    tolerance: float = TOLERANCE,
    together: int = 3,
) -> float:
    """The largest difference between a network and onnxruntime on the file that it came from.

    On random images, in batches of `together` and one; relative to the largest output, if above 1.
    ending: what the file has behind the logits that the network answers with.
    For the sandboxed child alone. Raises ModelFileError where either cannot run or they differ.
    """
    largest = 0.0
    for count in (together, 1):
        images = original.takes.random(count, spec)
        try:
            expected = original(images).reshape(count, -1).astype(np.float32)
        except Exception as error:
            raise ModelFileError(
                f"expected a network that onnxruntime runs on {count} images of the declared size, "
                f"got {str(error)[:300]}; if it has no dynamic batch, {_DYNAMIC}"
            ) from error
        try:
            with torch.no_grad():
                logits = network(torch.from_numpy(images))
                answer = logits if ending is None else ending.answer(logits)
                got = answer.numpy().reshape(len(logits), -1)
        except Exception as error:
            raise ModelFileError(
                f"expected a graph that PyTorch can repeat on {count} images of the declared size, "
                f"got {error!r:.300}"
            ) from error
        if got.shape != expected.shape:
            raise ModelFileError(
                f"expected the outputs of onnxruntime for {count} images, {expected.shape}, got "
                f"{got.shape}: the file joins the images of a batch; {_DYNAMIC}"
            )
        if not np.isfinite(expected).all():
            raise ModelFileError("expected finite outputs, got NaN or infinity from onnxruntime")
        scale = max(1.0, float(np.abs(expected).max(initial=0)))
        difference = float(np.abs(got - expected).max(initial=0)) / scale
        if not difference <= tolerance:
            raise ModelFileError(
                "expected the outputs of onnxruntime, got a network in PyTorch whose outputs are "
                f"off by {difference:.2g} of the largest: an operator is read differently, or an "
                f"image's output depends on its batch; {_DYNAMIC}"
            )
        largest = max(largest, difference)
    return largest


class _Reader:
    """One ONNX model on its way to a graph: names are replaced, everything else is checked."""

    def __init__(self, fit: onnx_fitting.Fit) -> None:
        self._model, self._held = fit.model, fit.held
        self._names: dict[str, str] = {"": ""}
        self._tensors: dict[str, NDArray[Any]] = {}
        self._values = 0

    def read(self) -> tuple[Graph, dict[str, NDArray[Any]]]:
        graph = self._model.graph
        opset = self._opset()
        for node in graph.node:
            if node.domain not in _DOMAINS or node.op_type not in (*OPERATORS, *_UNFOLDED):
                domain = f"{node.domain}." if node.domain not in _DOMAINS else ""
                scores = node.input[0] if node.op_type in _CHOICES and node.input else ""
                raise ModelFileError(refused_operator(domain + node.op_type, scores))
        for tensor in graph.initializer:
            self._bind(tensor.name, self._add_tensor(tensor, self._held.get(tensor.name)))
        self._bind_images()
        nodes = [made for node in graph.node if (made := self._node(node)) is not None]
        if not nodes:
            raise ModelFileError("expected a network, got an ONNX file without operators")
        made_graph = Graph(opset=opset, output=self._name(graph.output[0].name), nodes=nodes)
        made_graph.check(set(self._tensors))
        return made_graph, self._tensors

    def _opset(self) -> int:
        versions = {item.domain: item.version for item in self._model.opset_import}
        opset = next((versions[domain] for domain in _DOMAINS if domain in versions), None)
        if opset is None or not SMALLEST_OPSET <= opset <= LARGEST_OPSET:
            raise ModelFileError(
                f"expected an ONNX opset from 7 to {LARGEST_OPSET}, got {opset}: "
                "export it with another (opset_version=18), or convert it: onnx.save("
                "onnx.version_converter.convert_version(onnx.load('model.onnx'), 18), '18.onnx')"
            )
        return int(opset)

    def _bind_images(self) -> None:
        inputs = [item for item in self._model.graph.input if item.name not in self._names]
        if len(inputs) != 1:
            raise ModelFileError(
                f"expected one input, the images, got {len(inputs)}: "
                f"{', '.join(shown(item.name) for item in inputs[:5])}{onnx_fitting.OTHER_INPUTS}"
            )
        self._bind(inputs[0].name, "x")

    def _node(self, node: Any) -> Node | None:
        from onnx import AttributeProto

        attributes: dict[str, Any] = {}
        for item in node.attribute:
            if not re.fullmatch(r"[A-Za-z_]{1,40}", item.name) or item.name in attributes:
                raise ModelFileError(f"expected known attributes, got {shown(item.name)}")
            match item.type:
                case AttributeProto.FLOAT:
                    attributes[item.name] = float(item.f)
                case AttributeProto.INT:
                    attributes[item.name] = int(item.i)
                case AttributeProto.STRING:
                    attributes[item.name] = _text(item.s)
                case AttributeProto.FLOATS:
                    attributes[item.name] = [float(value) for value in item.floats]
                case AttributeProto.INTS:
                    attributes[item.name] = [int(value) for value in item.ints]
                case AttributeProto.TENSOR:
                    attributes[item.name] = TensorAttribute(tensor=self._add_tensor(item.t))
                case _:
                    raise ModelFileError(
                        f"expected numbers, texts and tensors as attributes, got another kind in "
                        f"{node.op_type}: branches and loops are not taken"
                    )
        if node.op_type == "Constant":
            self._bind(node.output[0] if node.output else "", self._constant(attributes))
            return None
        inputs = [self._name(name) for name in node.input]
        if attributes.pop("training_mode", 0) or (node.op_type == "Dropout" and len(inputs) > 2):
            raise ModelFileError(
                f"expected a network in eval mode, got {node.op_type} in training mode; call "
                "model.eval() before the export"
            )
        if node.op_type in ("Dropout", "Identity"):  # the same value under another name
            self._bind(node.output[0], inputs[0])
            return None
        outputs = []
        for name in node.output:
            outputs.append(f"v{self._values}")
            self._values += 1
            if name:
                self._bind(name, outputs[-1])
        try:
            return Node(
                operator=node.op_type, inputs=inputs, outputs=outputs, attributes=attributes
            )
        except ValueError as error:
            raise ModelFileError(
                f"expected plain numbers in {node.op_type}, got others: {str(error)[:200]}"
            ) from error

    def _constant(self, attributes: dict[str, Any]) -> str:
        match attributes:
            case {"value": TensorAttribute(tensor=name)}:
                return name
            case {"value_float": float() | list() as value} | {"value_floats": value}:
                return self._add_array(np.array(value, np.float32))
            case {"value_int": value} | {"value_ints": value}:
                return self._add_array(np.array(value, np.int64))
            case _:
                raise ModelFileError("expected a constant made of numbers, got another kind")

    def _add_tensor(self, tensor: Any, held: NDArray[Any] | None = None) -> str:
        from onnx import TensorProto, numpy_helper

        kinds = (
            *(TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL),
            *(TensorProto.INT8, TensorProto.UINT8),  # of quantised networks
        )
        if tensor.data_type not in kinds:
            known = tensor.data_type in TensorProto.DataType.values()
            kind = TensorProto.DataType.Name(tensor.data_type) if known else "another kind"
            raise ModelFileError(
                f"expected tensors of float32, int64, int32 or bool, got {kind} in "
                f"{shown(tensor.name)}; export the network in float32"
            )
        if len(tensor.dims) > MAX_DIMENSIONS:
            raise ModelFileError(
                f"expected tensors of at most {MAX_DIMENSIONS} dimensions, got {len(tensor.dims)}"
            )
        try:
            array = numpy_helper.to_array(tensor) if held is None else held
        except (ValueError, TypeError, OverflowError) as error:
            raise ModelFileError(
                f"expected as many numbers as {shown(tensor.name)} declares, got others: {error}"
            ) from error
        return self._add_array(array)

    def _add_array(self, array: NDArray[Any]) -> str:
        if len(self._tensors) == MAX_TENSORS:
            raise ModelFileError(f"expected at most {MAX_TENSORS} tensors, got more")
        if array.dtype not in _KEPT:
            raise ModelFileError(f"expected float32, int64, int32 or bool, got {array.dtype}")
        if not np.isfinite(array).all():
            raise ModelFileError("expected finite weights, got NaN or infinity in a tensor")
        name = f"w{len(self._tensors)}"
        self._tensors[name] = array
        return name

    def _bind(self, name: str, ours: str) -> None:
        if not name or name in self._names:
            raise ModelFileError(f"expected each value to be named once, got {shown(name)} again")
        self._names[name] = ours

    def _name(self, name: str) -> str:
        if name not in self._names:
            raise ModelFileError(
                f"expected values to be made before they are used, got {shown(name)}"
            )
        return self._names[name]


def _refuse_external(tensor: Any) -> None:
    from onnx import TensorProto

    if tensor.data_location == TensorProto.EXTERNAL or len(tensor.external_data):
        raise ModelFileError(
            f"expected all tensors inside the file, got {shown(tensor.name)} with external data, "
            "which is never looked for; export with external_data=False, or join the files: "
            "onnx.save(onnx.load('model.onnx'), 'whole.onnx')"
        )


def _text(value: bytes) -> str:
    try:
        return value.decode("ascii")
    except UnicodeDecodeError as error:
        raise ModelFileError(f"expected plain text in attributes, got {value!r:.60}") from error


def _buffer(name: str) -> str:
    return f"_initializer_{name}"  # what onnx2pytorch calls the tensor of this name
