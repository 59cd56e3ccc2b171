"""A training loop of one's own with the objective and the attack of AdAP_LPN.

It trains to the weights of `adap.fit` with the same options: nothing in there is hidden.
"""

import torch
from torch import Tensor, nn

import adap


def train(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    epochs: int,
    batch_size: int,
    seed: int = 0,
) -> adap.AdapLPN:
    """Train in place; images (N, C, H, W) floats in [0, 1], targets (N,) in {0, 1}."""
    loss = adap.AdapLPN(examples=len(images), lambda_=1.0)
    sampler = adap.batches(loss, targets, batch_size=batch_size, seed=seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=2e-4)
    for epoch in range(1, epochs + 1):
        generator = adap.attack_generator(seed=seed, epoch=epoch)
        model.train()
        for index in sampler:
            x, y = images[index], targets[index].float()
            x_adv = adap.training_attack(model, loss, x, y, index, generator=generator)
            value = loss(model(x), model(x_adv), y, index)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    return loss


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(64, 1, 8, 8, generator=generator)
    targets = (images.mean(dim=(1, 2, 3)) > 0.52).long()
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 1))
    loss = train(model, images, targets, epochs=2, batch_size=16)
    with torch.no_grad():
        ap = adap.average_precision(model(images), targets)
    print(f"AP {ap:.3f}, surrogate AP {loss.metrics()['surrogate_ap']:.3f}")


if __name__ == "__main__":
    main()
