"""A report against its scores: every figure that follows from them."""

import hashlib
import json

from safetensors import SafetensorError

from adap.client.client import Json
from adap.client.verify.book import Book, Line, NotAReportError
from adap.client.verify.figures import task_figures
from adap.client.verify.gate import means, thresholds_again
from adap.client.verify.scores import read_scores
from adap.client.verify.trust import trust_checks

REPORT_VERSION = 2


def verify(report: Json, content: bytes) -> list[Line]:
    """Every figure of a report against the bytes of its scores file.

    A file that cannot be read is a line that is not ok. Raises NotAReportError for a report that
    is none.
    """
    version = report.get("version")
    if version != REPORT_VERSION:
        raise NotAReportError(f"Expected a report of version {REPORT_VERSION}, got {version!r}.")
    book = Book()
    try:
        provenance = report["provenance"]
        config = provenance["config"]
        book.same("scores_sha256", provenance["scores_sha256"], hashlib.sha256(content).hexdigest())
        text = json.dumps(config, sort_keys=True, separators=(",", ":"))
        config_sha256 = hashlib.sha256(text.encode()).hexdigest()
        book.same("config_sha256", provenance["config_sha256"], config_sha256)
        book.same("seed", provenance["seed"], config["seed"])
        try:
            tasks = list(read_scores(content))
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            book.lines.append(Line("scores file", "readable", f"{error}", False))
            return book.lines
        book.same("tasks", len(report["tasks"]), len(tasks))
        names = ["+".join(task["positive"]) for task in report["tasks"]]
        found = {}
        for name, task, scores in zip(names, report["tasks"], tasks, strict=False):
            book.prefix = f"{name}: " if len(names) > 1 else ""
            found[name] = task_figures(book, task, scores, config)
        book.prefix = ""
        means(book, report, list(found.values()))
        if report["trust"] is not None:
            trust_checks(book, report, dict(zip(names, tasks, strict=False)))
        thresholds_again(book, report, found)
    except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise NotAReportError(
            f"Expected the JSON of a report and the scores behind it, got {error!r} on the way."
        ) from error
    return book.lines
