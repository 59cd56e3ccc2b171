"""Identifiers sort in the order in which they were made."""

from concurrent.futures import ThreadPoolExecutor

from adap.store.ids import new_id


def test_ids_of_one_millisecond_sort_in_order_in_every_thread() -> None:
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda _: [new_id("job") for _ in range(5000)], range(4)))
    for run in runs:
        assert run == sorted(run)
    assert len(set().union(*runs)) == 20_000
    assert {len(name) for run in runs for name in run} == {len("job_") + 26}
