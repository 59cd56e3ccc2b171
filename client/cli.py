"""The command `adap`: each subcommand is the HTTP call of the same name.

Results go to standard output, as tables or with `--json` as the service's own answer; progress and
problems go to standard error. Exit codes: 0 done, 1 a problem (a threshold that is not met and a
report that its scores do not bear out are problems too), 2 a wrong command line, 130 interrupted.
"""

import json as json_
import os
import re
import subprocess
import sys
import tempfile
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console, RenderableType

from adap.client import demo as demo_
from adap.client import show, watch
from adap.client.base import RANKING_FORMS, ConnectionFailedError, is_loopback
from adap.client.client import DEFAULT_URL, Client, ClientError, JobFailedError, Json, ProblemError
from adap.client.packing import pack_folder

REPORT_FORMS = {".html": "text/html", ".md": "text/markdown", ".xml": "application/xml"}
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # mean and std, red, green, blue
PIPE_COLUMNS = 1000  # a table that no terminal shows is not cut

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="How much average precision an image ranker keeps when it is attacked, and rankers "
    "that keep it.",
    epilog="--url, --api-key and --json may stand anywhere on the line.",
)
dataset_app = typer.Typer(no_args_is_help=True, help="Data sets: labelled images.")
model_app = typer.Typer(no_args_is_help=True, help="Models: networks, uploaded or trained here.")
jobs_app = typer.Typer(no_args_is_help=True, help="Jobs: trainings, audits, rankings, checks.")
sweeps_app = typer.Typer(no_args_is_help=True, help="Sweeps: trainings that differ in some fields.")
report_app = typer.Typer(no_args_is_help=True, help="Reports: what audits have found.")
queue_app = typer.Typer(no_args_is_help=True, help="Queues: whether workers take jobs; for admins.")
key_app = typer.Typer(no_args_is_help=True, help="API keys: who may use the service.")
app.add_typer(dataset_app, name="dataset")
app.add_typer(model_app, name="model")
app.add_typer(jobs_app, name="jobs")
app.add_typer(sweeps_app, name="sweeps")
app.add_typer(report_app, name="report")
app.add_typer(queue_app, name="queue")
app.add_typer(key_app, name="key")


@dataclass(frozen=True)
class Session:
    """What every subcommand works with."""

    client: Client
    json: bool
    out: Console
    err: Console

    def answer(self, value: Any, *shown: RenderableType) -> None:
        """Print a result: the JSON, or what people read instead of it."""
        if self.json:
            self.out.print(
                json_.dumps(value, indent=2, ensure_ascii=False),
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        else:
            self.out.print(*shown, sep="\n", highlight=False)

    def page(self, page: Json, shown: RenderableType) -> None:
        """Print a page of a list, and how to get the next."""
        self.answer(page, shown)
        if page["has_more"]:
            self.err.print(f"There is more: --after {page['next_cursor']}", highlight=False)

    def follow(self, *jobs: Json) -> list[Json]:
        """Show jobs until they end. Raises JobFailedError if one has no result."""
        try:
            with watch.open_board(self.err) as board:
                lines = [board.line(_label(job)) for job in jobs]
                return watch.follow_all(self.client, jobs, lines)
        except KeyboardInterrupt:
            for job in jobs:
                self.err.print(
                    f"{job['id']} goes on without you. "
                    f"Watch it again: adap jobs watch {job['id']}\n"
                    f"Stop it: adap jobs cancel {job['id']}",
                    highlight=False,
                    soft_wrap=True,
                )
            sys.exit(130)


def session(context: typer.Context) -> Session:
    """The session that the command line asked for."""
    made = context.obj
    assert isinstance(made, Session)
    return made


Limit = Annotated[int, typer.Option(min=1, max=100, help="How many to show.")]
After = Annotated[str | None, typer.Option(help="Where the page before this one ended.")]
AssetStatus = Annotated[
    str | None, typer.Option("--status", help="validating, ready, rejected; else all but the last.")
]
Watch = Annotated[
    bool, typer.Option("--watch", "-w", help="Show progress until the end; fail if it fails.")
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", exists=True, dir_okay=False, help="A JSON file with the request, or part of it."
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Any field of the request, for example method.lambda=2 or optimizer.lr=1e-4. "
        "May be given several times.",
    ),
]
Positive = Annotated[
    list[str] | None,
    typer.Option(help="A class to rank first; several options are one positive side."),
]
TrainingPreset = Annotated[
    str | None,
    typer.Option(
        help="Of what is not said otherwise: paper-cifar, paper-celeba, paper-bdd or quick."
    ),
]
Seed = Annotated[int | None, typer.Option(help="Of every random choice.")]
Split = Annotated[
    str | None, typer.Option(help="train, validation or test; by default test where there is one.")
]


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
) -> None:
    context.obj = Session(
        client=context.with_resource(Client(url, api_key=api_key)),
        json=json,
        out=_console(stderr=False),
        err=_console(stderr=True),
    )


