"""What the makers of an audit state about it: purpose, threat, people and dates. No torch.

None of it is measured and no figure hangs on it. It is carried into the report, so that a signature
over the report is one over the statement too. What a reader of a technical file, a submission or a
safety case asks for and an audit cannot find out by itself has its place here.
"""

from datetime import date
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from adap import faults
from adap.faults import NamedFields
from adap.wording import as_written

LONGEST_PARAGRAPH = 2000
LONGEST_NAME = 200


def _written(text: str) -> str:
    if not text.strip():
        raise ValueError("expected text, got none: leave the field out")
    return as_written(text, what="one paragraph")


def _day(text: str) -> str:
    """A date as text: requests are plain JSON, in which there is no other."""
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError as error:
        raise ValueError(f"expected a date such as 2026-11-30, got {text!r}") from error


Paragraph = Annotated[
    str, Field(min_length=1, max_length=LONGEST_PARAGRAPH), AfterValidator(_written)
]
PersonOrBody = Annotated[
    str, Field(min_length=1, max_length=LONGEST_NAME), AfterValidator(_written)
]
Day = Annotated[str, Field(pattern=faults.DAY, max_length=10), AfterValidator(_day)]


class Statement(NamedFields):
    """Who had the audit made, why, and why so."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    purpose: Paragraph | None = Field(None, description="what this audit is to decide")
    intended_use: Paragraph | None = Field(
        None, description="where the model is to be used, on which images, and by whom"
    )
    threat_rationale: Paragraph | None = Field(None, description="why this norm and this epsilon")
    attacker_goal: Paragraph | None = Field(
        None, description="what the attacker wants, for example to hide a positive"
    )
    attacker_knowledge: Paragraph | None = Field(
        None, description="what the attacker has: the weights, the scores, or neither"
    )
    tester: PersonOrBody | None = Field(None, description="who made the audit")
    approver: PersonOrBody | None = Field(None, description="who answers for relying on it")
    tested_on: Day | None = Field(None, description="date, YYYY-MM-DD")
    approved_on: Day | None = Field(None, description="date, YYYY-MM-DD; not before `tested_on`")

    @model_validator(mode="after")
    def _holds_together(self) -> "Statement":
        if not self.model_dump(exclude_none=True):
            fields = ", ".join(type(self).model_fields)
            raise ValueError(f"expected at least one of {fields}, got none")
        if self.approved_on is not None and self.approver is None:
            raise ValueError("expected an approver beside approved_on, got none")
        if self.tested_on and self.approved_on and self.approved_on < self.tested_on:
            raise ValueError(
                f"expected approved_on from {self.tested_on} on, the day of tested_on, "
                f"got {self.approved_on}"
            )
        return self
