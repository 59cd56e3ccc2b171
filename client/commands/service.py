"""`adap up`, `backup`, `restore`, `doctor`, `demo`: the service on this machine."""

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from adap.client import demo as demo_
from adap.client.client import ClientError
from adap.client.commands.session import session

Home = Annotated[Path | None, typer.Option(help="Where everything is kept.")]


class DemoFailedError(ClientError):
    """The demonstration did not show what it is there to show."""


def up(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="By default 8000; 0 takes a free one.")
    ] = None,
    home: Home = None,
) -> NoReturn:
    """Run the service on this machine until Ctrl-C."""
    options = {"--host": host, "--port": port, "--home": home}
    arguments = [
        text for name, value in options.items() if value is not None for text in (name, str(value))
    ]
    if session(context).json:
        arguments.append("--json")
    service = [sys.executable, "-P", "-m", "adap.worker.embedded", *arguments]
    os.execv(sys.executable, service)  # noqa: S606 - a fixed program; it takes over this process


def backup(
    file: Annotated[Path, typer.Argument(help="Where to write it, whole or not at all.")],
    home: Home = None,
    files: Annotated[
        str | None,
        typer.Option(help="include or refer; by default files in a folder are taken along."),
    ] = None,
) -> NoReturn:
    """Back up the service of this machine's settings, while it runs."""
    _run_on_the_database("make", file, home, *([] if files is None else ["--files", files]))


def restore(
    file: Annotated[Path, typer.Argument(help="A file that `adap backup` wrote.")],
    home: Home = None,
) -> NoReturn:
    """Fill an empty service from a backup, before it is started."""
    _run_on_the_database("restore", file, home)


def _run_on_the_database(action: str, file: Path, home: Path | None, *options: str) -> NoReturn:
    place = [] if home is None else ["--home", str(home)]
    command = [sys.executable, "-P", "-m", "adap.store.backup", action, str(file), *place, *options]
    os.execv(sys.executable, command)  # noqa: S606 - a fixed program; it takes over this process


def doctor(
    context: typer.Context,
    home: Home = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what can be mended without a loss, then look.")
    ] = False,
    no_device: Annotated[
        bool, typer.Option("--no-device", help="Do not try it, on a machine without workers.")
    ] = False,
) -> NoReturn:
    """Look at every part of the service on this machine, whether it runs or not."""
    options = [
        *([] if home is None else ["--home", str(home)]),
        *(["--repair"] if repair else []),
        *(["--no-device"] if no_device else []),
        *(["--json"] if session(context).json else []),
    ]
    command = [sys.executable, "-P", "-m", "adap.worker.doctor", *options]
    os.execv(sys.executable, command)  # noqa: S606 - a fixed program; it takes over this process


def demo(
    context: typer.Context,
    output: Annotated[Path, typer.Option(help="Where the reports are put.")] = Path("adap-demo"),
    home: Annotated[
        Path | None, typer.Option(help="Keep the service's data here; by default it is deleted.")
    ] = None,
) -> None:
    """Train, attack and report on real images: the point of it all, in a few minutes."""
    here = session(context)
    outcome = demo_.run(here.err, output=output, home=home)
    here.answer(outcome.as_json(), outcome.shown())
    if outcome.faults:
        raise DemoFailedError("; ".join(outcome.faults))
