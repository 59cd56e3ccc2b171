"""Nothing is lost while parts of the service are killed at random: `make soak`.

    python -m tests.soak --minutes 5 --profile postgres+s3 --seed 1
    python -m tests.soak --rounds 1 --profile sqlite+folder

Real parts with three tenants (two where rounds are counted), who post trainings, audits, rankings
and uploads and cancel some. Meanwhile every part is killed by SIGKILL in a random order, again and
again: the API, both workers, children in the middle of a job, the broker; PostgreSQL is restarted,
and the store of files is cut off. A keeper starts again what has ended. At last every accepted job
must have ended well, once. Prints a row of Markdown for each profile, and exits 1 where anything
was wrong.
"""

import argparse
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from adap.store import keys
from adap.store.tables import LIVE, WORKED_ON, JobRow, JobStatus
from tests.soak.ground import PROFILES, Ground, Outage, ground, in_turns
from tests.soak.invariants import examine
from tests.soak.tenants import SEEDS, Tenant

PAUSE_S = (1.0, 8.0)  # between two outages, drawn each time; the next may come before all is well
RECOVERED_WITHIN_S = 300.0
TENANTS, FEW_TENANTS = 3, 2
GONE_WITHIN_S = 120.0  # until the last process has followed its parent
KILLED = ("api", "compute", "intake", "child", "broker", "database")
HEAD = (
    "| profile | seed | minutes | accepted | "
    + " | ".join((*KILLED, "reset", "hang"))
    + " | lost | doubled | same weights | worst recovery | faults |"
)


@dataclass(frozen=True)
class Length:
    """How long a soak is: minutes of outages, or how often each outage comes.

    patience_s: until what is waited for counts as a fault.
    """

    minutes: float | None = None
    rounds: int = 1
    patience_s: float = 900.0

    def __str__(self) -> str:
        return f"{self.rounds} rounds" if self.minutes is None else f"{self.minutes:g}"


