"""The shortest soak: every part is killed once while jobs run, and nothing is lost.

`make soak` does the same for hours, on PostgreSQL and S3 too. It goes from state to state: a slow
machine makes it longer, and nothing else.
"""

from pathlib import Path

import pytest

from tests.soak.__main__ import Length, Soak
from tests.soak.ground import ground

pytestmark = pytest.mark.slow


def test_each_part_is_killed_once_while_jobs_run_and_nothing_is_lost(tmp_path: Path) -> None:
    with ground("sqlite+folder", tmp_path) as on:
        run = Soak(on, seed=1, length=Length(rounds=1))
        row = run.run()
        assert run.faults == [], row
        assert run.happened == dict.fromkeys(("api", "broker", "child", "compute", "intake"), 1)
