"""What is wrong with a value, in words of our own: pydantic's faults as sentences for people.

Each says what was expected and what came; a name that is nearly right is suggested, and an unknown
field is answered with those that there are. This module imports neither torch nor anything of ours.
"""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Self

from pydantic import BaseModel, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

MAX_SHOWN = 80  # characters of a value that came
MAX_NAMED = 20  # unknown fields that are answered with those that there are; more are many alike

ID = r"^[a-z]+_[0-9a-z]{26}$"
DATASET_ID = r"^ds_[0-9a-z]{26}$"
SHA256 = r"^[0-9a-f]{64}$"
FIELD_PATH = r"^[a-z0-9_]+(\.[a-z0-9_]+)*$"
FRACTION = r"^\d+(\.\d+)?/\d+(\.\d+)?$"
FOLDERS = r"^(class|split|group|cluster|-)(/(class|split|group|cluster|-)){0,7}$"
VISIBLE = r"^[^\x00-\x1f\x7f-\x9f]+$"
LABEL = r"^[a-z0-9][a-z0-9_-]*$"
TENANT = r"^[a-z0-9][a-z0-9-]{0,62}$"
DAY = r"^\d{4}-\d{2}-\d{2}$"
CODE = r"^[a-z0-9_]+$"
HEADER_TEXT = r"^[!-~]+$"

_FORMS = {
    ID: "an id such as ds_01k9x2v7m3c5r8t1w4z6y0b2d4",
    DATASET_ID: "the id of a data set, such as ds_01k9x2v7m3c5r8t1w4z6y0b2d4",
    SHA256: "64 hexadecimal digits",
    FIELD_PATH: "the path of a field, such as optimizer.lr",
    FRACTION: "a fraction such as 8/255",
    FOLDERS: "levels such as split/class, of class, split, group, cluster and -",
    VISIBLE: "a text without control characters",
    LABEL: "small letters, digits, _ and -",
    TENANT: "at most 63 small letters, digits and -",
    DAY: "a day such as 2026-11-30",
    CODE: "a code such as storage_unavailable",
    HEADER_TEXT: "visible ASCII characters",
}

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "a text",
    "list": "a list",
    "dict": "an object",
    "model": "an object",
}

_BOUNDS = {
    "greater_than_equal": "at least {ge:g}",
    "greater_than": "more than {gt:g}",
    "less_than_equal": "at most {le:g}",
    "less_than": "less than {lt:g}",
    "multiple_of": "a multiple of {multiple_of}",
    "finite_number": "a finite number",
}


def explain(fault: ErrorDetails) -> str:
    """The sentence about a fault: what was expected, and what came."""
    context = fault.get("ctx", {})
    match fault["type"]:
        case "missing":
            return "expected a value, got none"
        case "extra_forbidden" if fault["msg"].startswith("Extra inputs"):
            return "no such field"
        case "value_error" if fault["msg"].startswith("Value error, Expected UploadFile"):
            return "expected a file, with a file name, got a text"
        case "value_error":
            return str(context.get("error", fault["msg"]))
        case "literal_error" | "enum":
            return _choice(_names(context["expected"]), fault["input"])
        case "union_tag_invalid":
            return _choice(_names(context["expected_tags"]), context["tag"])
        case "union_tag_not_found":
            return f"expected an object with {context['discriminator']}{_got(fault['input'])}"
        case "string_pattern_mismatch" if context["pattern"] in _FORMS:
            return f"expected {_FORMS[context['pattern']]}{_got(fault['input'])}"
        case "too_short" | "string_too_short":
            return _length("at least", context["min_length"], fault["input"])
        case "too_long" | "string_too_long":
            return _length("at most", context["max_length"], fault["input"])
        case bound if bound in _BOUNDS:
            return f"expected {_BOUNDS[bound].format(**context)}{_got(fault['input'])}"
    kind, _, what = fault["type"].partition("_")
    if kind in _KINDS and what in ("type", "parsing", "from_float", "attributes_type"):
        return f"expected {_KINDS[kind]}{_got(fault['input'])}"
    return fault["msg"]


