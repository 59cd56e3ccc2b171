"""The contract of sweeps, short of what workers do: trials are ended here by hand."""

from collections.abc import Callable
from typing import Any

import pytest

from adap.store import jobs, keys
from adap.store.ids import new_id
from tests.api.conftest import Api

Check = Callable[..., dict[str, Any]]
GRID = {"kind": "grid", "parameters": {"method.lambda": [0.1, 1, 10], "seed": [0, 1]}}
SEARCH = {
    "kind": "tpe",
    "parameters": {"method.lambda": {"low": 0.1, "high": 10, "log": True}},
    "trials": 5,
    "at_once": 2,
}
NOBODY = f"swp_{'0' * 26}"


def body(api: Api, search: dict[str, Any], **training: Any) -> dict[str, Any]:
    fields = {"dataset_id": api.dataset(), "task": {"positive": ["cat"]}, **training}
    return {"training": fields, "search": search}


def start(api: Api, search: dict[str, Any], **training: Any) -> dict[str, Any]:
    response = api.http.post("/v1/sweeps", json=body(api, search, **training))
    assert response.status_code == 201, response.text
    made: dict[str, Any] = response.json()
    assert response.headers["location"] == f"/v1/sweeps/{made['id']}"
    return made


def end(api: Api, job_id: str, aps: tuple[float, float | None] | None) -> None:
    """End a trial with the APs of its best epoch, or in failure."""
    with api.database.writing() as session:
        claim = jobs.claim(session, job_id, worker="w", lease_s=30)
        assert claim is not None
        if aps is None:
            jobs.fail(session, claim, jobs.JobError("training_failed", "The loss is NaN."))
        else:
            best = {"clean_ap": aps[0], "robust_ap": aps[1], "epoch": 3}
            jobs.succeed(session, claim, {"model_id": new_id("mdl"), "summary": {"best": best}})


def show(api: Api, sweep_id: str) -> dict[str, Any]:
    sweep: dict[str, Any] = api.http.get(f"/v1/sweeps/{sweep_id}").json()
    return sweep


def test_a_grid_queues_all_of_its_trials_at_once(api: Api) -> None:
    made = start(api, GRID, preset="quick", epochs=2)
    assert (made["status"], made["done"], made["planned"]) == ("queued", False, 6)
    assert made["counts"] == {"queued": 6}
    assert [trial["parameters"] for trial in made["trials"]] == [
        {"method.lambda": weight, "seed": seed} for weight in (0.1, 1, 10) for seed in (0, 1)
    ]
    for trial in made["trials"]:
        job = api.http.get(f"/v1/jobs/{trial['job_id']}").json()
        assert job["kind"] == "train"
        assert job["request"]["method"]["lambda"] == trial["parameters"]["method.lambda"]
        assert job["request"]["seed"] == trial["parameters"]["seed"]
        assert job["request"]["task"] == {"positive": ["cat"]}
        assert (job["request"]["epochs"], job["request"]["attack"]["steps"]) == (2, 3)
    listed = api.http.get("/v1/jobs", params={"kind": "train"}).json()["data"]
    assert {job["id"] for job in listed} == {trial["job_id"] for trial in made["trials"]}
    assert show(api, made["id"]) == made


def test_a_search_begins_with_as_many_trials_as_may_run_at_once(api: Api) -> None:
    made = start(api, SEARCH)
    assert (made["planned"], made["counts"]) == (5, {"queued": 2})
    again = start(api, SEARCH)
    assert [trial["parameters"] for trial in again["trials"]] == [
        trial["parameters"] for trial in made["trials"]
    ]
    assert len(start(api, {**SEARCH, "trials": 1})["trials"]) == 1


def test_trials_end_in_figures_a_best_one_and_a_front(api: Api) -> None:
    made = start(api, GRID)
    ends = [(0.9, 0.1), (0.8, 0.3), (0.7, 0.2), None, (0.5, 0.4), (0.95, None)]
    for trial, aps in zip(made["trials"][:-1], ends[:-1], strict=True):
        end(api, trial["job_id"], aps)  # type: ignore[arg-type]
    running = show(api, made["id"])
    assert (running["status"], running["done"]) == ("running", False)
    assert running["counts"] == {"succeeded": 4, "failed": 1, "queued": 1}

    end(api, made["trials"][-1]["job_id"], ends[-1])  # type: ignore[arg-type]
    ended = show(api, made["id"])
    assert (ended["status"], ended["done"]) == ("succeeded", True)
    assert (ended["best"], ended["front"]) == (4, [0, 1, 4])
    assert [trial["on_front"] for trial in ended["trials"]] == [
        True,
        True,
        *[False] * 2,
        True,
        False,
    ]
    assert [trial["clean_ap"] for trial in ended["trials"]] == [0.9, 0.8, 0.7, None, 0.5, 0.95]
    assert [trial["robust_ap"] for trial in ended["trials"]] == [0.1, 0.3, 0.2, None, 0.4, None]
    assert ended["trials"][3]["error"]["message"] == "The loss is NaN."
    assert ended["trials"][0]["best_epoch"] == 3
    assert ended["trials"][0]["model_id"].startswith("mdl_")


