"""What this machine has: cores, memory that is free, a home and a place for datasets."""

import os
import sys
from pathlib import Path

import psutil

from jaxdet import InputError


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


def with_home(path: str, name: str) -> Path:
    """A path with `~` as the home that it stands for.

    Args:
        name: of the flag or field, for the error.

    Raises:
        InputError: if there is none: then it would be a folder that is called `~`.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~") or (path.startswith("~/") and os.environ.get("HOME") == ""):
        raise InputError(
            f"{name}: {path} has no home here (is HOME set?): give the path from / on, or ./{path} "
            "for a folder of that name"
        )
    return Path(expanded)


def datasets_folder(data_dir: str = "") -> str:
    """Where datasets are: `data_dir`, or if that is empty TFDS's own place, which is said.

    That is the environment's TFDS_DATA_DIR, or else ~/tensorflow_datasets.
    """
    own = os.environ.get("TFDS_DATA_DIR")
    if own and not data_dir:
        print(f"note: datasets are in {own}, as TFDS_DATA_DIR says", file=sys.stderr)
    return data_dir or own or "~/tensorflow_datasets"