# --- the service ----------------------------------------------------------------------------------


@app.command()
def up(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="By default 8000; 0 takes a free one.")
    ] = None,
    home: Annotated[Path | None, typer.Option(help="Where everything is kept.")] = None,
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


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="Where to write it, whole or not at all.")],
    home: Annotated[Path | None, typer.Option(help="Where everything is kept.")] = None,
    files: Annotated[
        str | None,
        typer.Option(help="include or refer; by default files in a folder are taken along."),
    ] = None,
) -> NoReturn:
    """Back up the service of this machine's settings, while it runs."""
    _run_on_the_database("make", file, home, *([] if files is None else ["--files", files]))


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="A file that `adap backup` wrote.")],
    home: Annotated[Path | None, typer.Option(help="Where everything is kept.")] = None,
) -> NoReturn:
    """Fill an empty service from a backup, before it is started."""
    _run_on_the_database("restore", file, home)


def _run_on_the_database(action: str, file: Path, home: Path | None, *options: str) -> NoReturn:
    place = [] if home is None else ["--home", str(home)]
    command = [sys.executable, "-P", "-m", "adap.store.backup", action, str(file), *place, *options]
    os.execv(sys.executable, command)  # noqa: S606 - a fixed program; it takes over this process


@app.command()
def doctor(
    context: typer.Context,
    home: Annotated[Path | None, typer.Option(help="Where everything is kept.")] = None,
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


@app.command()
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


# --- data sets ------------------------------------------------------------------------------------


@dataset_app.command("add")
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
    with made as file, _uploading(here, file) as on_bytes:
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
            image_column=image_column,
            label_column=label_column,
            split_column=split_column,
            group_column=group_column,
            cluster_column=cluster_column,
            skip_unreadable="true" if skip_unreadable else None,
        )
    if not watch_:
        here.answer(dataset, _being_checked("data set", dataset))
        return
    try:
        here.follow(here.client.jobs.show(dataset["job_id"]))
    except JobFailedError as error:
        raise _RejectedError("data set", here.client.datasets.show(dataset["id"])) from error
    dataset = here.client.datasets.show(dataset["id"])
    here.answer(dataset, show.dataset(dataset))


@dataset_app.command("list")
def list_datasets(
    context: typer.Context,
    status: AssetStatus = None,
    limit: Limit = 20,
    after: After = None,
) -> None:
    """The data sets, newest first; those that were rejected only with --status rejected."""
    here = session(context)
    page = here.client.datasets.list(limit=limit, after=after, status=status)
    here.page(page, show.datasets(page["data"]))


@dataset_app.command("show")
def show_dataset(context: typer.Context, dataset_id: str) -> None:
    """One data set: its status, its classes and splits."""
    here = session(context)
    dataset = here.client.datasets.show(dataset_id)
    here.answer(dataset, show.dataset(dataset))


@dataset_app.command("remove")
def remove_dataset(context: typer.Context, dataset_id: str) -> None:
    """Remove a data set that no job uses."""
    here = session(context)
    here.client.datasets.remove(dataset_id)
    here.answer({"removed": dataset_id}, f"Removed {dataset_id}.")


# --- models ---------------------------------------------------------------------------------------


@model_app.command("add")
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
            help="Of the images that it takes, 224 or HEIGHTxWIDTH; unless the file says it.",
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
    watch_: Watch = False,
) -> None:
    """Upload a model; a job loads and tries it."""
    here = session(context)
    declared = InputOptions(size, channels, imagenet, pixels, bgr)
    spec = _parse_json(input_, option="--input") if input_ is not None else declared.as_json()
    if input_ is not None and declared.given:
        raise typer.BadParameter("expected --input, or the options for its parts, not both")
    output = _output(classes, multilabel=multilabel, probabilities=probabilities)
    if output_name is not None:
        output = {**(output or {"kind": "logit"}), "name": output_name}
    with _uploading(here, path) as on_bytes:
        model = here.client.models.add(
            path,
            name=name,
            architecture=architecture,
            input_spec=spec,
            output=output,
            weights=weights,
            on_bytes=on_bytes,
        )
    if not watch_:
        here.answer(model, _being_checked("model", model))
        return
    try:
        here.follow(here.client.jobs.show(model["job_id"]))
    except JobFailedError as error:
        raise _RejectedError("model", here.client.models.show(model["id"])) from error
    model = here.client.models.show(model["id"])
    here.answer(model, show.model(model))


