"""An ONNX file made fit to be audited: each change is a step that the reading tells.

Exporters differ: images come channels last, the batch is frozen at one, weights are computed in the
graph, the scores are one of several outputs or end in a softmax. None of it changes what the
network is, so it is mended here, in the file's own operators. The judge is the file as it came:
`Original` asks onnxruntime, image by image where its batch is frozen, and `adap.models.onnx_files`
compares. For the sandboxed child alone, after the file was found to be plain and whole.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adap.models import (
    onnx_branches,
    onnx_endings,
    onnx_folding,
    onnx_kinds,
    onnx_plain,
    onnx_weights,
)
from adap.models.errors import ModelFileError
from adap.models.header import InputSpec, OutputSpec, shown
from adap.reading import Fact

SMALLEST_SCALE = 0.02  # of pixels in 0..1; networks divide those of 0..255 by 58 and more

OTHER_INPUTS = (
    ": export a module that takes the images alone, and holds what else its network takes as "
    "constants"
)


@dataclass(frozen=True)
class Images:
    """How a file as it came takes its images."""

    name: str  # of its input
    channels_last: bool = False
    flat: bool = False  # a row of pixels each
    batch: int | None = None  # frozen, or None
    kind: onnx_kinds.Kind = "float32"

    def random(self, count: int, spec: InputSpec) -> NDArray[np.float32]:
        """(N, C, H, W) network input to compare on, of numbers that its kind holds exactly."""
        generator = np.random.default_rng(0)
        shape = (count, spec.channels, spec.height, spec.width)
        if self.kind == "uint8":
            return generator.integers(0, 256, shape).astype(np.float32)
        images = generator.standard_normal(shape, dtype=np.float32)
        return images.astype(np.float16).astype(np.float32) if self.kind == "float16" else images


@dataclass(frozen=True)
class Original:
    """A file as it came, to be asked by onnxruntime: what its network answers for images."""

    session: Any
    takes: Images

    @classmethod
    def of(cls, path: Path) -> "Original":
        """A file of ours: channels first, the batch free."""
        session = onnx_folding.opened(path, plain=False)
        (images,) = session.get_inputs()
        return cls(session, Images(images.name))

    @property
    def has_numbers_of_numpy(self) -> bool:
        """Whether images and answers can be passed: NumPy has no bfloat16."""
        ends = (*self.session.get_inputs(), *self.session.get_outputs())
        return all(end.type != "tensor(bfloat16)" for end in ends)

    def __call__(self, images: NDArray[np.float32]) -> NDArray[Any]:
        """(N, C, H, W) network input to (N, ...) outputs; raises what onnxruntime raises."""
        name, batch = self.takes.name, self.takes.batch
        if self.takes.channels_last:
            images = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        if self.takes.flat:
            images = images.reshape(len(images), -1)
        sent = images.astype(self.takes.kind)
        if batch is None:
            (answer,) = self.session.run(None, {name: sent})
            return np.asarray(answer)
        rows = []
        for image in sent:
            (answer,) = self.session.run(None, {name: np.repeat(image[None], batch, 0)})
            rows.append(np.asarray(answer).reshape(batch, -1)[0])
        return np.stack(rows)


@dataclass
class Fit:
    """What became of a file: the model, the declaration, and what was done."""

    model: Any  # ModelProto
    held: onnx_weights.Held  # its large tensors
    original: bytes | Path  # it before, for onnxruntime
    output: OutputSpec
    spec: InputSpec
    ending: onnx_endings.Ending | None = None  # what was cut off behind the logits
    quantised: bool = False
    kind: onnx_kinds.Kind = "float32"  # of the images that the file took as it came
    computed_in: frozenset[onnx_kinds.Kind] = frozenset()  # other precisions than float32
    runs: bool = True  # by onnxruntime as it came
    steps: list[str] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)


def simplify(
    model: Any, held: onnx_weights.Held, spec: InputSpec, output: OutputSpec, path: Path
) -> Fit:
    """One output, no constants left to compute, all in float32 and plain operators; in place.

    path: the file that the model was read from.
    Nothing but constants has been run until here. Raises ModelFileError, with what to do.
    """
    onnx_plain.put_in_order(model)
    came = len(model.graph.node)
    steps = _choose_output(model, output)
    tensors = {tensor.name for tensor in model.graph.initializer}
    used = {name for node in model.graph.node for name in node.input}
    idle = [i.name for i in model.graph.input if i.name not in used | tensors]
    if 0 < len(idle) < len(model.graph.input):
        steps.append(f"left out, as nothing uses them: inputs {', '.join(map(shown, idle[:5]))}")
        _drop_inputs(model, set(idle))
    original: bytes | Path = path
    if steps or len(model.graph.node) < came:  # what leads nowhere may be what nobody can run
        original = onnx_weights.whole(model, held)
    # before IR version 4 tensors had to be among the inputs, too
    _drop_inputs(model, tensors)
    model.ir_version = max(model.ir_version, 4)
    (images,) = _inputs(model)
    kind = onnx_kinds.image_kind(images)
    facts = []
    if kind == "uint8":
        spec, fact = onnx_kinds.for_bytes(spec)
        facts.append(fact)
        onnx_kinds.free_of_bytes(model, images.name)
        steps.append("images of bytes taken as floats from 0 to 255")
    computed_in = onnx_kinds.computed_in(model)
    widened = onnx_kinds.widen(model, held)
    if widened:
        steps.append(f"{' and '.join(sorted(widened))} made float32")
    if onnx_kinds.finite_masks(model, held):
        steps.append("masks of minus infinity made those of the lowest number")
    quantised = _dequantise(model)
    if quantised:
        steps.append("quantised operators written out: exact values, gradients straight through")
    folded = onnx_folding.fold(model, held)
    if folded:
        steps.append(f"{folded} {'constant' if folded == 1 else 'constants'} computed once")
    onnx_plain.write_out(model)
    output = output.model_copy(update={"name": None})
    onnx_weights.keep_used(model, held)
    return Fit(
        *(model, held, original, output, spec),
        quantised=quantised,
        kind=kind,
        computed_in=computed_in,
        steps=steps,
        facts=facts,
    )


def settle_branches(model: Any, spec: InputSpec) -> int:
    """Put branches that the declared size decides in place of their Ifs; how many there were."""
    if not onnx_branches.has_branches(model):
        return 0
    images, last = _images(model, spec)
    freer = _Freer(model, images, spec, 1)
    if last:
        freer.sizes = (spec.height, spec.width, spec.channels)
    came = _frozen_batch(images)
    settled = onnx_branches.settle(model, freer.shapes)
    _set_batch(images, came)
    return settled


def _drop_inputs(model: Any, names: set[str]) -> None:
    onnx_folding.replace(
        model.graph.input, [item for item in model.graph.input if item.name not in names]
    )


def arrange(fit: Fit) -> Images:
    """Images (batch, C, H, W) in, of any number; logits out. Nothing is run.

    Returns how the file took them as it came. Raises ModelFileError, with what to do.
    """
    model, spec = fit.model, fit.spec
    images, last = _images(model, spec)
    flat = len(images.type.tensor_type.shape.dim) == 2
    takes = Images(images.name, last, flat, _frozen_batch(images), fit.kind)
    fit.facts += _own_normalisation(model.graph, images.name, spec)
    if last:
        _turn(model, images, spec)
        fit.steps.append("images turned from channels last (batch, height, width, channels)")
    if flat:
        _unroll(model, images, spec)
        fit.steps.append("images flattened to a row of pixels each")
    freed = _Freer(model, images, spec, takes.batch or 1).free(always=takes.batch is not None)
    if takes.batch is not None:
        fit.steps.append(f"batch of {takes.batch} made free")
    elif freed:
        fit.steps.append("sizes that held a batch of one made free")
        takes = replace(takes, batch=1)  # as it came it may take one image alone
    _cut_ending(fit)
    return takes


def ask(fit: Fit, takes: Images) -> tuple[Original, bool]:
    """The original, once it is known to answer as declared; whether its output was flattened."""
    try:
        original = Original(onnx_folding.opened(fit.original, plain=fit.quantised), takes)
        fit.runs = original.has_numbers_of_numpy
    except ModelFileError:
        # onnxruntime has few operators of double precision on a processor, and fewer of bfloat16
        if not fit.computed_in:
            raise
        fit.runs = False
    if not fit.runs:
        original = made_fit(fit)
        fit.steps.append("compared with onnxruntime in float32, which does not run the file itself")
    fit.original = b""
    return original, _flatten(fit, original)


def made_fit(fit: Fit) -> Original:
    """The file as it has become, to be asked by onnxruntime."""
    content = onnx_weights.whole(fit.model, fit.held)
    (images,) = _inputs(fit.model)
    return Original(onnx_folding.opened(content, plain=fit.quantised), Images(images.name))


# --- outputs --------------------------------------------------------------------------------------


def _choose_output(model: Any, output: OutputSpec) -> list[str]:
    """Leave one output, and what leads to it."""
    from onnx import TensorProto, helper

    graph = model.graph
    names = [item.name for item in graph.output]
    if output.name is None:
        if len(names) != 1:
            raise ModelFileError(
                f"expected one output, the scores, got {len(names)}: "
                f"{', '.join(shown(name) for name in names[:5])}; name the output that is meant: "
                f"--output-name {_likely(graph, output)} (`name` in `output`)"
            )
        onnx_folding.drop_dead(model)
        return []
    made = {name for node in graph.node for name in node.output if name}
    if output.name not in made:
        raise ModelFileError(
            f"expected an output among {', '.join(shown(name) for name in names[:10])}, got "
            f"{shown(output.name)}"
        )
    kept = [item for item in graph.output if item.name == output.name]
    if not kept:  # a value inside of the graph, of any shape
        kept = [helper.make_tensor_value_info(output.name, TensorProto.FLOAT, None)]
    del graph.output[:]
    graph.output.extend(kept)
    onnx_folding.drop_dead(model)
    others = ", ".join(f"`{name[:80]}`" for name in names if name != output.name)
    return [f"output `{output.name}` taken" + (f", not {others}" if others else "")]


def _likely(graph: Any, declared: OutputSpec) -> str:
    """The output that is as large as declared, where its shape says so; else of floats."""
    from onnx import TensorProto

    named = next((node.input[0] for node in graph.node if node.op_type == "ZipMap"), None)
    if named is not None:  # probabilities by the names of their classes
        return str(named)
    outputs = graph.output
    kinds = {item.name: item.type.tensor_type for item in outputs}
    float_kinds = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
    floats = [n for n, kind in kinds.items() if kind.elem_type in float_kinds]
    sizes = {n: [dim.dim_value for dim in kinds[n].shape.dim][1:] for n in floats}
    fitting = [n for n, size in sizes.items() if math.prod(size) == declared.count]
    return next(iter([*fitting, *floats, *kinds]), "NAME")


def _cut_ending(fitted: Fit) -> None:
    """A last softmax or sigmoid goes: what it is fed are the logits, which do not saturate."""
    images, spec = _inputs(fitted.model)[0], fitted.spec

    def shapes() -> dict[str, tuple[int, ...]]:
        freer = _Freer(fitted.model, images, spec, PROBED)
        found = freer.shapes(PROBED)
        freer.let_go()
        return found

    made = onnx_endings.cut(fitted.model, fitted.output, shapes)
    if made is not None:
        fitted.ending, fitted.output = made.ending, made.output
        fitted.steps.append(made.step)
        fitted.facts.append(made.fact)


def _flatten(fitted: Fit, original: Original) -> bool:
    """The original's answer says how many numbers it gives an image; axes of size 1 go."""
    from onnx import helper

    try:
        answer = original(original.takes.random(2, fitted.spec))
    except Exception as error:
        raise ModelFileError(
            "expected a network that onnxruntime runs on 2 images of the declared size, got "
            f"{str(error)[:300]}"
        ) from error
    if not np.issubdtype(answer.dtype, np.floating):
        raise ModelFileError(
            f"expected scores that are floats, got {answer.dtype}: whole numbers, and yes or no, "
            "are a choice that no search can follow; name the value that they are made of "
            "(--output-name)"
        )
    wanted = fitted.output.count
    count = math.prod(answer.shape[1:]) if answer.ndim and len(answer) == 2 else 0
    if count != wanted:
        got = f"{count} numbers an image" if count else f"an output of shape {answer.shape} for 2"
        if answer.ndim > 2 and answer.shape[1] == wanted:
            got, count = f"a map of {' x '.join(map(str, answer.shape[2:]))} numbers a class", 0
        raise ModelFileError(
            f"expected {'one logit' if wanted == 1 else f'{wanted} logits'} an image as declared, "
            f"got a network that answers with {got}"
            + (f": name its {count} classes (--classes, `output`)" if 1 < count <= 1000 else "")
        )
    rank = answer.ndim
    if rank > 2:
        fitted.steps.append(f"output {answer.shape[1:]} flattened to ({count})")
    needed = rank != 2 or original.takes.batch is not None
    if needed:
        graph = fitted.model.graph
        name = graph.output[0].name
        flat = f"{name}.flat"
        rows = _fresh(graph, "rows", np.array([-1, count], np.int64))
        graph.node.append(helper.make_node("Reshape", [name, rows], [flat]))
        graph.output[0].name = flat
    return needed


