"""What this machine has: cores and processes on them, memory that is free, a home and a place for
datasets."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from jaxdet import InputError


def cores() -> int:
    """Of the processor, as many as this process may use."""
    may = getattr(os, "sched_getaffinity", None)  # of Linux
    return len(may(0)) if may else os.cpu_count() or 1


@contextlib.contextmanager
def processes(number: int | None = None) -> Iterator[ProcessPoolExecutor]:
    """So many, or one for each core; started anew, as what is forked beside threads may hang.

    They end at once when this is left, done or not, or this process killed: either closes their
    pipe, and the pool finds them gone.
    """
    spawn = multiprocessing.get_context("spawn")
    reader, writer = spawn.Pipe(duplex=False)
    with (
        reader,
        _Uninterrupted(number or cores(), spawn, _begin_process, (reader,)) as pool,
        writer,
    ):
        yield pool


class _Uninterrupted(ProcessPoolExecutor):
    def submit(self, *args, **kwargs) -> Future:
        """^C is for whoever starts processes: those inherit that they never hear of it."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(*args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_process(reader: Connection) -> None:
    def end_with_the_pipe():
        reader.poll(None)
        os._exit(1)

    threading.Thread(target=end_with_the_pipe, daemon=True).start()


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
