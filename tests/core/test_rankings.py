"""Rankings under typed keys; the judge of every AP is scikit-learn."""

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.metrics import average_precision_score

from adap.core.config.attacks import APGDAttack, SquareAttack
from adap.core.config.audits import AuditConfig
from adap.core.figures import task as figures
from adap.core.rankings import OWN_NAMES
from adap.core.scores import Scores

TARGETS = np.array([1, 1, 0, 0, 0, 0])
CLEAN = np.array([5.0, 4, 3, 2, 1, 0])
HURT = np.array([0.0, 0.5, 3.1, 2, 1, 0.2])


def test_an_attack_keeps_its_own_figure_beside_a_certified_floor_whatever_it_is_called() -> None:
    config = AuditConfig(attacks=[APGDAttack(label="floor"), SquareAttack(label="clean_ap")])
    scores = Scores(
        list("abcdef"),
        TARGETS,
        CLEAN,
        {"floor": HURT, "clean_ap": CLEAN - 0.1},
        bounds=np.stack([CLEAN - 10, CLEAN + 10]),
    )
    found = figures.figures(scores, positive=["a"], config=config)
    lowest = np.where(TARGETS == 1, CLEAN - 10, CLEAN + 10)
    assert found.attacks["floor"].ap == pytest.approx(average_precision_score(TARGETS, HURT))
    assert found.attacks["clean_ap"].ap == pytest.approx(average_precision_score(TARGETS, CLEAN))
    assert found.certified_floor is not None
    assert found.certified_floor.ap == pytest.approx(average_precision_score(TARGETS, lowest))


@pytest.mark.parametrize("label", OWN_NAMES)
def test_a_label_that_is_a_name_of_the_reports_own_is_refused(label: str) -> None:
    with pytest.raises(ValidationError, match=f"keeps figures of its own; got {label}"):
        AuditConfig.model_validate({"attacks": [{"name": "apgd", "label": label}]})


def test_two_epsilons_that_print_alike_are_two_points() -> None:
    pair = [0.0313725, 8 / 255]
    assert f"{pair[0]:g}" == f"{pair[1]:g}"
    config = AuditConfig(attacks=[APGDAttack()], epsilons=pair)
    scores = Scores(
        list("abcdef"),
        TARGETS,
        CLEAN,
        {"apgd": HURT},
        curve=dict(zip(pair, (CLEAN, HURT), strict=True)),
    )
    curve = figures.figures(scores, positive=["a"], config=config).epsilon_curve
    assert curve is not None
    assert [(point.epsilon, point.ap) for point in curve.points] == [
        (pair[0], pytest.approx(average_precision_score(TARGETS, CLEAN))),
        (pair[1], pytest.approx(average_precision_score(TARGETS, HURT))),
    ]
