"""What a whole audit costs before it starts, by its request and counts of a data set. No torch."""

from dataclasses import dataclass

from adap.core.audit.checks.planned import DEPTHS, passes_of_image
from adap.core.audit.costs import Passes, of_measure, of_smallest, of_universal
from adap.core.audit.plan import Recovery, measures
from adap.core.config.audits import AuditConfig
from adap.core.config.deployment import pipeline_draws


@dataclass(frozen=True)
class Extent:
    """What one task of an audit looks at."""

    images: int
    positives: int
    """At least: where an image may have several of the positive classes they are counted once."""
    height: int
    width: int


@dataclass(frozen=True)
class Foreseen:
    """Passes of one image through the network, forward and backward, bounds left out."""

    sure: int
    most: int
    """Where the gradient hides something and the search goes on; else as many."""

    def __add__(self, other: "Foreseen") -> "Foreseen":
        return Foreseen(self.sure + other.sure, self.most + other.most)


def of_task(config: AuditConfig, extent: Extent) -> Foreseen:
    """What one task costs: its images, attacked and corrupted, and the checks of a sample."""
    recovery = config.recovery_attacks(extent.height, extent.width)
    sure, more = Passes(), Passes()
    for measure in measures(config, recovery=recovery):
        if isinstance(measure, Recovery):
            more += of_measure(measure)
        else:
            sure += of_measure(measure)
    each, checks, level = sure.both, 0, config.resolved_checks()
    if level != "off":
        of_image = passes_of_image(
            config.threat,
            config.resolved_attacks(),
            level,
            surrogate=config.surrogate is not None,
        )
        most = DEPTHS[level].images
        negatives = extent.images - extent.positives
        checks = of_image.both * (min(most, extent.positives) + min(most, negatives))
    draws = pipeline_draws(config.pipeline)
    found = draws * (extent.images * each + checks)
    if config.smallest_changes is not None:
        found += of_smallest(
            config.smallest_changes, images=extent.images, positives=extent.positives
        ).both
    if config.universal is not None:
        found += draws * of_universal(config.universal, images=extent.images).both
    return Foreseen(found, found + draws * extent.images * more.both)
