"""Where an id is asked for a name, the start of an id or `@latest` does; several are listed."""

from pathlib import Path
from shutil import make_archive

import pytest

from adap.client.client import Client
from adap.client.references import AmbiguousNameError, UnknownNameError
from tests.client.conftest import Adap


@pytest.fixture(scope="module")
def twins(client: Client, images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The ids of two data sets of one name, the older first."""
    archive = Path(make_archive(str(tmp_path_factory.mktemp("zip") / "twins"), "zip", images))
    added = [client.datasets.add(archive, name="twins") for _ in range(2)]
    for dataset in added:
        client.jobs.wait(dataset["job_id"])
    return [dataset["id"] for dataset in added]


def test_a_data_set_is_meant_by_its_name_its_id_or_the_start_of_it(
    client: Client, twins: list[str], images: Path, tmp_path: Path
) -> None:
    older, newer = twins
    assert client.datasets.get(older).id == older
    apart = next(n for n in range(26) if older[: n + 3] != newer[: n + 3]) + 3
    assert client.datasets.get(older[:apart]).id == older
    archive = Path(make_archive(str(tmp_path / "x"), "zip", images))
    named = client.datasets.create(archive, name="50%_off")
    assert client.datasets.get("50%_off").id == client.datasets.get("@latest").id == named.id
    with pytest.raises(UnknownNameError):
        client.datasets.get("50")  # neither a whole name, nor how an id begins
    with pytest.raises(UnknownNameError):
        client.datasets.get("ds%")


def test_a_name_that_several_have_is_answered_with_what_tells_them_apart(
    client: Client, adap: Adap, twins: list[str], model: str
) -> None:
    with pytest.raises(AmbiguousNameError) as refused:
        client.audits.create(model_id=model, dataset_id="twins")
    assert [choice.split("  ")[0] for choice in refused.value.choices] == twins[::-1]
    assert all("72 images, 2 classes" in choice for choice in refused.value.choices)
    run = adap("audit", "--model", model, "--dataset", "twins")
    assert (run.code, run.out) == (1, "")
    said, *choices = run.err.splitlines()
    assert said.startswith("'twins' means 2 data sets.")
    assert [choice.split()[1] for choice in choices] == twins[::-1]


def test_a_name_that_nothing_has_is_answered_with_one_like_it(client: Client, model: str) -> None:
    name = client.models.get(model).name
    with pytest.raises(UnknownNameError, match=f"Did you mean {name!r}"):
        client.models.get(name + "x")
    assert client.jobs.page(kind="export")["data"] == []
    with pytest.raises(UnknownNameError, match="There is no job yet"):
        client.jobs.id_of("@latest", kind="export")
    assert client.jobs.page(kind="rank", status="failed")["data"] == []
    with pytest.raises(UnknownNameError, match="There is no ranking that has failed yet"):
        client.jobs.id_of("@latest", kind="rank", status="failed")
    with pytest.raises(UnknownNameError, match="Did you mean '@latest'"):
        client.models.get("@newest")


def test_a_run_is_taken_up_again_by_its_id_or_its_name(
    client: Client, adap: Adap, model: str, dataset: str, audited: str
) -> None:
    report = client.audits.get(audited).report()
    assert report.tasks[0].positive == ["cat"]
    assert f"clean       {report.tasks[0].clean.ap:.4f}" in str(report)
    assert len(str(report).splitlines()) == 3 + len(report.tasks[0].attacks) + len(report.warnings)
    asked = adap(
        "audit",
        "--model",
        model,
        "--dataset",
        dataset,
        "--attack",
        "noise",
        "--name",
        "mine",
        "--json",
    )
    run = client.audits.get("mine").wait()
    assert run.id == asked.json["id"]
    assert client.audits.get("@latest").id == run.id in [one.id for one in client.audits.list()]
    shown = adap("report", "show", "@latest")
    assert (shown.code, shown.err) == (0, f"@latest is {run.id}\n")
    training = client.trainings.get(client.models.get(model).job_id or "")
    assert training.model().id == model
    with pytest.raises(UnknownNameError):
        client.rankings.get("mine")  # it is an audit


def test_the_last_job_can_be_watched_without_its_id(
    adap: Adap, client: Client, audited: str
) -> None:
    watched = adap("jobs", "watch", "--last", "--json")
    assert watched.code == 0, watched.err
    assert watched.json["id"] == client.jobs.get("@latest").id
    assert adap("jobs", "watch").code == 2
