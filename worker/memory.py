"""Size of the memory: the machine's, or less where a cgroup grants less (containers)."""

import os
from functools import cache
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


@cache
def machine_bytes() -> int:
    """Memory that this process and its children can have together, as it was when first asked."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_granted()])


def _granted() -> list[int]:
    """The limits of the cgroups that this process is in, of both versions."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    limits = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, name = _ROOT, "memory.max"
        elif "memory" in controllers.split(","):
            base, name = _ROOT / "memory", "memory.limit_in_bytes"
        else:
            continue
        folder = base / path.lstrip("/")
        # a container sees its own group as the root, under whatever name it has outside
        for place in {base, folder, *(p for p in folder.parents if base in p.parents)}:
            try:
                text = (place / name).read_text().strip()
            except OSError:
                continue
            if text.isdecimal():  # and not "max"
                limits.append(int(text))
    return limits