@model_app.command("list")
def list_models(
    context: typer.Context,
    status: AssetStatus = None,
    limit: Limit = 20,
    after: After = None,
) -> None:
    """The models, newest first; those that were rejected only with --status rejected."""
    here = session(context)
    page = here.client.models.list(limit=limit, after=after, status=status)
    here.page(page, show.models(page["data"]))


@model_app.command("show")
def show_model(context: typer.Context, model_id: str) -> None:
    """One model: what it is, and how it was trained."""
    here = session(context)
    model = here.client.models.show(model_id)
    here.answer(model, show.model(model))


@model_app.command("export")
def export_model(
    context: typer.Context,
    model_id: str,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="By default ID.safetensors; ONNX if it ends in .onnx."),
    ] = None,
) -> None:
    """Save the weights, with all that loading them needs, as safetensors; or the model as ONNX."""
    here = session(context)
    target = output or Path(f"{model_id}.safetensors")
    file_format = "onnx" if target.suffix == ".onnx" else "safetensors"
    here.client.models.export(model_id, target, file_format=file_format)
    here.answer({"path": str(target)}, f"Saved {target}.")


@model_app.command("remove")
def remove_model(context: typer.Context, model_id: str) -> None:
    """Remove a model that no job uses."""
    here = session(context)
    here.client.models.remove(model_id)
    here.answer({"removed": model_id}, f"Removed {model_id}.")


# --- work -----------------------------------------------------------------------------------------


@app.command()
def train(
    context: typer.Context,
    dataset: Annotated[str | None, typer.Option(help="Id of the data set.")] = None,
    positive: Positive = None,
    method: Annotated[
        str | None, typer.Option(help="ce, ap, pgd, trades, mart, adap_lpn, …")
    ] = None,
    each: Annotated[
        bool, typer.Option("--each", help="One network for all classes, trained on their mean AP.")
    ] = False,
    preset: TrainingPreset = None,
    architecture: Annotated[str | None, typer.Option(help="small_cnn, resnet18, …")] = None,
    start_from: Annotated[
        str | None, typer.Option(help="Id of a model whose weights to start from.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    name: Annotated[str | None, typer.Option(help="Of the resulting model.")] = None,
    seed: Seed = None,
    config: ConfigFile = None,
    set_: Set = None,
    watch_: Watch = False,
) -> None:
    """Train a model that ranks some classes first."""
    here = session(context)
    request = _request(
        config,
        {
            "dataset_id": dataset,
            "task": _task(positive, each=each),
            "method": method,
            "preset": preset,
            "architecture": architecture,
            "warm_start": None if start_from is None else {"model_id": start_from},
            "epochs": epochs,
            "name": name,
            "seed": seed,
        },
        set_,
    )
    job = here.client.train(request)
    if not watch_:
        here.answer(job, _queued(job))
        return
    (job,) = here.follow(job)
    model_id = job["result"]["model_id"]
    here.answer(
        job,
        show.model(here.client.models.show(model_id)),
        f"\nAttack it: adap audit --model {model_id} --dataset {request['dataset_id']} --watch",
    )


@app.command()
def sweep(
    context: typer.Context,
    vary: Annotated[
        list[str],
        typer.Option(
            metavar="PATH=VALUES",
            help="A field and its values, for example method.lambda=0.1,1,10; with --trials also "
            "a range, as optimizer.lr=1e-5..1e-2:log. May be given several times.",
        ),
    ],
    dataset: Annotated[str | None, typer.Option(help="Id of the data set.")] = None,
    positive: Positive = None,
    method: Annotated[
        str | None, typer.Option(help="ce, ap, pgd, trades, mart, adap_lpn, …")
    ] = None,
    preset: TrainingPreset = None,
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="Search with so many trials; by default every combination."),
    ] = None,
    at_once: Annotated[
        int | None, typer.Option(min=1, help="With --trials: how many are queued or run at a time.")
    ] = None,
    maximise: Annotated[
        str | None, typer.Option(help="With --trials: both, robust_ap or clean_ap.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the sweep.")] = None,
    seed: Annotated[int | None, typer.Option(help="With --trials: of the search.")] = None,
    config: ConfigFile = None,
    set_: Set = None,
    watch_: Watch = False,
) -> None:
    """Train many models that differ in some fields, and show which are worth having."""
    here = session(context)
    training = _request(
        config,
        {"dataset_id": dataset, "task": _task(positive), "method": method, "preset": preset},
        set_,
    )
    only_searched = {"at_once": at_once, "maximise": maximise, "seed": seed}
    if trials is None and (given := _without_none(only_searched)):
        raise typer.BadParameter(
            "expected --trials with it", param_hint=f"--{next(iter(given)).replace('_', '-')}"
        )
    search = {
        "kind": "grid" if trials is None else "tpe",
        "parameters": dict(_varied(text, ranges=trials is not None) for text in vary),
        **_without_none({"trials": trials, **only_searched}),
    }
    request = _without_none({"name": name, "training": training, "search": search})
    made = here.client.sweep(request)
    if not watch_:
        count = f"{made['planned']:,} trials"
        here.answer(made, f"{made['id']}: {count}. Watch it: adap sweeps watch {made['id']}")
        return
    _follow_sweep(here, made["id"])


