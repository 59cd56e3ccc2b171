"""`python -m adap.client.aio.generate`: make the client that waits out of the one to be awaited.

Needs the development tools: unasync takes `async` and `await` away, ruff puts it in form.
"""

import subprocess
import sys
from pathlib import Path

import unasync

SOURCE = Path(__file__).with_name("client.py")
TARGET = SOURCE.parent.parent / "client.py"

NAMES = {
    "AsyncClient": "Client",
    "aclose": "close",
    "aread": "read",
    "aiter_bytes": "iter_bytes",
    "aiter_lines": "iter_lines",
    "asyncio": "time",  # whose sleep it is
    "asynccontextmanager": "contextmanager",
}


def generate(target: Path) -> None:
    """Write the client that waits to a file."""
    rule = unasync.Rule(str(SOURCE.parent), str(target.parent), additional_replacements=NAMES)
    unasync.unasync_files([str(SOURCE)], [rule])
    ours = ["--config", "lint.isort.known-first-party = ['adap']"]
    for task in (["check", *ours, "--select", "I", "--fix"], ["format"]):
        subprocess.run([sys.executable, "-m", "ruff", *task, "--quiet", target], check=True)


if __name__ == "__main__":
    generate(TARGET)
