"""Fitting of a file's tensors to a network's names: one rule for every checkpoint.

A trainer saves its network under a prefix (`module.`, `_orig_mod.`, `net.`), inside a container
(`state_dict`, `model_ema`), beside other things (the weight of a loss), in half precision, and
sometimes twice, raw and averaged. All of this is one idea: in the tree of tensors, flattened to
dotted names, there is a prefix behind which every tensor of the architecture lies, with its shape.
Whatever is decided on the way is said; where several networks fit, none is taken in silence.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from adap.models.errors import ModelFileError
from adap.models.header import InputSpec, shown
from adap.reading import Fact

Shape = tuple[int, ...]

OPTIONAL = ".num_batches_tracked"
"""BatchNorm counts its batches but does not use the count; some exporters leave it out."""

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_WHOLE = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool)
_TEXT = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float64: "float64",
}

# A trainer's words for weights averaged over its steps.
_AVERAGED = re.compile(r"(^|[._])(ema|averaged?|avg|swa|polyak|shadow)(?=[._\d]|$)")
_OF_A_LOSS = re.compile(r"(^|[._])(criterion|criteria|loss|losses|loss_fn|metrics?)(?=[._\d]|$)")
_NORMALISATION = re.compile(r"(^|[._])(mean|std|mu|sigma|new_mean|new_std|pixel_mean|pixel_std)$")
# Tables that libraries once saved and now compute: the network has them already.
_COMPUTED = (".relative_position_index", ".attn_mask", ".position_ids", OPTIONAL)

# What wraps a module puts a name of its own between the module's and those of its parts.
_WRAPPERS = re.compile(
    r"(?:(?<=\.)|^)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|module|_module)\."
)

# What frameworks call the two halves of a classifier, each half with the names of its own.
_PARTS = re.compile(
    r"(?P<before>(?:[^.]+\.)*?)(?P<part>backbone|encoder|head|cls_head|classifier)\.(?P<rest>.+)"
)

# What stands between the parts of a name, elsewhere than in PyTorch.
_SEPARATORS = re.compile(r"/|__")
_OF_AN_OUTPUT = re.compile(r":\d+$")  # TensorFlow's
# torchvision's DenseNets of before 0.3, as their published weights still are.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)")

AMBIGUOUS_SHARE = 0.01
"""Tensors left out that are together larger than this share of the network are a caution."""


@dataclass(frozen=True)
class Weights:
    """All tensors of a file by dotted names, and what else was in it."""

    tensors: Mapping[str, Tensor]
    containers: frozenset[str] = frozenset({""})  # `state_dict.`: of mappings that held tensors
    lists: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)  # of tensors, unnamed
    others: tuple[str, ...] = ()  # values that are no tensors, as they may stand in a message
    renamed: bool = False  # from how they came


@dataclass(frozen=True)
class Fitted:
    """The network's tensors under the architecture's own names, and what was decided."""

    tensors: dict[str, Tensor]
    steps: list[str]
    facts: list[Fact]


def prefixes(names: Iterable[str], expected: Iterable[str]) -> list[str]:
    """What may stand before every expected name, shortest first."""
    anchor = max((name for name in expected if not name.endswith(OPTIONAL)), key=len)
    found = {name.removesuffix(anchor) for name in names if name.endswith(anchor)}
    return sorted((p for p in found if not p or p.endswith(".")), key=lambda p: (len(p), p))


def fit(
    weights: Weights, expected: Mapping[str, Tensor], spec: InputSpec, *, chosen: str | None
) -> Fitted | None:
    """The network's tensors, or None where no prefix fits exactly.

    expected: the architecture's names, with tensors of their shapes and dtypes.
    chosen: the container or prefix that the upload names (`weights`).
    Raises ModelFileError where several different networks fit and nothing says which.
    """
    fitting = [
        prefix
        for prefix in prefixes(weights.tensors, expected)
        if _fits(weights, prefix, expected) and _rest_is_not_of_it(weights, prefix, expected)
    ]
    if not fitting:
        for step, plain in renamed(weights):
            found = fit(replace(plain, renamed=True), expected, spec, chosen=chosen)
            if found is not None:
                return Fitted(found.tensors, [step, *found.steps], found.facts)
        return None
    prefix, facts = _choose(weights, fitting, expected, chosen)
    steps = _origin(weights, prefix)
    tensors, converted = _converted(weights, prefix, expected)
    steps += converted
    facts += _unnamed_averages(weights, prefix, expected)
    left_out, more = _left_out(weights, prefix, expected, fitting, spec)
    return Fitted(tensors, steps + left_out, [*facts, *more])


def renamed(weights: Weights) -> Iterator[tuple[str, Weights]]:
    """The tensors under other names that trainers' own would hide, each with what was removed.

    Names of what wrapped parts of the network (`_orig_mod.`); of the parts that a framework cuts
    every network into, as `backbone.` and `head.` of mmpretrain; or written with `/` or `__` in the
    place of dots. None where two tensors would then share a name, or they were renamed before.
    """
    if weights.renamed:
        return
    wrappers = {m for name in weights.tensors for m in _WRAPPERS.findall(name)}
    plain = _under(weights, lambda name: _WRAPPERS.sub("", name))
    if wrappers and plain is not None:
        yield f"names of wrappers removed: {_listed(sorted(wrappers))}", plain
    cut = {name: _PARTS.fullmatch(name) for name in weights.tensors}
    parts = {found["part"] for found in cut.values() if found}
    plain = _under(weights, lambda name: _PARTS.sub(r"\g<before>\g<rest>", name))
    if len(parts) > 1 and plain is not None:
        yield f"names of parts removed: {_listed(sorted(parts))}", plain
    plain = _under(weights, lambda name: _OF_AN_OUTPUT.sub("", _SEPARATORS.sub(".", name)))
    if plain is not None:
        yield "names written with dots between their parts", plain
    plain = _under(weights, lambda name: _OLD_DENSENET.sub(r"\1", name))
    if plain is not None:
        yield "names of torchvision's older DenseNets made today's", plain


def _under(weights: Weights, name: Callable[[str], str]) -> Weights | None:
    tensors = {name(old): value for old, value in weights.tensors.items()}
    if len(tensors) < len(weights.tensors) or tensors.keys() == weights.tensors.keys():
        return None
    containers = frozenset(name(old) for old in weights.containers)
    return replace(weights, tensors=tensors, containers=containers)


def _fits(weights: Weights, prefix: str, expected: Mapping[str, Tensor]) -> bool:
    """Whether every tensor is there, of its shape and of a kind that can be converted."""
    for name, wanted in expected.items():
        got = weights.tensors.get(prefix + name)
        if got is None:
            if name.endswith(OPTIONAL):
                continue
            return False
        kinds = _FLOATS if wanted.is_floating_point() else _WHOLE
        # a count may be of any kind: whoever halved all halved it too
        if got.shape != wanted.shape or (got.dtype not in kinds and not name.endswith(OPTIONAL)):
            return False
    return True


def _rest_is_not_of_it(weights: Weights, prefix: str, expected: Mapping[str, Tensor]) -> bool:
    """Whether what else lies behind the prefix can be left out: it is no part of the network.

    A layer more inside one of the network's own modules, or a weight of two or more axes beside
    them, is another network, whose answers would silently be others.
    """
    modules = {name.partition(".")[0] for name in expected}
    inner = {c for c in weights.containers if c.startswith(prefix) and c != prefix}
    for name, value in weights.tensors.items():
        rest = name.removeprefix(prefix)
        if not name.startswith(prefix) or rest in expected or rest.endswith(_COMPUTED):
            continue
        if any(name.startswith(container) for container in inner):
            continue  # of another mapping of the file
        if rest.partition(".")[0] in modules:
            return False
        beside = _OF_A_LOSS.search(rest) or _AVERAGED.search(rest) or _NORMALISATION.search(rest)
        if value.ndim >= 2 and not beside:
            return False
    return True


def _choose(
    weights: Weights, fitting: Sequence[str], expected: Mapping[str, Tensor], chosen: str | None
) -> tuple[str, list[Fact]]:
    """One of the prefixes that fit."""
    labels = {prefix: _label(prefix, weights) for prefix in fitting}
    alike = Counter(labels.values())  # of several in one mapping the prefix tells which
    names = {p: name if alike[name] == 1 else p.rstrip(".") for p, name in labels.items()}
    if chosen is not None:
        wanted = chosen.rstrip(".")
        matching = [
            prefix
            for prefix, name in names.items()
            if wanted in (name, prefix.rstrip(".")) or f"{prefix}".startswith(f"{wanted}.")
        ]
        if not matching:
            raise ModelFileError(
                f"expected `weights` to name one of {_listed(names.values())}, got {shown(chosen)}"
            )
        return matching[0], []
    different = _different(weights, fitting, expected)
    if len(different) == 1:
        return different[0], []
    averaged = [prefix for prefix in different if _AVERAGED.search(prefix)]
    if len(averaged) == 1 and len(different) == 2:
        (raw,) = (prefix for prefix in different if prefix not in averaged)
        message = (
            f"the file holds averaged weights ({names[averaged[0]]}) and raw ones ({names[raw]}), "
            f"which differ: the averaged ones were taken; choose with --weights {names[raw]}"
        )
        return averaged[0], [Fact(level="caution", code="averaged_weights", message=message)]
    raise ModelFileError(
        f"expected one set of weights, got {len(different)} that fit and differ: "
        f"{_listed(names[prefix] for prefix in different)}; choose one with --weights (`weights`)"
    )


def _unnamed_averages(weights: Weights, prefix: str, expected: Mapping[str, Tensor]) -> list[Fact]:
    """Averages kept as a list, as torch_ema does: which is whose, only the training code knows."""
    own = [weights.tensors[prefix + name] for name in expected if prefix + name in weights.tensors]
    shapes = Counter(tuple(value.shape) for value in own)
    for name, values in weights.lists.items():
        if not _AVERAGED.search(name) or Counter(tuple(v.shape) for v in values) - shapes:
            continue
        if sum(v.numel() for v in values) * 2 < sum(value.numel() for value in own):
            continue
        message = (
            f"the file holds averaged weights (`{name[:80]}`) as a list without names, beside the "
            f"raw ones ({_label(prefix, weights)}), which were taken: for the averaged ones, copy "
            "them into the network (torch_ema: ema.copy_to(model.parameters())) and save its "
            "state dict again"
        )
        return [Fact(level="caution", code="averaged_weights", message=message)]
    return []


def _label(prefix: str, weights: Weights) -> str:
    """What a user calls these weights: the mapping that holds them, else the prefix."""
    inside = [c for c in weights.containers if c and prefix.startswith(c)]
    return (max(inside, key=len) if inside else prefix).rstrip(".") or "the file itself"


def _different(
    weights: Weights, fitting: Sequence[str], expected: Mapping[str, Tensor]
) -> list[str]:
    """The prefixes without those that hold the same numbers as an earlier one."""
    kept: list[str] = []
    for prefix in fitting:
        if not any(
            all(
                torch.equal(weights.tensors[prefix + name], weights.tensors[other + name])
                for name in expected
                if not name.endswith(OPTIONAL)
            )
            for other in kept
        ):
            kept.append(prefix)
    return kept


def _origin(weights: Weights, prefix: str) -> list[str]:
    steps = []
    container = max((c for c in weights.containers if prefix.startswith(c)), key=len, default="")
    if container:
        steps.append(f"taken from `{container.rstrip('.')}`")
    if prefix != container:
        steps.append(f"prefix `{prefix.removeprefix(container)}` removed")
    return steps


def _converted(
    weights: Weights, prefix: str, expected: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors in the dtypes of the architecture, each with memory of its own."""
    tensors, counts = {}, dict.fromkeys(_TEXT, 0)
    for name, wanted in expected.items():
        got = weights.tensors.get(prefix + name)
        if got is None or (name.endswith(OPTIONAL) and got.is_floating_point()):
            continue
        if got.dtype in counts and wanted.is_floating_point():
            counts[got.dtype] += 1
        tensors[name] = got.to(wanted.dtype).clone().contiguous()
    steps = [f"{_TEXT[kind]} made float32 ({n} tensors)" for kind, n in counts.items() if n]
    return tensors, steps