@app.command()
def audit(
    context: typer.Context,
    model: Annotated[str | None, typer.Option(help="Id of the model.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Id of the data set.")] = None,
    positive: Positive = None,
    split: Split = None,
    norm: Annotated[str | None, typer.Option(help="linf or l2.")] = None,
    epsilon: Annotated[
        str | None, typer.Option(help="Largest change of a pixel in [0, 1]; 8/255 may be written.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="quick, standard or paper.")] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(help="pgd, apgd, fgsm, square, transfer or noise, instead of a preset."),
    ] = None,
    surrogate: Annotated[
        str | None, typer.Option(help="Id of the attacker's own model, for transfer.")
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(
            metavar="THRESHOLD",
            help="What the model must keep, for example 'worst_case_ap >= 0.4'; with --watch the "
            "exit code is 1 where it does not. May be given several times.",
        ),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(min=4, help="Audit so many examples at random, each side in its share."),
    ] = None,
    seed: Seed = None,
    config: ConfigFile = None,
    set_: Set = None,
    watch_: Watch = False,
) -> None:
    """Attack a model and measure what average precision is left."""
    here = session(context)
    request = _request(
        config,
        {
            "model_id": model,
            "dataset_id": dataset,
            "task": _task(positive),
            "split": split,
            "preset": preset,
            "attacks": attack or None,
            "surrogate": None if surrogate is None else {"model_id": surrogate},
            "thresholds": require or None,
            "sample": sample,
            "seed": seed,
        },
        [
            *([] if norm is None else [f"threat.norm={norm}"]),
            *([] if epsilon is None else [f"threat.epsilon={_number(epsilon)}"]),
            *(set_ or []),
        ],
    )
    job = here.client.audit(request)
    if not watch_:
        here.answer(job, _queued(job))
        return
    (job,) = here.follow(job)
    report = here.client.report(job["id"])
    here.answer(
        job,
        show.report(report),
        f"\nSee the images and curves: adap report open {job['id']}",
    )
    unmet = [result["threshold"] for result in report["thresholds"] if not result["passed"]]
    if unmet:
        raise ThresholdsNotMetError(f"Not met: {'; '.join(unmet)}")


@app.command("leaderboard")
def show_leaderboard(
    context: typer.Context,
    dataset_id: str,
    positive: Positive = None,
    split: Split = None,
    norm: Annotated[str | None, typer.Option(help="linf or l2.")] = None,
    epsilon: Annotated[str | None, typer.Option(help="Of the audits to compare.")] = None,
) -> None:
    """Compare the models that were audited on a data set."""
    here = session(context)
    found = here.client.leaderboard(
        dataset_id,
        positive=positive or None,
        split=split,
        norm=norm,
        epsilon=None if epsilon is None else _number(epsilon),
    )
    here.answer(found, show.leaderboard(found))


@app.command()
def rank(
    context: typer.Context,
    model: Annotated[str | None, typer.Option(help="Id of the model.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Id of the data set.")] = None,
    positive: Positive = None,
    split: Split = None,
    job_id: Annotated[
        str | None, typer.Option("--job", help="Show the ranking that this job has made.")
    ] = None,
    limit: Limit = 20,
    after: After = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Save the whole ranking: a name ending in .csv, .parquet or .ndjson.",
        ),
    ] = None,
    config: ConfigFile = None,
    set_: Set = None,
    watch_: Watch = False,
) -> None:
    """Rank the images of a data set by a model, best first."""
    here = session(context)
    if output is not None and output.suffix not in RANKING_FORMS:
        raise typer.BadParameter(
            f"expected a name ending in {', '.join(RANKING_FORMS)}; got {output.name!r}",
            param_hint="--output",
        )
    if job_id is None:
        request = _request(
            config,
            {"model_id": model, "dataset_id": dataset, "task": _task(positive), "split": split},
            set_,
        )
        job = here.client.rank(request)
        if not watch_ and output is None:
            here.answer(job, f"{_queued(job)}\nShow its ranking: adap rank --job {job['id']}")
            return
        here.follow(job)
        job_id = job["id"]
    if output is not None:
        here.client.save_ranking(str(job_id), output)
        here.answer({"path": str(output)}, f"Saved {output}.")
        return
    page = here.client.ranking(job_id, limit=limit, after=after)
    here.page(page, show.ranking(page["data"]))


