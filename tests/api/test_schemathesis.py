"""The OpenAPI against the service, by schemathesis: requests that keep to it and that do not.

No 5xx, no status or content type that is not documented, no answer that is not as documented, no
request taken that the schema forbids, none refused that it allows, and no way around the API key.
"""

from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import negative_data_rejection
from sqlalchemy import select, update

from adap.api.main import create_app
from adap.store import keys
from adap.store.database import Database
from adap.store.migrate import migrate
from adap.store.settings import Settings
from adap.store.tables import JobRow, Table
from tests.api.conftest import Api, running
from tests.api.test_routes import finished_audit

EXAMPLES = 6

# Where journeys go, and what ids from answers have to lead to there.
JOURNEYS = [
    ("datasets(?!.*images)|jobs", ["datasets/{dataset_id}", "jobs/{job_id}"]),
    ("models|jobs(?!.*events)", ["models/{model_id}", "jobs/{job_id}"]),
    ("uploads|api-keys|webhooks|sweeps", ["uploads/{upload_id}"]),
]

# What no schema can say: rules between fields, cursors, and the forms of an answer.
REFUSED = [400, 406, 415, 422]


@dataclass(frozen=True)
class Fuzzed:
    """A service with a key, ids of things that are there, and what its database held then."""

    url: str
    key: str
    ids: dict[str, str]
    database: Database
    rows: dict[Any, list[dict[str, Any]]]  # by table, each after those it refers to

    def as_at_first(self) -> None:
        """Make the database what it was when the service had just started."""
        with self.database.writing() as session:
            session.execute(update(JobRow).values(parent_id=None))
            for table in reversed(self.rows):
                session.execute(table.delete())
            for table, rows in self.rows.items():
                if rows:
                    session.execute(table.insert(), rows)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    folder = tmp_path_factory.mktemp("fuzz")
    config = Settings(
        home=folder / "home",
        broker_url="redis://127.0.0.1:1/0",
        max_wait_s=0.1,
        max_tenant_jobs=None,
        max_tenant_requests_per_s=None,
        webhook_hosts="127.0.0.0/8",
    )
    config.home.mkdir()
    database = Database(config)
    migrate(database)
    with running(config) as url, httpx.Client(base_url=url, timeout=60) as http:
        api = Api(http, database, config, folder)
        job_id, _, _ = finished_audit(api)
        ids = {"dataset_id": api.dataset(), "model_id": api.model(), "job_id": job_id}
        for _ in range(2):  # used by a job that has not ended, so that nothing removes them
            http.post("/v1/audits", json={name: ids[name] for name in ("dataset_id", "model_id")})
        hook = http.post("/v1/webhooks", json={"url": "http://127.0.0.1:1/"}).json()
        ids["webhook_id"] = hook["id"]
        with database.writing() as session:
            _, key = keys.create(session, name="fuzz", scopes=["read", "write", "admin"])
        http.get("/v1/jobs", headers={"Authorization": f"Bearer {key}"})  # now keys are asked for
        with database.reading() as session:
            rows = {
                table: [dict(row) for row in session.execute(select(table)).mappings()]
                for table in Table.metadata.sorted_tables
            }
        yield Fuzzed(url, key, ids, database, rows)
    database.dispose()


def described(modes: Iterable[GenerationMode]) -> Any:
    """The OpenAPI, the same whatever the settings are; requests of these modes are made of it."""
    with TemporaryDirectory() as home:
        app = create_app(Settings(home=Path(home), broker_url="redis://127.0.0.1:1/0")).app
        schema = schemathesis.openapi.from_dict(deepcopy(app.openapi()))
    schema.config.generation.update(modes=list(modes))
    accepted = schema.config.checks.positive_data_acceptance.expected_statuses
    schema.config.checks.positive_data_acceptance.expected_statuses = [*accepted, *REFUSED]
    return schema


few = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
ESTIMATES = "/estimate$"


@pytest.fixture(scope="module")
def schema() -> Any:
    """The OpenAPI, every bound of it tried."""
    return described(GenerationMode)


