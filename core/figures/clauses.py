"""Clauses of laws, guidance and standards, and the parts of a report that support an answer.

    supported        the clauses for which a report holds any evidence, each with its places

A report never says that a clause is met: who answers for a system says that, with this as a part of
the evidence. Evidence is a figure that answers what is asked: noise answers nothing about attacks,
and groups without figures nothing about fairness. What only explains it (the threat model, what was
not assessed) stands beside evidence and never for it. What a clause asks is told in our own words;
the documents themselves are

    Regulation (EU) 2024/1689 (AI Act), Article 15 and Annex IV
        https://eur-lex.europa.eu/eli/reg/2024/1689/oj
    Good Machine Learning Practice for Medical Device Development: Guiding Principles
        FDA, Health Canada and MHRA, October 2021
    Artificial Intelligence-Enabled Device Software Functions: Lifecycle Management and Marketing
    Submission Recommendations, draft guidance, FDA, 7 January 2025
    ISO/IEC TR 24029-1:2021, Assessment of the robustness of neural networks, Part 1: Overview
    ISO/IEC 24029-2:2023, the same, Part 2: Methodology for the use of formal methods
    NIST AI 100-1, Artificial Intelligence Risk Management Framework (AI RMF 1.0), January 2023
        https://doi.org/10.6028/NIST.AI.100-1
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from adap.core.report import Clause, Report, Support

AI_ACT = "EU AI Act (Regulation (EU) 2024/1689)"
GMLP = "Good Machine Learning Practice: Guiding Principles (FDA, Health Canada, MHRA, 2021)"
FDA_DRAFT = "FDA draft guidance on AI-Enabled Device Software Functions (7 January 2025)"
ISO_1 = "ISO/IEC TR 24029-1:2021"
ISO_2 = "ISO/IEC 24029-2:2023"
NIST = "NIST AI RMF 1.0 (NIST AI 100-1)"

CLEAN = "tasks[].clean"
INTERVAL = "tasks[].clean.interval"
WORST = "tasks[].worst_case"
ATTACKS = "tasks[].attacks"
FLOOR = "tasks[].certified_floor.proven_pairs"
CURVE = "tasks[].epsilon_curve"
BUDGET = "tasks[].budget_curve"
GROUPS = "tasks[].groups.groups[].clean"
GAP = "tasks[].groups.clean_gap"
WORST_GAP = "tasks[].groups.worst_case_gap"
CORRUPTIONS = "tasks[].corruptions"
SMALLEST = "tasks[].smallest_changes.kept_at_epsilon"
UNIVERSAL = "tasks[].universal"
OPERATING = "tasks[].operating"
CHANCE = "tasks[].chance"
CONFIG = "provenance.config"
THREAT = "provenance.config.threat"
DATASET = "provenance.dataset"
MODEL = "provenance.model"
VERSIONS = "provenance.versions"
CHECKS = "trust.checks"

WORDS = {
    CLEAN: "clean AP",
    INTERVAL: "confidence intervals",
    WORST: "worst-case AP",
    ATTACKS: "AP under each attack",
    FLOOR: "certified floor",
    CURVE: "AP over rising epsilons",
    BUDGET: "AP when few images are attacked",
    GROUPS: "AP by group",
    GAP: "gap between groups",
    WORST_GAP: "gap between groups under attack",
    CORRUPTIONS: "AP under common corruptions",
    SMALLEST: "smallest changes that were found",
    UNIVERSAL: "AP under one perturbation for all images",
    OPERATING: "figures of operation",
    CHANCE: "chance and floor, which the AP is read against",
    CONFIG: "configuration",
    THREAT: "threat model",
    DATASET: "data set, with its hash and how it was read",
    MODEL: "model, with its hash and origin",
    VERSIONS: "versions of the tools",
    CHECKS: "checks of the audit itself",
    "images": "value range and repeated images",
    "images.in_other_splits": "images that another split has too",
    "images.seen_in_training": "images that the model was trained on",
    "not_assessed": "what was not assessed",
    "statement.approver": "approver",
    "statement.intended_use": "intended use, as stated",
    "statement.purpose": "purpose of the audit, as stated",
    "statement.tester": "tester",
    "statement.threat_rationale": "why this threat, as stated",
    "statement.attacker_goal": "goal of the attacker, as stated",
    "statement.attacker_knowledge": "knowledge of the attacker, as stated",
    "statement.tested_on": "date of the test",
    "thresholds": "requirements, met or not",
    "warnings": "warnings to the reader",
}
"""The parts of a report that clauses refer to, by their place, in words."""


@dataclass(frozen=True)
class _Asked:
    """A clause, what it asks for, and the places of a report where evidence can be."""

    document: str
    clause: str
    asks: str
    places: tuple[str, ...]
    beside: tuple[str, ...] = ()  # told with evidence, no evidence by themselves
    of: Callable[[Report], bool] = lambda _: True  # reports that can answer it at all


def _seen_in_training(report: Report) -> int | None:
    return None if report.images is None else report.images.seen_in_training


def _knows_training(report: Report) -> bool:
    """Whether anything says on which images the model was trained."""
    return _seen_in_training(report) is not None


def _unseen(report: Report) -> bool:
    """Whether it is known that the model was trained on none of the audited images."""
    return _seen_in_training(report) == 0


CATALOGUE = (
    _Asked(
        AI_ACT,
        "Article 15(1)",
        "an appropriate level of accuracy, robustness and cybersecurity, kept throughout the "
        "life of the system",
        (CLEAN, WORST, "thresholds", CHECKS),
    ),
    _Asked(
        AI_ACT,
        "Article 15(3)",
        "accuracy, and the metrics it is told in, declared in the instructions of use",
        (CLEAN, INTERVAL, OPERATING, CHANCE),
    ),
    _Asked(
        AI_ACT,
        "Article 15(4)",
        "resilience against errors, faults and inconsistencies of the system and its surroundings",
        (CORRUPTIONS,),
    ),
    _Asked(
        AI_ACT,
        "Article 15(5)",
        "resilience against third parties who exploit weaknesses, among them inputs made to "
        "deceive a model (adversarial examples, model evasion)",
        (ATTACKS, WORST, FLOOR, CURVE, BUDGET, SMALLEST, UNIVERSAL),
        beside=(THREAT, "not_assessed"),
    ),
    _Asked(
        AI_ACT,
        "Annex IV, point 1(a)",
        "the intended purpose, the provider and the version of the system",
        ("statement.intended_use", MODEL),
    ),
    _Asked(
        AI_ACT,
        "Annex IV, point 2(g)",
        "how it was validated and tested, on which data, by which metrics of accuracy and "
        "robustness; test reports dated and signed by those responsible",
        (
            *(CONFIG, DATASET, CLEAN, WORST, GROUPS),
            *("statement.tester", "statement.tested_on", "statement.approver"),
        ),
    ),
    _Asked(
        AI_ACT,
        "Annex IV, point 3",
        "capabilities and limits of performance, also for groups of persons, and foreseeable "
        "sources of risk",
        (GROUPS, WORST, "not_assessed", "warnings"),
    ),
    _Asked(
        AI_ACT,
        "Annex IV, point 4",
        "why the metrics of performance suit the system",
        ("statement.purpose", CHANCE, OPERATING),
    ),
    _Asked(
        GMLP,
        "Principle 4",
        "training data that are independent of the test data",
        ("images.seen_in_training", "images.in_other_splits"),
        of=_knows_training,
    ),
    _Asked(
        GMLP,
        "Principle 8",
        "tests that show performance under conditions like those of use, in the subgroups that "
        "matter",
        (CLEAN, INTERVAL, CORRUPTIONS, GROUPS),
    ),
    _Asked(
        GMLP,
        "Principle 9",
        "clear information for users: performance, the data behind it, known limits",
        (CLEAN, DATASET, "not_assessed", "warnings"),
    ),
    _Asked(
        FDA_DRAFT,
        'Section "Validation"',
        "performance on data that were not used in development, with its uncertainty and in "
        "subgroups",
        (CLEAN, INTERVAL, GROUPS, "images.seen_in_training"),
        of=_unseen,
    ),
    _Asked(
        FDA_DRAFT,
        'Section "Cybersecurity", model evasion',
        "the risk that inputs made to deceive change what the model answers",
        (ATTACKS, WORST, FLOOR, SMALLEST, UNIVERSAL),
        beside=(THREAT, "statement.attacker_knowledge"),
    ),
    _Asked(
        ISO_1,
        "4.1.2 Typical workflow to assess robustness",
        "goals that are stated, tests that are planned, carried out, analysed and explained",
        (
            *("statement.purpose", "statement.threat_rationale", "statement.attacker_goal"),
            *(CONFIG, "thresholds", CHECKS),
        ),
    ),
    _Asked(
        ISO_1,
        "5 Statistical methods",
        "robustness as a statistic of performance on data, with its confidence",
        (WORST, CURVE, CORRUPTIONS, SMALLEST),
        beside=(CLEAN, INTERVAL),
    ),
    _Asked(ISO_1, "6 Formal methods", "properties that are proven over a domain", (FLOOR,)),
    _Asked(
        ISO_2,
        "5.2 Notion of domain",
        "the inputs over which a property is to hold",
        (THREAT, "images"),
    ),
    _Asked(
        ISO_2,
        "5.3 Stability",
        "that outputs keep to a criterion over the whole domain",
        (FLOOR,),
    ),
    _Asked(
        NIST,
        "MEASURE 1.1",
        "risks that are not measured are documented",
        ("not_assessed",),
    ),
    _Asked(
        NIST,
        "MEASURE 2.1",
        "test sets, metrics and tools are documented",
        (DATASET, CONFIG, VERSIONS),
    ),
    _Asked(
        NIST,
        "MEASURE 2.3",
        "performance is measured and shown for conditions like those of deployment",
        (CLEAN, INTERVAL, CORRUPTIONS, OPERATING),
    ),
    _Asked(
        NIST,
        "MEASURE 2.5",
        "the system is shown to be valid and reliable, and limits of its generality are documented",
        (CLEAN, CHECKS, "images", "not_assessed"),
    ),
    _Asked(
        NIST,
        "MEASURE 2.7",
        "security and resilience are evaluated and documented",
        (ATTACKS, WORST, FLOOR, SMALLEST, UNIVERSAL),
        beside=(THREAT,),
    ),
    _Asked(
        NIST,
        "MEASURE 2.11",
        "fairness and bias are evaluated and documented",
        (GAP, WORST_GAP),
        beside=(GROUPS,),
    ),
)


def supported(report: Report) -> list[Clause]:
    """The clauses for which this report holds evidence; places that it lacks are left out."""
    found = []
    for asked in CATALOGUE:
        if not asked.of(report):
            continue
        places = [place for place in asked.places if _answers(report, place)]
        if places:
            places += [place for place in asked.beside if _answers(report, place)]
            found.append(
                Clause(
                    document=asked.document,
                    clause=asked.clause,
                    asks=asked.asks,
                    supported_by=[Support(what=WORDS[place], where=place) for place in places],
                )
            )
    return found


def _answers(report: Report, place: str) -> bool:
    holds = NEEDS.get(place)
    return (holds is None or holds(report)) and any(map(_says, _at(report, place)))


def _searched(report: Report) -> bool:
    """Whether anything looked for the worst within the threat; noise is a control and no search."""
    if report.provenance.config["threat"]["epsilon"] == 0:
        return False
    figures = [figure for task in report.tasks for figure in task.attacks.values()]
    return any(figure.attack["name"] != "noise" for figure in figures)


def _proves(report: Report) -> bool:
    """Whether a floor that lies below an attack proves the order of some pair."""
    floors = [task.certified_floor for task in report.tasks]
    proven = any(floor is not None and floor.proven_pairs > 0 for floor in floors)
    return proven and report.provenance.config["threat"]["epsilon"] > 0


NEEDS: Mapping[str, Callable[[Report], bool]] = {
    **dict.fromkeys((ATTACKS, WORST, WORST_GAP, CURVE, BUDGET), _searched),
    FLOOR: _proves,
    UNIVERSAL: lambda report: report.provenance.config["threat"]["epsilon"] > 0,
}
"""What must hold beyond that something stands at a place."""


def _at(value: Any, place: str) -> Iterator[Any]:
    """What stands at `tasks[].clean`: one value, or one of each member of a list."""
    if not place:
        yield value
        return
    step, _, rest = place.partition(".")
    name = step.removesuffix("[]")
    if isinstance(value, BaseModel):
        inner = getattr(value, name)
    else:
        inner = value.get(name) if isinstance(value, Mapping) else None
    for one in (inner or []) if step.endswith("[]") else [inner]:
        yield from _at(one, rest)


def _says(value: Any) -> bool:
    return value is not None and value not in ("", [], {})