@app.command()
def score(
    context: typer.Context,
    model_id: str,
    images: Annotated[
        list[Path], typer.Argument(exists=True, dir_okay=False, help="PNG, JPEG or WebP files.")
    ],
    positive: Annotated[
        list[str] | None,
        typer.Option(help="A class to score, where the model has a logit for each class."),
    ] = None,
) -> None:
    """Score a few images with a model."""
    here = session(context)
    answer = here.client.score(model_id, images, positive=positive)
    here.answer(answer, show.scores(answer["scores"], images))


# --- jobs -----------------------------------------------------------------------------------------


@jobs_app.command("list")
def list_jobs(
    context: typer.Context,
    kind: Annotated[str | None, typer.Option(help="train, audit, rank, …")] = None,
    status: Annotated[str | None, typer.Option(help="queued, running, failed, …")] = None,
    limit: Limit = 20,
    after: After = None,
) -> None:
    """The jobs, newest first."""
    here = session(context)
    page = here.client.jobs.list(limit=limit, after=after, kind=kind, status=status)
    here.page(page, show.jobs(page["data"]))


@jobs_app.command("show")
def show_job(context: typer.Context, job_id: str) -> None:
    """One job: how far it is, what it made, or why it failed."""
    here = session(context)
    job = here.client.jobs.show(job_id)
    here.answer(job, show.job(job))


@jobs_app.command("watch")
def watch_jobs(context: typer.Context, job_ids: Annotated[list[str], typer.Argument()]) -> None:
    """Show progress until the end; fails if a job fails."""
    here = session(context)
    ended = here.follow(*(here.client.jobs.show(job_id) for job_id in job_ids))
    here.answer(ended if len(ended) > 1 else ended[0], *map(show.job, ended))


@jobs_app.command("cancel")
def cancel_job(context: typer.Context, job_id: str) -> None:
    """Cancel a job that has not ended."""
    here = session(context)
    job = here.client.jobs.cancel(job_id)
    here.answer(job, f"{job_id} is {job['status']}.")


@jobs_app.command("retry")
def retry_job(
    context: typer.Context,
    job_id: Annotated[str | None, typer.Argument()] = None,
    failed_since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="All that failed in this time, as 90s, 30m, 2h or 7d."),
    ] = None,
    code: Annotated[
        str | None, typer.Option(help="Of these only those with this code, as storage_unavailable.")
    ] = None,
) -> None:
    """Run the request of a failed or cancelled job again, as a new job; or of all that failed."""
    here = session(context)
    if (job_id is None) == (failed_since is None) or (code is not None and failed_since is None):
        raise typer.BadParameter(
            "expected a job, or --failed-since with or without --code; got "
            + ("both" if job_id is not None else "neither")
        )
    if job_id is not None:
        job = here.client.jobs.retry(job_id)
        here.answer(job, _queued(job))
        return
    assert failed_since is not None
    _retry_all(here, _seconds(failed_since), code)


def _retry_all(here: Session, within_s: float, code: str | None) -> None:
    """Run again what failed and was not run again yet; what cannot be is named, and the rest is."""
    failed: list[Json] = []
    after = None
    while True:
        page = here.client.jobs.list(
            limit=100,
            after=after,
            status="failed",
            code=code,
            retried="false",
            ended_within_s=f"{within_s:g}",
        )
        failed += page["data"]
        if not page["has_more"]:
            break
        after = page["next_cursor"]
    retried: list[Json] = []
    left: list[Json] = []
    for job in reversed(failed):  # oldest first, as they came
        try:
            retried.append(here.client.jobs.retry(job["id"]))
        except ProblemError as error:
            if error.code != "conflict":
                raise
            left.append({"id": job["id"], "reason": str(error)})
    here.answer(
        {"retried": retried, "left": left},
        f"{len(retried)} of {len(failed)} failed jobs were queued again.",
        *(f"{job['retry_of']}: now {job['id']}" for job in retried),
        *(f"{job['id']}: left. {job['reason']}" for job in left),
    )


def _seconds(text: str) -> float:
    """A time as `90s`, `30m`, `2h` or `7d`."""
    found = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if found is None:
        raise typer.BadParameter(f"expected a time as 90s, 30m, 2h or 7d, got {text!r}")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


# --- sweeps ---------------------------------------------------------------------------------------


@sweeps_app.command("list")
def list_sweeps(context: typer.Context, limit: Limit = 20, after: After = None) -> None:
    """The sweeps, newest first."""
    here = session(context)
    page = here.client.sweeps.list(limit=limit, after=after)
    here.page(page, show.sweeps(page["data"]))


@sweeps_app.command("show")
def show_sweep(context: typer.Context, sweep_id: str) -> None:
    """One sweep: its trials, the best of them and the Pareto front."""
    here = session(context)
    found = here.client.sweeps.show(sweep_id)
    here.answer(found, show.sweep(found))


