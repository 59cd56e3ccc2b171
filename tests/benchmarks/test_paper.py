"""The experiment runner: declared as the paper has it, run on small images that the test makes."""

import json
import multiprocessing
import zipfile
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from adap.core.errors import TrainingError
from adap.core.objectives.registry import OBJECTIVES
from benchmarks.paper import data, networks, plan
from benchmarks.paper.__main__ import Pool
from benchmarks.paper.compute import compute
from benchmarks.paper.render import render
from benchmarks.paper.runs import Evaluation, Piece, Training, digest
from tests import published

CLASSES = ("airplane", "automobile", "truck")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two zips of class folders, a class being a brightness."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for part, count in (("train", 100), ("test", 20)):
        with zipfile.ZipFile(folder / f"cifar10-{part}.zip", "w") as archive:
            for label, name in enumerate(CLASSES):
                for i in range(count):
                    pixels = rng.integers(0, 60, (32, 32, 3)) + 60 * label
                    file = BytesIO()
                    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG")
                    archive.writestr(f"{name}/{i:04}.jpg", file.getvalue())
    return folder


def small(scale: str, **changes: Any) -> plan.Scale:
    """A scale with two optimisation steps a network, of one seed, on the CPU."""
    size = plan.Size(seeds=[0], train=200, validation=30, test=30, epochs=1)
    changed = {"device": "cpu", "full": size, "small": size, **changes}
    return plan.scale(scale).model_copy(update=changed)