# --- images ---------------------------------------------------------------------------------------


def _images(model: Any, spec: InputSpec) -> tuple[Any, bool]:
    """The input that the images are, and whether their channels come last."""
    (images,) = _inputs(model)
    kind = images.type.tensor_type
    if not kind.HasField("shape"):  # any: what is declared, then
        for size in ("batch", "channels", "height", "width"):
            kind.shape.dim.add().dim_param = size
    sizes = [dim.dim_value if dim.dim_value > 0 else None for dim in kind.shape.dim]
    first = (spec.channels, spec.height, spec.width)
    last = (spec.height, spec.width, spec.channels)
    if len(sizes) == 4:
        may_be_last = _agree(sizes[1:], last)
        if may_be_last and (not _agree(sizes[1:], first) or _looks_last(model, images, spec)):
            return images, True
        if _agree(sizes[1:], first):
            return images, False
    if len(sizes) == 2 and sizes[1] == math.prod(first):
        if spec.channels == 1:
            return images, False
        raise ModelFileError(
            f"expected an input (batch, {', '.join(map(str, first))}), got rows of {sizes[1]} "
            "pixels, which do not tell whether a pixel's colours lie together: export a module "
            "that takes such images and flattens them first, x.flatten(1) or "
            "x.permute(0, 2, 3, 1).flatten(1)"
        )
    got = ", ".join("any" if size is None else str(size) for size in sizes)
    raise ModelFileError(
        f"expected an input (batch, {', '.join(map(str, first))}) or channels last (batch, "
        f"{', '.join(map(str, last))}) as declared, got ({got})" + _size_of(sizes, first, last)
    )