@sweeps_app.command("watch")
def watch_sweep(context: typer.Context, sweep_id: str) -> None:
    """Show progress until the end; fails if no trial succeeds."""
    here = session(context)
    _follow_sweep(here, here.client.sweeps.show(sweep_id)["id"])


@sweeps_app.command("cancel")
def cancel_sweep(context: typer.Context, sweep_id: str) -> None:
    """Cancel the trials that have not ended, and make no more."""
    here = session(context)
    found = here.client.sweeps.cancel(sweep_id)
    here.answer(found, f"{sweep_id} is {found['status']}.")


# --- reports --------------------------------------------------------------------------------------


@report_app.command("show")
def show_report(context: typer.Context, job_id: str) -> None:
    """The figures of a finished audit."""
    here = session(context)
    report = here.client.report(job_id)
    here.answer(report, show.report(report))


@report_app.command("open")
def open_report(context: typer.Context, job_id: str) -> None:
    """The report as a page in the browser."""
    here = session(context)
    page = here.client.report_as(job_id, "text/html")
    path = Path(tempfile.mkdtemp(prefix="adap-report-")) / f"{job_id}.html"
    path.write_bytes(page)
    opened = webbrowser.open(path.as_uri())
    here.answer(
        {"path": str(path), "opened": opened},
        f"The report is {path}." + ("" if opened else " No browser could be started here."),
    )


@report_app.command("save")
def save_report(
    context: typer.Context,
    job_id: str,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="A name ending in .html, .json, .md (a model card) or .xml (JUnit, for CI); "
            "by default JOB_ID.html.",
        ),
    ] = None,
) -> None:
    """Save the report as one self-contained page, as JSON, as a model card or as JUnit XML."""
    here = session(context)
    path = output or Path(f"{job_id}.html")
    if path.suffix == ".json":
        report = here.client.report(job_id)
        path.write_text(json_.dumps(report, indent=2, ensure_ascii=False), encoding="utf-8")
    elif path.suffix in REPORT_FORMS:
        path.write_bytes(here.client.report_as(job_id, REPORT_FORMS[path.suffix]))
    else:
        raise typer.BadParameter(
            f"expected a name ending in .json, {', '.join(REPORT_FORMS)}; got {path.name!r}",
            param_hint="--output",
        )
    here.answer({"path": str(path)}, f"Saved {path}.")


@report_app.command("remove")
def remove_report(context: typer.Context, job_id: str) -> None:
    """Remove a report with its scores; the job and its figures stay."""
    here = session(context)
    here.client.remove_report(job_id)
    here.answer({"removed": job_id}, f"Removed the report of {job_id}.")


@report_app.command("verify")
def verify_report(
    context: typer.Context,
    job_id: Annotated[str | None, typer.Argument(help="The audit; or name both files.")] = None,
    report: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Of `adap report save -o report.json`."),
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="The audit's scores as safetensors."),
    ] = None,
) -> None:
    """Compute every figure again from the stored scores; fails where one differs."""
    here = session(context)
    if (job_id is None) == (report is None) or (report is None) != (scores is None):
        raise typer.BadParameter("expected the id of an audit, or both --report and --scores")
    if report is not None and scores is not None:
        stated = _parse_json(report.read_text(encoding="utf-8"), option="--report")
        if not isinstance(stated, dict):
            raise typer.BadParameter("expected a JSON object", param_hint="--report")
        content = scores.read_bytes()
    else:
        assert job_id is not None
        stated = here.client.report(job_id)
        with tempfile.TemporaryDirectory(prefix="adap-verify-") as folder:
            file = Path(folder) / "scores.safetensors"
            here.client.save_scores(job_id, file)
            content = file.read_bytes()
    from adap.client import verify  # scikit-learn takes a second that no other command should wait

    lines = [asdict(line) for line in verify.verify(stated, content)]
    wrong = [line["figure"] for line in lines if not line["ok"]]
    here.answer({"ok": not wrong, "figures": lines}, show.verification(lines))
    if wrong:
        raise verify.MismatchError(
            f"{len(wrong)} of {len(lines)} figures do not come from these scores: "
            + ", ".join(wrong)
        )


# --- queues ---------------------------------------------------------------------------------------

QueueName = Annotated[
    str | None, typer.Argument(metavar="[QUEUE]", help="compute or intake; by default both.")
]
Reason = Annotated[str | None, typer.Option(help="Shown to all whose jobs wait.")]


@queue_app.command("show")
def show_queues(context: typer.Context) -> None:
    """Whether queues are paused, what waits and what runs."""
    here = session(context)
    items = here.client.queues.list()
    here.answer(items, show.queues(items))