@pytest.fixture(scope="module")
def estimates() -> Any:
    """The same without the bounds: bodies of estimates are those of the calls estimated."""
    made = described(GenerationMode)
    made.config.phases.coverage.enabled = False
    return made


@pytest.fixture(autouse=True)
def _named(request: pytest.FixtureRequest) -> None:
    """Give a test the name that schemathesis replaces for each route; pytest 9.2 keeps none."""
    request.node._nodeid = request.node.nodeid


# Requests are made when a test runs, not while tests are collected, which every process does.
@schemathesis.pytest.from_fixture("schema").exclude(path_regex=ESTIMATES).parametrize()
@few
def test_every_route_keeps_to_the_openapi(case: schemathesis.Case, service: Fuzzed) -> None:
    keep_to_the_openapi(case, service)


@schemathesis.pytest.from_fixture("estimates").include(path_regex=ESTIMATES).parametrize()
@few
def test_every_estimate_keeps_to_the_openapi(case: schemathesis.Case, service: Fuzzed) -> None:
    keep_to_the_openapi(case, service)


def test_an_estimate_takes_the_body_of_what_it_estimates(schema: Any) -> None:
    paths = schema.raw_schema["paths"]
    found = [path for path in paths if path.endswith("/estimate")]
    assert len(found) >= 2
    for path in found:
        estimated, asked = (
            paths[each]["post"]["requestBody"]["content"]["application/json"]
            for each in (path, path.removesuffix("/estimate"))
        )
        assert estimated == asked


def keep_to_the_openapi(case: schemathesis.Case, service: Fuzzed) -> None:
    ids = service.ids
    if case.meta is not None and case.meta.generation.mode == GenerationMode.POSITIVE:
        for place in (case.path_parameters, case.body, case.query):
            if isinstance(place, dict):
                place.update({name: ids[name] for name in ids.keys() & place.keys()})
    headers = {"Authorization": f"Bearer {service.key}"}
    response = case.call(base_url=service.url, headers=headers, timeout=20)
    case.validate_response(response, headers=headers, excluded_checks=excluded(case, response))


def excluded(case: schemathesis.Case, response: Any) -> list[Any]:
    """The checks that say nothing of this answer."""
    checks: list[Any] = []
    if case.media_type == "multipart/form-data":
        # there every value is text, also one that was meant to be of a wrong type
        checks.append(negative_data_rejection)
    if response.status_code == 503 and response.json()["code"] == "scoring_unavailable":
        checks.append(not_a_server_error)  # no scoring process runs here
    return checks


@pytest.mark.parametrize(("paths", "reached"), JOURNEYS)
def test_journeys_along_the_links_keep_to_the_openapi(
    service: Fuzzed, paths: str, reached: list[str]
) -> None:
    found: set[str] = set()  # where an id from an answer led to something
    headers = {"Authorization": f"Bearer {service.key}"}

    part = described([GenerationMode.POSITIVE]).include(path_regex=f"^/v1/({paths})")

    class Journey(part.as_state_machine()):  # type: ignore[misc]  # a class made of the schema
        """Calls whose ids come from the answers of earlier calls."""

        def setup(self) -> None:
            super().setup()
            service.as_at_first()  # the same calls are then answered the same way

        def before_call(self, case: schemathesis.Case) -> None:
            """Lists without filters, which the test above tries: few let anything through."""
            if case.method == "GET" and not case.path_parameters:
                case.query = {}

        def get_call_kwargs(self, case: schemathesis.Case) -> dict[str, Any]:
            return {"base_url": service.url, "headers": headers, "timeout": 20}

        def validate_response(self, response: Any, case: Any, **_: Any) -> None:
            if response.status_code < 300 and case.path_parameters:
                found.add(case.operation.label)
            case.validate_response(response, excluded_checks=excluded(case, response))

    wanted = {f"GET /v1/{path}" for path in reached}
    # derandomised: which calls come up hangs on the description alone, and how many it takes, too
    for examples in (60, 120, 240):
        Journey.run(
            settings=settings(
                max_examples=examples,
                stateful_step_count=10,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
        )
        if found >= wanted:
            break
    assert found >= wanted
