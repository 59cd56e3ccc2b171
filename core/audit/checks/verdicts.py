"""The checks of all tasks together, and the verdict that follows."""

from collections.abc import Mapping, Sequence

from adap.core.audit.checks.judging import SEVERITY
from adap.core.report import Check, Trust, Verdict


def merge(
    checks_by_task: Mapping[str, Sequence[Check]], *, of_files: Sequence[Check] = ()
) -> Trust:
    """The worst result of each check over the tasks, and what follows from all of them.

    of_files: checks that all tasks have in common, as from `adap.core.audit.checks.files`.

    Any fail: not trustworthy; else any caution: caution; else trustworthy. A check that was skipped
    counts for nothing. With several tasks a message begins with the name of its task.
    """
    worst: dict[str, Check] = {}
    for task, checks in checks_by_task.items():
        for check in checks:
            known = worst.get(check.name)
            if known is None or SEVERITY.index(check.status) > SEVERITY.index(known.status):
                message = f"{task}: {check.message}" if len(checks_by_task) > 1 else check.message
                worst[check.name] = check.model_copy(update={"message": message})
    worst |= {check.name: check for check in of_files}
    statuses = {check.status for check in worst.values()}
    verdict: Verdict = (
        "not trustworthy"
        if "fail" in statuses
        else "caution"
        if "caution" in statuses
        else "trustworthy"
    )
    return Trust(verdict=verdict, checks=list(worst.values()))
