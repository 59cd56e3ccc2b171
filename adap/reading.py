"""Readings of uploaded files: how each was understood, for the service and its reports.

Intake writes a `Reading` for every accepted upload: what was taken for what, step by step, and the
facts that a reader of figures must know. Facts of level caution travel into an audit's trust
checks, its warnings and its gates. This module imports neither torch nor anything of ours.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Level = Literal["info", "caution", "fault"]
"""info: said for completeness; caution: figures may mislead; fault: refused unless overridden."""


class Fact(BaseModel):
    """Something lost, odd or decided while a file was read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: Level
    code: str = Field(description="stable name, for example `unreadable_files`", max_length=80)
    message: str = Field(description="one sentence that says what it is and what to do")
    figures: dict[str, float] = Field({}, description="its numbers, by name")


class Reading(BaseModel):
    """How a file was read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    summary: str = Field(description="one line, for example `zip: 2 splits from folders …`")
    steps: list[str] = Field([], description="each decision, in the order in which it was taken")
    facts: list[Fact] = []

    @property
    def cautions(self) -> list[Fact]:
        """The facts that figures made from this file must carry with them."""
        return [fact for fact in self.facts if fact.level != "info"]
