"""Whatever answers images with scores: its outputs are read as they are meant, or refused."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

import adap

CALM: dict[str, Any] = {"attacks": ["noise"], "checks": "off", "certify": "off", "progress": False}


class Shaped(nn.Module):
    """A linear model whose answer takes the form that a test wants."""

    def __init__(self, outputs: int, form: str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(48, outputs, generator=generator))
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1) @ self.weight
        forms = {"flat": z[:, 0], "raw": z, "softmax": z.softmax(dim=1), "sigmoid": z.sigmoid()}
        return forms[self.form]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(40, 3, 4, 4, generator=torch.Generator().manual_seed(4))


@pytest.fixture(scope="module")
def labels() -> Tensor:
    return torch.arange(40) % 3


@pytest.mark.parametrize(
    ("outputs", "form", "said"),
    [
        (1, "flat", ""),
        (1, "raw", ""),
        (1, "sigmoid", "all lie in"),
        (2, "raw", ""),
        (2, "softmax", "probabilities"),
        (3, "raw", ""),
        (3, "softmax", "probabilities"),
    ],
)
def test_the_clean_ap_is_that_of_scikit_learn_on_the_odds_of_the_positive_class(
    images: Tensor, labels: Tensor, outputs: int, form: str, said: str
) -> None:
    model = Shaped(outputs, form)
    report = adap.audit(model, images, labels, positive=1, **CALM)
    with torch.no_grad():
        answer = model(images).double().reshape(40, -1).numpy()
    if form == "raw" and outputs > 1:
        powers = np.exp(answer)
        answer = powers / powers.sum(axis=1, keepdims=True)
    judged = average_precision_score(labels == 1, answer[:, -1 if outputs == 1 else 1])
    assert report.clean.ap == pytest.approx(judged, abs=1e-9)
    assert any(said in warning for warning in report.warnings)


def test_of_two_outputs_the_second_is_positive_and_the_report_says_so(images: Tensor) -> None:
    labels = (torch.arange(40) % 2).bool()
    first, second = (
        adap.audit(Shaped(2, "raw"), images, labels, **CALM),
        adap.audit(Shaped(2, "raw"), images, labels, positive=[1], **CALM),
    )
    assert first.clean.ap == second.clean.ap
    assert any("second is the positive class" in warning for warning in first.warnings)
    assert not any("second is the positive" in warning for warning in second.warnings)


def test_a_declared_normalisation_is_that_of_a_layer_before_the_model(
    images: Tensor, labels: Tensor
) -> None:
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Shaped(1, "raw")

        def forward(self, x: Tensor) -> Tensor:
            return self.inner((x - torch.tensor([[[[0.5]], [[0.4]], [[0.3]]]])[0]) / 0.25)

    declared = adap.audit(
        Shaped(1, "raw"),
        images,
        labels,
        positive=0,
        mean=[0.5, 0.4, 0.3],
        std=[0.25, 0.25, 0.25],
        **CALM,
    )
    inside = adap.audit(Normalised(), images, labels, positive=0, **CALM)
    assert declared.scores[0].clean == pytest.approx(inside.scores[0].clean, abs=1e-5)


def test_a_model_is_left_as_it_was(images: Tensor, labels: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 1))
    model.eval()
    model[2].train()
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    adap.audit(model, images, labels, positive=0, **CALM)
    adap.attack(model.train(), images[:4], torch.tensor([0, 1, 1, 0]), adap.PGD(steps=1))
    assert model.training
    model.eval()
    model[2].train()
    assert [module.training for module in model.modules()] == modes
    assert not model[0].weight.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_whose_mode_matters_is_refused_in_train_mode_and_not_changed(
    images: Tensor, labels: Tensor
) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 1))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(adap.ModelError, match=r"eval mode, got one in train mode.*model.eval\(\)"):
        adap.audit(model, images, labels, positive=0, **CALM)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert adap.audit(model.eval(), images, labels, positive=0, **CALM).clean.ap > 0


def test_a_function_is_given_arrays_or_tensors_and_only_asked_for_scores(
    images: Tensor, labels: Tensor
) -> None:
    model, kinds = Shaped(1, "raw"), set()

    def of_arrays(batch: object) -> object:
        kinds.add(type(batch))
        assert isinstance(batch, np.ndarray)
        with torch.no_grad():
            return model(torch.from_numpy(batch)).numpy()

    attacks = [adap.Square(queries=10), adap.Noise()]
    common = {"positive": 1, "attacks": attacks, "checks": "quick", "progress": False}
    arrays = adap.audit(of_arrays, images, labels, **common)
    tensors = adap.audit(lambda batch: model(batch.clone()), images, labels, **common)
    module = adap.audit(model, images, labels, **common, certify="off")
    assert kinds == {np.ndarray}
    assert arrays.task.attacks == tensors.task.attacks
    assert arrays.clean.ap == pytest.approx(module.clean.ap)
    assert arrays.trust is not None
    assert arrays.trust.verdict == "caution"
    (converged,) = (check for check in arrays.trust.checks if check.name == "converged")
    assert "without gradients" in converged.message


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("resnet18", {}, "expected an nn.Module, or a function .* got str"),
        (nn.Linear, {}, "got the class Linear"),
        (nn.Linear(7, 1), {}, r"runs on images \(16, 3, 4, 4\), got RuntimeError"),
        (nn.Identity(), {}, r"one score an image.*got \(16, 3, 4, 4\)"),
        (Shaped(3, "raw"), {}, "expected positive=.* 3 outputs"),
        (Shaped(3, "raw"), {"positive": 7}, "expected positive labels among"),
        (Shaped(1, "raw"), {"outputs": "probabilities"}, "expected probabilities from 0 to 1"),
        (Shaped(1, "raw"), {"outputs": "odds"}, "expected outputs among auto, logits"),
        (Shaped(3, "sigmoid"), {"positive": 1}, "outputs=, as all 3 outputs lie in .0, 1."),
        (Shaped(1, "raw").to("meta"), {}, "with weights, got one on the device meta"),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(1)), {}, "lazy layers that have none yet"),
        (Shaped(1, "raw"), {"device": "meta"}, "a device of this machine.* got 'meta'"),
        (Shaped(1, "raw"), {"device": "gpu"}, "a device of this machine.* got 'gpu'"),
        (
            Shaped(1, "raw"),
            {"mean": 0.5, "std": 0.5},
            r"mean with 3 finite numbers, .* got \[0.5\]",
        ),
        (Shaped(1, "raw"), {"attacks": []}, "at least one attack"),
        (Shaped(1, "raw"), {"epsilons": 0.1}, "epsilons: .*got 0.1"),
        (Shaped(1, "raw"), {"require": 5}, "expected a text, got 5"),
        (Shaped(1, "raw"), {"progress": "yes"}, "progress as True, False or a function"),
        (Shaped(1, "raw"), {"folder": "/proc/none"}, "folder= where files can be written"),
        (Shaped(1, "raw"), {"surrogate": Shaped(3, "raw")}, "the surrogate: .*3 outputs"),
        (Shaped(1, "raw"), {"mean": [0.5]}, "mean and std together"),
        (Shaped(1, "raw"), {"mean": [0.5], "std": [0.5]}, "mean with 3 finite numbers"),
        (lambda x: x["no"], {}, "expected a function from images .* it raised"),
        (lambda x: x.mean((1, 2, 3)), {"attacks": ["pgd"]}, "no gradients .*got pgd"),
        (lambda x: x.mean((1, 2, 3)) * np.nan, {}, "finite scores, got NaN"),
        (lambda x: x.mean((1, 2, 3)), {"certify": "ibp"}, "no bounds for a function"),
    ],
)
def test_what_cannot_be_ranked_is_refused_with_what_came(
    images: Tensor, model: object, options: dict[str, Any], said: str
) -> None:
    labels = torch.arange(40) % 2
    with pytest.raises(adap.AdapError, match=said):
        adap.audit(model, images, labels, **{**CALM, "certify": "auto", **options})


def test_a_positive_by_name_needs_the_names_of_the_outputs(images: Tensor) -> None:
    labels = np.array(["cat", "dog"])[torch.arange(40) % 2]
    for model in (Shaped(2, "raw"), Shaped(3, "raw")):
        with pytest.raises(adap.ConfigError, match=r"or as a name with classes=.*\['cat'\]"):
            adap.audit(model, images, labels, positive="cat", **CALM)
    named = adap.audit(
        Shaped(2, "raw"), images, labels, positive="cat", classes=["cat", "dog"], **CALM
    )
    with torch.no_grad():
        odds = Shaped(2, "raw")(images).softmax(dim=1)[:, 0]
    assert named.clean.ap == pytest.approx(average_precision_score(labels == "cat", odds))


def test_labels_beyond_the_outputs_and_rows_of_several_classes_are_told(images: Tensor) -> None:
    report = adap.audit(Shaped(3, "raw"), images, torch.arange(40) % 5, positive=1, **CALM)
    assert any("Labels go up to 4, and the model has 3" in text for text in report.warnings)
    rows = torch.rand(40, 3, generator=torch.Generator().manual_seed(8)) > 0.5
    with pytest.raises(adap.ConfigError, match="got rows with several or none: outputs="):
        adap.audit(Shaped(3, "raw"), images, rows, positive=1, **CALM)
    report = adap.audit(Shaped(3, "raw"), images, rows, positive=1, outputs="multilabel", **CALM)
    with torch.no_grad():
        score = Shaped(3, "raw")(images)[:, 1]
    assert report.clean.ap == pytest.approx(average_precision_score(rows[:, 1], score))


class Writing(nn.Module):
    """Normalises the very tensor that it is given, and may draw random numbers."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.inner, self.noise = Shaped(1, "raw"), noise

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5
        return self.inner(x) + self.noise * torch.randn(len(x), 1)


