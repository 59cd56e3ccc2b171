"""Share of image classifiers understood: families of torchvision and timm, in every form.

    python -m benchmarks.coverage
    python -m benchmarks.coverage --files FOLDER

One small network a family with random weights, at the smallest size that it runs at. It is exported
by torch.onnx.export (by tracing, and where named by torch.export) and taken in as ONNX; its state
dict is taken in under its own names and behind a prefix, as safetensors. Ready means what it means
for an upload: converted, within 1e-4 of onnxruntime, opened again and tried on probe images. Cost
is looked at for batches up to 4 instead of 64, which changes no outcome and saves time.

`--files` takes in each ONNX file below a folder instead, declared as what onnxruntime finds it to
be.
"""

import argparse
import io
import os
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from adap.models import conversion, loading
from adap.models.errors import ModelFileError
from adap.models.graphs import GRAPH
from adap.models.header import Declaration, InputSpec, OutputSpec
from adap.models.limits import CostLimits

PAIR = OutputSpec(kind="multiclass", classes=["cat", "dog"])
LIMITS = CostLimits(batch=4)
UNSAID_SIZE = 224  # pixels, of a file that takes any
PREFIX = "module."
REFUSED = "refused"  # for a reason that no tool could mend, see `HOPELESS`
HOPELESS = ("a branch", "a loop", "depend on pixel values", "depends on the images")

# name: height and width in pixels; the cheap ones come first
TORCHVISION = {
    "resnet18": 32,
    "squeezenet1_1": 32,
    "shufflenet_v2_x0_5": 32,
    "mobilenet_v3_small": 32,
    "mnasnet0_5": 32,
    "mobilenet_v2": 32,
    "regnet_y_400mf": 32,
    "googlenet": 32,
    "densenet121": 32,
    "efficientnet_b0": 32,
    "convnext_tiny": 32,
    "swin_t": 32,
}
TIMM = {
    "test_byobnet": 32,
    "test_convnext": 32,
    "test_convnext2": 32,
    "test_convnext3": 32,
    "test_efficientnet": 32,
    "test_efficientnet_evos": 32,
    "test_efficientnet_gn": 32,
    "test_efficientnet_ln": 32,
    "test_mambaout": 32,
    "test_nfnet": 32,
    "test_resnet": 32,
    "test_vit": 64,
    "test_vit2": 64,
    "test_vit3": 64,
    "test_vit4": 64,
    "lcnet_035": 32,
    "tinynet_e": 32,
    "resnet10t": 32,
    "skresnet18": 32,
    "resnest14d": 32,
    "ghostnet_050": 32,
    "mobilenetv4_conv_small_035": 32,
    "hardcorenas_a": 32,
    "regnetx_002": 32,
    "repvgg_a0": 32,
    "dla46_c": 32,
    "rexnet_100": 32,
    "gernet_s": 32,
    "selecsls42": 32,
    "ese_vovnet19b_dw": 32,
    "mobileone_s0": 32,
    "starnet_s1": 32,
    "inception_next_atto": 32,
    "mambaout_femto": 32,
    "efficientvit_b0": 64,
    "pvt_v2_b0": 64,
    "edgenext_xx_small": 64,
    "mobilevit_xxs": 64,
    "mobilevitv2_050": 64,
    "poolformer_s12": 64,
    "repvit_m0_9": 32,
    "xcit_nano_12_p16_224": 32,
    "coat_lite_tiny": 64,
    "fastvit_t8": 64,
    "deit_tiny_patch16_224": 32,
    "levit_128s": 224,
    "pit_ti_224": 224,
    "halonet26t": 256,
}
# torch.export takes ten times as long as tracing, so few
BOTH = {"timm/test_resnet", "timm/test_vit", "timm/test_vit4", "timm/test_convnext"}


@dataclass(frozen=True)
class Outcome:
    """What became of a network in one form."""

    network: str
    form: str
    result: str  # ready, refused, or FAILED
    reason: str = ""


def build(name: str, size: int) -> nn.Module:
    """With two classes; of a size where the network is built for one."""
    library, _, short = name.partition("/")
    torch.manual_seed(0)
    made: nn.Module
    if library == "timm":
        try:
            made = timm.create_model(short, num_classes=2, img_size=size)
        except TypeError:
            made = timm.create_model(short, num_classes=2)
    else:
        more: dict[str, Any] = {"num_classes": 2}
        if short.startswith("vit"):
            more["image_size"] = size
        if short in ("inception_v3", "googlenet"):
            more |= {"aux_logits": False, "init_weights": False}
        made = torchvision.models.get_model(short, weights=None, **more)
    # deep random networks answer the same for all images: only what BatchNorm has seen undoes that
    made.train()
    with torch.no_grad():
        made(torch.rand(4, 3, size, size))
        for parameter in made.parameters():
            if parameter.ndim >= 2 and not parameter.any():
                nn.init.normal_(parameter, std=0.1)  # a head that starts at zero
    return made.eval()


def exported(network: nn.Module, size: int, *, tracing: bool) -> bytes:
    """An ONNX file with a free batch."""
    images, buffer = torch.rand(2, 3, size, size), io.BytesIO()
    if tracing:
        axes = {"x": {0: "batch"}, "y": {0: "batch"}}
        torch.onnx.export(
            *(network, (images,), buffer),
            dynamo=False,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes=axes,
        )
    else:
        shapes = ({0: torch.export.Dim("batch")},)
        program = torch.onnx.export(
            network, (images,), dynamo=True, verbose=False, dynamic_shapes=shapes
        )
        assert program is not None
        program.save(buffer)
    return buffer.getvalue()