def _inputs(model: Any) -> list[Any]:
    """The one input, the images; refused where there are others."""
    named = {tensor.name for tensor in model.graph.initializer}
    inputs = [item for item in model.graph.input if item.name not in named]
    if len(inputs) != 1:
        raise ModelFileError(
            f"expected one input, the images, got {len(inputs)}: "
            f"{', '.join(shown(item.name) for item in inputs[:5])}{OTHER_INPUTS}"
        )
    return inputs


def _agree(sizes: Sequence[int | None], wanted: Sequence[int]) -> bool:
    return all(size in (None, want) for size, want in zip(sizes, wanted, strict=True))


def _looks_last(model: Any, images: Any, spec: InputSpec) -> bool:
    """Whether of sizes that do not tell, the channels are named last, or are put first at once."""
    told = [dim.dim_value > 0 for dim in images.type.tensor_type.shape.dim]
    if told[1]:
        return False
    if told[3] and spec.width != spec.channels:
        return True
    name = images.name
    while len(users := [node for node in model.graph.node if name in node.input]) == 1:
        (node,) = users
        if node.op_type == "Transpose":
            return any(list(item.ints) == [0, 3, 1, 2] for item in node.attribute)
        if node.op_type not in ("Cast", "Identity", "Sub", "Add", "Mul", "Div"):
            break
        name = node.output[0]
    return False


