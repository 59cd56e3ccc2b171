"""The pages that compare, read by a parser. The judge is the JSON, and a front by brute force."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.api.conftest import Api
from tests.api.test_pages import get, seen
from tests.api.test_routes import finish
from tests.api.test_standings import put
from tests.api.test_sweeps import end, start
from tests.core.pages import HOSTILE, Page

Check = Callable[..., dict[str, Any]]


def resampled(folder: Path, clean: float, worst: float) -> Path:
    """APs around these, as of a hundred resamples."""
    spread = np.linspace(-0.02, 0.02, 100)
    path = folder / "resampled.safetensors"
    save_file(
        {
            f"0.{side}.{name}": ap + spread
            for side, ap in (("clean", clean), ("worst_case", worst))
            for name in ("ap", "low", "high")
        },
        path,
    )
    return path


def audited(api: Api, dataset_id: str, name: str, clean: float, worst: float, **more: Any) -> None:
    model_id = api.model(name=name)
    request = {"model_id": model_id, "dataset_id": dataset_id, **more}
    job_id = api.http.post("/v1/audits", json=request).json()["id"]
    figures = {
        "clean_ap": clean,
        "worst_case_ap": worst,
        "trust": "trustworthy",
        "attacks": ["apgd"],
        "tasks": [{"positive": ["cat"]}],
    }
    blobs = {"resampled": put(api, resampled(api.folder, clean, worst))}
    finish(api, job_id, {"summary": figures, "blobs": blobs})


def dots(page: Page, prefix: str) -> dict[str, str]:
    """What the scatter says of each model, by its name: `diamond` or `circle` marks."""
    drawing = page.source.split(f'id="{prefix}"')[1].split("</section>")[0]
    found = re.findall(r'class="(diamond|dot)".*?<title>(.*?)</title>', drawing)
    return {title: kind for kind, title in found}


def test_models_are_compared_with_their_intervals_and_front(api: Api) -> None:
    dataset_id = api.dataset(name="pets")
    for name, clean, worst in (
        ("steady", 0.80, 0.70),
        ("sharp", 0.95, 0.40),
        ("weak", 0.75, 0.30),
        (HOSTILE[0], 0.85, 0.60),
    ):
        audited(api, dataset_id, name, clean, worst)
    audited(api, dataset_id, "elsewhere", 0.9, 0.9, threat={"norm": "l2", "epsilon": 0.5})
    path = f"/v1/leaderboard?dataset_id={dataset_id}"
    page, told = seen(api, path), api.http.get(path).json()
    assert [one["model_name"] for one in told["contenders"]] == [
        *("steady", HOSTILE[0], "sharp", "weak")
    ]
    drawn = dots(page, "h-plot")
    assert list(drawn.values()) == ["diamond", "diamond", "diamond", "dot"]
    assert "1 steady: clean AP 0.8000, worst-case AP 0.7000" in drawn
    shown = page.one("main").words
    for one in told["contenders"]:
        interval = one["worst_case"]["interval"]
        assert f"{interval['low']:.3f} to {interval['high']:.3f}" in shown
        if one["to_leader"] is not None:
            assert f"{one['to_leader']['value']:+.3f}".replace("-", "\N{MINUS SIGN}") in shown
    assert HOSTILE[0] in page.one("main").text
    assert "elsewhere" not in shown
    assert "norm L-inf, epsilon 8/255" in shown
    (other,) = [a.attributes["href"] for a in page.all("a") if "norm=l2" in a.attributes["href"]]
    assert "elsewhere" in seen(api, other).one("main").words
    for link in {a.attributes["href"] for a in page.all("a")}:
        assert not re.search("/scores$|/events$|json", link)
    assert get(api, path).headers["vary"] == "Accept"


def test_each_other_setting_is_a_link_away_and_asked_for_by_its_fields(
    api: Api, problem: Check
) -> None:
    dataset_id = api.dataset(name="pets")
    settings = {
        "plain": {},
        "pressed": {"pipeline": ["jpeg:80"]},
        "softened": {"pipeline": [{"name": "jpeg", "quality": 60}, {"name": "quantise"}]},
        "drawn": {"sample": 8},
    }
    for name, more in settings.items():
        audited(api, dataset_id, name, 0.9, 0.5, **more)
    path = f"/v1/leaderboard?dataset_id={dataset_id}"
    board = api.http.get(path).json()
    assert board["contenders"][0]["model_name"] == "plain"
    links = [a.attributes["href"] for a in seen(api, path).all("a")]
    others = [link for link in links if "pipeline=" in link]
    assert len(others) == len(board["other_settings"]) == 3
    led_to = [api.http.get(link).json()["contenders"] for link in others]
    assert [[one["model_name"] for one in some] for some in led_to] == [
        ["pressed"],
        ["softened"],
        ["drawn"],
    ]
    for query, name in (
        ("pipeline=jpeg:80", "pressed"),
        ("pipeline=jpeg:60&pipeline=quantise", "softened"),
        ("sample=8", "drawn"),
        ("pipeline=none&sample=0", "plain"),
    ):
        (one,) = api.http.get(f"{path}&{query}").json()["contenders"]
        assert one["model_name"] == name
    refused = problem(api.http.get(f"{path}&pipeline=blur"), 422, "invalid_request")
    assert "expected jpeg:80, " in refused["detail"]


def test_a_data_set_without_audits_says_so(api: Api) -> None:
    page = seen(api, f"/v1/leaderboard?dataset_id={api.dataset()}")
    assert "Nothing to compare yet" in page.one("main").words


def test_a_sweep_is_drawn_trial_by_trial(api: Api) -> None:
    grid = {"kind": "grid", "parameters": {"optimizer.lr": [0.1, 0.01], "seed": [0, 1]}}
    sweep = start(api, grid)
    path = f"/v1/sweeps/{sweep['id']}"
    assert "0 of 4 trials have ended" in seen(api, path).one("main").words
    for trial, aps in zip(sweep["trials"], ((0.8, 0.5), (0.9, 0.3), (0.7, 0.2), None), strict=True):
        end(api, trial["job_id"], aps)
    page = seen(api, path)
    assert list(dots(page, "h-plot").values()) == ["diamond", "diamond", "dot"]
    for text in (
        "4 of 4 trials have ended; the best is number 0",
        "Number 1 its model , on the Pareto front",
        "The loss is NaN.",
    ):
        assert text in page.one("main").words, text
    assert len(page.all("tr")) == 5
    assert f"/v1/jobs/{sweep['trials'][3]['job_id']}" in {
        a.attributes["href"] for a in page.all("a")
    }
