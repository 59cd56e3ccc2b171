"""The main journey by a client that a generator made of the OpenAPI.

Needs openapi-python-client, which `make test` puts into an environment of its own, .venv-tools, as
it pins other versions of our packages. Without it the test is skipped.
"""

import importlib
import io
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import REPOSITORY

GENERATOR = REPOSITORY / ".venv-tools" / "bin" / "openapi-python-client"


@pytest.fixture(scope="module")
def generated(service: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a package that was generated just now."""
    if not GENERATOR.exists():
        pytest.skip("needs .venv-tools, which `make test` makes")
    folder = tmp_path_factory.mktemp("generated")
    schema = httpx.get(f"{service}/openapi.json", trust_env=False).json()
    (folder / "openapi.json").write_text(json.dumps(schema))
    run = subprocess.run(
        [
            *(str(GENERATOR), "generate", "--path", "openapi.json"),
            *("--output-path", "adap_generated", "--meta", "none"),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "WARNING" not in run.stdout, run.stdout  # of parts that it could not understand
    sys.path.insert(0, str(folder))
    return "adap_generated"


def test_a_generated_client_audits_what_it_has_trained(
    service: str, images: Path, tmp_path: Path, generated: str
) -> None:
    def module(name: str) -> Any:
        return importlib.import_module(f"{generated}.{name}")

    def api(name: str, *arguments: Any, **options: Any) -> Any:
        """A call of the API, whose answer must be what the OpenAPI says of success."""
        answer = module(f"api.{name}").sync(*arguments, client=client, **options)
        assert type(answer).__name__ != "Problem", answer
        return answer

    def ended(job_id: str) -> Any:
        deadline = time.monotonic() + 120
        while not (job := api("jobs.show_job", job_id, prefer="wait=20")).done:
            assert time.monotonic() < deadline
        assert job.status == "succeeded", job.error
        return job

    models = module("models")
    archive = Path(shutil.make_archive(str(tmp_path / "pets"), "zip", images))
    with module("client").Client(base_url=service) as client:
        file = module("types").File(io.BytesIO(archive.read_bytes()), "pets.zip")
        dataset = api("data_sets.add_dataset", body=models.DatasetForm(file=file))
        ended(dataset.job_id)
        dataset = api("data_sets.show_dataset", dataset.id)
        assert (dataset.name, dataset.summary.examples) == ("pets.zip", 72)

        training = models.TrainingRequest.from_dict(
            {
                "dataset_id": dataset.id,
                "task": {"positive": ["cat"]},
                "epochs": 1,
                "batch_size": 16,
                "attack": {"steps": 1},
            }
        )
        job = ended(api("training.train", body=training, idempotency_key="generated").id)
        model_id = job.result["model_id"]
        assert api("models.show_model", model_id).status == "ready"

        audit = models.AuditRequest.from_dict(
            {"model_id": model_id, "dataset_id": dataset.id, "attacks": ["pgd"]}
        )
        job = ended(api("audits.audit", body=audit).id)
        report = api("audits.audit_report", job.id)
        (task,) = report.tasks
        assert 0 <= task.worst_case.ap <= task.clean.ap <= 1
        assert [item.id for item in api("jobs.list_jobs", limit=1).data] == [job.id]
