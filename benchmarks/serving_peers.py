"""Peers of benchmarks/serving.py, measured the same way: `… serving_peers NAME MODEL PORT`."""

import base64
import io
import sys
from pathlib import Path

import litserve
import numpy as np
import torch
import uvicorn
from fastapi import FastAPI
from PIL import Image

from adap.models import loading
from adap.models.wrappers import Scorer

BATCH = 64


def scorer(path: Path) -> Scorer:
    """The network in eval mode."""
    found, _ = loading.load(path, None, device="cpu")
    return found.requires_grad_(False)


def decode(text: str) -> torch.Tensor:
    """(C, H, W) in [0, 1] of a file in base64."""
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
    return torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255


def serve_fastapi(path: Path, port: int) -> None:
    """A route that does all the work itself."""
    app, network = FastAPI(), scorer(path)

    @app.post("/scores")
    def scores(body: dict[str, list[str]]) -> dict[str, list[float]]:
        with torch.inference_mode():
            x = torch.stack([decode(text) for text in body["images"]])
            return {"scores": network(x).tolist()}

    uvicorn.run(app, port=port, log_level="warning")


class Batched(litserve.LitAPI):  # type: ignore[misc]
    """One image a request, batched by LitServe."""

    path: Path

    def setup(self, _device: str) -> None:
        """Load the network."""
        self.network = scorer(self.path)

    def decode_request(self, request: dict[str, list[str]]) -> torch.Tensor:
        """(C, H, W)"""
        return decode(request["images"][0])

    def batch(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """(B, C, H, W)"""
        return torch.stack(inputs)

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """(B,)"""
        with torch.inference_mode():
            return self.network(x)

    def unbatch(self, output: torch.Tensor) -> list[float]:
        """One score a request."""
        return output.tolist()

    def encode_response(self, output: float) -> dict[str, list[float]]:
        """As the others answer."""
        return {"scores": [output]}


def serve_litserve(path: Path, port: int) -> None:
    """LitServe with batches of up to 64."""
    api = Batched(max_batch_size=BATCH, batch_timeout=0.002, api_path="/scores")
    api.path = path
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(port=port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    serve = {"fastapi": serve_fastapi, "litserve": serve_litserve}
    serve[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