def test_a_model_that_writes_into_its_images_changes_nobodys(
    images: Tensor, labels: Tensor
) -> None:
    def writing(given: np.ndarray) -> np.ndarray:
        given -= 0.5
        return given.reshape(len(given), -1).astype(np.float64) @ np.arange(48)

    before = images.clone()
    with torch.no_grad():
        expected = [Writing()(images.clone())[:, 0], writing(images.numpy().copy())]
    for model, scores in zip((Writing(), writing), expected, strict=True):
        report = adap.audit(model, images, labels, positive=1, **CALM)
        assert torch.equal(images, before)
        assert report.clean.ap == pytest.approx(average_precision_score(labels == 1, scores))


def test_a_random_model_is_not_told_to_leave_train_mode(images: Tensor, labels: Tensor) -> None:
    with pytest.warns(UserWarning, match="mean over 16 draws"):
        report = adap.audit(Writing(noise=0.1).train(), images, labels, positive=1, **CALM)
    assert report.clean.ap > 0


def test_decisions_in_place_of_scores_are_told(images: Tensor, labels: Tensor) -> None:
    def decide(x: np.ndarray) -> np.ndarray:
        return x.mean((1, 2, 3)) > 0.5

    report = adap.audit(decide, images, labels, positive=1, **CALM)
    assert any("two different scores only" in text for text in report.warnings)


