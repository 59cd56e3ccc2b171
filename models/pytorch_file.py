"""Exported weights as PyTorch keeps them: `python -m adap.models.pytorch_file SOURCE TARGET`.

What is written is a state dict, tensors by the names of their architecture and nothing else, as
`torch.load(weights_only=True)` reads it. The manifest stays behind.
"""

import sys

import torch
from safetensors.torch import load_file


def main() -> None:
    """What `adap model export -o x.pt` runs, as the client itself does without PyTorch."""
    source, target = sys.argv[1:]
    torch.save(load_file(source), target)


if __name__ == "__main__":
    main()
