"""An audit in one's own process: `adap.audit(model, images, labels)`.

Its plan, its pieces and its figures are those of the service, so that the figures are equal bit for
bit; `adap.core.library.running` measures the pieces here instead of on workers.
"""

import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from adap.core.audit import measuring
from adap.core.audit.checks.figures import of_figures
from adap.core.audit.checks.verdicts import merge
from adap.core.audit.deployed import deployed, prepared
from adap.core.audit.drawing import drawing
from adap.core.audit.leakage import Leakage, audited_images, digests
from adap.core.audit.plan import Subject, make_plan, recovery_of
from adap.core.config.attacks import Preset
from adap.core.config.audits import AuditConfig, Checks
from adap.core.config.data import Task
from adap.core.config.deployment import DRAWS
from adap.core.config.threats import EPSILON_PAPER, Norm
from adap.core.corruptions.parameters import refuse_too_small
from adap.core.errors import AdapError, ConfigError, DataError, ModelError
from adap.core.figures import gate
from adap.core.figures import report as reports
from adap.core.figures import task as figures
from adap.core.library.asked import columns_by, configuration, named_by, statement_of
from adap.core.library.distilling import Distilled
from adap.core.library.draws import refuse_other_draws, wandering
from adap.core.library.examples import Examples, Layout, as_float, examples_of
from adap.core.library.origin import hash_of, hash_of_surrogate, provenance_of, reading_of
from adap.core.library.progress import Progress, counting
from adap.core.library.rankers import TRIED, Model, Outputs, Ready, ready
from adap.core.library.refusals import threat_of
from adap.core.library.results import Audit
from adap.core.library.running import Run, kept_in
from adap.core.report import AuditedImages
from adap.core.scores import save_scores
from adap.core.statement import Statement


