"""Tenants take turns, however many jobs each has queued; on SQLite and on PostgreSQL."""

import json
import sqlite3
import subprocess
import sys
from random import Random
from typing import Any

import pytest
from sqlalchemy import event, select, text, update

from adap.store import jobs
from adap.store.database import Database
from adap.store.ids import new_id
from adap.store.jobs import Claim
from adap.store.settings import Settings
from adap.store.tables import AssetStatus, DatasetRow, JobKind, JobRow, JobStatus

BACKLOG = 100_000


def url_of(database: Database) -> str:
    return database.engine.url.render_as_string(hide_password=False)


def enqueue(database: Database, tenant: str, count: int = 1, **columns: Any) -> list[str]:
    kind = columns.pop("kind", JobKind.TRAIN)
    with database.writing() as session:
        made = [
            jobs.enqueue(session, kind, tenant=tenant, request={}, **columns).id
            for _ in range(count)
        ]
    return sorted(made)  # of one millisecond, any may be the older


def take(database: Database, worker: str = "w", queue: str = "compute") -> tuple[str, Claim]:
    """What this worker gets: whose job, and the claim."""
    with database.writing() as session:
        claim = jobs.claim_next(session, queue, worker=worker, lease_s=30)
        assert claim is not None
        return session.get_one(JobRow, claim.job_id).tenant, claim


def finish(database: Database, claim: Claim) -> None:
    with database.writing() as session:
        jobs.succeed(session, claim, {})


def position(database: Database, job_id: str) -> int | None:
    with database.reading() as session:
        return jobs.queue_position(session, session.get_one(JobRow, job_id))


def test_a_short_queue_is_served_in_turn_with_a_long_one(database: Database) -> None:
    enqueue(database, "long", 30)
    first = take(database)[1]
    enqueue(database, "short", 3)
    order = []
    for _ in range(8):
        finish(database, first)
        tenant, first = take(database)
        order.append(tenant)
    assert order == ["short", "long", "short", "long", "short", "long", "long", "long"]


def test_the_tenant_that_holds_fewer_workers_gets_the_next_one(database: Database) -> None:
    enqueue(database, "long", 30)
    held = {n: take(database, f"w{n}")[1] for n in range(4)}
    enqueue(database, "short", 4)
    served = []
    for n in (0, 1, 2):
        finish(database, held[n])
        tenant, held[n] = take(database, f"w{n}")
        served.append(tenant)
    assert served == ["short", "short", "long"], "two workers each, then the turn goes round"


def test_the_jobs_of_one_tenant_are_taken_oldest_first(database: Database) -> None:
    ids = enqueue(database, "a", 5)
    with database.writing() as session:  # one waits for its next attempt
        session.execute(update(JobRow).where(JobRow.id == ids[1]).values(not_before=1e12))
    assert [take(database)[1].job_id for _ in range(4)] == [ids[0], *ids[2:]]
    with database.writing() as session:
        assert jobs.claim_next(session, "compute", worker="w", lease_s=30) is None


def test_a_tenant_whose_jobs_cannot_start_yet_holds_nobody_up(database: Database) -> None:
    with database.writing() as session:
        dataset = DatasetRow(id=new_id("ds"), tenant="a", name="d", status=AssetStatus.VALIDATING)
        session.add(dataset)
    enqueue(database, "a", 5, dataset_id=dataset.id)
    enqueue(database, "b", 2)
    assert [take(database)[0] for _ in range(2)] == ["b", "b"]
    with database.writing() as session:
        assert jobs.claim_next(session, "compute", worker="w", lease_s=30) is None


def test_queues_are_apart(database: Database) -> None:
    enqueue(database, "a", 2)
    (checking,) = enqueue(database, "a", kind=JobKind.VALIDATE_DATASET)
    take(database, "w0")
    assert take(database, "w1", queue="intake")[1].job_id == checking


