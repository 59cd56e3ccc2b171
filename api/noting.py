"""What data sets and models are called, and what is noted about them."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from adap.core.config.base import Name
from adap.store.tables import DatasetRow, ModelRow
from adap.wording import as_written


def _lines(text: str) -> str:
    for line in text.splitlines():
        as_written(line, what="a note")
    return text.strip()


Note = Annotated[str, Field(max_length=2000), AfterValidator(_lines)]


class Change(BaseModel):
    """`PATCH /v1/datasets/{dataset_id}` and `PATCH /v1/models/{model_id}`."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"note": "the one that runs at the gate since May"}]},
    )

    name: Name | None = Field(None, description="what lists call it from now on")
    note: Note | None = Field(
        None, description="what to know about it, in lines; an empty text takes it away"
    )

    @model_validator(mode="after")
    def _something(self) -> "Change":
        if self.name is None and self.note is None:
            raise ValueError("expected name, note or both, got neither")
        return self

    def make(self, row: DatasetRow | ModelRow) -> None:
        """Make it; what is left out stays."""
        if self.name is not None:
            row.name = self.name
        if self.note is not None:
            row.note = self.note or None
