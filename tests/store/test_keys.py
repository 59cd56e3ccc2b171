"""API keys in both databases: which of them may go, and that there ever was one."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from adap.store import keys
from adap.store.database import Database


def test_that_there_was_a_key_is_known_when_none_is_left(database: Database) -> None:
    with database.writing() as session:
        assert not keys.any_made(session)
        keys.create(session, name="k", scopes=["read"], expires_in_s=-1.0)
    with database.reading() as session:
        assert keys.any_made(session)


def test_a_key_locks_out_where_no_other_admin_lasts(database: Database) -> None:
    with database.writing() as session:
        editor, _ = keys.create(session, name="admin", scopes=["read", "write"])
        brief, _ = keys.create(session, name="b", scopes=["admin"], expires_in_s=3600)
        gone, _ = keys.create(session, name="g", scopes=["admin"], expires_in_s=-1.0)
        assert not keys.lasting_admin(session)
        assert keys.locks_out(session, brief.id)
        lasting, _ = keys.create(session, name="l", scopes=["read", "admin"])
        assert keys.lasting_admin(session)
        assert [keys.locks_out(session, row.id) for row in (editor, brief, gone, lasting)] == [
            *(False, False, False, True)
        ]


def test_two_admins_cannot_revoke_each_other_at_once(database: Database) -> None:
    for _ in range(5):
        with database.writing() as session:
            pair = [keys.create(session, name="a", scopes=["admin"])[0].id for _ in "ab"]
        start = Barrier(2)

        def revoke(key_id: str, start: Barrier = start) -> bool:
            start.wait(10)
            with database.writing() as session:
                return not keys.locks_out(session, key_id) and keys.revoke(session, key_id)

        with ThreadPoolExecutor(2) as pool:
            assert sorted(pool.map(revoke, pair)) == [False, True]
        with database.writing() as session:
            for key_id in pair:
                keys.revoke(session, key_id)
