"""A user's model as audits and attacks see it: pixels in [0, 1] to one score an image.

Any `nn.Module`, or any function of images that gives no gradients. What it answers is found out on
a few images, and what was decided is kept as sentences for the reader of the report.
"""

import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from adap.core.attacks.holding import in_eval_mode, mode_outside
from adap.core.errors import AdapError, ConfigError, ModelError
from adap.core.library.detectors import Detector

Outputs = Literal["auto", "logits", "probabilities", "multilabel"]
Model = nn.Module | Callable[[Any], Any]

# Probabilities are held to these before the logarithm, as everywhere in the house: the smallest
# normal float32, and the largest float32 below 1.
SMALLEST_PROBABILITY = 2.0**-126
LARGEST_PROBABILITY = 1 - 2.0**-24
TRIED = 16  # images on which it is found out what a model answers


FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
"""What a model raises on images that it is not made for."""


@dataclass(frozen=True)
class Answers:
    """What a model answers for an image, and which of it is the score.

    count: outputs an image.  positive: the columns of the positive side, rising.
    """

    count: int
    positive: tuple[int, ...]
    probabilities: bool
    one_is_true: bool


class Function(nn.Module):
    """A function of images without gradients, in the shape of a network.

    It is handed float32 pixels in [0, 1], (B, C, H, W), as a NumPy array or a CPU tensor.
    """

    def __init__(self, function: Callable[[Any], Any], *, arrays: bool) -> None:
        super().__init__()
        self.function = function
        self.arrays = arrays

    def forward(self, images: Tensor) -> Tensor:
        """What the function answers, as a tensor beside the images, detached."""
        given = images.detach().cpu().clone()  # a stranger may write into what it is given
        answer = self.function(given.numpy() if self.arrays else given)
        return as_tensor(answer).detach().to(images.device)


class Ranker(nn.Module):
    """(B, C, H, W) floats in [0, 1] to (B,) scores, higher for the positive side.

    The same operations, in the same order, as the service's scorer: equal bits for equal networks.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        *,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.network = network
        self.answers: Answers | None = None  # until they are read
        self.writes = False  # whether the network writes into the images it is given
        for name, values in (("mean", mean), ("std", std)):
            numbers = None if values is None else [float(value) for value in values]
            column = None if numbers is None else torch.tensor(numbers, dtype=torch.float32)
            buffer = None if column is None else column.view(1, -1, 1, 1).to(device)
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B,) scores."""
        answers = self.answers
        assert answers is not None
        raw = self.raw(images)
        flat = [(len(images),), ()[: len(images)]] if answers.count == 1 else []
        if raw.shape not in ((len(images), answers.count), *flat):
            raise ModelError(
                f"expected {(len(images), answers.count)} outputs, as on the first images, "
                f"got {tuple(raw.shape)}"
            )
        outputs = raw.reshape(len(images), answers.count)
        if answers.probabilities:
            held = outputs.clamp(SMALLEST_PROBABILITY, LARGEST_PROBABILITY)
            outputs = held.log() - (-held).log1p() if answers.count == 1 else held.log()
        if answers.count == 1:
            return outputs.reshape(len(images))
        ours = list(answers.positive)
        score = outputs[:, ours].logsumexp(dim=1)  # of one class: its logit, bit for bit
        if answers.one_is_true:
            theirs = [i for i in range(answers.count) if i not in ours]
            score = score - outputs[:, theirs].logsumexp(dim=1)
        return score

    def raw(self, images: Tensor) -> Tensor:
        """What the model itself answers; in its own dtype, half precision as float32."""
        dtype = next((p.dtype for p in self.network.parameters() if p.is_floating_point()), None)
        if self.mean is not None and self.std is not None:
            images = (images - self.mean) / self.std
        if dtype is not None and dtype != images.dtype:
            images = images.to(dtype)
        try:
            answer = self.network(images.clone() if self.writes else images)
        except torch.OutOfMemoryError:
            raise
        except FAILURES as error:
            raise ModelError(
                f"expected a model that runs on images {tuple(images.shape)}, "
                f"got {type(error).__name__}: {str(error)[:300]}"
            ) from error
        if not isinstance(answer, Tensor):
            raise ModelError(
                f"expected a tensor of scores, got {type(answer).__name__}: wrap the model so that "
                "it returns its logits alone"
            )
        return answer.float() if answer.dtype in (torch.float16, torch.bfloat16) else answer


