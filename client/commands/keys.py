"""`adap key`: who may use the service."""

import json as json_
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from adap.client import show
from adap.client.base import ConnectionFailedError, is_loopback
from adap.client.client import Client, ClientError, Json, ProblemError
from adap.client.commands.options import After, Limit
from adap.client.commands.requests import without_none
from adap.client.commands.session import Session, session

app = typer.Typer(no_args_is_help=True, help="API keys: who may use the service.")


@app.command("create")
def create_key(
    context: typer.Context,
    name: Annotated[str, typer.Option(help="Whose, or what for.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="read, write or admin, which includes both; by default read and write."),
    ] = None,
    tenant: Annotated[
        str | None, typer.Option(help="Tenants cannot see each other's things.")
    ] = None,
    expires_days: Annotated[float | None, typer.Option(help="By default never.")] = None,
    allow_no_admin: Annotated[
        bool, typer.Option(help="Make an admin key that expires although no other lasts.")
    ] = False,
    home: Annotated[
        Path | None, typer.Option(help="Of the service, where it runs on this machine.")
    ] = None,
) -> None:
    """Create a key and show it, this one time.

    On the service's own machine this needs no key: it is then made in the service's database.
    """
    here = session(context)
    scopes = ["read", "write", "admin"] if "admin" in (scope or []) else scope
    request = {
        "name": name,
        "scopes": scopes or None,
        "tenant": tenant,
        "expires_in_s": None if expires_days is None else expires_days * 86400,
        "allow_no_admin": allow_no_admin or None,
    }
    try:
        key = here.client.keys.create(without_none(request))
    except (ConnectionFailedError, ProblemError) as error:
        closed = not isinstance(error, ProblemError) or error.status in (401, 403)
        if not (closed and is_loopback(here.client.base_url)):
            raise
        key = _create_here(here, without_none(request), home, why=error)
    here.answer(
        key,
        f"{key['key']}\n\nThis is the only time that it is shown. Every call needs a key now:\n"
        f"  export ADAP_API_KEY={key['key']}",
    )


def _create_here(here: Session, request: Json, home: Path | None, *, why: ClientError) -> Json:
    """Make a key in the database that the settings of this machine name; else raise `why`."""
    run = subprocess.run(
        [sys.executable, "-P", "-m", "adap.store.local_key", *([] if home is None else [home])],
        input=json_.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        last = (run.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise ClientError(f"{why} Nor could the key be made on this machine: {last}") from why
    made: Json = json_.loads(run.stdout)
    where = made.pop("database")
    here.err.print(f"{why}\nSo the key was made in {where} itself.", highlight=False)
    with Client(here.client.base_url, api_key=made["key"]) as client:
        try:
            client.get("/v1/api-keys" if "admin" in made["scopes"] else "/v1/jobs")
        except ProblemError as error:
            if error.status == 401:
                here.err.print(
                    f"The service at {here.client.base_url} keeps its keys elsewhere and does not "
                    "know this one: name its home with --home.",
                    highlight=False,
                )
        except ConnectionFailedError:
            pass  # it is not running, as was said
    return made


@app.command("list")
def list_keys(context: typer.Context, limit: Limit = 20, after: After = None) -> None:
    """All keys, without the keys themselves."""
    here = session(context)
    page = here.client.keys.page(limit=limit, after=after)
    here.page(page, show.keys(page["data"]))


@app.command("revoke")
def revoke_key(
    context: typer.Context,
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="Its name or id.")],
    allow_no_admin: Annotated[
        bool, typer.Option(help="Even the last admin key that lasts.")
    ] = False,
) -> None:
    """End a key at once."""
    here = session(context)
    key_id = here.the(here.client.keys, key_id)
    here.client.keys.revoke(key_id, allow_no_admin=allow_no_admin)
    here.answer({"revoked": key_id}, f"Revoked {key_id}.")