class Soak:
    """One profile, from its start to its row."""

    def __init__(self, on: Ground, *, seed: int, length: Length) -> None:
        self.on, self.random, self.seed, self.length = on, Random(seed), seed, length
        self.happened: Counter[str] = Counter()
        self.faults: list[str] = []
        self.recoveries: list[float] = []
        self.last_hit_at = time.monotonic()
        self.tenants = []
        for number in range(TENANTS if length.minutes is not None else FEW_TENANTS):
            name = f"tenant{number}"
            with on.database.writing() as session:
                _, key = keys.create(session, name=name, scopes=["read", "write"], tenant=name)
            self.tenants.append(Tenant(name, on.url, key, Random(f"{seed}-{number}")))

    def run(self) -> str:
        """The row of the table; `faults` says what was wrong."""
        self._wait(self.on.is_ready, "the service is ready")
        for number, tenant in enumerate(self.tenants):
            tenant.prepare(SEEDS if number == 0 and self.length.minutes is not None else SEEDS[:1])
        over = threading.Event()
        with ThreadPoolExecutor(64) as pool:
            working = [pool.submit(tenant.work, over) for tenant in self.tenants]
            try:
                watching = self.disturb(pool)
            finally:
                over.set()
            for future in (*working, *watching):
                if error := future.exception():
                    self.faults.append(f"{type(error).__name__}: {error}")
        self._wait(lambda: not self._last_events(LIVE), "every job has ended")
        self._wait(self.on.is_ready, "the service is ready again")
        accepted = [job for tenant in self.tenants for job in tenant.accepted]
        found = examine(self.on, accepted)
        self.faults += found.faults + [said for tenant in self.tenants for said in tenant.wrong]
        for tenant in self.tenants:
            tenant.client.http.close()
        self.on.stop()
        self._wait(lambda: not self.on.left(), "every process is gone", GONE_WITHIN_S)
        counts = [self.happened[name] for name in (*KILLED, "reset", "hang")]
        figures = (self.seed, str(self.length), len(accepted), *counts, found.lost)
        figures = (*figures, found.doubled, found.equal, f"{max(self.recoveries, default=0):.0f} s")
        return " | ".join(map(str, (*figures, len(self.faults))))

    def disturb(self, pool: ThreadPoolExecutor) -> list[Future[None]]:
        """Outage after outage, each watched until all that it hit has gone on.

        Where rounds are counted, the first fault ends them.
        """
        watching = []
        turns = self._rounds() if self.length.minutes is None else self._turns()
        for name, happen, away_s in turns:
            happened = False
            while not happened and not (self.faults and self.length.minutes is None):
                hit = self._last_events(WORKED_ON)
                at = time.monotonic()
                happened = happen(away_s)
                if happened:
                    self.last_hit_at = time.monotonic()
                    self.happened[name] += 1
                    watching.append(pool.submit(self._watch, name, hit, at))
                elif self.length.minutes is not None:
                    break  # its turn comes again
                else:
                    self._wait_for_work()
        return watching

    def _turns(self) -> Iterator[tuple[str, Outage, float]]:
        """Outages with pauses between them, until the minutes are over."""
        until = time.monotonic() + (self.length.minutes or 0) * 60
        for turn in in_turns(self.on.outages, self.random):
            time.sleep(min(self.random.uniform(*PAUSE_S), max(0.0, until - time.monotonic())))
            if time.monotonic() >= until:
                return
            yield turn

    def _rounds(self) -> Iterator[tuple[str, Outage, float]]:
        """Each outage so often, as soon as jobs run that it can hit; no clock is asked."""
        most = self.length.rounds * len(self.on.outages)
        for turn in islice(in_turns(self.on.outages, self.random), most):
            self._wait_for_work()
            if self.faults:
                return
            yield turn

    def _wait_for_work(self) -> None:
        self._wait(lambda: self._last_events(WORKED_ON), "a job runs")

    def _watch(self, name: str, hit: dict[str, int], at: float) -> None:
        """Until the service says that it is ready, and each job that ran has had a new event.

        How long that may take counts from the last outage, which may have hit the same jobs.
        """
        while not (self.on.is_ready() and self._went_on(hit)):
            if time.monotonic() > self.last_hit_at + RECOVERED_WITHIN_S:
                within = f"{RECOVERED_WITHIN_S:g} s of the last outage"
                self.faults.append(f"all was not well after {name} within {within}")
                break
            time.sleep(0.2)
        self.recoveries.append(time.monotonic() - at)

    def _went_on(self, hit: dict[str, int]) -> bool:
        now = self._last_events(LIVE)
        return all(now.get(job, seen + 1) > seen for job, seen in hit.items())

    def _last_events(self, among: frozenset[JobStatus]) -> dict[str, int]:
        """The number of the last event of each job of these statuses; waits for the database."""
        query = select(JobRow.id, JobRow.last_event).where(JobRow.status.in_(among))
        while True:
            try:
                with self.on.database.reading() as session:
                    return {row.id: row.last_event for row in session.execute(query)}
            except SQLAlchemyError:
                time.sleep(0.2)

    def _wait(self, what: Callable[[], object], because: str, limit_s: float | None = None) -> None:
        limit_s = self.length.patience_s if limit_s is None else limit_s
        deadline = time.monotonic() + limit_s
        while not what():
            if time.monotonic() > deadline:
                self.faults.append(f"waited {limit_s:g} s in vain until {because}")
                return
            time.sleep(0.2)


def soak(profile: str, *, seed: int, length: Length) -> bool:
    """Print the row of one profile; whether nothing was wrong. Keeps the logs where it was."""
    home = Path(tempfile.mkdtemp(prefix="soak-"))
    with ground(profile, home) as on:
        run = Soak(on, seed=seed, length=length)
        row = run.run()
        ended = [(part.name, said) for part in on.parts.values() for said in part.ended]
    sys.stdout.write(f"| {profile} | {row} |\n")
    sys.stdout.flush()
    for fault in run.faults:
        sys.stderr.write(f"{profile}, seed {seed}: {fault}\n")
    for name, said in ended:
        sys.stderr.write(f"{profile}: {name} ended by itself, and was started again: {said}\n")
    if run.faults:
        sys.stderr.write(f"logs: {home}\n")
    else:
        shutil.rmtree(home)
    return not run.faults


def main() -> None:
    """Every profile asked for, one after another."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    long = parser.add_mutually_exclusive_group()
    long.add_argument("--minutes", type=float, default=60, help="of outages, for each profile")
    long.add_argument("--rounds", type=int, help="instead: how often each outage comes")
    parser.add_argument("--profile", choices=PROFILES, action="append", help="by default all")
    parser.add_argument("--seed", type=int, default=0, help="of the outages and of the requests")
    asked = parser.parse_args()
    sys.stdout.write(f"{HEAD}\n|{'---|' * HEAD.count(' |')}\n")
    length = Length(asked.minutes) if asked.rounds is None else Length(rounds=asked.rounds)
    good = [soak(profile, seed=asked.seed, length=length) for profile in asked.profile or PROFILES]
    sys.exit(not all(good))


if __name__ == "__main__":
    main()