def audit(
    model: Model,
    images: Any,
    labels: Any = None,
    *,
    epsilon: float | str = EPSILON_PAPER,
    norm: Norm = "linf",
    preset: Preset = "standard",
    attacks: Sequence[Any] | Any | None = None,
    surrogate: nn.Module | None = None,
    corruptions: Sequence[str] | str | None = None,
    severities: Sequence[int] | None = None,
    positive: Any = None,
    classes: Sequence[str] | None = None,
    outputs: Outputs = "auto",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    layout: Layout | None = None,
    groups: Any = None,
    clusters: Any = None,
    ids: Sequence[str] | None = None,
    sample: int | None = None,
    draws: int = DRAWS,
    require: Sequence[str] | str = (),
    statement: Statement | Mapping[str, Any] | None = None,
    pipeline: Sequence[Any] = (),
    smallest_changes: bool | Mapping[str, int] | None = None,
    universal: bool | Mapping[str, int] | None = None,
    epsilons: Sequence[float] | None = None,
    certify: str = "auto",
    checks: Checks | None = None,
    search_precision: str = "float32",
    batch_size: int = 256,
    shard_size: int = 1024,
    device: str | torch.device | None = None,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    progress: Progress = None,
) -> Audit:
    """How much average precision a model keeps on these images when they are attacked.

    model: an `nn.Module` on any device that answers (B,), (B, 1), (B, 2) or (B, K); or any function
    from float32 images (B, C, H, W) in [0, 1], NumPy arrays or CPU tensors, to such scores. A
    function gives no gradients: only Square, Transfer and Noise attack it, and the report says what
    that means.
    images, labels: (N, C, H, W) or (N, H, W, C) uint8, or floats in [0, 1], and (N,) labels, as
    NumPy arrays or tensors; or a Dataset or DataLoader of (image, label) in place of both. Labels
    may be (N, K) rows of 0 and 1, of which `positive` numbers the columns.
    positive: the label, or labels, to rank first; by default 1. Of K outputs it is the column too,
    or the place of the name among `classes`.
    epsilon: in pixels of [0, 1], a number or '8/255', which is usual for `norm` 'linf'; 'l2' and
    'l1' are lengths, 'l0' a number of pixels changed at will, 'patch' the side of a square of them.
    preset: 'quick', 'standard' or 'paper'; attacks: in its place, for example [adap.APGD(steps=50),
    "square"].  surrogate: the attacker's own model, for the transfer attack,
    such as what `adap.distil` learnt from a black box.
    corruptions: what happens to images without an attacker, measured beside the attacks: 'all', or
    names such as ['fog', 'jpeg_compression'], at `severities` (1 to 5; by default each). They are
    no part of the threat and never enter `worst_case`; see `.corruptions`.
    outputs: 'logits', 'probabilities', 'multilabel', or 'auto', which finds out and says what.
    mean, std: of each channel, where the model wants normalised pixels and does not normalise.
    groups, ids: (N,) names.  sample: audit so many at random.
    clusters: (N,) names of what images that are no independent draws have in common: a patient, a
    drive. Intervals draw whole clusters.
    draws: of a model that draws random numbers as it scores (dropout left on, random resizing):
    each score and gradient is the mean over so many, and costs so many passes. Others need one.
    require: thresholds, for example "worst_case_ap >= 0.4"; see `.passed`.
    statement: what is stated of the audit (purpose, threat, people, dates), carried into the
    report; see `docs/sign-off.md`.
    pipeline: what the deployment does to an image before the model sees it, for example
    ["jpeg:60-90", "resize:32x32"] (width x height), or the steps as dicts for all their fields:
    images are attacked before it, and scored behind it. See `docs/attacks.md`.
    smallest_changes: True, or options such as {"k": 100, "steps": 50}: how little moves positives
    out of the first k of the clean ranking, as found; see `.smallest_changes`. It takes gradients.
    universal: True, or options such as {"rounds": 50}: one perturbation for all images, as found;
    see `.universal`. It takes gradients.
    epsilons, certify, checks: as in the service: of the epsilon curve; 'off', 'auto', 'ibp',
    'crown_ibp' or 'crown'; 'off', 'quick' or 'full'.
    search_precision: 'float32' or 'bfloat16', of the passes by which attacks search: faster on a
    GPU, and may find a little less. Every score is float32.
    batch_size: images at once, which bounds the memory.  shard_size: images between two saves.
    folder: where to keep what is measured; called again it goes on there, and measures what is new.
    Without one, what had been done when Ctrl-C came is kept in a folder that the exception names.
    progress: whether to show a bar, by default in terminals and notebooks; or a function of images
    done and images in all.

    Raises ConfigError, DataError or ModelError, each with what was expected and what came, before
    anything is attacked; ModelError for a model in train mode whose scores depend on that.
    Source: `docs/library.md`; the report's own terms are in GLOSSARY.md.

    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, 1))
    >>> images, labels = torch.rand(32, 3, 4, 4), torch.tensor([0, 1] * 16)
    >>> report = adap.audit(model, images, labels, epsilon=8/255, preset="quick")
    >>> report.worst_case.ap <= report.clean.ap
    True
    """
    refuse_other_draws(draws)
    fields = {
        "threat": threat_of(epsilon, norm),
        "preset": preset,
        "certify": certify,
        "checks": checks,
        "pipeline": list(pipeline),
        "smallest_changes": _settings(smallest_changes),
        "universal": _settings(universal),
        "epsilons": epsilons if epsilons is None or np.ndim(epsilons) == 0 else list(epsilons),
        "thresholds": list(require) if isinstance(require, list | tuple | set) else [require],
        "search_precision": search_precision,
        "batch_size": batch_size,
        "shard_size": shard_size,
        "seed": seed,
    }
    config = configuration(
        fields,
        gradients=isinstance(model, nn.Module),
        attacks=attacks,
        surrogate=surrogate,
        corruptions=corruptions,
        severities=severities,
    )
    named = named_by(positive)
    task = Task(positive=named)
    gate.refuse_unknown(config, [task], grouped=groups is not None)
    stated = statement_of(statement)
    with ExitStack() as stack:
        found = stack.enter_context(
            examples_of(
                images,
                labels,
                positive=positive,
                groups=groups,
                clusters=clusters,
                ids=ids,
                layout=layout,
                classes=None if classes is None else list(classes),
            )
        )
        if sample is not None:
            found = found.sampled(sample, named=named, seed=seed)
        _refuse_beyond(config, found)
        columns = columns_by(positive, classes)
        pixels = _to_try(found, config)
        made = stack.enter_context(
            ready(
                model,
                pixels,
                outputs=outputs,
                positive=columns,
                mean=mean,
                std=std,
                device=device,
                refuse_train_mode=True,
            )
        )
        _refuse_several(found, made, outputs)
        _refuse_other_classes(made, classes)
        other = None
        if surrogate is not None:
            other = stack.enter_context(
                _ready_surrogate(surrogate, pixels, columns=columns, device=made.device)
            )
        measuring.refuse_unrankable(
            deployed(made.scorer, config.pipeline),
            found.images,
            found.targets,
            batch_size=config.batch_size,
            device=made.device,
        )
        behind, drawn = _draws(made, pixels, draws)
        _refuse_no_gradients(config, made)
        _refuse_no_smallest(config, behind)
        provenance = provenance_of(model, made, pixels, found, surrogate, other, config)
        subject = Subject(
            # another one of these may round differently
            tenant=f"torch {torch.__version__} on {made.device.type}",
            model=hash_of(provenance.model.sha256.encode(), reading_of(made)),
            dataset=provenance.dataset.sha256,
            surrogate=hash_of_surrogate(surrogate, other, pixels),
            split=None,
            examples=len(found),
            image=(found.images.shape[2], found.images.shape[3]),
            draws=behind,
        )
        pieces = make_plan(config, [task], subject)
        with kept_in(folder) as place:
            run = Run(pieces, found, made, other, place)
            for said in drawn:
                warnings.warn(f"{said} {_cost(run)}", stacklevel=2)
            with counting(sum(piece.images for piece in pieces), shown=progress) as tell:
                scores = run.scores(tell)
                checked = run.checks(tell)
            file = place / f"{provenance.config_sha256}.scores.safetensors"
            save_scores([scores], file)
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
        of_task = figures.figures(
            scores, positive=named, config=config, recovery=recovery_of(pieces)
        )
        trust = None
        if checked is not None:
            checked += of_figures(of_task, provenance.model)
            trust = merge({"+".join(named): checked})
        report = reports.build_report(
            [of_task],
            config=config,
            provenance=provenance.model_copy(update={"scores_sha256": digest}),
            doubts=[
                *(drawn + made.decided + found.decided),
                *(surrogate.decided() if isinstance(surrogate, Distilled) else []),
                *_beyond(found, made, classes),
            ],
            trust=trust,
            images=_images(found),
            statement=stated,
        )
    return Audit(report, [scores])