@dataclass(frozen=True)
class Ready:
    """A model made ready: its scorer, where it runs, and what was decided on the way."""

    scorer: Ranker
    device: torch.device
    gradients: bool
    name: str
    decided: list[str] = field(default_factory=list)


@contextmanager
def ready(
    model: Model,
    sample: NDArray[Any],
    *,
    outputs: Outputs = "auto",
    positive: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: str | torch.device | None = None,
    refuse_train_mode: bool = False,
) -> Iterator[Ready]:
    """The scorer of a model, for as long as the block lasts; then the model is where it was.

    sample: (n, C, H, W) pixels in [0, 1], float32, n >= 1.  positive: columns of K outputs.
    device: where to run it; by default where its parameters are.

    Raises ModelError for what is no model, does not run on such images, or answers what cannot be
    ranked; ConfigError for options that do not fit it.
    """
    if not isinstance(model, nn.Module) and (isinstance(model, type) or not callable(model)):
        raise ModelError(
            "expected an nn.Module, or a function from images (B, C, H, W) to scores, "
            f"got {_kind(model)}"
        )
    mean, std = _listed(mean), _listed(std)
    _refuse_options(outputs, mean, std, channels=sample.shape[1])
    decided: list[str] = []
    if isinstance(model, nn.Module):
        gradients, network = True, model
        name = type(model).__name__
        if isinstance(model, Detector):
            name = type(model.model).__name__
            decided += model.decided()
    else:
        gradients = False
        network = Function(model, arrays=_takes_arrays(model, sample, decided))
        name = getattr(model, "__qualname__", type(model).__name__)
    there = _device_of(network)
    here = there if device is None else device_of(device)
    moved = here != there and any(True for _ in _tensors(network))
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():  # in which no attack has a gradient
            stack.enter_context(torch.inference_mode(mode=False))
        if moved:
            stack.callback(network.to, there)
            network.to(here)
        scorer = Ranker(network, mean=mean, std=std, device=here)
        x = torch.from_numpy(sample[:TRIED]).to(here)
        _read_answers(scorer, x, outputs=outputs, positive=positive, decided=decided)
        if refuse_train_mode and gradients:
            _refuse_train_mode(scorer, x)
        yield Ready(scorer, here, gradients, name, decided)


@contextmanager
def kept_modes(network: nn.Module) -> Iterator[None]:
    """Each module is afterwards in the mode, train or eval, that it was in."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def as_tensor(answer: Any) -> Tensor:
    """Scores as a tensor. Raises ModelError for what holds no numbers."""
    if isinstance(answer, Tensor):
        return answer if answer.is_floating_point() else answer.double()
    try:
        array = np.asarray(answer)
        if array.dtype != np.float32:
            array = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ModelError(f"expected numbers as scores, got {_kind(answer)}") from error
    return torch.from_numpy(np.ascontiguousarray(array))


def _takes_arrays(function: Callable[[Any], Any], sample: NDArray[Any], decided: list[str]) -> bool:
    """Whether it is to be given NumPy arrays: if not it is given tensors, where it takes those."""
    part, refusals = sample[:TRIED], []
    for arrays in (True, False):
        try:
            as_tensor(function(part.copy() if arrays else torch.from_numpy(part.copy())))
        except AdapError:  # of a function of ours, in words of its own
            raise
        except Exception as error:  # noqa: BLE001 - whatever a stranger's function raises
            refusals.append(f"{type(error).__name__}: {str(error)[:200]}")
        else:
            what = "NumPy arrays" if arrays else "CPU tensors, as it takes no NumPy arrays"
            decided.append(f"The function is given {what}, (B, C, H, W) float32 in [0, 1].")
            return arrays
    raise ModelError(
        f"expected a function from images {(len(part), *part.shape[1:])} to scores; given an "
        f"array it raised {refusals[0]}; given a tensor {refusals[1]}"
    )


def _read_answers(
    scorer: Ranker,
    x: Tensor,
    *,
    outputs: Outputs,
    positive: Sequence[int] | None,
    decided: list[str],
) -> None:
    """Find out what the model answers, and make that the scorer's."""
    given = x.clone()
    before = given._version
    try:
        with in_eval_mode(scorer), torch.no_grad():
            raw = scorer.raw(given)
    except NotImplementedError as error:
        raise ModelError(
            f"expected an nn.Module that can be set to eval mode, got one that cannot ({error})"
            ": give the module that it was exported from, or a function that calls it"
        ) from error
    scorer.writes = given._version > before  # which the next pass would see, and a leaf refuses
    if raw.ndim == 0 and len(x) == 1:
        raw = raw[None]
    if raw.shape[:1] != x.shape[:1] or raw.ndim > 2 or raw.numel() == 0:
        raise ModelError(
            f"expected one score an image, ({len(x)},) or ({len(x)}, 1), or one a class, "
            f"({len(x)}, K), got {tuple(raw.shape)}"
        )
    broken = int((~raw.isfinite()).reshape(len(x), -1).any(dim=1).sum())
    if broken:
        raise ModelError(
            f"expected finite scores, got NaN or infinity on {broken} of {len(x)} images"
        )
    count = 1 if raw.ndim == 1 else raw.shape[1]
    probabilities = _are_probabilities(scorer.network, raw, count, outputs, decided)
    if count == 1 and len(x) >= 4 and len(set(raw.flatten().tolist())) == 2:
        decided.append(
            f"The first {len(x)} images get two different scores only, as decisions do: images of "
            "one decision tie, and ties are ranked at their worst. Give the scores behind them."
        )
    scorer.answers = Answers(
        count=count,
        positive=_columns(count, positive, outputs, decided),
        probabilities=probabilities,
        one_is_true=count > 1 and outputs != "multilabel",
    )


