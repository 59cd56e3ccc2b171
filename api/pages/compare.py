"""The pages that compare: models that were audited on a data set, and the trials of a sweep."""

import json
from collections.abc import Sequence
from urllib.parse import urlencode

from fastapi import Response

from adap.api.pages import brief, page
from adap.api.pages.plots import Point, front, intervals, scatter
from adap.api.schemas import NO_PIPELINE, Contender, Leaderboard, LeaderboardSetting, Sweep
from adap.core.config.deployment import pipeline_in_words
from adap.core.report import APFigure

DRAWN = 60  # models with a line each; the table has all


def compare_page(board: Leaderboard, *, dataset_name: str) -> Response:
    """A leaderboard: its plots and its table, and where the other settings are."""
    ranked = [one for one in board.contenders if one.rank is not None]
    leads = front([(one.clean.ap, one.worst_case.ap) for one in ranked])
    points = [_point(one, leads=lead) for one, lead in zip(ranked, leads, strict=True)]
    below = [_point(one, leads=False) for one in board.contenders if one.rank is None]
    return page(
        "compare",
        board=board,
        dataset_name=dataset_name,
        scatter=scatter([*below, *points], robust="worst-case AP") if points else "",
        intervals=intervals(points[:DRAWN], robust="worst-case AP") if points else "",
        left_out=max(0, len(points) - DRAWN),
        below=len(below),
        settings=[(_words(one), _link(board.dataset_id, one)) for one in board.other_settings],
        setting=None if board.setting is None else _words(board.setting),
        on_front={one.model_id for one, lead in zip(ranked, leads, strict=True) if lead},
    )


def sweep_page(sweep: Sweep, *, dataset_name: str | None) -> Response:
    """A sweep: its trials by both APs, and what each changed."""
    points = [
        Point(
            name=", ".join(f"{name} {value}" for name, value in trial.parameters.items()),
            number=str(trial.number),
            clean=APFigure(ap=trial.clean_ap),
            robust=APFigure(ap=trial.robust_ap),
            on_front=trial.on_front,
        )
        for trial in sweep.trials
        if trial.clean_ap is not None and trial.robust_ap is not None
    ]
    return page(
        "sweep",
        sweep=sweep,
        dataset_name=dataset_name,
        scatter=scatter(points, robust="robust AP") if points else "",
        fields=_fields(sweep),
        clean_only=not points and any(trial.clean_ap is not None for trial in sweep.trials),
    )


def _fields(sweep: Sweep) -> Sequence[str]:
    """What the trials differ in, by the paths of fields, each once."""
    return list(dict.fromkeys(name for trial in sweep.trials for name in trial.parameters))


def _point(contender: Contender, *, leads: bool) -> Point:
    return Point(
        name=contender.model_name,
        number="" if contender.rank is None else str(contender.rank),
        clean=contender.clean,
        robust=contender.worst_case,
        on_front=leads,
        faded=contender.rank is None,
    )


def _words(setting: LeaderboardSetting) -> str:
    """A setting in a line: `8 first, test split, norm L-inf, epsilon 8/255`."""
    positive = setting.positive
    return ", ".join(
        [
            "the mean over a task for each class"
            if positive is None
            else f"{' and '.join(positive)} first",
            "all images" if setting.split is None else f"{setting.split} split",
            brief({"norm": setting.norm, "epsilon": setting.epsilon}),
            *([f"through {pipeline_in_words(setting.pipeline)}"] if setting.pipeline else []),
            *([] if setting.sample is None else [f"a sample of {setting.sample:,}"]),
        ]
    )


def _link(dataset_id: str, setting: LeaderboardSetting) -> str:
    asked = {
        "dataset_id": dataset_id,
        "positive": setting.positive or (),
        **({"each": "true"} if setting.positive is None else {}),
        "norm": setting.norm,
        "epsilon": setting.epsilon,
        **({} if setting.split is None else {"split": setting.split}),
        "sample": setting.sample or 0,
        "pipeline": [json.dumps(step.as_json()) for step in setting.pipeline] or NO_PIPELINE,
    }
    return f"/v1/leaderboard?{urlencode(asked, doseq=True)}"
