"""`adap model`: networks, uploaded or trained here."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from adap.client import show
from adap.client.base import EXPORTED
from adap.client.client import ClientError, JobFailedError, Json
from adap.client.commands.options import (
    After,
    AssetStatus,
    Limit,
    ModelRef,
    NewName,
    Note,
    Watch,
    change,
)
from adap.client.commands.requests import parse_json
from adap.client.commands.session import Session, session
from adap.client.commands.uploads import RejectedError, being_checked, uploading

STATE_DICT = (".pt", ".pth")
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # mean and std, red, green, blue

app = typer.Typer(no_args_is_help=True, help="Models: networks, uploaded or trained here.")


@app.command("add")
def add_model(
    context: typer.Context,
    path: Annotated[
        Path,
        typer.Argument(
            exists=True, dir_okay=False, help="Weights as safetensors or .pt, or a network as ONNX."
        ),
    ],
    name: Annotated[str | None, typer.Option(help="By default the file's name.")] = None,
    architecture: Annotated[
        str | None, typer.Option(help="What the weights belong to, unless the file says it.")
    ] = None,
    input_: Annotated[
        str | None,
        typer.Option(
            "--input",
            metavar="JSON",
            help='All of what the next options say, as JSON: {"channels": 3, "height": 32, '
            '"width": 32, "mean": [0, 0, 0], "std": [1, 1, 1]}',
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="PIXELS",
            help="Of the images that it takes, 224 or WIDTHxHEIGHT; unless the file says it.",
        ),
    ] = None,
    channels: Annotated[
        int | None, typer.Option(help="Of the images that it takes: 3, or 1 for grey ones.")
    ] = None,
    imagenet: Annotated[
        bool,
        typer.Option(
            "--imagenet",
            help="It was trained on pixels minus ImageNet's mean, divided by its std; else on "
            "pixels as they are.",
        ),
    ] = False,
    pixels: Annotated[
        str | None,
        typer.Option(metavar="RANGE", help="Of its pixels: 0..1 (the usual one), 0..255 or -1..1."),
    ] = None,
    bgr: Annotated[
        bool, typer.Option("--bgr", help="It takes blue, green, red, as OpenCV and Caffe do.")
    ] = False,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Of a network with a logit for each class, in that order: cat,dog,other, or a "
            "JSON list where names contain commas.",
        ),
    ] = None,
    multilabel: Annotated[
        bool, typer.Option("--multilabel", help="Several of the classes may be true of an image.")
    ] = False,
    probabilities: Annotated[
        bool,
        typer.Option(
            "--probabilities",
            help="The network ends in a sigmoid, or with --classes in a softmax.",
        ),
    ] = False,
    output_name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of an ONNX file with several outputs: which is meant."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Of a checkpoint with several weights: model_ema, state_dict, …"
        ),
    ] = None,
    positive: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLASS",
            help="Of a model of one logit: the class that it ranks first; audits and rankings of "
            "another are then refused. May be given several times.",
        ),
    ] = None,
    watch_: Watch = False,
) -> None:
    """Upload a model; a job loads and tries it."""
    here = session(context)
    declared = InputOptions(size, channels, imagenet, pixels, bgr)
    spec = parse_json(input_, option="--input") if input_ is not None else declared.as_json()
    if input_ is not None and declared.given:
        raise typer.BadParameter("expected --input, or the options for its parts, not both")
    output = _output(classes, multilabel=multilabel, probabilities=probabilities)
    if output_name is not None:
        output = {**(output or {"kind": "logit"}), "name": output_name}
    with uploading(here, path) as on_bytes:
        model = here.client.models.add(
            path,
            name=name,
            architecture=architecture,
            input_spec=spec,
            output=output,
            weights=weights,
            positive=",".join(positive) if positive else None,
            on_bytes=on_bytes,
        )
    if not watch_:
        here.answer(model, being_checked("model", model))
        return
    try:
        here.follow(here.client.jobs.show(model["job_id"]))
    except JobFailedError as error:
        raise RejectedError("model", here.client.models.show(model["id"])) from error
    model = here.client.models.show(model["id"])
    here.answer(model, show.model(model))


@app.command("list")
def list_models(
    context: typer.Context,
    status: AssetStatus = None,
    limit: Limit = 20,
    after: After = None,
) -> None:
    """The models, newest first; those that were rejected only with --status rejected."""
    here = session(context)
    page = here.client.models.page(limit=limit, after=after, status=status)
    here.page(page, show.models(page["data"]))


@app.command("show")
def show_model(context: typer.Context, model_id: ModelRef) -> None:
    """One model: what it is, and how it was trained."""
    here = session(context)
    model_id = here.the(here.client.models, model_id)
    model = here.client.models.show(model_id)
    here.answer(model, show.model(model))


@app.command("export")
def export_model(
    context: typer.Context,
    model_id: ModelRef,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="By default ID.safetensors; ONNX if it ends in .onnx, a state dict for PyTorch "
            "if in .pt or .pth.",
        ),
    ] = None,
) -> None:
    """Save the weights, with all that loading them needs, as safetensors; or the model as ONNX."""
    here = session(context)
    model_id = here.the(here.client.models, model_id)
    target = output or Path(f"{model_id}.safetensors")
    if target.suffix not in (*EXPORTED, *STATE_DICT):
        raise typer.BadParameter(
            f"expected a name ending in {', '.join(EXPORTED)}, {' or '.join(STATE_DICT)}, got "
            f"{target.name!r}",
            param_hint="--output",
        )
    if not target.parent.is_dir():
        raise typer.BadParameter(
            f"expected a name in a folder that is there, got {str(target)!r}",
            param_hint="--output",
        )
    if target.suffix in STATE_DICT:
        _export_state_dict(here, model_id, target)
    else:
        here.client.models.export(model_id, target)
    here.answer({"path": str(target)}, f"Saved {target}.")


def _export_state_dict(here: Session, model_id: str, target: Path) -> None:
    """Save the weights by their names alone; there is no file unless all of it is written."""
    manifest = here.client.models.show(model_id)["manifest"] or {}
    if manifest.get("architecture") == "onnx":
        raise typer.BadParameter(
            f"expected a name ending in .onnx, got {target.name!r}: the model came as ONNX, and no "
            "network of PyTorch takes its weights",
            param_hint="--output",
        )
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:
        weights, written = Path(folder, "weights.safetensors"), Path(folder, "weights.pt")
        here.client.models.export(model_id, weights)
        rewrite = [sys.executable, "-P", "-m", "adap.models.pytorch_file"]
        run = subprocess.run(
            [*rewrite, str(weights), str(written)], capture_output=True, text=True, check=False
        )
        if run.returncode != 0:
            why = run.stderr.strip().rpartition("\n")[2] or f"exit status {run.returncode}"
            raise ClientError(
                f"The weights of {model_id} could not be written for PyTorch ({why}): export them "
                "as .safetensors"
            )
        written.replace(target)


@app.command("edit")
def edit_model(
    context: typer.Context, model_id: ModelRef, name: NewName = None, note: Note = None
) -> None:
    """Call a model otherwise, or note something about it."""
    here = session(context)
    told = change(name, note)
    model = here.client.models.change(here.the(here.client.models, model_id), **told)
    here.answer(model, show.model(model))


@app.command("remove")
def remove_model(context: typer.Context, model_id: ModelRef) -> None:
    """Remove a model that no job uses."""
    here = session(context)
    model_id = here.the(here.client.models, model_id)
    here.client.models.remove(model_id)
    here.answer({"removed": model_id}, f"Removed {model_id}.")


@dataclass(frozen=True)
class InputOptions:
    """The options that say, in place of JSON, how images become a network's input."""

    size: str | None
    channels: int | None
    imagenet: bool
    pixels: str | None
    bgr: bool

    @property
    def given(self) -> bool:
        """Whether any of them was."""
        return self != InputOptions(None, None, False, None, False)

    def as_json(self) -> Json | None:
        """`input` of POST /v1/models; None where nothing was said."""
        if not self.given:
            return None
        if self.size is None:
            raise typer.BadParameter("expected it with the options for images", param_hint="--size")
        width, _, height = self.size.lower().partition("x")
        if not width.isdecimal() or not (height or width).isdecimal():
            raise typer.BadParameter(
                f"expected 224, or WIDTHxHEIGHT as in 320x240, got {self.size!r}",
                param_hint="--size",
            )
        channels = self.channels or 3
        if self.imagenet and channels != 3:
            raise typer.BadParameter("expected 3 channels with --imagenet", param_hint="--channels")
        mean, std = IMAGENET if self.imagenet else ([0.0] * channels, [1.0] * channels)
        if self.bgr:
            mean, std = mean[::-1], std[::-1]
        pixels = self.pixels or "0..1"
        if self.imagenet and pixels != "0..1":
            if pixels != "0..255":
                raise typer.BadParameter("expected 0..255 with --imagenet", param_hint="--pixels")
            mean, std = [255 * v for v in mean], [255 * v for v in std]
        return {
            "channels": channels,
            "height": int(height or width),
            "width": int(width),
            "mean": mean,
            "std": std,
            "value_range": pixels,
            "channel_order": "bgr" if self.bgr else "rgb",
        }


def _output(classes: str | None, *, multilabel: bool, probabilities: bool) -> Json | None:
    """What a network answers, where it is not one logit; the service checks the names."""
    if multilabel and probabilities:
        raise typer.BadParameter("expected one of the two", param_hint="--multilabel")
    if classes is None:
        if multilabel:
            raise typer.BadParameter("expected --classes with it", param_hint="--multilabel")
        return {"kind": "probability"} if probabilities else None
    if classes.lstrip().startswith("["):
        names = parse_json(classes, option="--classes")
    else:
        names = [name.strip() for name in classes.split(",")]
    kind = "probabilities" if probabilities else "multilabel" if multilabel else "multiclass"
    return {"kind": kind, "classes": names}
