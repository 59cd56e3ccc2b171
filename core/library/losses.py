"""The ten objectives, ready for one's own training loop: they check what a loop hands them.

    loss = adap.AdapLPN(examples=len(train))
    x_adv = adap.training_attack(model, loss, x, targets, index, attack=adap.TrainingAttack())
    loss(model(x), model(x_adv), targets, index).backward()

clean, adv: logits of the clean and of the attacked images, (B,) or (B, 1), or (B, K) where
`classes=K` was given; None for what the objective does not read (`needs_clean`,
`needs_adversarial`). targets: (B,) or (B, K) in {0, 1}. index: (B,) places of the examples in the
training set, 0 to examples - 1. State lives in buffers, so `loss.state_dict()` resumes it.
Logits may be of any float type: float16 and bfloat16, as autocast gives them, count as float32.

For validation call `loss.eval()`, or the loss under `torch.no_grad()`: then no estimator moves.

They are the very objectives of `adap.fit` and of the service; only the checks are added.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from adap.core.config import methods as config
from adap.core.errors import ConfigError, DataError
from adap.core.library.refusals import configured, refuse_unless_whole
from adap.core.objectives.base import Objective
from adap.core.objectives.registry import OBJECTIVES, build_objective

HALF = (torch.float16, torch.bfloat16)


class Loss(Objective):
    """An objective that refuses, by name, what it could not train on.

    Options not listed by a class are refused with ConfigError; so are `examples` below 1, logits of
    the wrong shape or type, logits that are missing and tensors on several devices. DataError:
    targets outside {0, 1}, an index beyond the training set, logits that are not finite, and, where
    the objective is a mean over the positives, a batch without any and an example that is positive
    in one step and negative in another, as happens where a shuffle has not reached `index`.
    """

    method: ClassVar[type[Any]]  # one of `adap.core.config.methods.Method`
    sides: Tensor | None
    """(N,) or (N, K) int8, what each example was so far: 0 not seen, 1 negative, 2 positive."""

    def __init_subclass__(cls) -> None:
        objective = OBJECTIVES[cls.method.model_fields["name"].default]
        cls.needs_clean = objective.needs_clean
        cls.needs_adversarial = objective.needs_adversarial
        cls.inner_needs_clean = objective.inner_needs_clean
        cls.needs_positives = objective.needs_positives

    def __init__(self, *, examples: int, classes: int | None = None, **options: Any) -> None:
        """examples: of the training set.  classes: K for a network with a logit for each of K."""
        super().__init__()
        refuse_unless_whole("examples", examples, least=1)
        if classes is not None:
            refuse_unless_whole("classes", classes, least=1)
        examples = int(examples)
        self.examples, self.classes = examples, classes
        self.options: Any = configured(self.method, options)
        self.objective = build_objective(self.options, examples=examples, classes=classes)
        self.needs_anchor = self.objective.needs_anchor
        shape = (examples,) if classes is None else (examples, classes)
        sides = torch.zeros(shape, dtype=torch.int8) if self.needs_positives else None
        self.register_buffer("sides", sides, persistent=False)

    def inner_loss(
        self, clean: Tensor | None, adv: Tensor, targets: Tensor, index: Tensor
    ) -> Tensor:
        """(B,) or (B, K), whose sum the training attack ascends in `adv`; changes no state.

        clean: logits of the clean images as constants, read where `inner_needs_clean`.
        Raises ConfigError for an objective that trains on clean images only.
        """
        if not self.needs_adversarial:
            raise ConfigError(f"{self._name} trains on clean images only: it has no inner loss")
        wanted = clean if self.inner_needs_clean else None
        if self.inner_needs_clean and clean is None:
            raise ConfigError(f"expected the clean logits, which the attack of {self._name} reads")
        clean, adv, targets = self._checked(wanted, adv, targets, index)
        return self.objective.inner_loss(clean, adv, targets, index)

    def forward(
        self,
        clean: Tensor | None,
        adv: Tensor | None,
        targets: Tensor,
        index: Tensor,
        anchor: Tensor | None = None,
    ) -> Tensor:
        """() what the optimiser descends; estimators are updated, so call it once a step.

        anchor: the clean images' logits by the moving average of the weights, as `adap.fit(ema=)`
        keeps it, for a loss with anchor="ema" and no other.
        In eval mode and without gradients they stay as they are.
        """
        read = []
        for needed, logits, which in (
            (self.needs_clean, clean, "clean"),
            (self.needs_adversarial, adv, "attacked"),
        ):
            if needed and logits is None:
                raise ConfigError(f"expected the logits of the {which} images, got None")
            read.append(logits if needed else None)
        if self.needs_anchor is (anchor is None):
            raise ConfigError(
                f'expected an anchor for a loss with anchor="ema", and for no other, got '
                f"{'none' if anchor is None else 'one'} for {self._name}"
            )
        if anchor is not None:
            _, anchor, _ = self._checked(None, anchor.detach(), targets, index)
        clean, adv, targets = self._checked(read[0], read[1], targets, index)
        if self.commits:
            self._refuse_changed_sides(targets, index)
        value: Tensor = self.objective(clean, adv, targets, index, anchor)
        return value

    def metrics(self) -> dict[str, float]:
        """Figures worth logging beside the loss, for example surrogate_ap."""
        return self.objective.metrics()

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _checked(
        self, clean: Tensor | None, adv: Tensor | None, targets: Tensor, index: Tensor
    ) -> tuple[Any, Any, Tensor]:
        self._refuse_types(clean, adv, targets, index)
        clean, adv = (
            value.float() if value is not None and value.dtype in HALF else value
            for value in (clean, adv)
        )
        given = clean if clean is not None else adv
        assert given is not None
        shape = (len(targets),) if self.classes is None else (len(targets), self.classes)
        targets = self._shaped("targets", targets, shape)
        if not ((targets == 0) | (targets == 1)).all():
            others = targets[(targets != 0) & (targets != 1)]
            raise DataError(f"expected targets in {{0, 1}}, got {others[:3].tolist()}")
        if self.needs_positives and not targets.any():
            raise DataError(
                f"expected at least one positive in the batch, as {self._name} is a mean over "
                f"them, got 0 of {len(targets)}: adap.batches puts some into each"
            )
        if index.shape != shape[:1] or index.dtype not in (torch.int32, torch.int64):
            raise ConfigError(
                f"expected index ({len(targets)},) of int64, the examples' places in the training "
                f"set, got {tuple(index.shape)} of {index.dtype}"
            )
        if int(index.min()) < 0 or int(index.max()) >= self.examples:
            raise DataError(
                f"expected places from 0 to {self.examples - 1} in a training set of "
                f"{self.examples}, got {int(index.min())} to {int(index.max())}"
            )
        logits = [
            None if value is None else self._shaped("logits", value, shape)
            for value in (clean, adv)
        ]
        for value in logits:
            if value is not None and not value.isfinite().all():
                broken = int((~value.isfinite()).sum())
                raise DataError(f"expected finite logits, got {broken} that are NaN or infinite")
        return logits[0], logits[1], targets.to(given.dtype)

    def _refuse_types(self, clean: Any, adv: Any, targets: Any, index: Any) -> None:
        """Raise ConfigError for what is no tensor of its kind, or is on a device of its own."""
        given = {"clean logits": clean, "attacked logits": adv, "targets": targets, "index": index}
        logits = {name: value for name, value in given.items() if name.endswith("logits")}
        for name, value in given.items():
            if not isinstance(value, Tensor) and not (name in logits and value is None):
                raise ConfigError(
                    f"expected {name} as a torch tensor, got {type(value).__name__}"
                    f"{'' if value is None else ': torch.as_tensor makes one'}"
                )
        for name, value in logits.items():
            if value is not None and not value.is_floating_point():
                raise ConfigError(f"expected {name} of a float type, got {value.dtype}")
        if targets.ndim == 0 or len(targets) == 0:
            raise ConfigError(f"expected targets of at least one image, got {tuple(targets.shape)}")
        given["estimators"] = next(self.buffers(), None)
        where = {name: str(value.device) for name, value in given.items() if value is not None}
        if len(set(where.values())) > 1:
            places = ", ".join(f"{name} on {place}" for name, place in where.items())
            raise ConfigError(
                f"expected everything on one device, got {places}: .to(device) moves tensors, and "
                "the loss with its estimators"
            )

    def _refuse_changed_sides(self, targets: Tensor, index: Tensor) -> None:
        """Raise DataError for an example that was on the other side before; else note its side."""
        if self.sides is None:
            return
        before, now = self.sides[index], (targets + 1).to(torch.int8)
        self.sides[index] = now
        changed = ((before != 0) & (before != now)) | (self.sides[index] != now)
        if changed.any():
            self.sides[index] = before
            places = index[changed.reshape(len(index), -1).any(dim=1)]
            raise DataError(
                "expected index to name the same example in every batch, got "
                f"{len(places)} places that are positive in one and negative in another, such as "
                f"{places[:3].tolist()}: index must be the examples' places in the training set, "
                "shuffled as they are (a data set that returns its own index gives them), and "
                "another training set wants a loss of its own"
            )

    def _shaped(self, what: str, values: Tensor, shape: tuple[int, ...]) -> Tensor:
        """(B,) or (B, K); a last axis of one is dropped, and nothing else is guessed."""
        if values.shape == shape:
            return values
        if self.classes is None and values.shape == (*shape, 1):
            return values[:, 0]
        more = ""
        if self.classes is None:
            more = f" or {(*shape, 1)}"
            if values.ndim == 2 and what == "logits":
                more += f"; a logit for each of K classes needs {self._name}(classes=K)"
        raise ConfigError(f"expected {what} {shape}{more}; got {tuple(values.shape)}")


class CE(Loss):
    """Cross-entropy on clean images: no defence at all. No options.

    loss(clean, adv, targets, index), each (B,), gives (). Raises ConfigError for options, shapes
    and types that do not fit, DataError for values. Source: `docs/methods.md`.

    >>> loss = adap.CE(examples=4)
    >>> round(float(loss(torch.zeros(2), None, torch.tensor([1.0, 0.0]), torch.arange(2))), 4)
    0.6931
    """

    method = config.CEMethod


class AP(Loss):
    """The AP surrogate on clean images (SOAP), eq. (1). Options: margin, gamma1, first_visit.

    loss(clean, adv, targets, index), each (B,), gives (). Raises ConfigError for options, shapes
    and types that do not fit, DataError for values. Source: `docs/methods.md`.

    >>> adap.AP(examples=4, margin=0.8).needs_adversarial
    False
    """

    method = config.APMethod


class PGDTraining(Loss):
    """Cross-entropy on attacked images (Madry et al. 2018), eq. (4). No options.

    loss(clean, adv, targets, index), each (B,), gives (). Raises ConfigError for options, shapes
    and types that do not fit, DataError for values. Source: `docs/methods.md`.

    >>> adap.PGDTraining(examples=4).needs_clean
    False
    """

    method = config.PGDMethod


class TRADES(Loss):
    """Cross-entropy plus lambda_ times a KL term (Zhang et al. 2019), eq. (5). Option: lambda_.

    loss(clean, adv, targets, index), each (B,), gives (). Raises ConfigError for options, shapes
    and types that do not fit, DataError for values. Source: `docs/methods.md`.

    >>> adap.TRADES(examples=4, lambda_=6.0).options.lambda_
    6.0
    """

    method = config.TRADESMethod


class MART(Loss):
    """Cross-entropy on attacked images plus a weighted KL (Wang et al. 2020). Option: lambda_.

    loss(clean, adv, targets, index), each (B,), gives (). Raises ConfigError for options, shapes
    and types that do not fit, DataError for values. Source: `docs/methods.md`.

    >>> adap.MART(examples=4).needs_clean
    True
    """

    method = config.MARTMethod


class AdapMM(Loss):
    """The AP surrogate on attacked images, eq. (6). Options: margin, gamma1, first_visit.

    loss(clean, adv, targets, index), each (B,), gives (). Raises ConfigError for options, shapes
    and types that do not fit, DataError for values. Source: `docs/methods.md`.

    >>> adap.AdapMM(examples=4).needs_positives
    True
    """

    method = config.AdapMMMethod


class AdapPZ(Loss):
    """AP surrogate plus a pointwise term, as a zero-sum game, eq. (7).

    Options: margin, gamma1, lambda_, first_visit.

    loss(clean, adv, targets, index), each (B,), gives (). Raises ConfigError for options, shapes
    and types that do not fit, DataError for values. Source: `docs/methods.md`.

    >>> adap.AdapPZ(examples=4).inner_needs_clean
    True
    """

    method = config.AdapPZMethod


class AdapLZ(Loss):
    """AP surrogate plus the listwise term, as a zero-sum game, eq. (18).

    Options: margin, gamma1, gamma2, lambda_, first_visit.

    loss(clean, adv, targets, index), each (B,), gives (). Raises ConfigError for options, shapes
    and types that do not fit, DataError for values. Source: `docs/methods.md`.

    >>> adap.AdapLZ(examples=4).inner_needs_clean
    True
    """

    method = config.AdapLZMethod


class AdapLN(Loss):
    """AP surrogate plus the listwise term, with a pointwise attacker, eq. (9).

    Options: margin, gamma1, gamma2, lambda_, first_visit, anchor.

    loss(clean, adv, targets, index), each (B,), gives (). Raises ConfigError for options, shapes
    and types that do not fit, DataError for values. Source: `docs/methods.md`.

    >>> sorted(adap.AdapLN(examples=4).state_dict())
    ['objective.ap.u_all', 'objective.ap.u_pos', 'objective.listwise.u']
    """

    method = config.AdapLNMethod


class AdapLPN(Loss):
    """AP surrogate plus listwise and pointwise terms, with a pointwise attacker, eq. (10).

    Options: margin (0.6), gamma1 and gamma2 (0.9), lambda_ (1), first_visit ('published'),
    anchor ('own').

    loss(clean, adv, targets, index), each (B,), gives (). Raises ConfigError for options, shapes
    and types that do not fit, DataError for values. Source: `docs/methods.md`.

    >>> loss = adap.AdapLPN(examples=4)
    >>> clean, adv = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 0.5])
    >>> loss(clean, adv, torch.tensor([1.0, 0.0]), torch.tensor([0, 3])).shape
    torch.Size([])
    """

    method = config.AdapLPNMethod


LOSSES: dict[str, type[Loss]] = {
    loss.method.model_fields["name"].default: loss
    for loss in (CE, AP, PGDTraining, TRADES, MART, AdapMM, AdapPZ, AdapLZ, AdapLN, AdapLPN)
}
"""The ten by the names that the service gives them."""