def _refuse_beyond(config: AuditConfig, examples: Examples) -> None:
    """Raise where what is asked for cannot be done to these images."""
    channels, height, width = examples.images.shape[1:]
    config.threat.refuse_beyond_images(height, width)
    if config.corruptions is not None:
        refuse_too_small(height, width)
    if config.smallest_changes is not None:
        config.smallest_changes.refuse_beyond_examples(len(examples))
    config.behind_pipeline((channels, height, width))


def _to_try(examples: Examples, config: AuditConfig) -> NDArray[np.float32]:
    """Some images from all over, as the model gets them: what it answers to them tells its kind."""
    spread = np.unique(np.linspace(0, len(examples) - 1, TRIED, dtype=np.int64))
    with drawing(torch.device("cpu"), "tried"):
        tried = torch.from_numpy(as_float(examples.images[spread]))
        return prepared(tried, config.pipeline).numpy()


@contextmanager
def _ready_surrogate(
    surrogate: nn.Module,
    pixels: NDArray[np.float32],
    *,
    columns: list[Any] | None,
    device: torch.device,
) -> Iterator[Ready]:
    """The attacker's own model; what is wrong with it is said of it by name."""
    with ExitStack() as stack:
        try:
            made = stack.enter_context(ready(surrogate, pixels, positive=columns, device=device))
        except AdapError as error:
            raise type(error)(f"the surrogate: {error}") from error
        yield made


