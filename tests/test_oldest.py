"""The library with the oldest packages that `pyproject.toml` allows, on another Python.

A GPU machine often has Python 3.12 with a PyTorch some months old. `make test-oldest` makes an
environment for it, build/oldest: each base dependency in the lowest version of its range, and what
the tests of `core` and `models` need in whatever version goes with those. In it these tests run.
"""

import os
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.conftest import REPOSITORY

ENVIRONMENT = REPOSITORY / "build" / "oldest"
TESTS = ("tests/core", "tests/models")
# Of the extras, what these tests and their fixtures import.
TOOLS = (
    *("httpx", "hypothesis", "ijson", "jsonschema", "markdown-it-py", "matplotlib", "onnx"),
    *("onnx2pytorch", "onnxruntime", "optuna", "packaging", "pandas", "psutil", "pyarrow"),
    *("pydantic-settings", "pypdf", "pytest", "scikit-learn", "scipy", "setuptools", "simplejpeg"),
    *("pytest-xdist", "sqlalchemy", "timm", "zstandard"),
)


def ranges() -> dict[str, Requirement]:
    """What the extras bring, by name."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    return {found.name: found for lines in extras for found in map(Requirement, lines)}


def lowest() -> list[str]:
    """The base dependencies, each at the lower end of its range."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    found = []
    for line in project["dependencies"]:
        requirement = Requirement(line)
        (low,) = (part.version for part in requirement.specifier if part.operator == ">=")
        found.append(f"{requirement.name}=={low}.*")
    return found


def run(*command: str | Path, limit_s: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )


@pytest.fixture(scope="module")
def python() -> Path:
    """Of the environment, made where it is not there yet."""
    asked = os.environ.get("ADAP_OLDEST_PYTHON")
    if not asked:
        pytest.skip("an environment of 6 GB, and minutes: `make test-oldest` makes it")
    try:
        said = run(asked, "-c", "import sys; print(*sys.version_info[:2])", limit_s=60)
    except OSError as error:
        pytest.skip(f"there is no {asked}: {error.strerror}")
    if said.returncode != 0:
        pytest.skip(f"{asked} does not run: {said.stderr.strip().splitlines()[-1]}")
    assert said.stdout.split() == ["3", "12"], f"expected Python 3.12, got {said.stdout.strip()}"
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        made = run(asked, "-m", "venv", ENVIRONMENT, limit_s=300)
        assert made.returncode == 0, made.stderr
    known = ranges()
    tools = [str(known.get(name, name)) for name in TOOLS]
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    installed = run(*pip, *lowest(), *tools, limit_s=3600)
    if "No matching distribution" in installed.stderr or "ConnectionError" in installed.stderr:
        pytest.skip(f"packages are not to be had: {installed.stderr.strip().splitlines()[-1]}")
    assert installed.returncode == 0, installed.stderr
    ours = run(*pip, "--no-deps", "--no-build-isolation", "--editable", ".", limit_s=300)
    assert ours.returncode == 0, ours.stderr
    return python


@pytest.mark.slow
def test_core_and_models_run_on_python_3_12_with_the_oldest_packages(python: Path) -> None:
    shown = run(python, "-c", "import torch; print(torch.__version__)", limit_s=300)
    assert shown.stdout.startswith("2.11."), shown.stderr
    chosen = (*TESTS, "-m", "not slow and not browser", "-q", "-p", "no:cacheprovider")
    found = run(python, "-m", "pytest", *chosen, limit_s=3 * 3600)
    assert found.returncode == 0, found.stdout[-8000:] + found.stderr[-2000:]


def test_the_lowest_versions_are_those_of_the_ranges() -> None:
    assert "torch==2.11.*" in lowest()
    assert len(lowest()) == len({name.split("==")[0] for name in lowest()}) > 5