def test_a_model_that_fails_on_a_later_batch_is_refused_by_name(
    images: Tensor, labels: Tensor
) -> None:
    class Sixteen(Shaped):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.reshape(16, 3, 4, 4))

    with pytest.raises(adap.ModelError, match=r"runs on images \(40, 3, 4, 4\), got RuntimeErr"):
        adap.audit(Sixteen(1, "raw"), images, labels, positive=1, **CALM)


@pytest.mark.parametrize("form", ["half", "bfloat16", "double", "parallel", "traced"])
def test_the_same_network_in_other_forms_ranks_alike(
    images: Tensor, labels: Tensor, form: str
) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 1)).eval()
    forms = {
        "half": lambda: copy.deepcopy(network).half(),
        "bfloat16": lambda: copy.deepcopy(network).bfloat16(),
        "double": lambda: copy.deepcopy(network).double(),
        "parallel": lambda: nn.DataParallel(network),
        "traced": lambda: torch.fx.symbolic_trace(network),
    }
    model = forms[form]()
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        scores = model(images.to(dtype)).float()[:, 0]
    report = adap.audit(model, images, labels, positive=1, **CALM)
    tie = len(scores.unique()) < len(scores)
    judged = average_precision_score(labels == 1, scores)
    assert report.clean.ap <= judged + 1e-9 if tie else report.clean.ap == pytest.approx(judged)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epsilon": 8}, "at most 1, .*got 8; for 8 of 255 levels write 8/255"),
        ({"epsilon": True}, "epsilon: expected a number, got True"),
        ({"epsilon": "8/0"}, "expected a fraction such as 8/255"),
        ({"norm": "l3"}, "norm: expected one of linf, l2, l1, l0, patch, got 'l3'"),
        ({"attack": adap.PGD(step_size=2)}, "L-inf step_size of at most 1, .*got 2"),
    ],
)
def test_sizes_beyond_the_pixels_are_refused_before_an_attack(
    images: Tensor, options: dict[str, Any], said: str
) -> None:
    labels = torch.arange(len(images)) % 2
    with pytest.raises(adap.ConfigError, match=said):
        adap.attack(nn.Flatten(), images, labels, **options)


def test_a_fraction_in_text_is_the_number(images: Tensor) -> None:
    labels = torch.arange(len(images)) % 2
    model = nn.Sequential(nn.Flatten(), nn.Linear(images[0].numel(), 1))
    of = [adap.attack(model, images, labels, "fgsm", epsilon=e) for e in ("8/255", 8 / 255)]
    assert torch.equal(*of)