def _are_probabilities(
    network: nn.Module, raw: Tensor, count: int, outputs: Outputs, decided: list[str]
) -> bool:
    within = bool(((raw >= -1e-6) & (raw <= 1 + 1e-6)).all())
    adds_up = count > 1 and within and bool(((raw.sum(dim=1) - 1).abs() < 1e-3).all())
    if outputs == "probabilities":
        if not within or (count > 1 and not adds_up):
            raise ModelError(
                "expected probabilities from 0 to 1"
                f"{'' if count == 1 else ' that add up to 1'}, got outputs from "
                f"{float(raw.min()):g} to {float(raw.max()):g}"
            )
        return True
    if outputs != "auto":
        return False
    if count > 1 and within and not adds_up:
        raise ConfigError(
            f"expected outputs=, as all {count} outputs lie in [0, 1] and do not add up to 1: "
            "'multilabel' ranks by the output of the class alone (as of sigmoids), 'logits' by its "
            "odds after a softmax; got 'auto'"
        )
    layers = list(network.modules())
    if adds_up or (count == 1 and within and isinstance(layers[-1], nn.Sigmoid)):
        decided.append(
            "The outputs are read as probabilities"
            f"{' (each row adds up to 1)' if adds_up else ' (the last layer is a sigmoid)'}; "
            "outputs='logits' says otherwise. Their images tie where float32 rounds to 1: prefer "
            "the model without that last step."
        )
        return True
    if count == 1 and within:
        decided.append(
            "The scores all lie in [0, 1] and are ranked as they are; outputs='probabilities' "
            "takes their log-odds, with the same ranking and steeper gradients for the attacks."
        )
    return False


def _columns(
    count: int, positive: Sequence[int] | None, outputs: Outputs, decided: list[str]
) -> tuple[int, ...]:
    if count == 1:
        return (0,)
    if positive is None:
        if count > 2:
            raise ConfigError(
                f"expected positive=, the class to rank first, as the model has {count} outputs; "
                "got none"
            )
        decided.append("Of two outputs the second is the positive class; positive=0 is the other.")
        return (1,)
    if not all(isinstance(column, int) for column in positive):
        raise ConfigError(
            f"expected positive= as the number of its column among the {count} outputs, or as a "
            "name with classes=, the names of the outputs in their order (of adap.audit), got "
            f"{list(positive)}"
        )
    columns = tuple(sorted(set(positive)))
    if not all(0 <= column < count for column in columns) or len(columns) in (0, count):
        raise ConfigError(
            f"expected positive classes among the outputs 0 to {count - 1}, and one that is not "
            f"positive, got {list(positive)}"
        )
    if outputs == "multilabel" and len(columns) > 1:
        raise ConfigError(
            "expected one positive class for multilabel outputs, which have no joint score, "
            f"got {list(columns)}"
        )
    return columns


def _listed(values: Any) -> Any:
    """Numbers of channels as a list, also from a tensor of any shape, or from one number."""
    if isinstance(values, Tensor | np.ndarray):
        return values.reshape(-1).tolist()
    one = isinstance(values, int | float) and not isinstance(values, bool)
    return [values] if one else values