def path_of(fault: ErrorDetails, whole: Any) -> list[str | int]:
    """Where in a value the fault is. pydantic's own way there also names members of unions."""
    if whole is None or not fault["loc"]:
        return list(fault["loc"])
    *inner, last = fault["loc"]
    path: list[str | int] = []
    here = whole
    for part in inner:
        if _holds(here, part):
            path.append(part)
            here = here[part]
    new = fault["type"] in ("missing", "extra_forbidden")
    return [*path, last] if new or _holds(here, last) else path


def _holds(value: Any, part: str | int) -> bool:
    if isinstance(value, Mapping):
        return part in value
    return isinstance(value, list) and isinstance(part, int) and part < len(value)


def suggestion(name: object, names: Iterable[str]) -> str:
    """`; did you mean X?` for a name that is nearly one of these, else nothing."""
    if not isinstance(name, str) or len(name) > MAX_SHOWN:
        return ""
    near = get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def shown(value: object) -> str:
    """A value that came, cut before it is written out: a number may have thousands of digits."""
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a whole number of more than 20 digits"
    cut = value[:MAX_SHOWN] if isinstance(value, str) else value
    return f"{cut!r:.{MAX_SHOWN}}"


class NamedFields(BaseModel):
    """Base of values that answer an unknown field with the names of those that there are."""

    @model_validator(mode="wrap")
    @classmethod
    def _name_fields(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(value)
        except ValidationError as error:
            faults = error.errors(include_url=False)
            if not any(map(_is_unknown_field, faults)):
                raise
            unknown = [fault for fault in faults if _is_unknown_field(fault)]
            named = {id(fault) for fault in unknown[:MAX_NAMED]}
            raise ValidationError.from_exception_data(
                error.title, [_again(cls, fault, named=id(fault) in named) for fault in faults]
            ) from None


def _again(cls: type[BaseModel], fault: ErrorDetails, *, named: bool) -> InitErrorDetails:
    """The same fault; of a field that there is not and is `named`, with those that there are."""
    kind: str | PydanticCustomError = fault["type"]
    if named:
        names = [field.alias or name for name, field in cls.model_fields.items()]
        near = suggestion(fault["loc"][0], names)
        allowed = f"{'Allowed' if near else 'allowed'}: {', '.join(names)}"
        sentence = f"no such field{near or ';'} {allowed}"
        kind = PydanticCustomError("extra_forbidden", sentence)
    elif fault["type"] == "extra_forbidden" and len(fault["loc"]) > 1:  # said by a value inside
        kind = PydanticCustomError("extra_forbidden", fault["msg"])
    return InitErrorDetails(
        type=kind, loc=fault["loc"], input=fault["input"], ctx=fault.get("ctx", {})
    )


def _is_unknown_field(fault: ErrorDetails) -> bool:
    return fault["type"] == "extra_forbidden" and len(fault["loc"]) == 1


def _length(bound: str, length: int, value: Any) -> str:
    noun = "character" if isinstance(value, str) else "item"
    return f"expected {bound} {length} {noun}{'s' if length != 1 else ''}, got {len(value)}"


def _choice(names: Sequence[str], got: object) -> str:
    listed = names[0] if len(names) == 1 else f"one of {', '.join(names)}"
    return f"expected {listed}{_got(got)}{suggestion(got, names)}"


def _names(text: str) -> list[str]:
    """The names in pydantic's `'a', 'b' or 'c'`, as JSON writes them."""
    names = [name.strip("'") for name in text.replace(" or ", ", ").split(", ")]
    return [{"True": "true", "False": "false"}.get(name, name) for name in names]


def _got(value: object) -> str:
    """What came, where that can be said in a few words."""
    if value is None:
        return ", got null"
    return f", got {shown(value)}" if isinstance(value, str | int | float | bool) else ""
