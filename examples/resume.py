"""An audit that is stopped half way, and goes on from its folder: nothing is attacked twice."""

import tempfile

import torch
from torch import nn

import adap


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (64, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = (images.float().mean(dim=(1, 2, 3)) > 128).long()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))

    def stop_half_way(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt  # as Ctrl-C does

    with tempfile.TemporaryDirectory() as folder:

        def audit(progress: object) -> adap.Audit:
            return adap.audit(
                model,
                images,
                labels,
                attacks=[adap.PGD(steps=5), adap.APGD(steps=5), adap.Square(queries=20)],
                checks="off",
                shard_size=16,
                folder=folder,
                progress=progress,  # type: ignore[arg-type]
            )

        try:
            audit(stop_half_way)
        except KeyboardInterrupt as stop:
            print(*stop.__notes__)
        print(audit(False))


if __name__ == "__main__":
    main()