def test_a_sweep_whose_trials_all_fail_has_failed(api: Api) -> None:
    made = start(api, {"kind": "grid", "parameters": {"seed": [0]}})
    end(api, made["trials"][0]["job_id"], None)
    ended = show(api, made["id"])
    assert (ended["status"], ended["best"], ended["front"]) == ("failed", None, [])


def test_a_retry_of_a_trial_takes_its_place_and_counts(api: Api, problem: Check) -> None:
    made = start(api, {"kind": "grid", "parameters": {"seed": [0, 1]}})
    first, second = (trial["job_id"] for trial in made["trials"])
    end(api, first, None)
    end(api, second, (0.8, 0.3))
    assert show(api, made["id"])["done"]
    retried = api.http.post(f"/v1/jobs/{first}/retry").json()
    again = show(api, made["id"])
    assert (again["status"], again["counts"]) == ("running", {"queued": 1, "succeeded": 1})
    end(api, retried["id"], (0.9, 0.2))
    ended = show(api, made["id"])
    assert (ended["status"], ended["best"], ended["front"]) == ("succeeded", 1, [0, 1])
    assert ended["trials"][0]["job_id"] == retried["id"]
    assert ended["trials"][0]["parameters"] == {"seed": 0}
    told = problem(api.http.post(f"/v1/jobs/{first}/retry"), 409, "conflict")["detail"]
    assert f"{retried['id']} runs trial 0 of the sweep {made['id']}" in told


def test_a_trial_of_a_cancelled_sweep_is_not_retried(api: Api, problem: Check) -> None:
    made = start(api, GRID)
    api.http.post(f"/v1/sweeps/{made['id']}/cancel")
    refused = api.http.post(f"/v1/jobs/{made['trials'][0]['job_id']}/retry")
    assert "is cancelled: to train outside" in problem(refused, 409, "conflict")["detail"]
    assert show(api, made["id"])["status"] == "cancelled"


@pytest.mark.parametrize("search", [GRID, SEARCH], ids=["grid", "search"])
def test_cancelling_a_sweep_cancels_its_trials(
    api: Api, search: dict[str, Any], problem: Check
) -> None:
    made = start(api, search)
    end(api, made["trials"][0]["job_id"], (0.9, 0.1))
    cancelled = api.http.post(f"/v1/sweeps/{made['id']}/cancel").json()
    assert (cancelled["status"], cancelled["done"]) == ("cancelled", True)
    assert cancelled["counts"] == {"succeeded": 1, "cancelled": len(made["trials"]) - 1}
    assert (cancelled["best"], cancelled["front"]) == (0, [0])
    again = api.http.post(f"/v1/sweeps/{made['id']}/cancel")
    problem(again, 409, "already_finished")


def test_sweeps_are_listed_newest_first_without_trials(api: Api) -> None:
    made = [start(api, search)["id"] for search in (GRID, SEARCH, GRID)]
    first = api.http.get("/v1/sweeps", params={"limit": 2}).json()
    assert [sweep["id"] for sweep in first["data"]] == [made[2], made[1]]
    assert "trials" not in first["data"][0]
    rest = api.http.get("/v1/sweeps", params={"after": first["next_cursor"]}).json()
    assert ([sweep["id"] for sweep in rest["data"]], rest["has_more"]) == ([made[0]], False)


def test_a_sweep_is_seen_by_its_tenant_only(api: Api, problem: Check) -> None:
    made = start(api, GRID)
    with api.database.writing() as session:
        _, secret = keys.create(session, tenant="other", name="o", scopes=["read", "write"])
    headers = {"Authorization": f"Bearer {secret}"}
    assert api.http.get("/v1/sweeps", headers=headers).json()["data"] == []
    for method, path in (("GET", made["id"]), ("POST", f"{made['id']}/cancel")):
        answer = api.http.request(method, f"/v1/sweeps/{path}", headers=headers)
        problem(answer, 404, "not_found")
    problem(api.http.post("/v1/sweeps", json=body(api, GRID), headers=headers), 404, "not_found")


def test_there_is_no_such_sweep(api: Api, problem: Check) -> None:
    assert "sweep" in problem(api.http.get(f"/v1/sweeps/{NOBODY}"), 404, "not_found")["detail"]
    problem(api.http.post(f"/v1/sweeps/{NOBODY}/cancel"), 404, "not_found")


