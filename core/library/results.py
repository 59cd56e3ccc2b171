"""The answer of `adap.audit`: the report with its figures at hand, to show and to save."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from os import PathLike
from pathlib import Path

from adap.core.errors import ConfigError
from adap.core.rendering import card
from adap.core.report import (
    APFigure,
    AttackFigure,
    CertifiedFloor,
    CorruptionFigures,
    Groups,
    Report,
    SmallestFigures,
    TaskReport,
    ThresholdResult,
    Trust,
    UniversalFigures,
    WorstCase,
)
from adap.core.scores import Scores, save_scores


@dataclass(frozen=True, repr=False, eq=False)
class Audit:
    """A report, and the scores that all its figures come from.

    clean, worst_case, attacks["apgd"]: figures with `.ap`, in [0, 1], and `.interval`.
    trust.verdict: 'trustworthy', 'caution' or 'not trustworthy', from `trust.checks`.
    warnings: what a reader must know first.  passed: whether every `require` is met.
    report: everything, as the service's `report.json`.  scores: logits, (N,) each.

    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, 1))
    >>> images, labels = torch.rand(32, 3, 4, 4), torch.tensor([0, 1] * 16)
    >>> report = adap.audit(model, images, labels, preset="quick", require="clean_ap >= 0")
    >>> list(report.attacks), report.passed
    (['pgd', 'apgd'], True)
    """

    report: Report
    scores: Sequence[Scores]

    @property
    def task(self) -> TaskReport:
        """Every figure of the task."""
        return self.report.tasks[0]

    @property
    def clean(self) -> APFigure:
        """AP on the images as they are."""
        return self.task.clean

    @property
    def worst_case(self) -> WorstCase:
        """AP where each image is at its worst over all attacks."""
        return self.task.worst_case

    @property
    def attacks(self) -> dict[str, AttackFigure]:
        """AP under each attack, by its name or label."""
        return self.task.attacks

    @property
    def certified_floor(self) -> CertifiedFloor | None:
        """An AP that no attack gets below, or None: `task.no_certified_floor` says why."""
        return self.task.certified_floor

    @property
    def corruptions(self) -> CorruptionFigures | None:
        """What common corruptions leave, or None where none was asked for."""
        return self.task.corruptions

    @property
    def smallest_changes(self) -> SmallestFigures | None:
        """How little moves positives out of the first k, or None where it was not asked."""
        return self.task.smallest_changes

    @property
    def universal(self) -> UniversalFigures | None:
        """What one perturbation for all images leaves, or None where it was not asked."""
        return self.task.universal

    @property
    def groups(self) -> Groups | None:
        """The figures of each group, where groups were given."""
        return self.task.groups

    @property
    def trust(self) -> Trust | None:
        """Whether the audit can be believed; None where `checks='off'`."""
        return self.report.trust

    @property
    def warnings(self) -> list[str]:
        """What a reader must know before trusting the figures."""
        return self.report.warnings

    @property
    def thresholds(self) -> list[ThresholdResult]:
        """Each `require`, and what was measured."""
        return self.report.thresholds

    @property
    def passed(self) -> bool:
        """Whether every threshold is met; true where none was required."""
        return all(threshold.passed for threshold in self.thresholds)

    def save(self, path: str | PathLike[str]) -> Path:
        """Write it, whole or not at all: .html, .json, .md, .xml (JUnit), .sarif, or .safetensors
        (scores).

        Raises ConfigError for another ending or a folder that is not there, OSError where it cannot
        be written.
        """
        target = Path(path)
        write = self._writers().get(target.suffix.lower())
        if write is None:
            endings = ", ".join(self._writers())
            raise ConfigError(f"expected a name that ends in {endings}, got {target.name!r}")
        if not target.parent.is_dir():
            raise ConfigError(f"expected a folder that exists, got {str(target.parent)!r}")
        part = target.with_name(f".{target.name}.part")
        try:
            write(part)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        return target

    def _writers(self) -> dict[str, Callable[[Path], object]]:
        return {
            ".html": lambda at: at.write_text(self._page(), encoding="utf-8"),
            ".json": lambda at: at.write_text(self.report.model_dump_json(), encoding="utf-8"),
            ".md": lambda at: at.write_text(card.card(self.report), encoding="utf-8"),
            ".xml": lambda at: at.write_text(self._junit(), encoding="utf-8"),
            ".sarif": lambda at: at.write_text(self._sarif(), encoding="utf-8"),
            ".safetensors": lambda at: save_scores(self.scores, at),
        }

    def _page(self) -> str:
        from adap.core.rendering import page  # slow to import, and needed for pages alone

        return page.render(self.report, self.scores)

    def _junit(self) -> str:
        from adap.core.rendering import junit

        return junit.junit(self.report)

    def _sarif(self) -> str:
        from adap.core.rendering import sarif

        return sarif.sarif(self.report)

    def _rows(self) -> list[tuple[str, APFigure]]:
        rows: list[tuple[str, APFigure]] = [("clean", self.clean), *self.attacks.items()]
        rows.append(("worst case", self.worst_case))
        if self.certified_floor is not None:
            rows.append(("certified floor", self.certified_floor))
        if self.universal is not None:
            rows.append(("universal", self.universal))
        if self.corruptions is not None:
            rows.append(("corruptions, mean", APFigure(ap=self.corruptions.mean)))
            rows.append(("corruptions, worst", self.corruptions.worst_case))
        return rows

    def _verdict(self) -> str:
        return "audit not checked" if self.trust is None else f"audit: {self.trust.verdict}"

    def __repr__(self) -> str:
        width = max(len(name) for name, _ in self._rows())
        lines = [
            f"{name:<{width}}  {figure.ap:.3f}  {_range(figure)}" for name, figure in self._rows()
        ]
        floor = f"{self.task.floor:.3f} is the floor of AP, {self.task.chance:.3f} chance"
        return "\n".join([*lines, floor, self._verdict()])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(name)}</th><td>{figure.ap:.3f}</td>"
            f"<td>{escape(_range(figure))}</td></tr>"
            for name, figure in self._rows()
        )
        warnings = "".join(f"<li>{escape(text)}</li>" for text in self.warnings)
        return (
            "<table><thead><tr><th></th><th>AP</th><th>95 % interval</th></tr></thead>"
            f"<tbody>{rows}</tbody></table><p>{escape(self._verdict())}; chance "
            f"{self.task.chance:.3f}, floor {self.task.floor:.3f}.</p><ul>{warnings}</ul>"
        )


def _range(figure: APFigure) -> str:
    interval = figure.interval
    return "" if interval is None else f"[{interval.low:.3f}, {interval.high:.3f}]"