def _size_of(sizes: Sequence[int | None], first: Sequence[int], last: Sequence[int]) -> str:
    """What to declare instead, where the file says it; or that a batch is missing."""
    if len(sizes) == 3 and (_agree(sizes, first) or _agree(sizes, last)):
        axes = "C, H, W" if _agree(sizes, first) else "H, W, C"
        return f": export it with a batch in front, for example images of shape (2, {axes})"
    if len(sizes) != 4 or None in sizes[1:]:
        return ""
    channels, height, width = sizes[1:] if sizes[1] in (1, 3, 4) else (sizes[3], *sizes[1:3])
    if channels not in (1, 2, 3, 4):
        return ""
    size = height if height == width else f"{width}x{height}"
    return f": declare --size {size} --channels {channels}"


def _own_normalisation(graph: Any, name: str, spec: InputSpec) -> list[Fact]:
    """What the first operators do to the pixels, where the declaration does it too."""
    from onnx import numpy_helper

    constants = {t.name: t for t in graph.initializer if math.prod(t.dims) in (1, spec.channels)}
    constants |= {
        node.output[0]: item.t
        for node in graph.node
        for item in node.attribute
        if node.op_type == "Constant" and item.name == "value" and math.prod(item.t.dims) == 1
    }
    found, scale = [], 1.0
    while len(users := [node for node in graph.node if name in node.input]) == 1:
        (node,) = users
        others = [other for other in node.input if other != name]
        if node.op_type in ("Sub", "Add", "Div", "Mul"):
            if len(others) != 1 or others[0] not in constants:
                break
            size = float(np.abs(numpy_helper.to_array(constants[others[0]])).max(initial=0))
            if node.op_type in ("Div", "Mul") and size > 0:
                scale *= size if node.op_type == "Mul" else 1 / size
            found.append(node.op_type)
        elif node.op_type not in ("Identity", "Transpose", "Cast"):
            break
        name = node.output[0]
    if not found:
        return []
    does = f"the network's first operators ({', '.join(found)}) scale its pixels themselves"
    if scale < SMALLEST_SCALE and spec.value_range != "0..255":
        message = (
            f"{does}, as for 0..255, and the declared range is {spec.value_range}: where it was "
            "trained with 0..255, declare that (--pixels 0..255)"
        )
        return [Fact(level="caution", code="scale_of_another_range", message=message)]
    if any(spec.mean) or any(value != 1 for value in spec.std):
        message = (
            f"{does}, and mean and std are declared too: they would be normalised twice; declare "
            "none (without --imagenet) unless it was trained so"
        )
        return [Fact(level="caution", code="normalised_twice", message=message)]
    return []


