"""The service's problems in the language of the command line: the flag, not the field's pointer."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from typer import Typer
from typer.core import TyperGroup
from typer.main import get_command

from adap.client.base import POINTER, ProblemError, dotted
from adap.client.commands.options import WHICH

_FLAGS = {
    "dataset_id": "--dataset",
    "model_id": "--model",
    "task": "--positive",
    "task.positive": "--positive",
    "task.each": "--each",
    "other_positive": "--other-positive",
    "threat": "--epsilon",
    "threat.epsilon": "--epsilon",
    "threat.norm": "--norm",
    "method.name": "--method",
    "attacks": "--attack",
    "surrogate": "--surrogate",
    "surrogate.model_id": "--surrogate",
    "pipeline": "--pipeline",
    "corruptions": "--corruption",
    "corruptions.kinds": "--corruption",
    "corruptions.severities": "--severity",
    "smallest_changes": "--smallest-changes",
    "universal": "--universal",
    "thresholds": "--require",
    "warm_start": "--start-from",
    "warm_start.model_id": "--start-from",
    "output": "--classes",
    "levels": "--levels",
    "resize": "--resize",
    "scopes": "--scope",
    "expires_in_s": "--expires-days",
    "search": "--vary",
    "search.parameters": "--vary",
}
_FIELD = re.compile(r"([a-z_]+(?:\.[a-z_]+)*): ")
_KEY = re.compile(r"\(--api-key, ADAP_API_KEY;[^()]*\)")  # what only HTTP needs is left out
_NAMED = ("dataset_id", "model_id")
_MISSING = "expected a value, got none"
_MORE = re.compile(r" \(\d+ more[^()]* in `errors`\)$")


@dataclass(frozen=True)
class Line:
    """A command line: its words, and what its command takes."""

    words: Sequence[str]
    options: frozenset[str]
    arguments: frozenset[str]

    @classmethod
    def of(cls, program: Typer, words: Sequence[str]) -> Self:
        """The line that a program was started with."""
        command = get_command(program)
        for word in words:
            if isinstance(command, TyperGroup) and word in command.commands:
                command = command.commands[word]
        names = frozenset(name for given in command.params for name in given.opts)
        options = frozenset(name for name in names if name.startswith("-"))
        return cls(words, options, names - options)

    def explain(self, error: ProblemError) -> tuple[str, list[str]]:
        """The sentence about the first fault, and those about the others."""
        first = _KEY.sub("(--api-key, or ADAP_API_KEY in the environment)", error.detail)
        if len(error.errors) > 1:
            first = _MORE.sub("", first)
        others = [f"{item['pointer']}: {item['detail']}" for item in error.errors[1:]]
        return self._in_words(first), [self._in_words(text) for text in others]

    def _in_words(self, text: str) -> str:
        found = POINTER.match(text)
        if found is None:  # what was found out later begins by the field itself
            named = _FIELD.match(text)
            flag = None if named is None else self._option(named[1])
            return text if named is None or flag is None else f"{flag}: {text[named.end() :]}"
        path = dotted(found[1]).removeprefix("training.")
        if path in _NAMED and text.endswith(_MISSING):
            text = f"{text.removesuffix(_MISSING)}expected {WHICH}; got none"
        return f"{self._flag(path)}: {text[found.end() :]}" if path else text[found.end() :]

    def _flag(self, path: str) -> str:
        """What the user gives for a field, as they gave it."""
        if path in self.arguments:
            return path.upper()
        flag = self._option(path)
        if flag is not None and (flag in self._given or "--config" not in self._given):
            return flag
        set_here = any(word.startswith(f"{path}=") for word in self.words)
        if "--config" in self._given and not set_here:
            return f"{path} in --config"
        return f"--set {path}" if "--set" in self.options else path

    def _option(self, path: str) -> str | None:
        """The option that stands for a field, or for the whole list that it is an entry of.

        One that was given stands for all inside its entries, too.
        """
        whole = re.sub(r"\.\d+$", "", path)
        outside = re.sub(r"\.\d+\..+$", "", path)
        if outside != path and _FLAGS.get(outside) in self._given:
            return _FLAGS[outside]
        own = f"--{whole.removeprefix('search.').replace('_', '-')}"
        return next((flag for flag in (_FLAGS.get(whole), own) if flag in self.options), None)

    @property
    def _given(self) -> set[str]:
        return {word.partition("=")[0] for word in self.words}
