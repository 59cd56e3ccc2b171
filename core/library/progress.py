"""Progress of the library's work: a bar in a terminal or notebook, or the caller's function."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from adap.core.errors import ConfigError

Progress = bool | Callable[[int, int], None] | None


@contextmanager
def counting(
    total: int, *, shown: Progress, what: str = "images"
) -> Iterator[Callable[[int], None]]:
    """A function that is told how many of `total` are done."""
    if callable(shown):
        yield lambda done: shown(done, total)
        return
    if shown not in (None, True, False):
        raise ConfigError(f"expected progress as True, False or a function, got {shown!r:.80}")
    if shown is False or (shown is None and not (sys.stderr.isatty() or _in_notebook())):
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    return shell is not None and "ipykernel" in sys.modules