def _frozen_batch(images: Any) -> int | None:
    size = int(images.type.tensor_type.shape.dim[0].dim_value)
    return size if size > 0 else None


def _turn(model: Any, images: Any, spec: InputSpec) -> None:
    """A Transpose before everything: channels first in, channels last on."""
    from onnx import helper

    inside = images.name
    outside = f"{inside}.channels_first"
    images.name = outside
    dims = images.type.tensor_type.shape.dim
    for dim, size in zip(dims[1:], (spec.channels, spec.height, spec.width), strict=True):
        dim.dim_value = size
    node = helper.make_node("Transpose", [outside], [inside], perm=[0, 2, 3, 1])
    onnx_folding.replace(model.graph.node, [node, *model.graph.node])


def _unroll(model: Any, images: Any, spec: InputSpec) -> None:
    """A Flatten before everything: images in, a row of pixels each on."""
    from onnx import helper

    inside = images.name
    images.name = f"{inside}.images"
    dims = images.type.tensor_type.shape.dim
    del dims[1:]
    for size in (spec.channels, spec.height, spec.width):
        dims.add().dim_value = size
    node = helper.make_node("Flatten", [images.name], [inside], axis=1)
    onnx_folding.replace(model.graph.node, [node, *model.graph.node])


# --- the batch ------------------------------------------------------------------------------------

