"""Why the tensors of a file are not a network's: what they are, and one sentence to follow.

Nothing here decides anything: no exact fit was found, and this says why. The names of layers tell
most: which library wrote them, which part was replaced, which architecture they do belong to.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from adap.models.catalogue import ARCHITECTURES
from adap.models.fitting import OPTIONAL, Weights, first, prefixes
from adap.models.formats import JOIN_SHARDS
from adap.models.guessing import Guess, difference
from adap.models.header import Declaration

AS_ONNX = (
    "torch.onnx.export(model.eval(), (images,), 'model.onnx', dynamo=True, external_data=False, "
    "dynamic_shapes=({0: torch.export.Dim('batch')},)) with 2 images, and --architecture onnx"
)


@dataclass(frozen=True)
class _Writer:
    """A library or a technique, by names that only it writes."""

    names: re.Pattern[str]
    what: str
    do: str


_AUXILIARY = re.compile(r"aux\d*$|AuxLogits$")

_WRITERS = (
    _Writer(
        re.compile(r"(^|\.)lora_(A|B|embedding_A|down|up)\."),
        "LoRA adapters, which are no network without the one that they change",
        "merge them first, model = model.merge_and_unload(), and send that network as ONNX: "
        + AS_ONNX,
    ),
    _Writer(
        re.compile(
            r"^((unet|vae|model\.diffusion_model|first_stage_model)\.)?(down_blocks|up_blocks|"
            r"mid_block|time_embedding|(encoder|decoder)\.(down|up|mid)(_blocks?)?)\."
        ),
        "part of an image generator (diffusers), which gives images no score",
        "send a classifier of images",
    ),
    _Writer(
        re.compile(
            r"^(\w+\.)?(embeddings\.(cls_token|patch_embeddings|position_embeddings|norm)|"
            r"encoder\.layers?\.\d+\.(attention\.attention|layernorm_before|attention\.output|"
            r"self_attn|blocks\.\d+)|encoder\.stages\.\d+\.layers\.|embedder\.|"
            r"(vit|deit|beit|swinv?2?|dinov2(_with_registers)?|convnext(v2)?|mobilevit(v2)?|segformer|"
            r"poolformer|levit|cvt|regnet|resnet|efficientnet|mobilenet_v[12]|data2vec_vision|pvt|"
            r"focalnet|hiera|vision_model|siglip|ijepa|swiftformer|textnet)\."
            r"(embed\w*|encoder|stages|layers?|conv_stem)\.|transformer\.h\.\d+\.attn\.c_attn\.)"
        ),
        "weights as the library transformers names them; timm and torchvision name the same "
        "network otherwise",
        "send the network as ONNX: class Logits(torch.nn.Module) with forward = lambda self, x: "
        "self.model(pixel_values=x).logits, then " + AS_ONNX,
    ),
    _Writer(
        re.compile(r"^(visual\.(conv1|transformer|trunk)|text_projection|logit_scale$)"),
        "a model of images and texts (CLIP), which gives no logits of classes by itself",
        "build the classifier (its image encoder, then a linear layer of text embeddings) and send "
        "that as ONNX: " + AS_ONNX,
    ),
    _Writer(
        re.compile(
            r"\.(_packed_params|weight_scale|qweight|qzeros|SCB)(\.|$)|"
            r"(^|\.)(activation_post_process|fake_quant)"
        ),
        "a quantised network",
        "send it in float32, as it was before it was quantised",
    ),
    _Writer(
        re.compile(r"(^|[./])((depthwise_|pointwise_)?kernel|moving_(mean|variance))(:0)?$"),
        "weights as TensorFlow, Keras and Flax name them, whose axes are in another order",
        "send the network as ONNX: python -m tf2onnx.convert --saved-model FOLDER --output "
        "model.onnx, or in Keras 3 model.export('model.onnx', format='onnx')",
    ),
    _Writer(
        re.compile(r"\.(weight|bias)_mask$"),
        "a pruned network, whose masks lie beside its weights",
        "make the pruning permanent, torch.nn.utils.prune.remove(layer, 'weight') for each layer, "
        "and save its state dict again",
    ),
    _Writer(
        re.compile(r"\.parametrizations\."),
        "a network with reparametrised weights (weight or spectral norm)",
        "take that off, torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') for "
        "each layer that has it, and save its state dict again",
    ),
    _Writer(
        re.compile(r"\.weight_(u|orig)$"),
        "a network under spectral norm",
        "take that off, torch.nn.utils.remove_spectral_norm(layer) for each layer that has it, and "
        "save its state dict again",
    ),
    _Writer(
        re.compile(r"\.weight_g$"),
        "a network under weight norm",
        "take that off, torch.nn.utils.remove_weight_norm(layer) for each layer that has it, and "
        "save its state dict again",
    ),
    _Writer(
        re.compile(r"^(model\.)?(model\.)?\d+\.(m\.\d+\.)?(cv\d|conv|bn|m)\."),
        "a network of Ultralytics (YOLO)",
        "export it there, model.export(format='onnx', dynamic=True), and send it with "
        "--architecture onnx",
    ),
)


SAVE_WEIGHTS = "safetensors.torch.save_file(model.state_dict(), 'model.safetensors') writes them"


def _kinds(weights: Weights, expected: Mapping[str, Tensor]) -> str | None:
    """Where the weights are there, but some are no floating-point numbers."""
    odd = [
        name
        for name, tensor in expected.items()
        if tensor.is_floating_point()
        and (found := weights.tensors.get(name)) is not None
        and not found.is_floating_point()
    ]
    if not odd:
        return None
    kind = str(weights.tensors[odd[0]].dtype).removeprefix("torch.")
    return (
        f"{kind} where floating-point numbers were expected, in {len(odd)} tensors "
        f"({first(odd, count=3)}): send the network in float32, as it was before it was quantised "
        "or cast"
    )


def explain(
    weights: Weights,
    expected: Mapping[str, Tensor] | None,
    declared: Declaration,
    guesses: Sequence[Guess],
) -> str:
    """One diagnosis, and what to do.

    expected: the tensors of the declared architecture; None where none was declared.
    guesses: the architectures that the tensors do belong to, as `adap.models.guessing` finds them.
    """
    asked = declared.architecture
    wanted = (
        f"the tensors of {asked}"
        if asked
        else "tensors of a known architecture, as none was declared"
    )
    told = None if weights.tensors else f"a file without any: {SAVE_WEIGHTS}"
    if told is None and expected is not None:
        told = _kinds(weights, expected) or _counts(weights, expected, declared)
    if told is None and guesses:
        told = _by_guess(guesses[0], declared)
    if told is None:
        told = _by_writer(weights)
    if told is None and expected is not None:
        told = _by_layers(weights, expected)
    if told is None:
        told = (
            f"{len(weights.tensors)} tensors of another network ({_some(weights.tensors)}): send "
            f"the network as ONNX: {AS_ONNX}"
        )
    return f"expected {wanted}, got {told}"


def _counts(weights: Weights, expected: Mapping[str, Tensor], declared: Declaration) -> str | None:
    """Where all names are there, and only the counts of outputs or channels are others."""
    for prefix in prefixes(weights.tensors, expected):
        if any(
            prefix + name not in weights.tensors for name in expected if not name.endswith(OPTIONAL)
        ):
            continue
        found = difference(weights, prefix, expected, declared)
        if not found.fits or (found.outputs is None and found.channels is None):
            continue
        return _of_other_counts(found.outputs, found.channels, declared)
    return None


def _of_other_counts(outputs: int | None, channels: int | None, declared: Declaration) -> str:
    parts = []
    if outputs is not None:
        count = declared.output.count
        declaration = "one logit" if count == 1 else f"{count} classes"
        parts.append(
            f"a network that answers with {outputs} logits where {declaration} "
            f"{'is' if count == 1 else 'are'} declared: "
            + (
                "declare no classes (--classes) for one logit"
                if outputs == 1
                else f"name its {outputs} classes in the order of its outputs (--classes, `output`)"
            )
        )
    if channels is not None:
        parts.append(
            f"a network for images of {channels} channel{'s' if channels > 1 else ''} where "
            f"{declared.input.channels} {'is' if declared.input.channels == 1 else 'are'} "
            "declared: "
            f"declare `channels` {channels} (--channels {channels})"
        )
        library, _, name = (declared.architecture or "").partition("/")
        if library == "torchvision":  # whose networks take three
            parts[-1] += (
                f" with --architecture {name}"
                if name in ARCHITECTURES
                else f", and send it as ONNX: {AS_ONNX}"
            )
    return "; and ".join(parts)


def _by_guess(guess: Guess, declared: Declaration) -> str:
    more = _of_other_counts(guess.outputs, guess.channels, declared)
    if declared.architecture is None:
        return f"those of {guess.architecture}, but " + (
            more
            or "some of another kind of numbers, or others beside them: send it with "
            f"--architecture {guess.architecture} to be told which"
        )
    return f"those of {guess.architecture}: send it with --architecture {guess.architecture}" + (
        f"; they are {more}" if more else ""
    )


def _by_writer(weights: Weights) -> str | None:
    """A library or technique that a good part of the names, or names of its own alone, tell of."""
    names = list(weights.tensors)
    inner = [_inside(name, weights) for name in names]
    for writer in _WRITERS:
        found = [name for name in inner if writer.names.search(name)]
        if found:
            return f"{writer.what} ({first(found, count=2)}): {writer.do}"
    return None


def _inside(name: str, weights: Weights) -> str:
    container = max((c for c in weights.containers if name.startswith(c)), key=len, default="")
    return name.removeprefix(container).removeprefix("module.")


def _by_layers(weights: Weights, expected: Mapping[str, Tensor]) -> str | None:
    """What part of the architecture is another one in the file."""
    needed = [name for name in expected if not name.endswith(OPTIONAL)]
    best = max(
        _all_prefixes(weights),
        key=lambda p: sum(p + name in weights.tensors for name in needed),
        default="",
    )
    missing = [name for name in needed if best + name not in weights.tensors]
    more = [
        name.removeprefix(best)
        for name in weights.tensors
        if name.startswith(best)
        and name.removeprefix(best) not in expected
        and not name.endswith(OPTIONAL)
    ]
    there = len(needed) - len(missing)
    if (elsewhere := _elsewhere(weights, expected, best, missing)) and there:
        renamed = "; ".join(f"state['{new}'] = state.pop('{old}')" for new, old in elsewhere)
        return (
            f"a network whose last layer lies elsewhere ({first([old for _, old in elsewhere])}): "
            "if nothing but dropout is before it, and nothing but a softmax or sigmoid behind it, "
            f"save its weights with that layer renamed, {renamed}; else send the whole network as "
            f"ONNX: {AS_ONNX}"
        )
    parts = {name.partition(".")[0] for name in missing}
    if missing and all(_AUXILIARY.match(part) for part in parts):
        return (
            f"a network without its auxiliary heads, {', '.join(sorted(parts))}, which serve its "
            f"training alone: send the whole network as ONNX: {AS_ONNX}"
        )
    if there and len(parts) > 1 and not _others(weights, expected, best):
        return (
            f"{there} of its {len(needed)} tensors and no others, as in one of several shards "
            f"(model-00001-of-00002.safetensors): {JOIN_SHARDS}"
        )
    if there * 2 < len(needed):
        return None
    tops = sorted({name.partition(".")[0] for name in missing})
    if missing and more and {name.partition(".")[0] for name in more} <= set(tops):
        part = "last layer" if missing[-1] == needed[-1] else "part"
        return (
            f"a network whose {part} {', '.join(f'`{top}`' for top in tops)} is another one "
            f"({first(more, count=4)}): send the whole network as ONNX: {AS_ONNX}"
        )
    if missing:
        return (
            f"a network without {first(missing, count=2)}"
            + (f", with {first(more, count=2)} instead" if more else "")
            + f": send the whole network as ONNX: {AS_ONNX}"
        )
    if more:
        return (
            f"a network with more layers ({first(more, count=3)}), which would be left out: send "
            f"the whole network as ONNX: {AS_ONNX}; or remove them where they are no part of it"
        )
    wrong = [name for name in needed if weights.tensors[best + name].shape != expected[name].shape]
    if wrong:
        name = wrong[0]
        return (
            f"a network of other sizes: {len(wrong)} of {len(needed)} tensors, the first `{name}` "
            f"{list(weights.tensors[best + name].shape)} where {list(expected[name].shape)} was "
            f"expected; name the architecture that it is, or send it as ONNX: {AS_ONNX}"
        )
    kinds = sorted({str(weights.tensors[best + name].dtype) for name in needed})
    return f"tensors of {', '.join(kinds)}: send them in float32, model.float()"


def _elsewhere(
    weights: Weights, expected: Mapping[str, Tensor], prefix: str, missing: Sequence[str]
) -> list[tuple[str, str]]:
    """Where all that is missing is one layer, and one layer of its shapes is too many."""
    layers = {name.rpartition(".")[0] for name in missing}
    known = {prefix + name for name in expected}
    more: dict[str, list[str]] = {}
    for name in weights.tensors.keys() - known:
        more.setdefault(name.rpartition(".")[0], []).append(name)
    if len(layers) != 1 or len(missing) > 2:
        return []
    found = []
    for layer, names in sorted(more.items()):
        pairs = [(name, f"{layer}.{name.rpartition('.')[2]}") for name in missing]
        if sorted(old for _, old in pairs) == sorted(names) and all(
            weights.tensors[old].shape == expected[new].shape for new, old in pairs
        ):
            found.append([(prefix + new, old) for new, old in pairs])
    return found[0] if len(found) == 1 and len(more) == 1 else []


def _others(weights: Weights, expected: Mapping[str, Tensor], prefix: str) -> bool:
    """Whether there are tensors that are none of the architecture's, of its shapes."""
    return any(
        (wanted := expected.get(name.removeprefix(prefix))) is None or wanted.shape != value.shape
        for name, value in weights.tensors.items()
        if not name.endswith(OPTIONAL)
    )


def _all_prefixes(weights: Weights) -> set[str]:
    found = {""}
    for name in weights.tensors:
        parts = name.split(".")
        found.update(".".join(parts[:count]) + "." for count in range(1, min(len(parts), 5)))
    return found


def _some(names: Mapping[str, Tensor]) -> str:
    return first([name for name in names if not name.endswith(OPTIONAL)], count=3)
