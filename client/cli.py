"""The command `adap`: each subcommand is the HTTP call of the same name.

Results go to standard output, as tables or with `--json` as the service's own answer; progress and
problems go to standard error. Exit codes: 0 done, 1 a problem (a threshold that is not met and a
report that its scores do not bear out are problems too), 2 a wrong command line, 130 interrupted.
"""

import json as json_
import sys
from collections.abc import Sequence
from importlib.metadata import version as installed_version
from typing import Annotated

import typer

from adap.client import show
from adap.client.client import DEFAULT_URL, Client, ClientError, ProblemError
from adap.client.commands import (
    audits,
    datasets,
    jobs,
    keys,
    models,
    queues,
    rankings,
    reports,
    service,
    sweeps,
    trainings,
)
from adap.client.commands.flags import Line
from adap.client.commands.refused import Worded
from adap.client.commands.session import Session, console
from adap.client.commands.uploads import RejectedError
from adap.client.references import AmbiguousNameError

app = typer.Typer(
    cls=Worded,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="How much average precision an image ranker keeps when it is attacked, and rankers "
    "that keep it.",
    epilog="--url, --api-key and --json may stand anywhere on the line.",
)
app.command()(service.up)
app.command()(service.backup)
app.command()(service.restore)
app.command()(service.doctor)
app.command()(service.demo)
app.command()(trainings.train)
app.command()(sweeps.sweep)
app.command()(audits.audit)
app.command("leaderboard")(audits.show_leaderboard)
app.command()(rankings.rank)
app.command()(rankings.score)
app.add_typer(datasets.app, name="dataset")
app.add_typer(models.app, name="model")
app.add_typer(jobs.app, name="jobs")
app.add_typer(sweeps.app, name="sweeps")
app.add_typer(reports.app, name="report")
app.add_typer(queues.app, name="queue")
app.add_typer(keys.app, name="key")


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"adap {installed_version('adap-audit')}")
        raise typer.Exit


@app.callback()
def _globals(
    context: typer.Context,
    url: Annotated[str, typer.Option(envvar="ADAP_URL", help="The service.")] = DEFAULT_URL,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="ADAP_API_KEY", help="Needed once the service has keys.", show_default=False
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the service's answer as JSON.")
    ] = False,
    version: Annotated[  # noqa: ARG001 - `_say_version` has answered it
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Of AdAP.")
    ] = False,
) -> None:
    context.obj = Session(
        client=context.with_resource(Client(url, api_key=api_key)),
        json=json,
        out=console(stderr=False),
        err=console(stderr=True),
    )


def _globals_first(arguments: Sequence[str]) -> list[str]:
    """Options that hold for every subcommand may stand behind it too."""
    first: list[str] = []
    rest = list(arguments)
    end = rest.index("--") if "--" in rest else len(rest)
    position = 0
    while position < end:
        argument = rest[position]
        count = 1 if argument == "--json" or argument.startswith(("--url=", "--api-key=")) else 0
        count = 2 if argument in ("--url", "--api-key") else count
        first += rest[position : position + count]
        del rest[position : position + count]
        end -= count
        position += count == 0
    return first + rest


def main() -> None:
    """Run the command line of this process."""
    arguments = _globals_first(sys.argv[1:])
    try:
        app(arguments, prog_name="adap")
    except ClientError as error:
        err = console(stderr=True)
        sentence, details = str(error), list[str]()
        if isinstance(error, ProblemError):
            sentence, details = Line.of(app, arguments).explain(error)
            if "--json" in arguments:
                sys.stdout.write(f"{json_.dumps(error.problem, indent=2)}\n")
        elif isinstance(error, AmbiguousNameError):
            details = error.choices
        elif isinstance(error, RejectedError):
            details = show.reasons(error.reasons)
        err.print(show.problem(sentence, details), highlight=False, soft_wrap=True)
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            raise
        told = show.problem(f"{error.filename2 or error.filename}: {error.strerror}.", [])
        console(stderr=True).print(told, highlight=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