@queue_app.command("pause")
def pause_queue(context: typer.Context, queue: QueueName = None, reason: Reason = None) -> None:
    """Let workers take no job; what runs goes on, and new jobs wait."""
    here = session(context)
    items = [here.client.queues.pause(name, reason=reason) for name in _queues(here, queue)]
    here.answer(items, show.queues(items))


@queue_app.command("drain")
def drain_queue(context: typer.Context, queue: QueueName = None, reason: Reason = None) -> None:
    """Pause, and wait until all that runs has ended. Ctrl-C ends the waiting, not the pause."""
    here = session(context)
    names = _queues(here, queue)
    for name in names:
        here.client.queues.pause(name, reason=reason)
    try:
        items = watch.drained(here.client, names, here.err)
    except KeyboardInterrupt:
        here.err.print(f"{' and '.join(names)} stay paused. Resume: adap queue resume")
        sys.exit(130)
    here.answer(items, show.queues(items))


@queue_app.command("resume")
def resume_queue(context: typer.Context, queue: QueueName = None) -> None:
    """Let workers take jobs again, which they do within seconds."""
    here = session(context)
    items = [here.client.queues.resume(name) for name in _queues(here, queue)]
    here.answer(items, show.queues(items))


def _queues(here: Session, queue: str | None) -> list[str]:
    return [item["name"] for item in here.client.queues.list()] if queue is None else [queue]


# --- keys -----------------------------------------------------------------------------------------


@key_app.command("create")
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
        key = here.client.keys.create(_without_none(request))
    except (ConnectionFailedError, ProblemError) as error:
        closed = not isinstance(error, ProblemError) or error.status in (401, 403)
        if not (closed and is_loopback(here.client.base_url)):
            raise
        key = _create_here(here, _without_none(request), home, why=error)
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


@key_app.command("list")
def list_keys(context: typer.Context, limit: Limit = 20, after: After = None) -> None:
    """All keys, without the keys themselves."""
    here = session(context)
    page = here.client.keys.list(limit=limit, after=after)
    here.page(page, show.keys(page["data"]))


@key_app.command("revoke")
def revoke_key(
    context: typer.Context,
    key_id: str,
    allow_no_admin: Annotated[
        bool, typer.Option(help="Even the last admin key that lasts.")
    ] = False,
) -> None:
    """End a key at once."""
    here = session(context)
    here.client.keys.revoke(key_id, allow_no_admin=allow_no_admin)
    here.answer({"revoked": key_id}, f"Revoked {key_id}.")


# --- requests -------------------------------------------------------------------------------------


class DemoFailedError(ClientError):
    """The demonstration did not show what it is there to show."""


class SweepFailedError(ClientError):
    """A sweep that was watched has ended without a model, or was cancelled."""


class PackingFailedError(ClientError):
    """A data set could not be packed: nothing was sent."""


class ThresholdsNotMetError(ClientError):
    """The audited model does not keep what was asked of it."""


class _RejectedError(ClientError):
    """An upload that was checked and cannot be used."""

    def __init__(self, what: str, asset: Json) -> None:
        super().__init__(f"The {what} {asset['id']} was rejected.")
        self.reasons: list[str] = asset["reasons"]


def _request(file: Path | None, options: Json, assignments: Sequence[str] | None) -> Json:
    """A request: what the file says, changed by options, changed by `--set`."""
    request: Any = {} if file is None else _parse_json(file.read_text(), option="--config")
    if not isinstance(request, dict):
        raise typer.BadParameter("expected a JSON object", param_hint="--config")
    request |= _without_none(options)
    for assignment in assignments or []:
        path, equals, text = assignment.partition("=")
        if not equals or not all(path.split(".")):
            raise typer.BadParameter(f"expected PATH=VALUE, got {assignment!r}", param_hint="--set")
        _assign(request, path.split("."), _value(text), path)
    return dict(request)


def _assign(target: Any, path: list[str], value: Any, whole: str) -> None:
    """Set one field deep inside; a bare name on the way becomes the entry of that name."""
    key: Any = path[0]
    if isinstance(target, list):
        if not key.isdecimal() or int(key) >= len(target):
            raise typer.BadParameter(
                f"expected an index below {len(target)} in {whole}, got {key!r}",
                param_hint="--set",
            )
        key = int(key)
    if len(path) == 1:
        target[key] = value
        return
    inner = target[key] if isinstance(target, list) else target.setdefault(key, {})
    if isinstance(inner, str):  # {"method": "ce"} and {"method": {"name": "ce"}} mean the same
        inner = target[key] = {"name": inner}
    if not isinstance(inner, dict | list):
        raise typer.BadParameter(
            f"{whole} leads through {key!r}, which is {inner!r}", param_hint="--set"
        )
    _assign(inner, path[1:], value, whole)


