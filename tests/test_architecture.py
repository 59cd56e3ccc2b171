"""The arrows between packages, as contracted in `pyproject.toml`, and what no file may do.

A rule that cannot fail is no rule, so each is also shown a piece of code that breaks it.
"""

import ast
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PACKAGES = sorted(path.name for path in (REPOSITORY / "adap").iterdir() if path.is_symlink())
MODULES = sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))

# Reading any of these can run code that the file brings along.
UNSAFE_FORMATS = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "__import__", "torch.jit.load", "torch.export.load"}


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_imports_keep_to_the_contracts() -> None:
    run = lint_imports(REPOSITORY)
    assert run.returncode == 0, run.stdout + run.stderr


INTRUDERS = [
    ("core", "import adap.models"),
    ("models", "from adap.core import config"),
    ("store", "import adap.worker.app"),
    ("worker", "import adap.api"),
    ("worker", "import adap.client"),
    ("client", "from adap.store import settings"),
    ("api", "import adap.core.attacks.pgd"),
    ("api", "from adap.models import loading"),
    ("api", "import adap.client"),
    ("api", "def lazily():\n    import torch"),
    ("store", "import torchvision"),
    ("worker", "import adap.core.library.remote"),
]


def test_every_import_against_the_contracts_is_found(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "adap", tmp_path / "adap", symlinks=True)
    for package in PACKAGES:
        shutil.copytree(
            REPOSITORY / package,
            tmp_path / package,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    for number, (module, line) in enumerate(INTRUDERS):
        code = f'"""Against the contracts."""\n{line}\n'
        (tmp_path / module / f"intruder_{number}.py").write_text(code)

    run = lint_imports(tmp_path)
    assert run.returncode == 1, run.stdout + run.stderr
    for number, (module, line) in enumerate(INTRUDERS):
        assert f"adap.{module}.intruder_{number} ->" in run.stdout, line


# Between them they load all that must not load torch: the API the store and its part of a worker.
@pytest.mark.parametrize(
    ("module", "loaded"),
    [
        ("adap.api.main", {"adap.store.jobs", "adap.worker.app", "adap.worker.scoring.link"}),
        ("adap.client.cli", {"adap.client.client"}),
    ],
)
def test_no_torch_is_loaded_by(module: str, loaded: set[str]) -> None:
    run = subprocess.run(
        [sys.executable, "-c", f"import {module}, sys; print(*sys.modules)"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert set(run.stdout.split()) & {"torch", "torchvision", *loaded} == loaded


@lru_cache(1)
def nodes(tree: ast.AST) -> list[ast.AST]:
    """All of a file, walked once for all rules."""
    return list(ast.walk(tree))


def dotted(node: ast.AST) -> str:
    """`os.environ` for the expression os.environ; empty for anything that is no dotted name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and dotted(node.value):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that is imported."""
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def reads_of_the_environment(tree: ast.AST) -> list[int]:
    """Lines that read an environment variable. Setting one, for a child process, is no reading."""
    names = {"os.environ", "os.environb", "os.getenv", "os.getenvb"}
    writes = {
        id(node.value)
        for node in nodes(tree)
        if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load)
    }
    reads = [
        node.lineno
        for node in nodes(tree)
        if isinstance(node, ast.Attribute) and dotted(node) in names and id(node) not in writes
    ]
    return reads + [line for line, name in imported(tree) if name in names]


def by_another_name(tree: ast.AST) -> list[int]:
    """Lines that import a folder of ours without `adap.`, so that its modules exist twice."""
    return [line for line, name in imported(tree) if name.split(".")[0] in PACKAGES]


def unsafe_loads(tree: ast.AST) -> list[int]:
    """Lines that could run code found in a file, a message or a string."""
    lines = [line for line, name in imported(tree) if name.split(".")[0] in UNSAFE_FORMATS]
    for node in nodes(tree):
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        keywords = {
            keyword.arg: keyword.value.value
            for keyword in node.keywords
            if isinstance(keyword.value, ast.Constant)
        }
        if (
            name in UNSAFE_CALLS
            or (name == "torch.load" and keywords.get("weights_only") is not True)
            or keywords.get("allow_pickle") is True
        ):
            lines.append(node.lineno)
    return lines


def test_no_module_reads_the_environment_or_loads_code_and_each_says_what_it_is() -> None:
    for path in MODULES:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), f"expected a docstring that says what {path} is"
        assert unsafe_loads(tree) == [], path
        assert by_another_name(tree) == [], path
        if path != REPOSITORY / "store" / "settings.py":
            assert reads_of_the_environment(tree) == [], f"{path}: only store/settings.py does"


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        (reads_of_the_environment, "import os\nhome = os.environ['HOME']"),
        (reads_of_the_environment, "import os\nhome = os.environ.get('HOME')"),
        (reads_of_the_environment, "import os\nhome = os.getenv('HOME')"),
        (reads_of_the_environment, "import os\nrun(env={**os.environ})"),
        (reads_of_the_environment, "from os import environ"),
        (by_another_name, "from core.config import Task"),
        (by_another_name, "import store"),
        (unsafe_loads, "import pickle"),
        (unsafe_loads, "from joblib import load"),
        (unsafe_loads, "eval('1')"),
        (unsafe_loads, "torch.load(path)"),
        (unsafe_loads, "torch.load(path, weights_only=False)"),
        (unsafe_loads, "torch.load(path, weights_only=unsure)"),
        (unsafe_loads, "numpy.load(path, allow_pickle=True)"),
    ],
)
def test_a_broken_rule_is_found(rule: Callable[[ast.AST], list[int]], code: str) -> None:
    assert rule(ast.parse(code))


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        (reads_of_the_environment, "import os\nos.environ['OMP_NUM_THREADS'] = '1'"),
        (unsafe_loads, "model.eval()"),
        (unsafe_loads, "torch.load(path, weights_only=True)"),
    ],
)
def test_what_is_allowed_is_not_taken_for_a_broken_rule(
    rule: Callable[[ast.AST], list[int]], code: str
) -> None:
    assert rule(ast.parse(code)) == []


def test_every_package_has_its_place_below_adap() -> None:
    packages = {path.parent.name for path in REPOSITORY.glob("*/__init__.py")}
    assert packages - {"adap", "tests", "benchmarks"} == set(PACKAGES)
    for name in PACKAGES:
        assert (REPOSITORY / "adap" / name).readlink() == Path("..") / name