def test_an_audit_and_its_shard_are_one_worker(database: Database) -> None:
    """The worker that leads an audit has one of its shards too: that is one worker, not two."""
    (audit,) = enqueue(database, "a", kind=JobKind.AUDIT)
    leader = take(database, "w0")[1]
    with database.writing() as session:
        jobs.add_shards(session, session.get_one(JobRow, audit), [{"n": 0}, {"n": 1}])
        jobs.claim_shard(session, leader, worker="w0", lease_s=30)
    enqueue(database, "b", 2)
    assert take(database, "w1")[0] == "b"
    (last,) = enqueue(database, "b")
    assert position(database, last) == 1, "another of b; a shard counts with its audit"
    assert take(database, "w2")[0] == "a", "one worker each, and b was served later"


@pytest.mark.parametrize("seed", range(2))
def test_the_position_that_is_shown_is_the_order_in_which_jobs_are_taken(
    database: Database, seed: int
) -> None:
    random = Random(seed)
    names = ["a", "b", "c", "d"]
    for _ in range(12):  # a history: who was served when
        enqueue(database, random.choice(names))
    for _ in range(8):
        finish(database, take(database)[1])
    running = take(database)[1] if seed else None
    for _ in range(16):
        enqueue(database, random.choice(names))
    with database.reading() as session:
        queued = session.scalars(select(JobRow.id).where(JobRow.status == "queued")).all()
    shown = {job_id: position(database, job_id) for job_id in queued}
    taken = []
    while len(taken) < len(queued):
        if running is not None:
            finish(database, running)
        running = take(database)[1]
        taken.append(running.job_id)
    assert {job_id: n for n, job_id in enumerate(taken)} == shown
    assert position(database, taken[0]) is None


def backlog(database: Database, count: int) -> None:
    """So many finished and so many queued jobs of one tenant, then a few of another."""
    postgres = database.engine.dialect.name == "postgresql"
    numbers = (
        "generate_series(1, 2 * :count) AS t(n)"
        if postgres
        else "(WITH RECURSIVE t(n) AS "
        "(SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 2 * :count) SELECT n FROM t)"
    )
    padded = "lpad(n::text, 26, '0')" if postgres else "printf('%026d', n)"
    with database.writing() as session:
        session.execute(
            text(
                "INSERT INTO jobs (id, tenant, kind, queue, status, request, created_at, attempt, "
                f"lost, not_before, last_event) SELECT 'job_' || {padded}, 'long', 'train', "
                "'compute', CASE WHEN n > :count THEN 'queued' ELSE 'succeeded' END, "
                f"'{{}}', 0, 0, 0, 0, 1 FROM {numbers}"
            ),
            {"count": count},
        )
    enqueue(database, "short", 3)
    with database.engine.connect().execution_options(
        isolation_level="AUTOCOMMIT", sqlite_begin="SELECT 1"
    ) as connection:
        connection.exec_driver_sql("ANALYZE jobs")


def cost_of_a_claim(database: Database) -> tuple[float, list[str]]:
    """What the database does for one claim, in its own unit, and how it finds the job."""
    statements: list[tuple[str, Any]] = []

    def remember(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if not statement.startswith(("UPDATE", "INSERT", "BEGIN")):
            statements.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", remember)
    steps = 0
    with database.writing() as session:
        driver = session.connection().connection.driver_connection
        if isinstance(driver, sqlite3.Connection):

            def step() -> None:
                nonlocal steps
                steps += 1

            driver.set_progress_handler(step, 1)  # each instruction of its machine
        assert jobs.claim_next(session, "compute", worker="w", lease_s=30) is not None
        if isinstance(driver, sqlite3.Connection):
            driver.set_progress_handler(None, 1)
    event.remove(database.engine, "before_cursor_execute", remember)
    plan: list[str] = []
    for statement, parameters in statements:
        with database.reading() as session:
            connection = session.connection()
            if isinstance(driver, sqlite3.Connection):
                rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
                plan += [str(row[-1]) for row in rows]
            else:
                explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}"
                found = connection.exec_driver_sql(explain, parameters).scalar_one()
                (found,) = json.loads(found) if isinstance(found, str) else found
                steps += found["Plan"]["Shared Hit Blocks"] + found["Plan"]["Shared Read Blocks"]
                plan += nodes(found["Plan"])
    return steps, plan


def nodes(plan: dict[str, Any]) -> list[str]:
    """The nodes of a plan of PostgreSQL, as `type on table`."""
    below = [line for node in plan.get("Plans", []) for line in nodes(node)]
    return [f"{plan['Node Type']} on {plan.get('Relation Name', '')}", *below]


