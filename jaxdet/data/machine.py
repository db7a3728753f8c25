"""What this machine has: cores, and memory that is free."""

import os
from pathlib import Path

import psutil


def cores() -> int:
    """Of the processor, as many as this process may use."""
    may = getattr(os, "sched_getaffinity", None)  # of Linux
    return len(may(0)) if may else os.cpu_count() or 1


def in_words(count: int) -> str:
    """Bytes as people say them."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that this process may still take: the machine's, or of its cgroup's limit (Linux)."""
    free, mine = psutil.virtual_memory().available, psutil.Process().memory_info().rss
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, kinds, path = line.split(":", 2)
        place, name = ("memory", "memory.limit_in_bytes") if kinds else ("", "memory.max")
        if kinds not in ("", "memory"):
            continue
        top = root / "sys/fs/cgroup" / place
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):  # a job's limit holds for its steps
            limit = folder / name
            if limit.exists() and limit.read_text().strip() != "max":
                free = min(free, int(limit.read_text()) - mine)
            if folder == top:
                break
    return max(free, 0)