def made_up(pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    """Results that depend on the hyperparameters only, the best ones at lr 1e-4 and lambda 4."""
    results = []
    for piece in pieces:
        config = (piece if isinstance(piece, Training) else piece.training).config
        away = abs(config.optimizer.lr - 1e-4) + abs(getattr(config.method, "lambda_", 4) - 4)
        results.append({"best": {"robust_ap": -away, "clean_ap": -away}, "select_by": "robust_ap"})
    return results


# --- what is declared -----------------------------------------------------------------------------


def test_every_method_is_tuned_and_every_experiment_names_methods_that_exist() -> None:
    assert set(plan.methods()) == set(OBJECTIVES)
    for experiment in plan.experiments().values():
        assert set(experiment.methods) <= set(OBJECTIVES)


def test_the_experiments_are_those_that_were_promised() -> None:
    tables = {f"table{number}" for number in (2, 3, 4, 5, 7, 8, 9)}
    assert set(plan.experiments()) == tables | {"figure4", "figure5"}


@pytest.mark.parametrize(
    ("experiment", "task", "entry", "field", "value"),
    [
        ("table2", "cifar10", "adap_lpn", "robust", 0.3301),
        ("table2", "cifar10/truck", "trades", "clean", 0.7008),
        ("table3", "bdd100k/tunnel", "adap_ln", "robust", 0.2882),
        ("table4", "celeba/Mustache", "pgd", "robust_sd", 0.0010),
        ("table5", "bdd100k/rainy", "adap_mm", "clean", 0.4516),
        ("table7", "cifar10/airplane", "trades", "seconds", 4188.0),
        ("table8", "cifar10", "adap_ln 0.3/0.7", "robust", 0.2733),
        ("table9", "cifar10/automobile", "adap_lpn 0.8", "robust", 0.5263),
    ],
)
def test_the_papers_values_are_there(
    experiment: str, task: str, entry: str, field: str, value: float
) -> None:
    """Values read off the paper by hand, some of every table."""
    assert getattr(plan.experiments()[experiment].paper[task][entry], field) == value


def test_the_average_of_the_paper_is_that_of_its_classes() -> None:
    paper = plan.experiments()["table2"].paper
    classes = [values for task, values in paper.items() if task.startswith("cifar10/")]
    assert len(classes) == 10
    for method in ("pgd", "trades", "adap_ln", "adap_lpn"):
        robust = [values[method].robust for values in classes]
        assert None not in robust
        assert np.mean(np.array(robust, float)) == pytest.approx(
            paper["cifar10"][method].robust, abs=2e-4
        )


# --- what is planned ------------------------------------------------------------------------------


def test_tuning_takes_the_best_of_every_stage() -> None:
    planner = plan.Planner(plan.scale("cpu"), made_up)
    assert planner.tuned("trades", "cifar10/truck") == {"lr": 1e-4, "lambda": 4}
    assert planner.tuned("adap_lpn", "cifar10/truck").keys() == {"lr", "lambda", "gamma1", "gamma2"}


def test_tuning_sees_validation_images_only() -> None:
    asked: list[Piece] = []

    def watched(pieces: Sequence[Piece]) -> list[dict[str, Any]]:
        asked.extend(pieces)
        return made_up(pieces)

    plan.Planner(plan.scale("cpu"), watched).tuned("mart", "cifar10/truck")
    assert asked
    assert not [piece for piece in asked if isinstance(piece, Evaluation)]


def test_values_that_a_scale_fixes_are_not_tuned() -> None:
    asked: list[Piece] = []

    def watched(pieces: Sequence[Piece]) -> list[dict[str, Any]]:
        asked.extend(pieces)
        return made_up(pieces)

    fixed = plan.scale("paper-fixed")
    assert set(fixed.fixed) == set(OBJECTIVES)
    values = plan.Planner(fixed, watched).tuned("adap_lpn", "cifar10/automobile")
    assert values == {"lr": 1e-3, "gamma1": 0.1, "gamma2": 0.9, "lambda": 0.8}
    assert not asked
    for method, chosen in fixed.fixed.items():  # each of them a value that the method is tuned in
        tuned = {name for stage in plan.methods()[method].tune for name in stage}
        assert set(chosen) == tuned


def test_the_papers_scale_reads_what_is_there(root: Path, tmp_path: Path) -> None:
    paper = plan.scale("paper")
    assert paper.of_what_is_in(root).sources == {**paper.sources, "cifar10": "cifar10-jpeg"}
    (tmp_path / "cifar10").mkdir()
    assert paper.of_what_is_in(tmp_path).sources == paper.sources


def test_one_worker_is_this_process(root: Path, tmp_path: Path) -> None:
    planner = plan.Planner(small("cpu"), made_up)
    size = planner.scale.full.model_copy(update={"train": 60})
    piece = planner.training("ce", "cifar10/truck", {"lr": 1e-3}, seed=0, size=size)
    (result,) = Pool(root, tmp_path, 1)([piece])
    assert result["hash"] == digest(piece)
    assert not multiprocessing.active_children()


def test_seeds_and_candidates_made_at_once_are_those_made_one_after_the_other(
    root: Path, tmp_path: Path
) -> None:
    planner = plan.Planner(small("cpu"), made_up)
    size = planner.scale.full.model_copy(update={"train": 130, "epochs": 2})
    pieces = [
        planner.training(method, "cifar10/truck", {"lr": lr}, seed=seed, size=size)
        for method, lr, seed in (("ce", 1e-3, 0), ("ce", 1e-2, 1), ("adap_ln", 1e-3, 1))
    ]
    alone, at_once = tmp_path / "alone", tmp_path / "at_once"
    expected = [compute(piece, root=root, out=alone) for piece in pieces]
    pool = Pool(root, at_once, 1, at_once=2)
    found = pool([*pieces, pieces[0]])
    assert found[3] is found[0], "each piece once"
    for piece, ours, theirs in zip(pieces, found, expected, strict=False):
        assert ours["hash"] == digest(piece)
        assert [r["loss"] for r in ours["history"]] == [r["loss"] for r in theirs["history"]]
        best = [folder / digest(piece) / "best.safetensors" for folder in (alone, at_once)]
        assert best[0].read_bytes() == best[1].read_bytes()


def test_of_trainings_made_at_once_one_that_diverges_fails_alone(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planner = plan.Planner(small("cpu"), made_up)
    size = planner.scale.full.model_copy(update={"train": 60})
    well, last = (
        planner.training("ce", "cifar10/truck", {"lr": lr}, seed=0, size=size)
        for lr in (1e-3, 1e-2)
    )
    optimizer = well.config.optimizer.model_copy(update={"lr": 1e30})
    config = well.config.model_copy(update={"optimizer": optimizer})
    diverging = well.model_copy(update={"config": config})
    pool = Pool(root, tmp_path, 1, at_once=3)
    with pytest.raises(TrainingError, match="expected"):
        pool([well, diverging, last])
    assert [result["hash"] for result in pool([last, well])] == [digest(last), digest(well)]
    with pytest.raises(TrainingError):
        pool([well, diverging])
    said = capsys.readouterr().out.splitlines()
    (failed,) = [line for line in said if "failed" in line]
    assert digest(diverging) in failed
    assert len(said) == 3, "each once"


def test_ap_starts_from_the_ce_network_of_the_same_seed() -> None:
    planner = plan.Planner(plan.scale("cpu"), made_up)
    cell = planner.cell(plan.experiments()["table2"], "cifar10/truck", "ap", {})
    for piece in cell.pieces:
        assert isinstance(piece, Evaluation)
        start = piece.training.start
        assert start is not None
        assert start.config.method.name == "ce"
        assert start.config.seed == piece.training.config.seed
        assert start.data == piece.training.data


def test_the_black_box_attacker_has_a_ce_network_of_the_same_split() -> None:
    planner = plan.Planner(plan.scale("cpu"), made_up)
    cell = planner.cell(plan.experiments()["table4"], "cifar10/truck", "adap_ln", {})
    for piece in cell.pieces:
        assert isinstance(piece, Evaluation)
        assert piece.surrogate is not None
        assert piece.surrogate.config.method.name == "ce"
        assert piece.surrogate.data == piece.training.data


def test_tables_share_what_they_have_in_common() -> None:
    planner = plan.Planner(plan.scale("cpu"), made_up)
    two, three = (
        planner.cell(plan.experiments()[name], "cifar10/truck", "pgd", {})
        for name in ("table2", "table3")
    )
    assert [digest(piece) for piece in two.pieces] == [digest(piece) for piece in three.pieces]


def test_the_hash_knows_every_value() -> None:
    planner = plan.Planner(plan.scale("cpu"), made_up)
    size = planner.scale.full
    made = [
        planner.training("adap_ln", "cifar10/truck", values, seed=seed, size=size)
        for values in ({"lambda": 1.0}, {"lambda": 2.0})
        for seed in (0, 1)
    ]
    assert len({digest(training) for training in made}) == 4


# --- what is computed -----------------------------------------------------------------------------


def test_the_split_keeps_prevalence_and_moves_with_the_seed(root: Path, tmp_path: Path) -> None:
    def load(seed: int) -> data.Split:
        source = plan.scale("cpu").sources["cifar10"]
        spec = data.DataSpec(source=source, positive=["truck"], seed=seed, train=60, validation=30)
        return data.load(spec, root, tmp_path)

    split, again, other = load(0), load(0), load(1)
    assert [len(targets) for _, targets in (split.train, split.validation, split.test)] == [
        60,
        30,
        60,
    ]
    for _, targets in (split.train, split.validation, split.test):
        assert int(targets.sum()) == len(targets) // 3
    assert torch.equal(split.train[0], again.train[0])
    assert not torch.equal(split.train[0], other.train[0])
    seen = {image.numpy().tobytes() for image in split.train[0]}
    assert not seen & {image.numpy().tobytes() for image in split.validation[0]}


@pytest.mark.parametrize(
    ("task", "source"),
    [
        ("cifar10/truck", "cifar10"),
        ("cifar100/fish", "cifar100:superclass"),
        ("celeba/Mustache", "celeba:Mustache"),
        ("bdd100k/rainy", "bdd100k:weather"),
    ],
)
def test_the_papers_data_sets_come_in_their_publishers_layouts(
    tmp_path: Path, task: str, source: str
) -> None:
    dataset = task.split("/")[0]
    root = tmp_path / dataset
    root.mkdir()
    getattr(published, dataset)(root)
    planner = plan.Planner(plan.scale("paper"), made_up)
    size = planner.scale.full
    training = planner.training("pgd", task, {"lr": 1e-3}, seed=0, size=size)
    assert training.data.source == source
    assert training.config.epochs == (60 if dataset.startswith("cifar") else 32)

    split = data.load(training.data, tmp_path, tmp_path / "cache")
    for images, targets in (split.train, split.validation, split.test):
        assert images.dtype == torch.uint8
        assert len(targets) == len(images)
    assert 0 < int(split.train[1].sum()) < len(split.train[1])


def test_every_task_of_the_papers_scale_has_figures_of_the_paper() -> None:
    known = plan.experiments()["table2"].paper
    assert set(plan.scale("paper").tasks) <= set(known)


@pytest.fixture(scope="module")
def computed(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, Evaluation, list[dict[str, Any]]]]:
    """ResNet-18 for two steps of the paper's own scale, and all that its evaluation needs."""
    out = tmp_path_factory.mktemp("out")
    paper = plan.scale("paper")
    in_float32 = {**paper.training, "precision": "float32"}  # bfloat16 is slow on a CPU
    changes = {"training": in_float32, "sources": plan.scale("cpu").sources}
    planner = plan.Planner(small("paper", **changes), made_up)
    size = planner.scale.full
    ce = planner.training("ce", "cifar10/truck", {"lr": 1e-3}, seed=0, size=size)
    values = {"lr": 1e-3, "lambda": 1.0, "gamma1": 0.9, "gamma2": 0.1}
    lpn = planner.training("adap_lpn", "cifar10/truck", values, seed=0, size=size)
    evaluation = Evaluation(training=lpn, surrogate=ce, attacks=("pgd", "apgd", "black_box"))
    results = [compute(piece, root=root, out=out) for piece in (ce, lpn, evaluation)]
    return out, evaluation, results


def test_the_papers_scale_runs(
    computed: tuple[Path, Evaluation, list[dict[str, Any]]],
) -> None:
    _, _, (ce, lpn, evaluation) = computed
    assert ce["select_by"] == "clean_ap"
    assert lpn["select_by"] == "robust_ap"
    assert lpn["examples"] == [201, 30]
    assert set(evaluation["ap"]) == {"clean", "pgd", "apgd", "black_box"}
    assert all(0 < ap <= 1 for ap in evaluation["ap"].values())


def test_what_is_known_is_not_computed_again(
    root: Path, computed: tuple[Path, Evaluation, list[dict[str, Any]]]
) -> None:
    out, evaluation, (*_, known) = computed
    folder = out / digest(evaluation.training)
    moved = folder.rename(folder.with_suffix(".away"))
    try:
        assert compute(evaluation, root=root, out=out) == known
    finally:
        moved.rename(folder)


def test_a_training_goes_on_from_its_checkpoint(root: Path, tmp_path: Path) -> None:
    planner = plan.Planner(small("cpu"), made_up)
    size = planner.scale.full.model_copy(update={"epochs": 3})
    piece = planner.training("adap_ln", "cifar10/truck", {"lr": 1e-3}, seed=0, size=size)
    through, broken = tmp_path / "through", tmp_path / "broken"
    expected = compute(piece, root=root, out=through)

    saved = torch.save
    count = 0

    def dies_at_the_third(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        saved(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", dies_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            compute(piece, root=root, out=broken)
    assert not (broken / digest(piece) / "result.json").exists()
    resumed = compute(piece, root=root, out=broken)
    for first, second in zip(expected["history"], resumed["history"], strict=True):
        speed = {"images_per_s": 0, "eta_s": 0}
        assert {**first, **speed} == {**second, **speed}
    best = [folder / digest(piece) / "best.safetensors" for folder in (through, broken)]
    assert best[0].read_bytes() == best[1].read_bytes()


def test_a_fresh_last_layer_leaves_the_others(tmp_path: Path) -> None:
    network = networks.build("strided_cnn", seed=0)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    after = networks.with_fresh_last_layer(network).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"network.11.weight", "network.11.bias"}


# --- what is shown --------------------------------------------------------------------------------


def entry(experiment: str, method: str, aps: Sequence[tuple[float, float]]) -> dict[str, Any]:
    results = [
        {
            "kind": "evaluation",
            "hash": f"{method}{seed}",
            "ap": {"pgd": robust, "clean": clean},
            "positives": 200,
            "examples": 2000,
        }
        for seed, (robust, clean) in enumerate(aps)
    ]
    return {
        "experiment": experiment,
        "task": "cifar10/truck",
        "method": method,
        "varied": {},
        "chosen": {"lr": 1e-3},
        "results": results,
    }


def test_the_page_shows_our_value_beside_the_papers_and_says_which_orderings_appear(
    tmp_path: Path,
) -> None:
    aps = {
        "pgd": [(0.20, 0.5), (0.21, 0.5), (0.19, 0.5)],
        "trades": [(0.30, 0.6), (0.32, 0.6), (0.29, 0.6)],
        "mart": [(0.25, 0.6), (0.10, 0.6), (0.40, 0.6)],
        "adap_ln": [(0.20, 0.7), (0.21, 0.7), (0.19, 0.7)],
        "adap_lpn": [(0.25, 0.7), (0.26, 0.7), (0.24, 0.7)],
    }
    entries = [entry("table2", method, values) for method, values in aps.items()]
    entries += [
        entry("table5", method, [(0.2, 0.5), (0.21, 0.5), (0.22, 0.5)])
        for method in ("adap_mm", "adap_pz", "adap_lz")
    ]
    text = render(json.loads(json.dumps(entries)), scale="cpu", folder=tmp_path).read_text()
    assert "| PGD | 0.200 ± 0.010 | 0.260 ± 0.007 | 0.500 ± 0.000 | 0.494 ± 0.013 |" in text
    verdicts = {
        line.split(" | ")[0].removeprefix("| "): line.split(" | ")[-1].removesuffix(" |")
        for line in text.splitlines()
        if " above " in line and "| robust |" in line
    }
    assert verdicts["AdAP_LPN above PGD"] == "appears"
    assert verdicts["AdAP_LPN above TRADES"] == "the reverse"
    assert verdicts["AdAP_LPN above MART"] == "not decided"