PROBED = 5  # times the batch: shapes that follow hold the images, those that do not hold the batch


class _Freer:
    """Lets the batch be of any size, where constants of the graph hold it.

    Shapes are inferred for the batch as it was and for a larger one. Where a Reshape no longer
    fits, or another axis grew, its constant held the batch: the axis that begins where the batch
    lies in memory becomes -1. A Squeeze of all axes of size 1 keeps to those that are none of the
    batch's, and a constant row beside the images' own (a class token) is repeated for each image.
    """

    def __init__(self, model: Any, images: Any, spec: InputSpec, batch: int) -> None:
        self.model, self.graph, self.images = model, model.graph, images
        self.sizes = (spec.channels, spec.height, spec.width)
        self.batch = batch
        self.constants = onnx_folding.constants(model.graph)
        self.before: dict[str, tuple[int, ...]] = {}
        self.after: dict[str, tuple[int, ...]] = {}

    def free(self, *, always: bool) -> bool:
        """Mend what holds the batch; whether anything did."""
        mended: set[str] = set()
        if always or any(self._may_hold_one(node) for node in self.graph.node):
            self.before = self.shapes(self.batch)
            found = True
            while found:
                self.after = self.shapes(self.batch * PROBED)
                found = False
                for node in list(self.graph.node):
                    if node.output[0] not in mended and self._mend(node):
                        mended.add(node.output[0])
                        found = True
        self.let_go()
        return bool(mended)

    def let_go(self) -> None:
        """The batch of no size, after shapes were inferred for one."""
        _set_batch(self.images, None)
        del self.graph.value_info[:]

    def _may_hold_one(self, node: Any) -> bool:
        """Whether an operator of a file with a free batch may still hold a batch of one."""
        if node.op_type == "Squeeze":
            return not _has_axes(node)
        if node.op_type == "Reshape" and len(node.input) > 1:
            shape = self.constants.get(node.input[1])
            return shape is not None and shape.size > 0 and int(shape.flatten()[0]) == 1
        return False

    def _mend(self, node: Any) -> bool:
        match node.op_type:
            case "Squeeze":
                return self._squeeze(node)
            case "Reshape":
                return self._reshape(node)
            case "Concat":
                return self._concat(node)
            case _:
                return False

    def _moved(self, name: str) -> int | None:
        """The axis of a value that follows the batch."""
        old, new = self.before.get(name), self.after.get(name)
        if old is None or new is None or len(old) != len(new):
            return None
        return next((i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b), None)

    def _squeeze(self, node: Any) -> bool:
        from onnx import helper

        axis = self._moved(node.input[0])
        if _has_axes(node) or axis is None:
            return False
        gone = [i for i, n in enumerate(self.before[node.input[0]]) if n == 1 and i != axis]
        if any(o.version >= 13 and o.domain in ("", "ai.onnx") for o in self.model.opset_import):
            node.input.append(_fresh(self.graph, "axes", np.array(gone, np.int64)))
        else:
            node.attribute.append(helper.make_attribute("axes", gone))
        return True

    def _reshape(self, node: Any) -> bool:
        if len(node.input) < 2 or node.input[1] not in self.constants:
            return False
        axis, out = self._moved(node.input[0]), self.before.get(node.output[0])
        if axis is None or out is None:
            return False
        place = _axis_of_batch(out, self.before[node.input[0]], axis, self.batch)
        shape = [-1 if i == place else n for i, n in enumerate(out)]
        if self.batch == 1 and len(out) == 1 < out[0]:  # without a batch: a row for each image
            shape = [-1, *out]
        elif place is None or self._moved(node.output[0]) == place:
            return False  # where another axis moves, as of [1, -1], images are joined to one row
        node.input[1] = _fresh(self.graph, "shape", np.array(shape, np.int64))
        return True

    def _concat(self, node: Any) -> bool:
        from onnx import helper

        axis = next((a for n in node.input if (a := self._moved(n)) is not None), None)
        rows = {t.name: tuple(t.dims) for t in self.graph.initializer if t.name in node.input}
        if axis is None or not rows or self.batch != 1:
            return False
        if any(len(dims) <= axis or dims[axis] != 1 for dims in rows.values()):
            return False
        place = next(i for i, other in enumerate(self.graph.node) if other is node)
        made = []
        for name, dims in rows.items():
            at, zero, one, left, right = (
                _fresh(self.graph, "size", np.array(numbers, np.int64))
                for numbers in ([0], [0], [1], [1] * axis, [1] * (len(dims) - axis - 1))
            )
            base = f"{node.output[0]}.{name}"
            made += [
                helper.make_node("Shape", [self.images.name], [f"{base}.shape"]),
                helper.make_node("Slice", [f"{base}.shape", zero, one, at], [f"{base}.batch"]),
                helper.make_node("Concat", [left, f"{base}.batch", right], [f"{base}.to"], axis=0),
                helper.make_node("Expand", [name, f"{base}.to"], [f"{base}.rows"]),
            ]
            for i, other in enumerate(node.input):
                if other == name:
                    node.input[i] = f"{base}.rows"
        onnx_folding.replace(
            self.graph.node, [*self.graph.node[:place], *made, *self.graph.node[place:]]
        )
        return True

    def shapes(self, batch: int) -> dict[str, tuple[int, ...]]:
        """What onnx infers of all values whose sizes are then known, without the weights."""
        import onnx
        from onnx import helper

        _set_batch(self.images, batch)
        small = onnx.ModelProto(ir_version=self.model.ir_version)
        small.opset_import.extend(self.model.opset_import)
        small.graph.name = "shapes"
        small.graph.node.extend(self.graph.node)
        small.graph.input.append(self.images)
        dims = small.graph.input[0].type.tensor_type.shape.dim
        for dim, size in zip(dims[1:], self.sizes, strict=True):
            dim.dim_value = size
        for tensor in self.graph.initializer:
            if math.prod(tensor.dims) <= onnx_weights.SMALL:
                small.graph.initializer.append(tensor)
            else:
                small.graph.input.append(
                    helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
                )
        small.graph.output.extend(
            helper.make_empty_tensor_value_info(item.name) for item in self.graph.output
        )
        inferred = onnx.shape_inference.infer_shapes(small, data_prop=True).graph
        found = {}
        for item in (*inferred.value_info, *inferred.output, *inferred.input):
            kind = item.type.tensor_type
            if kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim):
                found[item.name] = tuple(int(dim.dim_value) for dim in kind.shape.dim)
        return found


