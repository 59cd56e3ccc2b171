"""Networks that score are rewritten to cost less, and only where their scores stay the same."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from adap.core.attacks.acceleration import Accelerated
from adap.models import architectures, loading
from adap.models.header import InputSpec, Manifest
from adap.models.wrappers import Scorer
from adap.worker.scoring import passes
from adap.worker.scoring.passes import Passes
from adap.worker.scoring.process import Plan

SPEC = InputSpec(channels=3, height=32, width=32, mean=[0.5] * 3, std=[0.3] * 3)


@pytest.mark.parametrize("architecture", ["resnet18", "small_cnn", "thin_cnn"])
def test_scores_are_those_of_the_network_that_was_stored(tmp_path: Path, architecture: str) -> None:
    network = architectures.build(architecture, channels=3, seed=0).eval()
    path = tmp_path / "model.safetensors"
    loading.save(network, path, Manifest(architecture=architecture, input=SPEC))
    plan = Plan(path, "cpu", None, pipes=1, max_batch=64, weights_bytes=2**30, heap_bytes=None)
    scorer, batch = Passes(plan)._scorer(None)
    original = Scorer(network, SPEC).eval()
    images = torch.randint(0, 256, (37, 3, 32, 32), dtype=torch.uint8)
    parts, cpu = [images[:5].numpy(), images[5:].numpy()], torch.device("cpu")
    got = passes.forward(scorer, parts, device=cpu, cores=1)
    with torch.inference_mode():
        expected = torch.stack([original(image[None] / 255)[0] for image in images])
    torch.testing.assert_close(torch.from_numpy(got), expected.double(), rtol=0, atol=1e-5)
    assert isinstance(scorer, Accelerated)
    assert 1 <= batch <= 64


def test_a_network_whose_rewriting_shows_in_its_scores_is_used_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Off(nn.Module):
        def __init__(self, scorer: nn.Module) -> None:
            super().__init__()
            self.scorer = scorer

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.scorer(x) + 1e-5
            return logits

    scorer = Scorer(architectures.build("small_cnn", channels=3, seed=0), SPEC).eval()
    monkeypatch.setattr(passes, "accelerate", lambda scorer, *_, **__: Off(scorer))
    assert passes.faster(scorer, SPEC, torch.device("cpu")) is scorer


def test_what_a_layer_notes_in_one_thread_is_not_read_in_another() -> None:
    both_are_inside = threading.Barrier(2, timeout=30)

    class Notes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            self.noted = x
            both_are_inside.wait()
            return self.weight * self.noted.sum(dim=(1, 2, 3))

    scorer, cpu = Notes(), torch.device("cpu")
    images = torch.rand(2, 1, 3, 4, 4).numpy()
    with ThreadPoolExecutor(2) as threads:
        scores = list(
            threads.map(lambda x: passes.forward(scorer, [x], device=cpu, cores=1), images)
        )
    for score, image in zip(scores, images, strict=True):
        assert score == pytest.approx(image.sum())
    ours = passes._of_this_thread(scorer)
    assert ours is not scorer
    assert ours.weight.data_ptr() == scorer.weight.data_ptr()
