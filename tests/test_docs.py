"""Tests of the documents: commands exist, links lead somewhere, words are used."""

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from adap.client.cli import app
from tests.conftest import REPOSITORY

DECISIONS = sorted((REPOSITORY / "docs" / "decisions").glob("[0-9]*.md"))


def tracked(*patterns: str) -> list[Path]:
    """The files of the repository that match, those not yet committed included."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        pytest.skip("needs git and a checkout")
    return [path for line in run.stdout.splitlines() if (path := REPOSITORY / line).is_file()]


def commands(program: str) -> Iterator[list[str]]:
    """The arguments of every call of this program that a document shows as code."""
    for document in tracked("*.md"):
        text = document.read_text()
        blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
        spans = re.findall(r"`([^`\n]+)`", text)
        for line in [*"\n".join(blocks).replace("\\\n", " ").splitlines(), *spans]:
            for call in re.split(r"&&|\||;", line.split("#")[0]):
                words = call.strip().removeprefix("$ ").split()
                if words and words[0].rpartition("/")[2] == program:
                    yield words[1:]


def test_the_readme_shows_the_two_commands_that_a_newcomer_needs() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    assert set(re.findall(r"\bmake (demo|test)\b", readme)) == {"demo", "test"}


def make(target: str) -> int:
    """The exit status of `make --dry-run TARGET`."""
    command = ["make", "--dry-run", target]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False).returncode


def test_every_make_target_in_the_documents_exists() -> None:
    targets = {
        word for words in commands("make") for word in words if re.fullmatch(r"[a-z-]+", word)
    }
    assert targets >= {"demo", "test", "check"}
    assert {target for target in targets if make(target) != 0} == set()
    assert make("no-such-target") != 0


def test_every_adap_command_in_the_documents_exists() -> None:
    root: Any = typer.main.get_command(app)
    shown = {tuple(words[:2]) for words in commands("adap") if words and words[0][0].islower()}
    assert ("up",) in shown
    for name, *rest in sorted(shown):
        assert name in root.commands, f"adap {name}"
        subcommands = getattr(root.commands[name], "commands", None)
        # `dataset|model list` in a list of commands, or an option, is no subcommand
        if subcommands is not None and rest and re.fullmatch(r"[a-z-]+", rest[0]):
            assert rest[0] in subcommands, f"adap {name} {rest[0]}"


def test_every_link_between_documents_leads_somewhere() -> None:
    links = [
        (document, link)
        for document in tracked("*.md")
        for link in re.findall(r"\]\(([^)#\s]+)", document.read_text())
        if "://" not in link
    ]
    assert links
    assert [link for document, link in links if not (document.parent / link).exists()] == []


def test_the_changelog_speaks_of_this_version() -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    headings = re.findall(
        r"^## \[(.+?)\]", (REPOSITORY / "CHANGELOG.md").read_text(), flags=re.MULTILINE
    )
    assert headings
    assert headings[0] in ("Unreleased", version)


def glossary() -> list[str]:
    """The terms, in order."""
    rows = re.findall(r"^\| (\*\*.+?) \|", (REPOSITORY / "GLOSSARY.md").read_text(), re.MULTILINE)
    return [term for row in rows for term in re.findall(r"\*\*(.+?)\*\*", row)]


def test_every_term_of_the_glossary_is_used_and_explained_once() -> None:
    terms = glossary()
    assert len(terms) > 20
    assert len(terms) == len(set(terms))

    files = [path for path in tracked("*.py", "*.md", "*.j2") if path.name != "GLOSSARY.md"]
    text = "\n".join(path.read_text() for path in files)

    def used(term: str) -> bool:
        # `threat model`, `threat_model` and `ThreatModel` are the same word
        words = re.split(r"[ _-]", term)
        return re.search("[ _-]?".join(map(re.escape, words)), text, re.IGNORECASE) is not None

    assert [term for term in terms if not used(term)] == []


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.name)
def test_a_decision_fits_on_a_page_and_has_the_parts_of_the_template(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 40
    assert re.match(rf"# {path.name[:4]}\. \S.+\n\nStatus: \S", text)
    parts = re.findall(r"^## (.+)", text, re.MULTILINE)
    assert parts[:3] == ["Context", "Decision", "Consequences"]
    assert parts[3:] in ([], ["Alternatives"])
    assert f"({path.name})" in (path.parent / "README.md").read_text(), "not in the index"


def test_decisions_are_numbered_without_gaps() -> None:
    assert [int(path.name[:4]) for path in DECISIONS] == list(range(len(DECISIONS)))


@pytest.mark.parametrize(
    ("pattern", "where"),
    [
        (r"(?<![\w./])/(work|home)/", ()),  # somebody's own machine
        (r"pypi\.org|pythonhosted|registry\.npmjs|deb\.debian\.org", ()),  # a mirror may be used
        (r"\b(prompt|assistant|chatbot)s?\b", ("*.md",)),  # documents speak of the project only
    ],
)
def test_no_file_names_a_machine_a_registry_or_what_is_not_the_project(
    pattern: str, where: tuple[str, ...]
) -> None:
    found = []
    for path in tracked(*where):
        if path == Path(__file__).resolve():
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue  # not text
        found += [f"{path.name}: {match.group()}" for match in re.finditer(pattern, text, re.I)]
    assert found == []
