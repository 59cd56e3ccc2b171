"""What would be done and what it would cost is said before anything is started."""

import re

import pytest

from adap.client.client import Client, ProblemError
from tests.client.conftest import Adap


def test_a_dry_run_says_what_an_audit_would_cost_and_starts_none(
    client: Client, adap: Adap, model: str, dataset: str, audited: str
) -> None:
    before = [run.id for run in client.audits.list()]
    whole = client.audits.estimate(model_id=model, dataset_id=dataset, attacks=["pgd"])
    assert whole.images == 24  # of the test split
    checks = whole.passes - 24 * (1 + 1 + 2 * 10 + 1)  # clean, and ten steps there and back
    assert checks == 24 * (143 + 79)  # quick ones, as docs/trust.md has them, on all 24
    assert (whole.search_on, whole.most_passes, whole.most_seconds) == ([], None, None)
    fog = {"kinds": ["fog"]}
    corrupted = client.audits.estimate(
        model_id=model, dataset_id=dataset, attacks=["pgd"], corruptions=fog
    )
    assert corrupted.passes - whole.passes == 24 * 5
    assert corrupted.corruptions == 5
    searched = client.audits.estimate(
        model_id=model,
        dataset_id=dataset,
        attacks=["pgd"],
        smallest_changes={"steps": 10},
        universal={"rounds": 5, "images": 8},
    )
    shared = 2 * 8 * 6 + 2 * 24  # there and back in each round and once more, then all twice
    positives = (searched.passes - whole.passes - shared - 24) / (2 * 10 + 16)
    assert positives == 12
    standard = client.audits.estimate(model_id=model, dataset_id=dataset)
    assert standard.search_on == ["apgd_averaged", "square_long"]
    assert standard.most_passes is not None
    assert standard.most_passes - standard.passes > 24 * 1000  # of square_long alone
    done = client.audits.get(audited).job
    assert done.started_at is not None
    assert done.finished_at is not None
    assert whole.seconds is not None
    assert whole.seconds > 0
    half = client.audits.estimate(model_id=model, dataset_id=dataset, attacks=["pgd"], sample=12)
    assert half.images == 12
    assert half.seconds == pytest.approx(whole.seconds / 2, abs=0.1)
    run = adap("audit", "--model", model, "--dataset", dataset, "--attack", "pgd", "--dry-run")
    assert (run.code, run.err) == (0, "")
    assert "Nothing was started. This audit takes 24 images" in run.out
    assert re.search(r"^time +about .+ of one worker\. From \d audits? like it", run.out, re.M)
    assert re.search(r"^it +ranks cat above the rest of the test split$", run.out, re.M)
    through = adap(
        *("audit", "--model", model, "--dataset", dataset, "--attack", "pgd", "--dry-run"),
        *("--pipeline", "jpeg:60-90", "--pipeline", "quantise"),
    )
    assert re.search(
        r"^it +through JPEG of any quality from 60 to 90, then round", through.out, re.M
    )
    assert f"{16 * whole.passes:,} passes" in through.out
    wider = adap(
        *("audit", "--model", model, "--dataset", dataset, "--attack", "pgd", "--dry-run"),
        *("--universal", "--smallest-changes", "--require", "smallest_median >= 8/255"),
    )
    assert re.search(r"^it +searches for one perturbation that all images share$", wider.out, re.M)
    assert re.search(r"^it +requires smallest_median >= 8/255$", wider.out, re.M)
    for asked, said in (
        (("--universal", "--norm", "l1"), "expected universal with norm linf or l2, got l1"),
        (("--require", "universal_ap > 0"), "universal_ap needs `universal`"),
    ):
        run = adap("audit", "--model", model, "--dataset", dataset, *asked, "--dry-run")
        assert run.code != 0
        assert said in run.err
    for step, said in (
        ("jpeg:0", "--pipeline: expected at least 1, got 0"),
        ("jpeg:90-60", "--pipeline: expected a least_quality below the quality, 60, got 90"),
        ("blur", "expected jpeg:80, jpeg:60-90"),
    ):
        run = adap("audit", "--model", model, "--dataset", dataset, "--pipeline", step, "--dry-run")
        assert run.code != 0
        assert said in run.err
    assert [run.id for run in client.audits.list()] == before


def test_a_training_is_estimated_by_those_of_its_network_and_refused_as_it_would_be(
    client: Client, adap: Adap, dataset: str, trained: dict[str, object]
) -> None:
    one = client.trainings.estimate(dataset_id=dataset, positive="cat", epochs=1, batch_size=16)
    ten = client.trainings.estimate(dataset_id=dataset, positive="cat", epochs=10, batch_size=16)
    assert one.seconds is not None
    assert ten.seconds is not None
    assert ten.passes == 10 * one.passes
    settings = {"dataset_id": dataset, "positive": "cat", "epochs": 10, "batch_size": 16}
    seldom, last = (
        client.trainings.estimate(**settings, validation={"every": every}) for every in (4, 10)
    )
    assert (seldom.passes - last.passes) * 7 == (ten.passes - seldom.passes) * 2  # 10, 3, 1 times
    other = client.trainings.estimate(
        dataset_id=dataset, positive="cat", batch_size=16, architecture="thin_cnn"
    )
    assert (other.seconds, other.basis[:11]) == (None, "No training")
    with pytest.raises(ProblemError, match="horse"):
        client.trainings.estimate(dataset_id=dataset, positive="horse")
    before = client.sweeps.page()["data"]
    training = {"dataset_id": dataset, "task": {"positive": ["cat"]}, "batch_size": 16}
    search = {"kind": "grid", "parameters": {"epochs": [1, 10]}}
    both = client.estimate("sweeps", {"training": training, "search": search})
    assert (both["trials"], both["passes"]) == (2, one.passes + ten.passes)
    assert both["seconds"] == pytest.approx(one.seconds + ten.seconds, abs=0.2)
    searched = {"kind": "tpe", "trials": 5, "parameters": {"epochs": {"low": 1, "high": 10}}}
    most = client.estimate("sweeps", {"training": training, "search": searched})
    assert (most["trials"], most["passes"]) == (5, 5 * ten.passes)
    assert most["basis"].endswith("A search may try cheaper ones: at most.")
    asked = ("sweep", "--dataset", dataset, "--positive", "cat", "--set", "batch_size=16")
    run = adap(*asked, "--vary", "epochs=[1,10]", "--dry-run")
    assert (run.code, run.err) == (0, "")
    assert run.out.startswith("Nothing was started. This sweep of 2 trials takes ")
    assert client.sweeps.page()["data"] == before
    run = adap(
        "train", "--dataset", dataset, "--positive", "cat", "--method", "adap_lp", "--dry-run"
    )
    assert run.code == 1
    assert run.err.startswith("--method: expected one of ce, ")
    assert run.err.endswith("got 'adap_lp'; did you mean adap_lpn?\n")
