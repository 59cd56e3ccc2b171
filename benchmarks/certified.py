"""Small networks trained for a certified floor, and what the service's own audit proves of them.

    python -m benchmarks.certified --images digits --epsilon 0.1
    python -m benchmarks.certified --images cifar10 --pages folder

Each network is a `thin_cnn`. One is trained by the service on clean images (`ce`), one against
attacks (`adap_lpn`); the third here, on interval bounds: cross-entropy of every positive at its
lowest and every negative at its highest logit, while epsilon grows (Gowal et al., "On the
effectiveness of interval bound propagation for training verifiably robust models", 2018). That is
none of the service's methods, so its weights are uploaded like anybody's. All three are audited by
an embedded service, `certify` left at its default.

CIFAR-10 is read as JPEGs, so the figures are close to, not equal to, those of the original files.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

from adap.client.client import Client
from adap.models import architectures
from adap.models.header import InputSpec
from adap.models.wrappers import Scorer

BATCH = 100
ATTACKS = [{"name": "pgd", "steps": 20}, {"name": "apgd", "steps": 50}]


@dataclass(frozen=True)
class Pictures:
    """Images, their class names, and which classes are positive; the last `held_out` are audited.

    images: (N, C, H, W) uint8.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.str_]
    positive: list[str]
    held_out: int
    epsilon: float  # at which training aims

    @property
    def targets(self) -> NDArray[np.int64]:
        """(N,) in {0, 1}."""
        return np.isin(self.labels, self.positive).astype(np.int64)

    def archive(self) -> bytes:
        """A zip of class folders below train/ and test/."""
        buffer, trained = io.BytesIO(), len(self.images) - self.held_out
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
            for i, (image, label) in enumerate(zip(self.images, self.labels, strict=True)):
                png = io.BytesIO()
                pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
                Image.fromarray(pixels).save(png, "PNG")
                split = "train" if i < trained else "test"
                file.writestr(f"{split}/{label}/{i:05d}.png", png.getvalue())
        return buffer.getvalue()


def digits() -> Pictures:
    """scikit-learn's 1,797 handwritten digits, 8x8: zeros against all others."""
    loaded = load_digits()
    images = np.rint(loaded.images[:, None] * 255 / 16).astype(np.uint8)
    return Pictures(images, loaded.target.astype(str), ["0"], held_out=597, epsilon=0.1)


def cifar10(folder: Path, *, train: int = 500, test: int = 100) -> Pictures:
    """CIFAR-10, 32x32, so many images of each class: cars and trucks against all others."""
    images, labels = [], []
    for part, count in (("train", train), ("test", test)):
        with zipfile.ZipFile(folder / f"cifar10-{part}.zip") as file:
            taken: dict[str, int] = {}
            for name in file.namelist():
                label = name.split("/")[0]
                if name.endswith(".jpg") and taken.get(label, 0) < count:
                    taken[label] = taken.get(label, 0) + 1
                    with Image.open(io.BytesIO(file.read(name))) as image:
                        images.append(np.asarray(image.convert("RGB")).transpose(2, 0, 1))
                    labels.append(label)
    return Pictures(
        np.stack(images),
        np.array(labels),
        ["automobile", "truck"],
        held_out=10 * test,
        epsilon=2 / 255,
    )


def scorer_of(network: nn.Module, images: NDArray[np.uint8]) -> Scorer:
    """The network as the service runs it, pixels passed on as they are."""
    return Scorer(network, input_spec(images))


def input_spec(images: NDArray[np.uint8]) -> InputSpec:
    """That pixels in [0, 1] are the network's input."""
    channels, height, width = images.shape[1:]
    return InputSpec(
        channels=channels, height=height, width=width, mean=[0.0] * channels, std=[1.0] * channels
    )