def _left_out(
    weights: Weights,
    prefix: str,
    expected: Mapping[str, Tensor],
    fitting: Sequence[str],
    spec: InputSpec,
) -> tuple[list[str], list[Fact]]:
    """What of the file is not the network's, by name."""
    steps, facts = [], []
    container = max((c for c in weights.containers if prefix.startswith(c)), key=len, default="")
    rest = {
        name: value
        for name, value in weights.tensors.items()
        if name.startswith(container)
        and not (name.startswith(prefix) and name.removeprefix(prefix) in expected)
        and not any(other != prefix and name.startswith(other) for other in fitting if other)
        and not name.endswith(_COMPUTED)
        and not any(name.startswith(c) for c in weights.containers if len(c) > len(container))
    }
    if rest:
        names = first([name.removeprefix(container) for name in rest])
        steps.append(f"left out, as no part of the network: {names}")
        size = sum(value.numel() for value in rest.values())
        whole = sum(value.numel() for value in expected.values())
        if size > AMBIGUOUS_SHARE * whole:
            message = (
                f"{len(rest)} tensors of {size:,} numbers lie beside the network and were left "
                f"out: {names}; if they belong to it, send the network as ONNX"
            )
            figures = {"tensors": float(len(rest)), "numbers": float(size)}
            facts.append(
                Fact(level="caution", code="tensors_left_out", message=message, figures=figures)
            )
    facts += _own_normalisation(rest, spec)
    if weights.others:
        steps.append(f"not read: {first([name.strip(chr(39)) for name in weights.others])}")
    return steps, facts