def _has_axes(node: Any) -> bool:
    return len(node.input) > 1 or any(item.name == "axes" for item in node.attribute)


def _axis_of_batch(shape: Sequence[int], was: Sequence[int], axis: int, batch: int) -> int | None:
    """The axis of a Reshape's result that holds the batch, by where it lies in memory.

    was: the shape before, whose `axis` was the batch. A batch of one may lie in the axis before its
    place or in the one behind: an axis of its own comes first; where the axes behind it stay or
    are joined, it went into the one before.
    """
    lead = math.prod(was[:axis])
    before, held, exact = 1, [], []
    for i, size in enumerate(shape):
        inside = before <= lead and before * size >= lead * batch
        if inside and lead % before == 0 and (before * size) % (lead * batch) == 0:
            held.append(i)
        if size == batch and lead <= before <= lead * was[axis]:
            exact.append(i)
        before *= size
    if exact or not held:
        return next(iter(exact), None)
    last = held[-1]
    joined = len(shape) - last <= len(was) - axis - 1  # else they were split: heads, of features
    return last - 1 if joined and last - 1 in held else last


def _set_batch(images: Any, size: int | None) -> None:
    dim = images.type.tensor_type.shape.dim[0]
    dim.Clear()
    if size is None:
        dim.dim_param = "batch"
    else:
        dim.dim_value = size