def test_a_claim_costs_the_same_at_a_hundred_thousand_queued_jobs(database: Database) -> None:
    backlog(database, 1000)
    few, _ = cost_of_a_claim(database)
    with database.writing() as session:
        session.execute(text("DELETE FROM job_events"))
        session.execute(text("DELETE FROM jobs"))
    backlog(database, BACKLOG)
    many, plan = cost_of_a_claim(database)
    assert any("SEARCH jobs" in line or "Index" in line for line in plan), plan
    scans = [line for line in plan if "SCAN jobs" in line or "Seq Scan on jobs" in line]
    assert scans == [], plan
    assert many < 10 * few, (few, many)  # for a hundred times as many jobs
    tenant, claim = take(database)
    assert tenant in {"long", "short"}
    with database.reading() as session:
        row = session.get_one(JobRow, claim.job_id)
        assert row.status == JobStatus.RUNNING


CLAIMER = """
import json, sys
from adap.store import jobs
from adap.store.database import Database
from adap.store.settings import Settings

database, mine = Database(Settings(database_url=sys.argv[1])), []
with database.reading():
    print("ready", flush=True)
sys.stdin.readline()
while True:
    with database.writing() as session:
        claim = jobs.claim_next(session, "compute", worker=sys.argv[2], lease_s=600)
    if claim is None:
        break
    mine.append(claim.job_id)
    if len(mine) == 1:
        print("one", flush=True)
        sys.stdin.readline()
print(json.dumps(mine))
"""


def test_postgresql_never_plans_for_values_that_it_does_not_know(postgres: Database) -> None:
    """But for inserts and what finds one row by its key: nothing that looks through the queue."""
    own = Database(
        Settings(database_url=url_of(postgres))
    )  # of one connection, whose statements are seen below
    for tenants in (["a"], ["a", "b"]):  # a turn is found in another way if there are several
        for _ in range(12):  # from the sixth run on a prepared statement could be planned blindly
            for tenant in tenants:
                enqueue(own, tenant, 2)
            claim = take(own)[1]
            with own.writing() as session:
                jobs.record(session, claim, "nothing", {})
            finish(own, claim)
            (waiting,) = enqueue(own, "a")
            assert position(own, waiting) is not None
    with own.reading() as session:
        prepared = session.execute(
            text("SELECT statement, generic_plans FROM pg_prepared_statements")
        ).all()
    own.dispose()
    assert sum(blind > 0 for _, blind in prepared) >= 4, "to insert, claim, record and succeed"
    for statement, _ in prepared:
        assert statement.startswith("INSERT") or "WHERE jobs.id = $" in statement
        assert "ORDER BY" not in statement


def test_claimers_in_processes_of_their_own_share_the_jobs_without_remainder(
    database: Database,
) -> None:
    """Each of many jobs of two tenants is taken once, by four processes at once.

    Each has its first before any takes a second: SQLite lets the one that has just written write
    again while the others sleep, so one could else find nothing left.
    """
    count = 150 if database.engine.dialect.name == "sqlite" else 500  # a commit each
    ids = {*enqueue(database, "a", 2 * count), *enqueue(database, "b", count)}
    claimers = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIMER, url_of(database), f"w{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    for said in ("ready\n", "one\n"):
        for claimer in claimers:
            assert claimer.stdout is not None
            assert claimer.stdout.readline() == said
        for claimer in claimers:
            assert claimer.stdin is not None
            claimer.stdin.write("go\n")
            claimer.stdin.flush()
    taken = [json.loads(claimer.communicate(timeout=120)[0]) for claimer in claimers]
    assert sorted(job for mine in taken for job in mine) == sorted(ids)
    assert all(taken), [len(mine) for mine in taken]
    with database.reading() as session:
        rows = session.scalars(select(JobRow)).all()
    assert {(row.status, row.attempt) for row in rows} == {(JobStatus.RUNNING, 1)}
    assert {row.id: row.worker for row in rows} == {
        job: f"w{number}" for number, mine in enumerate(taken) for job in mine
    }