def _refuse_options(
    outputs: Outputs,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    *,
    channels: int,
) -> None:
    if outputs not in get_args(Outputs):
        raise ConfigError(f"expected outputs among {', '.join(get_args(Outputs))}, got {outputs!r}")
    if (mean is None) != (std is None):
        raise ConfigError("expected mean and std together, got one of them")
    for name, values in (("mean", mean), ("std", std)):
        if values is None:
            continue
        try:
            numbers = [float(value) for value in values]
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"expected {name} with {channels} numbers, one a channel, got {values!r:.80}"
            ) from error
        good = len(numbers) == channels and all(math.isfinite(number) for number in numbers)
        if not good or (name == "std" and min(numbers) <= 0):
            raise ConfigError(
                f"expected {name} with {channels} finite numbers, one a channel"
                f"{' and above 0' if name == 'std' else ''}, got {numbers}"
            )
        if name == "mean" and not 0 <= min(numbers) <= max(numbers) <= 1:
            raise ConfigError(
                f"expected mean within [0, 1], as the pixels are, got {numbers}: mean and std of "
                "pixels up to 255 are divided by 255"
            )


def _refuse_train_mode(scorer: Ranker, x: Tensor) -> None:
    """Raise ModelError where train mode changes scores: which of the two is meant is not ours.

    A copy is asked, so that no thread that has the model too sees it in another mode.
    """
    modes = [mode_outside(module) for module in scorer.modules()]
    if not any(modes[1:]):  # the first is our own
        return
    try:
        copied = copy.deepcopy(scorer)
    except Exception as error:  # whatever a stranger's module raises
        raise ModelError(
            "expected a model in eval mode, got one in train mode, and one that cannot be copied "
            "to see whether its scores depend on that: call model.eval() first"
        ) from error
    for module, mode in zip(copied.modules(), modes, strict=True):
        module.training = mode
    try:
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices=[x.device] if x.is_cuda else []),
        ):
            buffers = [buffer.clone() for buffer in copied.buffers()]
            found = copied.raw(x)
            for buffer, before in zip(copied.buffers(), buffers, strict=True):
                buffer.copy_(before)
            copied.eval()
            settled, again = copied.raw(x), copied.raw(x)
    except (ModelError, *FAILURES):
        return  # it does not run at all, which is said in other words
    change = by_chance = math.inf
    if found.shape == settled.shape == again.shape:
        change = float((found - settled).abs().max())
        by_chance = float((again - settled).abs().max())
    if by_chance > 0 and change != math.inf:
        return  # it is random in either mode, which no call of eval() ends
    if change > 0:
        raise ModelError(
            "expected a model in eval mode, got one in train mode, whose scores of the same images "
            f"differ by up to {change:.3g} from those in eval mode: call model.eval() first"
        )


def hash_of_network(network: nn.Module) -> str:
    """SHA-256 of its structure, as it prints itself, and of its tensors."""
    digest = hashlib.sha256(str(network).encode())
    for name, value in network.state_dict().items():
        if isinstance(value, torch.Tensor):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()


def _device_of(network: nn.Module) -> torch.device:
    """Where a network is. Raises ModelError for one that is spread over several devices."""
    if any(is_lazy(tensor) for tensor in _tensors(network)):
        raise ModelError(
            "expected a model with weights, got one with lazy layers that have none yet: run it "
            "once on a batch, then train it or load its weights"
        )
    devices = {tensor.device for tensor in _tensors(network)}
    if len(devices) > 1:
        raise ModelError(
            "expected a model on one device, got one on "
            f"{', '.join(sorted(str(device) for device in devices))}"
        )
    if any(tensor.is_inference() for tensor in _tensors(network)):
        raise ModelError(
            "expected weights that were made outside of torch.inference_mode(), got some made in "
            "it, through which no gradient flows"
        )
    where = devices.pop() if devices else torch.device("cpu")
    if where.type == "meta":
        raise ModelError(
            "expected a model with weights, got one on the device meta, which holds none: "
            "model.to_empty(device='cpu'), then load_state_dict"
        )
    return where


def device_of(device: str | torch.device) -> torch.device:
    """A device that computes. Raises ConfigError for any other."""
    try:
        where = torch.device(device)
        torch.ones(1, device=where).item()
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:160]
        raise ConfigError(
            f"expected a device of this machine, such as 'cpu', got {str(device)!r} ({reason})"
        ) from error
    return where


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
