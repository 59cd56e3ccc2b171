"""`adap dataset`: labelled images."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated

import typer
from rich.console import Console

from adap.client import show
from adap.client.client import ClientError, JobFailedError, Json
from adap.client.commands.options import (
    After,
    AssetStatus,
    DatasetRef,
    Limit,
    NewName,
    Note,
    Seed,
    Watch,
    change,
)
from adap.client.commands.session import session
from adap.client.commands.uploads import RejectedError, being_checked, uploading
from adap.client.packing import pack_folder

app = typer.Typer(no_args_is_help=True, help="Data sets: labelled images.")


class PackingFailedError(ClientError):
    """A data set could not be packed: nothing was sent."""


@app.command("add")
def add_dataset(
    context: typer.Context,
    path: Annotated[
        Path,
        typer.Argument(
            exists=True,
            readable=True,
            help="A zip of class folders, such a folder itself, an .npz or .parquet; with --from "
            "the folder in which the publisher's files lie.",
        ),
    ],
    name: Annotated[str | None, typer.Option(help="By default the file's name.")] = None,
    published: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="NAME",
            help="cifar10, cifar100, celeba or bdd100k, as published; or folder, with --size.",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="With --from: superclass or class (CIFAR-100), an attribute (CelebA), weather or "
            "scene (BDD100K)."
        ),
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="With --from: height and width of the images in pixels.")
    ] = None,
    positive: Annotated[
        list[str] | None,
        typer.Option(help="With --prevalence: a class of which images are dropped."),
    ] = None,
    prevalence: Annotated[
        float | None,
        typer.Option(
            help="With --from and --positive: drop positives until they are this share of what is "
            "trained on."
        ),
    ] = None,
    seed: Seed = None,
    resize: Annotated[
        str | None,
        typer.Option(
            metavar="WxH:FIT",
            help="Make images of several sizes one, for example 224x224:crop; or :stretch, :pad.",
        ),
    ] = None,
    folders: Annotated[
        str | None,
        typer.Option(
            metavar="LEVELS",
            help="What the folders are, where that is not plain: class, split/class, class/split, "
            "group/class, cluster/class, or - for a level that means nothing.",
        ),
    ] = None,
    levels: Annotated[
        str | None,
        typer.Option(
            metavar="LOW:HIGH",
            help="Which values become black and white, of images deeper than 8 bits.",
        ),
    ] = None,
    label_separator: Annotated[
        str | None,
        typer.Option(
            metavar="MARK",
            help="What stands between the labels of an image that may have several: | , ; / or a "
            "space; none where each text is one label.",
        ),
    ] = None,
    label_columns: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Columns of 0 and 1, each a class, with commas between; '*' for all others.",
        ),
    ] = None,
    label_in_name: Annotated[
        str | None,
        typer.Option(
            metavar="MARK",
            help="The label is what stands in a file's name before the last _ - . or space: cat in "
            "cat_12.jpg.",
        ),
    ] = None,
    image_column: Annotated[str | None, typer.Option(help="Column or array of images.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column or array of labels.")] = None,
    split_column: Annotated[str | None, typer.Option(help="Column or array of splits.")] = None,
    group_column: Annotated[str | None, typer.Option(help="Column or array of groups.")] = None,
    cluster_column: Annotated[
        str | None, typer.Option(help="Column or array of clusters: patients, drives.")
    ] = None,
    skip_unreadable: Annotated[
        bool,
        typer.Option("--skip-unreadable", help="Leave out images that cannot be read; count them."),
    ] = False,
    hold_out: Annotated[
        float | None,
        typer.Option(
            metavar="FRACTION",
            help="Keep this share of each class back as the test split, 0.2 for example; of a data "
            "set without one. No training sees it, and audits are made on it.",
        ),
    ] = None,
    watch_: Watch = False,
) -> None:
    """Upload a data set; a job checks it."""
    here = session(context)
    rule = None if resize is None else _resize(resize)
    options = {
        "--labels": labels,
        "--size": size,
        "--prevalence": prevalence,
        "--seed": seed,
    }
    given = [name for name, value in options.items() if value is not None]
    if published is None and (given or positive):
        raise typer.BadParameter("expected --from with it", param_hint=[*given, "--positive"][0])
    words = [str(word) for option in given for word in (option, options[option])]
    words += [word for name in positive or [] for word in ("--positive", name)]
    made = _zipped(path, here.err) if published is None else _packed(published, path, words)
    with made as file, uploading(here, file) as on_bytes:
        default = (
            path.resolve().name
            if published is None
            else " ".join([published, *([labels] if labels else [])])
        )
        dataset = here.client.datasets.add(
            file,
            name=name or default,
            resize=rule,
            on_bytes=on_bytes,
            folders=folders,
            levels=levels,
            label_separator=label_separator,
            label_columns=label_columns,
            label_in_name=label_in_name,
            image_column=image_column,
            label_column=label_column,
            split_column=split_column,
            group_column=group_column,
            cluster_column=cluster_column,
            skip_unreadable="true" if skip_unreadable else None,
            hold_out=None if hold_out is None else str(hold_out),
        )
    if not watch_:
        here.answer(dataset, being_checked("data set", dataset))
        return
    try:
        here.follow(here.client.jobs.show(dataset["job_id"]))
    except JobFailedError as error:
        raise RejectedError("data set", here.client.datasets.show(dataset["id"])) from error
    dataset = here.client.datasets.show(dataset["id"])
    here.answer(dataset, show.dataset(dataset))


@app.command("list")
def list_datasets(
    context: typer.Context,
    status: AssetStatus = None,
    limit: Limit = 20,
    after: After = None,
) -> None:
    """The data sets, newest first; those that were rejected only with --status rejected."""
    here = session(context)
    page = here.client.datasets.page(limit=limit, after=after, status=status)
    here.page(page, show.datasets(page["data"]))


@app.command("show")
def show_dataset(context: typer.Context, dataset_id: DatasetRef) -> None:
    """One data set: its status, its classes and splits."""
    here = session(context)
    dataset_id = here.the(here.client.datasets, dataset_id)
    dataset = here.client.datasets.show(dataset_id)
    here.answer(dataset, show.dataset(dataset))


@app.command("edit")
def edit_dataset(
    context: typer.Context, dataset_id: DatasetRef, name: NewName = None, note: Note = None
) -> None:
    """Call a data set otherwise, or note something about it."""
    here = session(context)
    told = change(name, note)
    dataset = here.client.datasets.change(here.the(here.client.datasets, dataset_id), **told)
    here.answer(dataset, show.dataset(dataset))


@app.command("remove")
def remove_dataset(context: typer.Context, dataset_id: DatasetRef) -> None:
    """Remove a data set that no job uses."""
    here = session(context)
    dataset_id = here.the(here.client.datasets, dataset_id)
    here.client.datasets.remove(dataset_id)
    here.answer({"removed": dataset_id}, f"Removed {dataset_id}.")


def _resize(text: str) -> Json:
    """The rule that `224x224:crop` stands for."""
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5}):(stretch|crop|pad)", text)
    if found is None:
        raise typer.BadParameter(
            f"expected WIDTHxHEIGHT:FIT with a fit of stretch, crop or pad, got {text!r}",
            param_hint="--resize",
        )
    width, height, fit = found.groups()
    return {"height": int(height), "width": int(width), "fit": fit}


@contextmanager
def _zipped(path: Path, err: Console) -> Iterator[Path]:
    """The file itself, or a folder as a zip that is gone afterwards."""
    if not path.is_dir():
        yield path
        return
    with NamedTemporaryFile(suffix=".zip") as file:
        try:
            left_out = pack_folder(path, Path(file.name))
        except (OSError, ValueError) as error:
            raise PackingFailedError(
                f"The folder {path} was not packed, and nothing was sent: {error}."
            ) from error
        for what, names in left_out.items():
            more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
            told = ", ".join(names[:5])
            err.print(f"{what}: {told}{more}", markup=False, highlight=False, soft_wrap=True)
        yield Path(file.name)


@contextmanager
def _packed(published: str, root: Path, options: Sequence[str]) -> Iterator[Path]:
    """A published data set as an NPZ that is gone afterwards, packed by a process of its own."""
    with tempfile.TemporaryDirectory(prefix="adap-pack-") as folder:
        file = Path(folder) / f"{published}.npz"
        packing = [
            sys.executable,
            "-P",
            "-m",
            "adap.core.published",
            published,
            str(root.resolve()),
        ]
        run = subprocess.run(
            [*packing, "-o", str(file), *options], stdout=subprocess.DEVNULL, check=False
        )
        if run.returncode != 0:
            raise PackingFailedError(f"The data set in {root} was not packed; nothing was sent.")
        yield file