def _own_normalisation(rest: Mapping[str, Tensor], spec: InputSpec) -> list[Fact]:
    """Mean and std that the file brings: the declared ones are used, so they must agree."""
    declared = {"mean": spec.mean, "std": spec.std}
    facts = []
    for name, value in rest.items():
        if not _NORMALISATION.search(name) or value.numel() != spec.channels:
            continue
        if not value.is_floating_point():
            continue
        kind = "std" if re.search(r"(std|sigma)$", name) else "mean"
        numbers = [round(float(number), 4) for number in value.flatten()]
        agrees = torch.allclose(value.flatten().float(), torch.tensor(declared[kind]), atol=1e-3)
        text = ", ".join(f"{number:g}" for number in numbers)
        facts.append(
            Fact(
                level="info" if agrees else "caution",
                code="own_normalisation",
                message=f"the file holds a {kind} of its own, `{name}` = {text}, and "
                + (
                    "so it was declared"
                    if agrees
                    else f"the declared one is {', '.join(f'{n:g}' for n in declared[kind])}, "
                    "which was used: declare the file's where the network was trained with it"
                ),
            )
        )
    return facts


def first(names: Sequence[str], *, count: int = 5) -> str:
    """The first few names of many, for a message."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(f"`{name[:80]}`" for name in names[:count]) + more


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name[:80]}`" for name in names)
