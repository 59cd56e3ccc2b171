"""Notes taken while an upload is read: how it was understood, what its reader must know."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from adap.models.header import shown
from adap.reading import Fact, Level, Reading

Sizes = Counter[tuple[int, int]]
"""How many images came in each size: height, width."""

MAX_LISTED = 5
_MAX_SUMMARY = 600  # characters
_MAX_MESSAGE = 500


@dataclass
class Notes:
    """Filled by the readers of a single upload, in the order in which they decide."""

    form: str = ""
    steps: list[str] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    sizes: Sizes = field(default_factory=Counter)  # as the images came

    def step(self, text: str) -> None:
        """Note how something was understood."""
        self.steps.append(text)

    def fact(self, level: Level, code: str, message: str, **figures: float) -> None:
        """Note something lost or odd, which everyone who uses the data set is told."""
        message = message if len(message) <= _MAX_MESSAGE else f"{message[: _MAX_MESSAGE - 1]}…"
        self.facts.append(Fact(level=level, code=code, message=message, figures=figures))

    def reading(self) -> Reading:
        """All of it, as it is kept with the data set."""
        summary = "; ".join(self.steps)
        summary = f"{self.form}: {summary}" if summary else self.form
        if len(summary) > _MAX_SUMMARY:
            summary = f"{summary[: _MAX_SUMMARY - 1]}…"
        return Reading(summary=summary, steps=self.steps, facts=self.facts)


def listed(names: Sequence[str]) -> str:
    """A few names for a sentence, and how many there are beside these."""
    some = ", ".join(shown(name) for name in names[:MAX_LISTED])
    more = len(names) - MAX_LISTED
    return f"{some} and {more} more" if more > 0 else some


def counted(count: int, thing: str) -> str:
    """`1 file`, `2,000 files`; of a class, `2 classes`."""
    plural = f"{thing}es" if thing.endswith("s") else f"{thing}s"
    return f"{count:,} {thing if count == 1 else plural}"
