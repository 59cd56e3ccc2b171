"""The code that the documents show runs as it stands, in order, on small images."""

import os
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.conftest import REPOSITORY


def blocks(document: str) -> list[str]:
    text = (REPOSITORY / document).read_text()
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("document", ["docs/library.md", "README.md"])
def test_the_code_in_it_runs(
    document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(24, 3, 4, 4, generator=generator)
    labels = (images.mean(dim=(1, 2, 3)) > images.mean()).long()
    names = {
        "model": nn.Sequential(nn.Flatten(), nn.Linear(48, 1)),
        "images": images,
        "labels": labels,
        "train": images,
        "x": images[:8],
        "y": labels[:8].float().clone().index_fill_(0, torch.tensor([0]), 1.0),
        "index": torch.arange(8),
        "logits": images.mean(dim=(1, 2, 3)),
        "clean_logits": images.mean(dim=(1, 2, 3)),
        "attacked_logits": images.mean(dim=(1, 2, 3)) - 0.01,
        "targets": labels,
    }
    found = blocks(document)
    assert found
    for block in found:
        exec(compile(block, document, "exec"), names)
    assert "report.html" in os.listdir(tmp_path)
    assert 0 <= names["report"].worst_case.ap <= 1  # type: ignore[union-attr]
