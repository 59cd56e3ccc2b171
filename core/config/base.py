"""What every configuration is made of: the frozen class with bounds, names and identifiers."""

import hashlib
import json
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, ConfigDict, Field

from adap import faults
from adap.faults import NamedFields
from adap.wording import as_written

SPLITS = ("train", "validation", "test")
Split = Literal["train", "validation", "test"]


class Config(NamedFields):
    """A frozen value that refuses unknown fields and does not coerce."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )

    def as_json(self) -> dict[str, Any]:
        """The plain JSON value of this configuration, defaults included."""
        return self.model_dump(mode="json")

    def sha256(self) -> str:
        """A hash of every value of the configuration: equal hash, equal run."""
        text = json.dumps(self.as_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def name_only(value: Any) -> Any:
    """A bare name stands for the entry with its defaults."""
    return {"name": value} if isinstance(value, str) else value


def or_name(union: Any) -> Any:
    """What may stand there in JSON, for the OpenAPI: an entry of the union, or its bare name."""
    names = tuple(member.model_fields["name"].default for member in get_args(union))
    return Annotated[union, Field(discriminator="name")] | Literal[names]


Identifier = Annotated[str, Field(pattern=faults.ID, max_length=40)]


def _reads_as_written(text: str) -> str:
    return as_written(text, what="a name")


Name = Annotated[
    str,
    Field(min_length=1, max_length=200, pattern=faults.VISIBLE),
    AfterValidator(_reads_as_written),
]