def _cost(run: Run) -> str:
    sure, most = run.planned_passes()
    more = f", and up to {most:,} where its gradient hides something" if most > sure else ""
    return f"The audit takes about {sure:,} forward passes of an image{more}."


def _refuse_no_gradients(config: AuditConfig, made: Ready) -> None:
    """Raise unless what follows gradients can be searched for, where it is asked for."""
    asked = {"smallest_changes": config.smallest_changes, "universal": config.universal}
    for name, of in asked.items():
        if of is not None and not made.gradients:
            raise ModelError(
                f"expected an nn.Module for {name}=, which follows gradients, got {made.name}"
            )


def _refuse_no_smallest(config: AuditConfig, draws: int) -> None:
    """Raise where smallest changes are asked for of a model whose scores are not its own."""
    if config.smallest_changes is not None and draws > 1:
        raise ModelError(
            "expected a model that repeats itself for smallest_changes=, got one that draws random "
            "numbers: which side of the first k an image is on would change from one scoring to "
            "the next"
        )


def _settings(asked: Any) -> Any:
    """Those of a search: True stands for the defaults, as {} does, and False for none."""
    if isinstance(asked, bool):
        return {} if asked else None
    return asked


def _images(examples: Examples) -> AuditedImages:
    rows = np.arange(len(examples))
    own = digests(examples.images, rows)
    equal = len(own) - len(set(own))
    return audited_images(examples.images, rows, Leakage(len(own), None, None, equal=equal))


def _draws(made: Ready, pixels: NDArray[np.float32], draws: int) -> tuple[int, list[str]]:
    """How many draws are behind each score, and what a reader must know of that."""
    said = wandering(made, pixels)
    if said is None:
        return 1, []
    if draws == 1:
        return 1, [
            f"{said} They are audited as they come (draws=1), and so is what noise makes of AP."
        ]
    return draws, [
        f"{said} Each score, of clean and attacked images alike, and each gradient of the attacks "
        f"is the mean over {draws} draws."
    ]


def _refuse_several(examples: Examples, made: Ready, outputs: Outputs) -> None:
    """Raise ConfigError where an image is of several classes and outputs are said to exclude it."""
    answers = made.scorer.answers
    if examples.several and outputs == "auto" and answers is not None and answers.one_is_true:
        raise ConfigError(
            "expected labels of which one in each row is 1, as softmax outputs mean it, got rows "
            "with several or none: outputs='multilabel' ranks by the output of the class alone, "
            "outputs='logits' by its odds against the others"
        )


def _refuse_other_classes(made: Ready, classes: Sequence[str] | None) -> None:
    """Raise ConfigError for names of outputs that are more or fewer than the outputs."""
    answers = made.scorer.answers
    if classes is None or answers is None or len(classes) == answers.count:
        return
    raise ConfigError(
        f"expected classes= to name each of the {answers.count} outputs in its order, got "
        f"{len(classes)} names"
        + (": of one output no name is wanted, it ranks positives first" * (answers.count == 1))
    )


def _beyond(examples: Examples, made: Ready, classes: Sequence[str] | None) -> list[str]:
    """What to say where labels number more classes than the model has outputs."""
    answers = made.scorer.answers
    if answers is None or answers.count == 1 or classes is not None or examples.ends is None:
        return []
    lowest, highest = examples.ends
    if highest < answers.count:
        return []
    if (lowest, highest) == (1, answers.count):
        raise DataError(
            f"expected labels numbered as the {answers.count} outputs are, 0 to "
            f"{answers.count - 1}, got labels from 1 to {highest}: subtract 1 from labels and from "
            "positive=, or name the outputs in classes="
        )
    return [
        f"Labels go up to {highest}, and the model has {answers.count} outputs, numbered from "
        f"0 to {answers.count - 1}: label n is read as output n, and labels beyond as "
        "negatives. classes= names the outputs where they are numbered otherwise."
    ]
