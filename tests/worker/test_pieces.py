"""The pieces of an audit, done one by one in this process as workers would do them.

The judges: scikit-learn on the scores that an audit keeps, and the files that were handed over.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from adap.core.audit.plan import (
    ScoresPiece,
    Subject,
    known_input,
    make_plan,
    piece_input,
    trained_on_input,
)
from adap.core.config.audits import AuditConfig
from adap.core.config.data import Task
from adap.core.datasets import ImageSet
from adap.core.rendering.card import card
from adap.core.report import DatasetProvenance, ModelProvenance, Report
from adap.core.scores import load_scores
from adap.core.statement import Statement
from adap.models import architectures, loading
from adap.models.header import InputSpec, Manifest
from adap.models.wrappers import Scorer
from adap.reading import Fact, Reading
from adap.worker.pipelines.audits import check_piece, join_pieces, measure_piece
from adap.worker.pipelines.requests import AnyRequest, AuditChecks, AuditReport, AuditScores
from adap.worker.pipelines.results import RESULTS
from adap.worker.work import Reporter, Work, decode

EXAMPLES = 40
TASK = Task(positive=["positive"])
CONFIG = AuditConfig.model_validate(
    {
        "attacks": ["fgsm", {"name": "pgd", "steps": 3, "label": "strong"}, "noise"],
        "epsilons": [0.01, 0.02],
        "shard_size": 24,
        "batch_size": 16,
        "checks": "quick",
        "thresholds": ["strong_ap >= 0"],
    }
)


READ = Reading(
    summary="npz of 40 images",
    steps=["labels from the array labels"],
    facts=[
        Fact(
            level="caution",
            code="unreadable_files",
            message="3 files could not be read and were left out",
        )
    ],
)


class Silent(Reporter):
    """A reporter that remembers how far the work is."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []

    def progress(self, phase: str, completed: int, total: int, unit: str) -> None:
        self.told.append((completed, total))


def stored_set(path: Path, *, seed: int = 0, splits: list[str] | None = None) -> Path:
    """40 images of 8x8 in which the bright ones are positive."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(EXAMPLES) % 4 == 0).astype(np.int64)
    images = rng.integers(0, 120, (EXAMPLES, 1, 8, 8))
    images[labels == 1, :, 2:6, 2:6] += 60
    ImageSet(
        images=images.astype(np.uint8),
        labels=labels,
        classes=["negative", "positive"],
        example_ids=[f"{i:04d}" for i in range(EXAMPLES)],
    ).save(path)
    return path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A data set and a model that ranks by brightness, as the service keeps them."""
    folder = tmp_path_factory.mktemp("inputs")
    spec = InputSpec(channels=1, height=8, width=8, mean=[0.5], std=[0.5])
    network = architectures.build("small_cnn", channels=1, seed=0)
    with torch.no_grad():  # scores differ enough to rank, whatever the seed
        for parameter in network.parameters():
            parameter.mul_(3)
    manifest = Manifest(architecture="small_cnn", input=spec, positive=TASK.positive)
    loading.save(Scorer(network, spec), folder / "model", manifest)
    return {"dataset": stored_set(folder / "set"), "model": folder / "model"}


def do(pipeline: Any, request: AnyRequest, inputs: dict[str, Path], folder: Path) -> Any:
    """What a pipeline makes of this request after it went through the pipe."""
    folder.mkdir()
    work = decode(Work(request, inputs, folder).encode())
    assert work.request == request
    result = pipeline(work, Silent())
    answer = json.loads(json.dumps(result.model_dump(mode="json")))
    assert RESULTS.validate_python(answer) == result
    return result


def report_of(
    inputs: dict[str, Path], folder: Path, config: AuditConfig = CONFIG, **asked: Any
) -> tuple[Report, Path]:
    """A whole audit of the inputs; its report, and the folder of its files."""
    folder.mkdir()
    subject = Subject("us", "m", "d", None, split=None, examples=EXAMPLES, image=(8, 8))
    pieces = make_plan(config, [TASK], subject)
    made = {"dataset": inputs["dataset"], **{n: p for n, p in inputs.items() if "/" in n}}
    for number, piece in enumerate(pieces):
        at = folder / f"piece-{number}"
        if isinstance(piece, ScoresPiece):
            result = do(measure_piece, AuditScores(piece=piece, known={}), inputs, at)
        else:
            result = do(check_piece, AuditChecks(piece=piece), inputs, at)
        made |= {piece_input(number, name): at / file for name, file in result.files.items()}
    request = AuditReport(
        **{
            "config": config,
            "pieces": pieces,
            "model": ModelProvenance(id="mdl_1", name="m", sha256="m", architecture="small_cnn"),
            "surrogate": None,
            "dataset": DatasetProvenance(id="ds_1", name="d", sha256="d", split=None),
            **asked,
        }
    )
    do(join_pieces, request, made, folder / "report")
    return Report.model_validate_json((folder / "report/report.json").read_bytes()), folder