# --- quantised operators --------------------------------------------------------------------------

_OF_MICROSOFT = {
    "QLinearAdd": "Add",
    "QLinearMul": "Mul",
    "QLinearSigmoid": "Sigmoid",
    "QLinearLeakyRelu": "LeakyRelu",
    "QLinearGlobalAveragePool": "GlobalAveragePool",
    "QLinearAveragePool": "AveragePool",
}
DYNAMIC = ("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul")


def _dequantise(model: Any) -> bool:
    """Write quantised operators as dequantise, operate, quantise; whether there are any."""
    nodes: list[Any] = []
    for node in model.graph.node:
        if node.op_type in DYNAMIC:
            raise ModelFileError(
                f"expected a network in float32, got one that is quantised as it runs "
                f"({node.op_type}): its scale is that of the whole batch, so an image's score "
                "would depend on the images beside it; export it in float32, without quantisation"
            )
        match node.op_type:
            case "QLinearConv":
                nodes += _written_out(node, "Conv", places=(0, 3), result=6, bias=8)
            case "QLinearMatMul":
                nodes += _written_out(node, "MatMul", places=(0, 3), result=6)
            case "QGemm":
                nodes += _written_out(node, "Gemm", places=(0, 3), result=7, bias=6)
            case "QLinearConcat":
                places = tuple(range(2, len(node.input), 3))
                nodes += _written_out(node, "Concat", places=places, result=0)
            case operator if operator in _OF_MICROSOFT:
                two = _OF_MICROSOFT[operator] in ("Add", "Mul")
                places, result = ((0, 3), 6) if two else ((0,), 3)
                nodes += _written_out(node, _OF_MICROSOFT[operator], places=places, result=result)
            case _:
                nodes.append(node)
    found = any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in nodes)
    if found:
        onnx_folding.replace(model.graph.node, nodes)
    return found


def _written_out(
    node: Any, operator: str, *, places: Sequence[int], result: int, bias: int | None = None
) -> list[Any]:
    """Inputs at `places`, each with scale and zero point behind it; those of the result follow."""
    from onnx import TensorProto, helper

    name, ins = node.output[0], list(node.input)
    values = [f"{name}.{place}" for place in places]
    made = []
    for place, value in zip(places, values, strict=True):
        # the second is the weight: of a convolution one scale for each channel that comes out
        axis = 1
        if place == 3:
            turned = any(item.name == "transB" and item.i for item in node.attribute)
            axis = {"Conv": 0, "MatMul": -1, "Gemm": 0 if turned else 1}.get(operator, 1)
        made.append(
            helper.make_node("DequantizeLinear", ins[place : place + 3], [value], axis=axis)
        )
    if bias is not None and len(ins) > bias and ins[bias]:
        values.append(f"{name}.bias")
        made += [
            helper.make_node("Mul", [ins[1], ins[4]], [f"{name}.scale"]),
            helper.make_node("Cast", [ins[bias]], [f"{name}.whole"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{name}.whole", f"{name}.scale"], [values[-1]]),
        ]
    inner = helper.make_node(operator, values, [f"{name}.exact"])
    inner.attribute.extend(item for item in node.attribute if item.name != "channels_last")
    if len(ins) <= result or not ins[result]:  # as QGemm may: the answer stays exact
        inner.output[0] = name
        return [*made, inner]
    scaled = [f"{name}.exact", *ins[result : result + 2]]
    return [*made, inner, helper.make_node("QuantizeLinear", scaled, [name])]


# --- helpers --------------------------------------------------------------------------------------


def _fresh(graph: Any, what: str, value: NDArray[Any]) -> str:
    """A new tensor of the graph, under a name that it does not have yet."""
    from onnx import numpy_helper

    name = f"adap.{what}.{len(graph.initializer)}"
    graph.initializer.append(numpy_helper.from_array(value, name))
    return name