def interval_logits(network: nn.Module, x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """(B,) lowest and (B,) highest logits by intervals, with gradients for the weights.

    x: (B, C, H, W) in [0, 1].  Layers in a row: affine ones, and such as never fall where their
    input rises.
    """
    lo, hi = (x - epsilon).clamp(0, 1), (x + epsilon).clamp(0, 1)
    for layer in network.children():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            magnitude = layer.weight.abs()
            center, radius = layer((lo + hi) / 2), (hi - lo) / 2
            if isinstance(layer, nn.Linear):
                radius = F.linear(radius, magnitude)
            else:
                padding = tuple(map(int, layer.padding))
                radius = F.conv2d(radius, magnitude, None, layer.stride, padding)
            lo, hi = center - radius, center + radius
        else:
            lo, hi = layer(lo), layer(hi)
    return lo.flatten(), hi.flatten()


def trained_on_bounds(
    images: NDArray[np.uint8],
    targets: NDArray[np.int64],
    *,
    epsilon: float,
    epochs: int,
    seed: int = 0,
) -> nn.Module:
    """A `thin_cnn` whose bounds, not whose attacked logits, were made to rank.

    Epsilon grows to its full size over two thirds of the epochs; positives weigh as much as
    negatives. images: (N, C, H, W) uint8.  targets: (N,) in {0, 1}.
    """
    network = architectures.build("thin_cnn", channels=images.shape[1], seed=seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    x, y = torch.tensor(images).float() / 255, torch.tensor(targets).float()
    weight = (1 - y).sum() / y.sum()
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        reach = epsilon * min(1, 1.5 * epoch / epochs)
        for batch in torch.randperm(len(x), generator=generator).split(BATCH):
            lo, hi = interval_logits(network, x[batch], reach)
            worst = torch.where(y[batch] == 1, lo, hi)
            loss = F.binary_cross_entropy_with_logits(worst, y[batch], pos_weight=weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval()


@contextmanager
def service() -> Iterator[str]:
    """The address of an embedded service on a home of its own."""
    with tempfile.TemporaryDirectory(prefix="adap-certified-") as home:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "adap.worker.embedded", "--with-parent", "--json"),
                *("--port", "0", "--home", home),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        with process.stdout:
            try:
                yield json.loads(process.stdout.readline())["url"]
            finally:
                process.terminate()
                process.wait(30)


def models(client: Client, pictures: Pictures, dataset: str, *, epochs: int) -> dict[str, str]:
    """The ids of the three networks, by how each was trained."""
    found = {}
    attack = {"epsilon": pictures.epsilon, "steps": 4, "step_size": pictures.epsilon / 2.5}
    for method, fields in (("ce", {}), ("adap_lpn", {"attack": attack})):
        job = client.train(
            {
                "dataset_id": dataset,
                "task": {"positive": pictures.positive},
                "method": method,
                "architecture": "thin_cnn",
                "epochs": epochs,
                "optimizer": {"lr": 3e-3},
                **fields,
            }
        )
        found[method] = client.jobs.wait(job["id"])["result"]["model_id"]
    trained = slice(None, -pictures.held_out)
    network = trained_on_bounds(
        pictures.images[trained],
        pictures.targets[trained],
        epsilon=pictures.epsilon,
        epochs=epochs,
    )
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        save_file(network.state_dict(), file.name)
        added = client.models.add(
            Path(file.name),
            name="thin_cnn trained on its bounds",
            architecture="thin_cnn",
            input_spec=input_spec(pictures.images).model_dump(),
        )
    client.jobs.wait(added["job_id"])
    return {**found, "interval bounds": added["id"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", choices=["digits", "cifar10"], default="digits")
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="CIFAR-10 as zips"
    )
    parser.add_argument("--epsilon", type=float, help="of the audits; by default that of training")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--pages", type=Path, help="where the page of each report is written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pictures = digits() if options.images == "digits" else cifar10(options.data)
    epsilon = pictures.epsilon if options.epsilon is None else options.epsilon
    with service() as url, Client(url) as client, tempfile.TemporaryDirectory() as folder:
        upload = Path(folder) / f"{options.images}.zip"
        upload.write_bytes(pictures.archive())
        added = client.datasets.add(upload, name=options.images)
        client.jobs.wait(added["job_id"])
        print("| trained | clean AP | worst-case AP | certified floor | proven pairs | trust |")
        print("|---|---|---|---|---|---|")
        for name, model in models(client, pictures, added["id"], epochs=options.epochs).items():
            request: dict[str, Any] = {
                "model_id": model,
                "dataset_id": added["id"],
                "split": "test",
                "task": {"positive": pictures.positive},
                "threat": {"norm": "linf", "epsilon": epsilon},
                "attacks": ATTACKS,
                "checks": "full",
            }
            job = client.jobs.wait(client.audit(request)["id"])
            report = client.report(job["id"])
            (task,) = report["tasks"]
            floor = task["certified_floor"]
            proven = ("none", "") if floor is None else (floor["ap"], floor["proven_pairs"])
            ap = (task["clean"]["ap"], task["worst_case"]["ap"], *proven)
            shown = [f"{value:.3f}" if isinstance(value, float) else value for value in ap]
            print(f"| {name} | {' | '.join(shown)} | {report['trust']['verdict']} |", flush=True)
            if options.pages is not None:
                options.pages.mkdir(parents=True, exist_ok=True)
                page = options.pages / f"{options.images}-{name.replace(' ', '-')}.html"
                page.write_bytes(client.report_as(job["id"], "text/html"))
        print(f"\n{options.images}, L-inf {epsilon:.4g}, chance {task['chance']:.3f}")


if __name__ == "__main__":
    main()
