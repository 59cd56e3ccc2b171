"""Tests of `import adap`: the names, nothing before it is used, and examples that run."""

import doctest
import importlib
import inspect
import subprocess
import sys

import pytest
import torch

import adap

MODULES = sorted({module for module in adap._HOMES if module != "adap.core.errors"})


def test_all_names_that_are_public_are_there_and_no_others() -> None:
    assert sorted(adap.__all__) == sorted(adap._HOME)
    for name in adap.__all__:
        value = getattr(adap, name)
        assert inspect.getdoc(value), name
        assert name in dir(adap)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = adap.nothing


def test_importing_it_loads_nothing_of_torch_or_the_service() -> None:
    code = (
        "import adap, sys; print(*sorted({name.partition('.')[0] for name in sys.modules} & "
        "{'torch', 'numpy', 'pydantic', 'fastapi', 'sqlalchemy', 'celery'}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_every_public_function_and_class_has_an_example() -> None:
    lacking = [
        name
        for name in adap.__all__
        if ">>> " not in (inspect.getdoc(getattr(adap, name)) or "")
        and not (
            isinstance(getattr(adap, name), type) and issubclass(getattr(adap, name), Exception)
        )
    ]
    assert lacking == []


def test_whatever_is_called_names_its_errors_and_its_source() -> None:
    answers = {"Audit", "Certified", "Fitted", "SmallestChanges", "Universal"}
    lacking = [
        f"{name}: {word}"
        for name in adap.__all__
        for word in ("Raises ", "Source: ")
        if word not in (inspect.getdoc(getattr(adap, name)) or "")
        and name not in answers
        and not name.endswith("Error")
    ]
    assert lacking == []


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_in_the_docstrings_say_what_is_so(module: str) -> None:
    torch.manual_seed(0)
    found = doctest.testmod(
        importlib.import_module(module),
        extraglobs={"adap": adap, "torch": torch},
        optionflags=doctest.IGNORE_EXCEPTION_DETAIL,
    )
    assert found.attempted > 0
    assert found.failed == 0
