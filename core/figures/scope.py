"""What an audit says nothing about, so that no reader takes silence for an answer.

The list is the same for every audit, less what this one did look at. It is written from the
configuration and the figures, never from what anybody states.
"""

from collections.abc import Iterator, Sequence

from adap.core.config.audits import AuditConfig
from adap.core.config.corruptions import CORRUPTION_KINDS
from adap.core.report import AuditedImages, NotAssessed, TaskReport, Trust

USES_GRADIENTS = frozenset({"fgsm", "pgd", "apgd"})  # of the audited model itself


def not_assessed(
    tasks: Sequence[TaskReport],
    *,
    config: AuditConfig,
    trust: Trust | None,
    images: AuditedImages | None,
) -> list[NotAssessed]:
    """The topics in a fixed order; those that this audit measured are left out."""
    return [
        NotAssessed(topic=topic, what=what)
        for topic, what in _topics(tasks, config=config, trust=trust, images=images)
    ]


def _topics(
    tasks: Sequence[TaskReport],
    *,
    config: AuditConfig,
    trust: Trust | None,
    images: AuditedImages | None,
) -> Iterator[tuple[str, str]]:
    threat = config.threat
    others = ["turns", "shifts"] if threat.norm == "patch" else ["patches", "turns", "shifts"]
    yield (
        "beyond_the_threat",
        f"Changes beyond {threat.norm} {threat.epsilon:.4g} of each image: larger ones, those that "
        f"another norm allows, {', '.join(others)}, and objects made to deceive.",
    )
    floors = [(task.certified_floor, task.worst_case.ap) for task in tasks]
    if not all(floor is not None and floor.ap >= worst for floor, worst in floors):
        yield (
            "attacks_not_run",
            "Attacks that were not run. A stronger one within the same threat may leave less AP.",
        )
    if not any(attack.name in USES_GRADIENTS for attack in config.resolved_attacks()):
        yield (
            "white_box",
            "An attacker who has the model: no attack used its gradients.",
        )
    measured = config.corruptions
    yield (
        "corruptions",
        "Changes that nobody makes on purpose: noise, blur, weather, compression, other lighting."
        if measured is None
        else "Changes that nobody makes on purpose but for the corruptions measured here: "
        f"{len(measured.kinds)} of {len(CORRUPTION_KINDS)} kinds, one change at a time, made by "
        "formulas and not by a camera.",
    )
    yield (
        "shift",
        "Images of other places, cameras, people and times than those of this data set.",
    )
    if all(task.groups is None or task.groups.clean_gap is None for task in tasks):
        named = any(task.groups is not None for task in tasks)
        yield (
            "groups",
            "Whether the model serves some groups of the examples worse than others: "
            + (
                "fewer than two of those that the data set names have enough examples."
                if named
                else "the data set names none."
            ),
        )
    yield (
        "poisoning",
        "Data poisoning and back doors: what somebody may have put into the training data or the "
        "weights.",
    )
    yield ("theft", "Model theft: copying the model through its answers.")
    yield (
        "privacy",
        "Privacy: what the model or its answers give away about the images it was trained on.",
    )
    yield (
        "availability",
        "Availability: inputs that slow the model down or stop it, and what happens without it.",
    )
    yield (
        "system",
        "The system around the model: sensors, "
        + ("preparation of images" if not config.pipeline else "what the pipeline leaves out")
        + ", thresholds in use, people, and access to weights and data.",
    )
    if images is None or images.seen_in_training is None:
        yield (
            "seen_in_training",
            "Whether the model was trained on these images: nothing says on which it was.",
        )
    if config.sample is not None:
        yield ("outside_the_sample", f"Examples outside the sample of {config.sample:,}.")
    if trust is None:
        yield (
            "the_audit_itself",
            "Whether the attacks themselves worked as they should: the checks were off.",
        )