def test_the_pieces_of_an_audit_join_to_the_figures_of_its_scores(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    dataset = DatasetProvenance(id="ds_1", name="d", sha256="d", split=None, reading=READ)
    trained_on = {trained_on_input(0): inputs["dataset"]}
    statement = Statement(purpose="Decide.", tester="R. Tester")
    report, folder = report_of(
        inputs | trained_on,
        tmp_path / "audit",
        dataset=dataset,
        trained_on=[None],
        statement=statement,
    )
    assert report.statement == statement
    pixels = ImageSet.load(inputs["dataset"]).images / 255
    shown = report.images
    assert shown is not None
    assert (shown.lowest, shown.highest) == (pixels.min(), pixels.max())
    assert (shown.examples, shown.equal) == (EXAMPLES, 0)
    assert (shown.in_other_splits, shown.seen_in_training) == (None, EXAMPLES)
    (task,), (scores,) = report.tasks, load_scores(folder / "report/scores.safetensors")
    assert list(scores.example_ids) == [f"{i:04d}" for i in range(EXAMPLES)]
    assert set(task.attacks) == {"fgsm", "strong", "noise"}
    for figure, logits in (
        (task.clean, scores.clean),
        *((task.attacks[key], scores.attacked[key]) for key in task.attacks),
    ):
        assert figure.ap == pytest.approx(average_precision_score(scores.targets, logits))
    assert task.epsilon_curve is not None
    for point, epsilon in zip(task.epsilon_curve.points, (0.01, 0.02), strict=True):
        assert point.epsilon == epsilon
        ap = average_precision_score(scores.targets, scores.curve[epsilon])
        assert point.ap == pytest.approx(ap)
    lines = (folder / "report/scores.ndjson").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["clean"] for row in rows] == scores.clean.tolist()
    assert report.trust is not None
    assert [result.passed for result in report.thresholds] == [True]
    # what is known of the files judges the audit, and a gate on `trust` with it
    *_, chance, side = report.trust.checks[:-4]
    assert (chance.name, side.name) == ("above_chance", "positive_class")
    assert chance.figures["low"] == report.tasks[0].clean.interval.low
    of_files = {check.name: check for check in report.trust.checks[-4:]}
    assert {name: check.status for name, check in of_files.items()} == {
        "data_set": "caution",
        "model_file": "skipped",
        "leakage": "skipped",
        "seen_in_training": "fail",
    }
    assert of_files["seen_in_training"].figures == {"images": 40, "share": 1, "chosen": 0}
    assert report.trust.verdict == "not trustworthy"
    assert report.warnings[0] == "3 files could not be read and were left out."
    assert "trained on these very examples" in report.warnings[1]
    page = (folder / "report/report.html").read_text()
    for text in ("npz of 40 images", "3 files could not be read and were left out"):
        assert text in page
        assert text in card(report)
    assert "labels from the array labels" in page


def test_a_column_that_is_known_is_not_measured_again(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    subject = Subject("us", "m", "d", None, split=None, examples=EXAMPLES, image=(8, 8))
    piece = make_plan(CONFIG, [TASK], subject)[1]
    assert isinstance(piece, ScoresPiece)
    first = do(measure_piece, AuditScores(piece=piece, known={}), inputs, tmp_path / "first")
    names = [column.name for column in piece.columns]
    assert list(first.files) == names
    for known in (["clean"], ["bounds.sample", "attack.fgsm"], names):
        given = {known_input(name): tmp_path / "first" / first.files[name] for name in known}
        request = AuditScores(piece=piece, known=dict.fromkeys(known, "0" * 64))
        again = tmp_path / f"again-{len(known)}"
        result = do(measure_piece, request, {**inputs, **given}, again)
        assert list(result.files) == [name for name in names if name not in known]
        for name, file in result.files.items():
            kept = tmp_path / "first" / first.files[name]
            assert (again / file).read_bytes() == kept.read_bytes()
