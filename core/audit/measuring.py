"""A worker's piece of an audit: logits of its examples, clean, under attacks, between bounds.

    refuse_unrankable        once a task, before any attack: can these be judged at all?
    attack_shard             logits of the examples of a shard, clean and under attacks
    corrupt_shard            logits of the examples of a shard as a corruption leaves them
    certify_sample           once a task: would bounds prove anything of this network?
    certify_shard            the examples of a shard: bounds that no attack can break
    score_all                logits of all examples of a task, as their shards have them

A scorer maps (B, C, H, W) floats in [0, 1] to (B,) logits of the positive class. It is handed over
on its device; this module puts it into eval mode while it works and leaves it as it was. Scores of
an example depend on the seed, the shard, the place in it and the kind of device, never on who
computed them or when.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adap.core.attacks.acceleration import PROBES, accelerate
from adap.core.attacks.base import perturbed
from adap.core.attacks.holding import attacking
from adap.core.attacks.registry import build_attack
from adap.core.attacks.threat_model import ThreatModel
from adap.core.audit.certify.bounds import Method, certified_bounds
from adap.core.audit.costs import of_attack
from adap.core.audit.drawing import drawing
from adap.core.audit.joining import refuse_constant
from adap.core.audit.network import Pixels, Rows, as_input, generator_of, logits_of, loss_of
from adap.core.capture import Recorder, graphs_of
from adap.core.config.attacks import Attack, TransferAttack
from adap.core.config.audits import SearchPrecision
from adap.core.config.corruptions import Corruption
from adap.core.config.threats import Threat
from adap.core.corruptions.parameters import table_of
from adap.core.corruptions.suite import corrupted
from adap.core.errors import ConfigError, DataError, ModelError
from adap.core.precision import refuse_unsupported
from adap.core.scores import EVIDENCE, Evidence, Scores

CERTIFIED_SIDE = 64  # pixels; larger images are bounded on request only


def refuse_unrankable(
    scorer: nn.Module,
    images: Pixels,
    targets: NDArray[np.int64],
    *,
    batch_size: int,
    device: torch.device,
) -> None:
    """Refuse, at the price of one batch, what would make every figure of an audit meaningless.

    images: (N, C, H, W), all the examples; `batch_size` of them, evenly spread, are scored.
    Raises DataError for fewer than two positives or negatives, ModelError for outputs that are
    of the wrong shape, not finite, or all the same.
    """
    positives = int(targets.sum())
    if min(positives, len(targets) - positives) < 2:
        raise DataError(
            f"expected at least 2 positives and 2 negatives, got {positives} positives and "
            f"{len(targets) - positives} negatives"
        )
    spread = np.unique(np.linspace(0, len(images) - 1, batch_size, dtype=np.int64))
    sample = images[spread]
    with attacking(scorer), drawing(device, "unrankable"):
        logits = _score(scorer, as_input(sample, device))
    if (sample != sample[0]).any():
        refuse_constant(logits)


def attack_shard(
    scorer: nn.Module,
    images: Pixels,
    targets: NDArray[np.int64],
    example_ids: Sequence[str],
    *,
    attacks: Sequence[Attack],
    threat: Threat,
    surrogate: nn.Module | None,
    seed: int,
    shard: int,
    batch_size: int,
    device: torch.device,
    on_progress: Callable[[int], None],
    clean: NDArray[np.float64] | None = None,
    evidence: int = EVIDENCE,
    precision: SearchPrecision = "float32",
    recorder: Recorder | None = None,
) -> Scores:
    """Attack every example of a shard with every attack.

    images: (n, C, H, W), see `Pixels`.  targets: (n,) in {0, 1}.
    attacks: one of each key at most.
    surrogate: the attacker's own scorer, needed by the transfer attack.
    clean: the clean logits, where they are known; otherwise they are computed first.
    on_progress: told after each batch how many images are done, the clean pass and every attack
    counted: n * (1 + len(attacks)) in the end. What it raises ends the work.
    evidence: how many of the most damaged positives are kept, by the fall of their logit.
    precision: of the passes of a search; every score is float32.
    recorder: by which these passes are captured; by default CUDA graphs on a GPU, and nothing
    elsewhere.

    Attacks ascend -(2y - 1) * logit, which unlike cross-entropy never saturates, unless their
    configuration asks for that. What an attack returns is projected back into the threat model, in
    case it left it, and scored anew, without gradients, by the random numbers (where the scorer
    draws any) by which the clean images were scored. Memory is bounded by the batch.

    Raises ConfigError for a transfer attack without surrogate and for a precision that the device
    lacks, ModelError for logits of the wrong shape or not finite.
    """
    refuse_unsupported(precision, device)
    if surrogate is None and any(isinstance(attack, TransferAttack) for attack in attacks):
        raise ConfigError("the transfer attack needs a surrogate model, got none")
    threat_model = ThreatModel(threat.norm, threat.epsilon)
    attacked: dict[str, NDArray[np.float64]] = {
        attack.key: np.empty(len(images)) for attack in attacks
    }
    kept: list[Evidence] = []
    done = 0

    with attacking(scorer), attacking(surrogate if surrogate is not None else nn.Identity()):
        if clean is None:
            # All clean scores first: a model that gives NaN is refused before any attack.
            clean = np.empty(len(images))
            for batch, rows in enumerate(_batches(len(images), batch_size)):
                with drawing(device, seed, shard, batch):
                    clean[rows] = _score(scorer, as_input(images[rows], device))
                on_progress(done := rows.stop)
        # Only the search runs on what is cheaper: every score is the scorer's own.
        with drawing(device, "accelerated"):
            searched = {
                attack.key: accelerate(
                    _network(attack, scorer, surrogate),
                    as_input(images[:PROBES], device),
                    passes=len(images) * of_attack(attack).forward,
                    precision=precision,
                    recorder=graphs_of(device) if recorder is None else recorder,
                )
                for attack in attacks
            }
        for batch, rows in enumerate(_batches(len(images), batch_size)):
            x = as_input(images[rows], device)
            positives = np.flatnonzero(targets[rows])
            pictures = {"clean": x[positives]}
            for attack in attacks:
                network = partial(_logits, searched[attack.key])
                with drawing(device, seed, shard, batch, attack.name):
                    x_adv = perturbed(
                        build_attack(attack, threat),
                        loss_of(attack, network, targets[rows], device),
                        x,
                        threat_model=threat_model,
                        generator=generator_of(seed, shard, batch, attack.name, device=device),
                    )
                with drawing(device, seed, shard, batch):  # as the clean images were scored
                    attacked[attack.key][rows] = _score(scorer, x_adv)
                pictures[attack.key] = x_adv[positives]
                on_progress(done := done + len(x))
            here = np.arange(rows.start, rows.stop)[positives]
            logits = {key: scored[here] for key, scored in attacked.items()}
            ids = [example_ids[i] for i in here]
            if attacks:
                kept += _most_damaged(
                    pictures, clean[here], logits, example_ids=ids, count=evidence
                )
            kept.sort(key=_damage, reverse=True)
            del kept[evidence:]
    return Scores(
        example_ids=list(example_ids),
        targets=targets.astype(np.int64),
        clean=clean,
        attacked=attacked,
        evidence=kept,
    )


def corrupt_shard(
    scorer: nn.Module,
    clean: Scores,
    images: Pixels,
    *,
    corruption: Corruption,
    seed: int,
    shard: int,
    batch_size: int,
    device: torch.device,
    on_progress: Callable[[int], None],
) -> Scores:
    """The shard with the logits of its images under one corruption: one pass over them.

    clean: the shard's, from which its examples are known.  images: the shard's own, (n, C, H, W).
    on_progress: told after each batch how many images are done.

    Raises DataError for images below 8x8 pixels, ModelError for logits that are not finite.
    """
    found = np.empty(len(images))
    with attacking(scorer):
        for batch, rows in enumerate(_batches(len(images), batch_size)):
            x = corrupted(images[rows], clean.example_ids[rows], corruption=corruption, seed=seed)
            with drawing(device, seed, shard, batch):  # as the clean images were scored
                found[rows] = _score(scorer, as_input(x, device))
            on_progress(rows.stop)
    height, width = images.shape[2:]
    return replace(clean, corrupted={corruption: found}, corruption_table=table_of(height, width))


def score_all(
    scorer: nn.Module,
    images: Rows,
    examples: int,
    *,
    seed: int,
    shard_size: int,
    batch_size: int,
    device: torch.device,
    on_images: Callable[[int], None],
    shift: Tensor | None = None,
) -> NDArray[np.float64]:
    """(N,) logits of all examples of a task, in the batches and by the random numbers of their
    shards. With the audit's own `seed`, `shard_size` and `batch_size`, and with no other, they are
    the bits of its clean logits: whatever is kept of them has all three in its key.

    images: of the task, N = `examples`.  shift: (1, C, H, W) to add to each, clipped to [0, 1].
    on_images: told after each batch how many were in it.

    Raises ModelError for logits that are not finite.
    """
    found = np.empty(examples)
    with attacking(scorer):
        for shard, start in enumerate(range(0, examples, shard_size)):
            stop = min(start + shard_size, examples)
            for batch, own in enumerate(_batches(stop - start, batch_size)):
                rows = slice(start + own.start, start + own.stop)
                with drawing(device, seed, shard, batch):
                    x = as_input(images[rows], device)
                    found[rows] = _score(scorer, x if shift is None else (x + shift).clamp(0, 1))
                on_images(rows.stop - rows.start)
    return found


def certify_sample(
    scorer: nn.Module,
    images: Pixels,
    targets: NDArray[np.int64],
    example_ids: Sequence[str],
    *,
    threat: Threat,
    device: torch.device,
) -> Scores:
    """Some images of a task with bounds on their logits, or the reason why `auto` bounds none.

    Bounds by crown_ibp are worth their price where the order of any two of these is proven.

    images: (n, C, H, W), see `Pixels`.  targets: (n,) in {0, 1}.
    """
    with attacking(scorer):
        clean = _score(scorer, as_input(images, device))
    sample = Scores(
        example_ids=list(example_ids), targets=targets.astype(np.int64), clean=clean, attacked={}
    )
    if max(images.shape[2:]) > CERTIFIED_SIDE:
        return replace(
            sample,
            no_bounds=f"Images larger than {CERTIFIED_SIDE}x{CERTIFIED_SIDE} pixels are bounded "
            "only on request, as it takes seconds an image: ask for certify crown_ibp.",
        )
    sample = certify_shard(
        scorer,
        sample,
        images,
        threat=threat,
        method="crown_ibp",
        batch_size=len(images),
        device=device,
        on_progress=lambda _: None,
    )
    if sample.bounds is None:
        return sample
    (lo, hi), positive = sample.bounds, targets == 1
    if lo[positive].max(initial=-np.inf) > hi[~positive].min(initial=np.inf):
        return sample
    return replace(
        sample,
        no_bounds=f"Bounds by crown_ibp prove the order of no two of {len(lo)} sampled images: "
        "they say nothing about this network at this epsilon.",
    )


def certify_shard(
    scorer: nn.Module,
    shard: Scores,
    images: Pixels,
    *,
    threat: Threat,
    method: Method,
    batch_size: int,
    device: torch.device,
    on_progress: Callable[[int], None],
) -> Scores:
    """The shard with bounds on every logit, or with the reason why there are none.

    images: the shard's own.
    on_progress: told after each batch how many of the shard's images are done.
    """
    threat_model = ThreatModel(threat.norm, threat.epsilon)
    found = np.empty((2, len(images)))
    with attacking(scorer):
        for rows in _batches(len(images), batch_size):
            x = as_input(images[rows], device)
            try:
                lo, hi = certified_bounds(scorer, x, threat=threat_model, method=method)
            except Exception as error:  # noqa: BLE001  # of somebody else's network: any is a reason
                why = str(error).partition("\n")[0] or type(error).__name__
                return replace(shard, no_bounds=f"This network cannot be bounded: {why}.")
            found[:, rows] = lo.cpu().numpy(), hi.cpu().numpy()
            on_progress(rows.stop)
    return replace(shard, bounds=found)


def _batches(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _logits(scorer: nn.Module, x: Tensor) -> Tensor:
    logits: Tensor = scorer(x)
    if logits.shape != (len(x),):
        raise ModelError(
            f"expected one logit an image, shape ({len(x)},), got {tuple(logits.shape)}"
        )
    return logits


def _score(scorer: nn.Module, x: Tensor) -> NDArray[np.float64]:
    """(B,) float64 logits, computed without gradients. Raises ModelError unless all are finite."""
    logits = logits_of(partial(_logits, scorer), x)
    broken = int((~np.isfinite(logits)).sum())
    if broken:
        raise ModelError(
            f"expected finite logits, got NaN or infinity on {broken} of {len(x)} images"
        )
    return logits


def _network(attack: Attack, scorer: nn.Module, surrogate: nn.Module | None) -> nn.Module:
    """Whose gradients an attack follows."""
    if not isinstance(attack, TransferAttack):
        return scorer
    assert surrogate is not None
    return surrogate


def _most_damaged(
    pictures: Mapping[str, Tensor],
    clean: NDArray[np.float64],
    attacked: Mapping[str, NDArray[np.float64]],
    *,
    example_ids: Sequence[str],
    count: int,
) -> list[Evidence]:
    """Of some positives those whose logit fell most, each with the attack that hurt it most."""
    names = list(attacked)
    logits = np.stack([attacked[name] for name in names])  # (attacks, P)
    drop = clean - logits.min(axis=0)
    found = []
    for i in np.argsort(-drop, kind="stable")[:count]:
        if drop[i] > 0:
            attack = names[logits[:, i].argmin()]
            found.append(
                Evidence(
                    example_id=example_ids[i],
                    attack=attack,
                    clean_logit=float(clean[i]),
                    attacked_logit=float(logits[:, i].min()),
                    clean=pictures["clean"][i].cpu().numpy(),
                    attacked=pictures[attack][i].cpu().numpy(),
                )
            )
    return found


def _damage(item: Evidence) -> float:
    return item.clean_logit - item.attacked_logit