@pytest.mark.parametrize(
    ("labels", "options", "said"),
    [
        ([1, 2, 3], {"positive": 2}, "0 to 2, got labels from 1 to 3: subtract 1"),
        ("abc", {"positive": "b", "classes": ["a", "b", "zz"]}, r"among classes .* got \['c'\]"),
        ("ab", {"positive": "b", "classes": ["a", "b"]}, "each of the 3 outputs .* got 2 names"),
        ([0, 1, 3], {"positive": "b", "classes": [*"abc"]}, "places among the 3 .* got 0 to 3"),
        ([0, 1, 2], {"positive": "d", "classes": [*"abc"]}, r"got \['d'\]"),
    ],
)
def test_labels_and_names_that_do_not_fit_the_outputs_are_refused(
    images: Tensor, labels: str | list[int], options: dict[str, Any], said: str
) -> None:
    marks = np.array([*labels])[np.arange(40) % len(labels)]
    with pytest.raises(adap.AdapError, match=said):
        adap.audit(Shaped(3, "raw"), images, marks, **options, **CALM)


def test_numbers_and_names_of_the_same_labels_give_the_same_figures(images: Tensor) -> None:
    """As data sets of torchvision have them: whole numbers as labels, and a list of classes."""
    numbers, classes = np.arange(40) % 3, ["car", "cat", "dog"]
    found = [
        adap.audit(Shaped(3, "raw"), images, numbers, positive=2, **CALM),
        adap.audit(Shaped(3, "raw"), images, numbers, positive="dog", classes=classes, **CALM),
        adap.audit(
            *(Shaped(3, "raw"), images, np.array(classes)[numbers]),
            positive="dog",
            classes=classes,
            **CALM,
        ),
    ]
    assert len({report.clean.ap for report in found}) == 1
    with torch.no_grad():
        odds = Shaped(3, "raw")(images).softmax(dim=1)[:, 2]
    assert found[0].clean.ap == pytest.approx(average_precision_score(numbers == 2, odds))


def test_a_mean_of_another_range_is_refused(images: Tensor) -> None:
    with pytest.raises(adap.ConfigError, match=r"mean within \[0, 1\].* divided by 255"):
        adap.audit(
            Shaped(1, "raw"), images, torch.arange(40) % 2, mean=[124] * 3, std=[58] * 3, **CALM
        )


def test_a_network_that_begins_in_place_is_attacked(images: Tensor) -> None:
    begun = nn.Sequential(nn.ReLU(inplace=True), Shaped(1, "raw"))
    labels = torch.arange(40) % 2
    found, plain = (
        adap.attack(model, images, labels, adap.PGD(steps=2)) for model in (begun, Shaped(1, "raw"))
    )
    assert torch.equal(found, plain)


@pytest.mark.slow
def test_figures_do_not_hang_on_the_mode_of_gradients_around_the_call() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 1))
    x = torch.rand(20, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(20) % 2
    options: dict[str, Any] = {"attacks": ["pgd"], "progress": False}
    moved, report = adap.attack(model, x, y), adap.audit(model, x, y, **options)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            assert torch.equal(adap.attack(model, x, y), moved)
            assert adap.audit(model, x.clone(), y, **options).task == report.task
            assert adap.certify(model, x, y, epsilon=1 / 255).lo.shape == (20,)
    with torch.inference_mode():
        made_inside = nn.Sequential(nn.Flatten(), nn.Linear(48, 1))
    for call in (adap.attack, adap.audit, adap.fit):
        with pytest.raises(adap.ModelError, match=r"made outside of torch\.inference_mode"):
            call(made_inside, x, y)
    loss, generator = adap.PGDTraining(examples=20), adap.attack_generator(seed=0, epoch=1)
    with torch.inference_mode(), pytest.raises(adap.ConfigError, match="no gradient"):
        adap.training_attack(model, loss, x, y, torch.arange(20), generator=generator)


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        (torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1), np.full((3, 1, 1), 0.25)),
        ((0.4, 0.5, 0.6), [0.25, 0.25, 0.25]),
    ],
)
def test_a_normalisation_is_read_from_tensors_as_models_hold_them(mean: Any, std: Any) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 1))
    x = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(8) % 2
    expected = adap.attack(model, x, y, mean=[0.4, 0.5, 0.6], std=[0.25] * 3)
    assert torch.equal(adap.attack(model, x, y, mean=mean, std=std), expected)


def test_one_number_normalises_one_channel_and_no_more() -> None:
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(1))
    grey = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(8) % 2
    model(grey)
    expected = adap.attack(model, grey, y, mean=[0.5], std=[0.25])
    assert torch.equal(adap.attack(model, grey, y, mean=0.5, std=0.25), expected)
    with pytest.raises(adap.ConfigError, match=r"mean with 3 finite numbers.*got \[0.5\]"):
        adap.attack(model, grey.expand(-1, 3, -1, -1), y, mean=0.5, std=0.25)
