"""What the command line itself refuses, worded as the service words it: expected, and got."""

from typing import Any, Final

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

_EXPECTED: Final = {
    "greater_than_equal": "at least {ge:g}",
    "less_than_equal": "at most {le:g}",
    "int_parsing": "a whole number",
    "float_parsing": "a number",
}


class Worded(TyperGroup):
    """A command whose options refuse a value in our words."""

    def invoke(self, ctx: Any) -> Any:
        """Run the subcommand that the line names."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            if isinstance(error.__cause__, ValidationError):
                fault = error.__cause__.errors()[0]
                if wanted := _EXPECTED.get(fault["type"]):
                    wanted = wanted.format(**fault.get("ctx", {}))
                    error.message = f"expected {wanted}, got {fault['input']}"
            raise
