"""The judge: what the kernel says that this process holds."""

from pathlib import Path

from adap.core.memory import give_back

SIZE, COUNT = 100_000, 600  # of pieces that the heap holds, not mappings of their own


def anonymous_bytes():
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("RssAnon:")
    )
    return 1024 * int(line.split()[1])


def test_memory_between_what_stays_is_given_back():
    large, stays = [], []
    for _ in range(COUNT):
        large.append(b"x" * SIZE)
        stays.append(b"x" * 2000)
    held = anonymous_bytes()
    large.clear()
    give_back()
    assert held - anonymous_bytes() > 0.8 * COUNT * SIZE
    assert len(stays) == COUNT