def taken(path: Path, size: int, architecture: str) -> str:
    """What speaks against the file; nothing where it is ready."""
    spec = InputSpec(channels=3, height=size, width=size, mean=[0.5] * 3, std=[0.25] * 3)
    declared = Declaration(architecture=architecture, input=spec, output=PAIR)
    return against(path, declared, path.parent)


def against(path: Path, declared: Declaration, folder: Path) -> str:
    """What speaks against a file that is declared so; nothing where it is ready."""
    try:
        converted = conversion.to_safetensors(path, declared, folder=folder, limits=LIMITS)
        scorer, _ = loading.load(converted.path, converted.manifest, device="cpu")
        return "; ".join(loading.probe(scorer).problems)
    except ModelFileError as error:
        return str(error)


def outcomes(name: str, size: int, folder: Path) -> Iterable[Outcome]:
    """Of one network, in each form."""
    network = build(name, size)
    path = folder / "upload"

    def judged(form: str, architecture: str) -> Outcome:
        reason = taken(path, size, architecture)
        if not reason:
            return Outcome(name, form, "ready")
        mendable = not any(text in reason for text in HOPELESS)
        return Outcome(name, form, "FAILED" if mendable else REFUSED, reason)

    for tracing in (True, False) if name in BOTH else (True,):
        form = "ONNX, tracing" if tracing else "ONNX, torch.export"
        try:
            with redirect_stdout(io.StringIO()):  # it prints the whole network where it fails
                path.write_bytes(exported(network, size, tracing=tracing))
        except Exception as error:  # noqa: BLE001
            # the exporter's own: there is no file that anybody could take
            yield Outcome(name, form, "not exported", f"{error!r:.160}".replace("\n", " "))
            continue
        yield judged(form, "onnx")
    if not name.startswith("timm/test_"):  # timm's own, not among our architectures
        for prefix in ("", PREFIX):
            tensors = {prefix + key: value.clone() for key, value in network.state_dict().items()}
            save_file(tensors, path)
            yield judged("weights" if not prefix else f"weights behind {prefix}", name)


def found_to_be(path: Path) -> Declaration:
    """What a file takes and answers, asked of onnxruntime: its first output of floats."""
    session = onnxruntime.InferenceSession(path)
    images = session.get_inputs()[0]
    batch, *sizes = [size if isinstance(size, int) and size > 0 else None for size in images.shape]
    last = sizes[2] in (1, 3) and sizes[0] not in (1, 3)
    channels, height, width = [sizes[2], *sizes[:2]] if last else sizes
    spec = InputSpec(
        channels=channels or 3,
        height=height or UNSAID_SIZE,
        width=width or UNSAID_SIZE,
        mean=[0.5] * (channels or 3),
        std=[0.25] * (channels or 3),
    )
    shape = (spec.height, spec.width, spec.channels)
    shape = shape if last else (spec.channels, spec.height, spec.width)
    outputs = [item.name for item in session.get_outputs() if item.type == "tensor(float)"]
    zeros = np.zeros((batch or 1, *shape), np.float32)
    (answer,) = session.run(outputs[:1], {images.name: zeros})
    count = answer.size // len(zeros)
    classes = [f"c{i}" for i in range(count)] if count > 1 else None
    output = OutputSpec(
        kind="multiclass" if classes else "logit",
        classes=classes,
        name=outputs[0] if len(session.get_outputs()) > 1 else None,
    )
    return Declaration(architecture=GRAPH, input=spec, output=output)


def of_files(folder: Path) -> None:
    """Print a line for each ONNX file below a folder."""
    for path in sorted(folder.rglob("*.onnx")):
        with tempfile.TemporaryDirectory() as scratch:
            try:
                declared = found_to_be(path)
            except Exception as error:  # noqa: BLE001
                print(f"| {path.name} | onnxruntime: {error!r:.100} |", flush=True)
                continue
            reason = against(path, declared, Path(scratch)) or "ready"
        spec, count = declared.input, declared.output.count
        taken_as = f"{spec.channels}x{spec.height}x{spec.width}, {count} numbers"
        name = f"{path.parent.name}/{path.name}"
        print(f"| {name} | {path.stat().st_size / 2**20:.1f} | {taken_as} | {reason} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="parts of names")
    parser.add_argument("--cpu-seconds", type=float, default=300, help="begin no network after")
    parser.add_argument("--files", type=Path, help="a folder of ONNX files, instead")
    arguments = parser.parse_args()
    if arguments.files is not None:
        of_files(arguments.files)
        return
    chosen = arguments.only
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    networks = {f"timm/{name}": size for name, size in TIMM.items()}
    networks |= {f"torchvision/{name}": size for name, size in TORCHVISION.items()}
    found: list[Outcome] = []
    before = time.process_time()
    for name, size in networks.items():
        if chosen and not any(part in name for part in chosen):
            continue
        if time.process_time() - before > arguments.cpu_seconds:
            print(f"| {name} | {size} | not reached |")
            continue
        with tempfile.TemporaryDirectory() as folder:
            mine = list(outcomes(name, size, Path(folder)))
        found += mine
        cells = "; ".join(f"{item.form}: {item.result}" for item in mine)
        print(f"| {name} | {size} | {cells} |", flush=True)
    print(f"\nCPU {time.process_time() - before:.0f} s, {os.cpu_count()} cores\n")
    for form in dict.fromkeys(item.form for item in found):
        counts = Counter(item.result for item in found if item.form == form)
        print(f"| {form} | {', '.join(f'{n} {result}' for result, n in counts.items())} |")
    for item in found:
        if item.reason:
            print(f"\n{item.network}, {item.form}: {item.result}: {item.reason[:400]}")


if __name__ == "__main__":
    main()
