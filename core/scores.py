"""What an attack leaves behind: one logit per image and attack, and a few images to look at.

Attacks are expensive and figures are cheap, so the scores are stored and every figure is computed
from them. A shard's scores and the whole audit's have the same form.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file


@dataclass(frozen=True)
class Evidence:
    """One positive before and after the attack that hurt it most.

    clean, attacked: (C, H, W) float32 in [0, 1].
    """

    example_id: str
    attack: str
    clean_logit: float
    attacked_logit: float
    clean: NDArray[np.float32]
    attacked: NDArray[np.float32]


@dataclass(frozen=True)
class Scores:
    """Logits of the positive class for some examples of one task.

    targets: (N,) int64 in {0, 1}.  clean and each of attacked: (N,) float64.
    evidence: the most damaged positives, worst first.
    """

    example_ids: Sequence[str]
    targets: NDArray[np.int64]
    clean: NDArray[np.float64]
    attacked: dict[str, NDArray[np.float64]]
    evidence: Sequence[Evidence] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.targets)

    def save(self, path: Path) -> None:
        """Write one safetensors file; the names travel in its text header."""
        arrays = {
            "targets": self.targets,
            "clean": self.clean,
            **{f"attacked.{name}": logits for name, logits in self.attacked.items()},
            **{f"evidence.{i}.clean": item.clean for i, item in enumerate(self.evidence)},
            **{f"evidence.{i}.attacked": item.attacked for i, item in enumerate(self.evidence)},
            "example_ids": np.frombuffer(json.dumps(list(self.example_ids)).encode(), np.uint8),
        }
        header = [
            [item.example_id, item.attack, item.clean_logit, item.attacked_logit]
            for item in self.evidence
        ]
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        # The file keeps tensors in an order of its own; the attacks' order decides ties.
        metadata = {"evidence": json.dumps(header), "attacks": json.dumps(list(self.attacked))}
        save_file(contiguous, path, metadata=metadata)

    @classmethod
    def load(cls, path: Path) -> "Scores":
        """Read what `save` wrote."""
        with safe_open(path, framework="np") as file:
            metadata = file.metadata()
            return cls(
                example_ids=json.loads(file.get_tensor("example_ids").tobytes()),
                targets=file.get_tensor("targets"),
                clean=file.get_tensor("clean"),
                attacked={
                    name: file.get_tensor(f"attacked.{name}")
                    for name in json.loads(metadata["attacks"])
                },
                evidence=[
                    Evidence(
                        example_id=example_id,
                        attack=attack,
                        clean_logit=clean_logit,
                        attacked_logit=attacked_logit,
                        clean=file.get_tensor(f"evidence.{i}.clean"),
                        attacked=file.get_tensor(f"evidence.{i}.attacked"),
                    )
                    for i, (example_id, attack, clean_logit, attacked_logit) in enumerate(
                        json.loads(metadata["evidence"])
                    )
                ],
            )
