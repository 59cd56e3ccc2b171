"""How well a network ranks the images that were held out: after each epoch, clean and attacked."""

from collections.abc import Generator

import numpy as np
import torch
from torch import Tensor, nn

from adap.core.attacks.geometry import normal
from adap.core.attacks.holding import attacking
from adap.core.attacks.pgd import PGD, START_SIZE
from adap.core.attacks.threat_model import ThreatModel
from adap.core.capture import Captured, Recorder
from adap.core.config.threats import EPSILON_PAPER
from adap.core.config.training import VALIDATION_STEPS, TrainingConfig
from adap.core.errors import TrainingError
from adap.core.figures.ranking import average_precision
from adap.core.objectives.surrogates import negative_margin
from adap.core.precision import forward_in
from adap.core.training.attacking import of_images
from adap.core.training.examples import Images, as_input, taken
from adap.core.training.ranks import Ranks
from adap.core.training.seeds import Use, seed

VALIDATION_STEP_SIZE = 0.007 / EPSILON_PAPER
"""Step size of the validation attack as a share of epsilon: the paper's 0.007 at 8/255."""


class Validator:
    """The average precision of one network on the same images, epoch after epoch.

    K classes are attacked at once, by the sum of their margins: one attack for each, as an audit
    runs them, would cost K times as much and find a mean AP that is lower still. The same random
    start at every epoch, so that epochs are compared on equal terms. The attack searches in the
    training's precision; the logits that are ranked are the network's own. Each rank scores some of
    the batches.
    """

    def __init__(
        self,
        network: nn.Module,
        images: Images,
        targets: Tensor,
        *,
        config: TrainingConfig,
        device: torch.device,
        ranks: Ranks,
        recorder: Recorder | None,
    ) -> None:
        self._network, self._images, self._targets = network, images, targets
        self._config, self._device, self._ranks = config, device, ranks
        self._forward = forward_in(config.precision, network, device=device)
        self._generator = torch.Generator(device)
        self._threat_model = ThreatModel(config.attack.norm, config.attack.epsilon)
        self._clean = Captured(self._logits, recorder)
        self._attacked = Captured(self._attacked_logits, recorder)

    @property
    def refused(self) -> str | None:
        """Why its passes could not be captured, if they could not."""
        return self._clean.refused or self._attacked.refused

    def ap(self, *, attacked: bool, epoch: int) -> Generator[None, None, float]:
        """AP on clean images, or under PGD-10 within the training attack's ball; of K classes the
        mean. Stops after every batch, so that others have their turn. Raises TrainingError for
        logits that are not finite, with the epoch."""
        images, targets, device = self._images, self._targets, self._device
        seed(self._generator, self._config.seed, Use.VALIDATING)
        where = device if device.type == "cuda" else torch.device("cpu")
        logits = torch.zeros(targets.shape, dtype=torch.float64, device=where)
        like = torch.empty(0, device=device)
        with attacking(self._network):
            for number, start in enumerate(range(0, len(images), self._config.batch_size)):
                rows = slice(start, start + self._config.batch_size)
                shape = torch.Size((len(targets[rows]), *images.shape[1:]))
                noise = normal(shape, like=like, generator=self._generator) if attacked else None
                if number % self._ranks.count != self._ranks.rank:
                    continue
                pixels = taken(images, rows, device)
                with torch.no_grad():
                    if noise is None:
                        logits[rows] = self._clean(pixels)
                    else:
                        y = targets[rows].to(device, torch.float32)
                        logits[rows] = self._attacked(pixels, y, noise)
                yield
        self._ranks.add_up([logits])  # of which each rank has some, and zeros
        if not logits.isfinite().all():
            raise TrainingError(
                "expected finite logits on the validation images, got NaN or infinity "
                f"after epoch {epoch} of {self._config.epochs}"
            )
        columns = zip(
            logits.reshape(len(logits), -1).T.cpu().numpy(),
            targets.reshape(len(targets), -1).T.cpu().numpy(),
            strict=True,
        )
        return float(np.mean([average_precision(*column) for column in columns]))

    def _logits(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self._network(as_input(pixels))
        return logits

    def _attacked_logits(self, pixels: Tensor, targets: Tensor, noise: Tensor) -> Tensor:
        x = as_input(pixels)
        pgd = PGD(
            steps=VALIDATION_STEPS,
            step_size=VALIDATION_STEP_SIZE * self._config.attack.epsilon,
            iterate="last",
            start=x + START_SIZE * noise,
        )
        x_adv = pgd.perturb(
            lambda x_adv: of_images(negative_margin(self._forward(x_adv), targets)),
            x,
            threat_model=self._threat_model,
            generator=self._generator,
        )
        logits: Tensor = self._network(x_adv)
        return logits