def test_more_trials_than_the_settings_allow_are_refused_by_name(api: Api, problem: Check) -> None:
    many = {"kind": "grid", "parameters": {"seed": list(range(100)), "epochs": [1, 2, 3]}}
    for search in (many, {**SEARCH, "trials": 300}):
        refused = problem(
            api.http.post("/v1/sweeps", json=body(api, search)), 422, "invalid_request"
        )
        assert refused["detail"] == (
            "/body/search: expected at most 200 trials (ADAP_MAX_SWEEP_TRIALS), got 300"
        )
        assert refused["errors"][0]["pointer"] == "/body/search"
    assert api.http.get("/v1/jobs").json()["data"] == []


@pytest.mark.parametrize(
    ("search", "training", "code", "said"),
    [
        ({**GRID, "kind": "random"}, {}, "invalid_request", "/body/search"),
        ({**GRID, "trials": 3}, {}, "invalid_request", "/body/search/trials: no such field"),
        ({"kind": "grid", "parameters": {"lr": [1]}}, {}, "invalid_config", "lr: no such field"),
        (
            {"kind": "grid", "parameters": {"epochs": [5, 0]}},
            {},
            "invalid_config",
            'got {"epochs": 0}: epochs: expected at least 1, got 0',
        ),
        (
            {"kind": "grid", "parameters": {"architecture": ["small_cnn", "resnet18"]}},
            {},
            "invalid_config",
            "resnet18 expects images of at least 32 pixels",
        ),
        (GRID, {"task": {"positive": ["emu"]}}, "invalid_config", "got emu"),
    ],
)
def test_a_sweep_that_cannot_work_makes_no_job(
    api: Api, search: dict[str, Any], training: dict[str, Any], code: str, said: str, problem: Check
) -> None:
    response = api.http.post("/v1/sweeps", json=body(api, search, **training))
    assert said in problem(response, 422, code)["detail"]
    assert api.http.get("/v1/jobs").json()["data"] == []
    assert api.http.get("/v1/sweeps").json()["data"] == []


def test_a_data_set_stays_while_a_sweep_has_trials_to_make(api: Api, problem: Check) -> None:
    made = start(api, SEARCH)
    for trial in made["trials"]:
        end(api, trial["job_id"], (0.9, 0.1))
    path = f"/v1/datasets/{made['dataset_id']}"
    problem(api.http.delete(path), 409, "in_use")
    api.http.post(f"/v1/sweeps/{made['id']}/cancel")
    assert api.http.delete(path).status_code == 204


def test_the_openapi_describes_searches_and_presets(api: Api) -> None:
    schemas = api.http.get("/openapi.json").json()["components"]["schemas"]
    kinds = schemas["SweepRequest"]["properties"]["search"]["discriminator"]["mapping"]
    assert set(kinds) == {"grid", "tpe"}
    presets = {entry["name"]: entry for entry in api.http.get("/v1/presets").json()}
    assert presets.keys() == {"paper-cifar", "paper-celeba", "paper-bdd", "robust", "quick"}
    assert presets["paper-cifar"]["parameters"]["epochs"] == 60
    (preset,) = (
        choice["enum"]
        for choice in schemas["TrainingRequest"]["properties"]["preset"]["anyOf"]
        if "enum" in choice
    )
    assert set(preset) == presets.keys()


@pytest.mark.parametrize(
    ("request_name", "field", "catalogue"),
    [("TrainingRequest", "method", "methods"), ("AuditRequest", "attacks", "attacks")],
)
def test_the_openapi_has_every_entry_with_its_own_parameters(
    api: Api, request_name: str, field: str, catalogue: str
) -> None:
    schemas = api.http.get("/openapi.json").json()["components"]["schemas"]
    shown = schemas[request_name]["properties"][field]
    if field == "attacks":
        (shown,) = (choice["items"] for choice in shown["anyOf"] if "items" in choice)
    entries, bare = shown["anyOf"]
    known = {entry["name"]: entry for entry in api.http.get(f"/v1/{catalogue}").json()}
    assert set(bare["enum"]) == known.keys() == entries["discriminator"]["mapping"].keys()
    for name, reference in entries["discriminator"]["mapping"].items():
        schema = schemas[reference.rpartition("/")[2]]
        assert schema["additionalProperties"] is False
        assert schema["properties"].keys() == known[name]["parameters"]["properties"].keys()
    if field == "method":
        weight = schemas["AdapLPNMethod"]["properties"]["lambda"]
        assert (weight["minimum"], weight["maximum"]) == (0, 1000)
        assert weight["description"]


def test_a_training_takes_a_preset(api: Api, problem: Check) -> None:
    request = {
        "dataset_id": api.dataset(),
        "task": {"positive": ["cat"]},
        "preset": "paper-cifar",
        "architecture": "small_cnn",
    }
    job = api.http.post("/v1/training-jobs", json=request).json()
    assert (job["request"]["epochs"], job["request"]["architecture"]) == (60, "small_cnn")
    refused = api.http.post("/v1/training-jobs", json={**request, "preset": "best"})
    assert "/body/preset" in problem(refused, 422, "invalid_request")["detail"]