def _varied(text: str, *, ranges: bool) -> tuple[str, Any]:
    """A field and its values: `method=ce,ap`, a JSON list, or `optimizer.lr=1e-5..1e-2:log`."""
    path, equals, values = text.partition("=")
    if not equals or not path or not values:
        raise typer.BadParameter(f"expected PATH=VALUES, got {text!r}", param_hint="--vary")
    low, dots, high = values.partition("..")
    if dots and not values.startswith("["):
        high, _, log = high.partition(":")
        if not ranges or log not in ("", "log"):
            raise typer.BadParameter(
                f"expected a range LOW..HIGH or LOW..HIGH:log, and --trials with it; got {text!r}",
                param_hint="--vary",
            )
        return path, {"low": _value(low), "high": _value(high), "log": bool(log)}
    if values.startswith("["):
        return path, _parse_json(values, option="--vary")
    return path, [_value(value) for value in values.split(",")]


def _value(text: str) -> Any:
    """A JSON value, or else the text itself."""
    try:
        return json_.loads(text)
    except ValueError:
        return text


def _follow_sweep(here: Session, sweep_id: str) -> None:
    """Show a sweep until its end, then its trials; fails if it has not succeeded."""
    try:
        with watch.open_board(here.err) as board:
            ended = watch.follow_sweep(here.client.sweeps.follow(sweep_id), board.line("sweep"))
    except KeyboardInterrupt:
        here.err.print(
            f"{sweep_id} goes on without you. Watch it again: adap sweeps watch {sweep_id}\n"
            f"Stop it: adap sweeps cancel {sweep_id}",
            highlight=False,
            soft_wrap=True,
        )
        sys.exit(130)
    here.answer(ended, show.sweep(ended))
    if ended["status"] != "succeeded":
        raise SweepFailedError(f"The sweep {sweep_id} has ended {ended['status']}.")


def _task(positive: list[str] | None, *, each: bool = False) -> Json | None:
    if each and positive:
        raise typer.BadParameter("expected --each or --positive, got both", param_hint="--each")
    if each:
        return {"each": True}
    return {"positive": positive} if positive else None


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
        height, _, width = self.size.lower().partition("x")
        if not height.isdecimal() or not (width or height).isdecimal():
            raise typer.BadParameter(
                f"expected 224 or 240x320, got {self.size!r}", param_hint="--size"
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
            "height": int(height),
            "width": int(width or height),
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
        names = _parse_json(classes, option="--classes")
    else:
        names = [name.strip() for name in classes.split(",")]
    kind = "probabilities" if probabilities else "multilabel" if multilabel else "multiclass"
    return {"kind": kind, "classes": names}


def _number(text: str) -> float:
    """A number, also written as a fraction."""
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError) as error:
        raise typer.BadParameter(
            f"expected a number such as 0.03 or 8/255, got {text!r}", param_hint="--epsilon"
        ) from error


def _parse_json(text: str, *, option: str) -> Any:
    try:
        return json_.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"expected JSON: {error}", param_hint=option) from error


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


def _without_none(values: Json) -> Json:
    return {name: value for name, value in values.items() if value is not None}


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


@contextmanager
def _uploading(here: Session, file: Path) -> Iterator[Any]:
    """Show how much of a file was sent."""
    total, sent = file.stat().st_size, 0
    with watch.open_board(here.err) as board:
        line = board.line("upload")

        def on_bytes(count: int) -> None:
            nonlocal sent
            sent += count
            text = f"{show.size(sent)} of {show.size(total)}"
            line.show("sending", completed=sent, total=total, text=text)

        yield on_bytes
        line.end(f"{show.size(total)} sent", well=True)


# --- words ----------------------------------------------------------------------------------------


def _label(job: Json) -> str:
    """What a job is called beside its bar."""
    if job["kind"] == "train":
        return f"train {job['request']['method']['name']}"
    return str(job["kind"]).replace("_", " ")


def _queued(job: Json) -> str:
    return f"{job['id']} is {job['status']}. Watch it: adap jobs watch {job['id']}"


def _being_checked(what: str, asset: Json) -> str:
    return (
        f"{asset['id']} is being checked. Watch it: adap jobs watch {asset['job_id']}\n"
        f"Then see what it holds: adap {what.replace('data set', 'dataset')} show {asset['id']}"
    )


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=PIPE_COLUMNS)


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
        err = _console(stderr=True)
        details: list[str] = []
        if isinstance(error, ProblemError):
            # the first fault is in the sentence already
            details = [f"{item['pointer']}: {item['detail']}" for item in error.errors[1:]]
            if "--json" in arguments:
                sys.stdout.write(f"{json_.dumps(error.problem, indent=2)}\n")
        elif isinstance(error, _RejectedError):
            details = show.reasons(error.reasons)
        err.print(show.problem(str(error), details), highlight=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
