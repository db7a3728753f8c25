"""One process at a time trains in a workdir: the file `train.lock` says which.

The lock is the system's own (`flock`), which ends with its process however that ends; on NFS it
reaches other machines where the server and the mount have locks. The file says whose it is, and is
touched every few seconds: that tells where locks do not reach.
"""

import contextlib
import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import jax
import psutil

from jaxdet import InputError

NAME = "train.lock"
BEAT_SECONDS = 10.0  # between two touches
SILENT_SECONDS = 25.0  # without one, a process of another machine is taken for dead


@contextlib.contextmanager
def held(workdir: Path | None) -> Iterator[None]:
    """For the time of the block, no other process trains in `workdir`, which is made if need be.

    None is for what does not train.

    Of several processes that train as one, process 0 holds the lock.

    Raises:
        InputError: if another one does, or the folder cannot be written to.
    """
    if workdir is None or jax.process_index() != 0:
        yield
        return
    made = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = _take(workdir)
    except OSError as error:
        raise InputError(f"--workdir: cannot write in {workdir}: {error.strerror}") from error
    done = threading.Event()
    threading.Thread(target=_beat, args=(file, done), daemon=True).start()
    try:
        yield
    finally:
        done.set()
        with contextlib.suppress(OSError):
            (workdir / NAME).unlink()  # before the lock ends with its file, so it is still ours
        file.close()
        with contextlib.suppress(OSError):  # where nothing came of it, nothing is left
            for folder in made:
                folder.rmdir()


def _beat(file: IO[str], done: threading.Event) -> None:
    while not done.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError, ValueError):  # a disk that is away, or closed meanwhile
            os.utime(file.fileno())


def _take(workdir: Path) -> IO[str]:
    """The open lock file, locked and with this process in it."""
    path = workdir / NAME
    while True:
        file = path.open("a+")
        locked = _lock(file)
        owner = _owner(file)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                break
        file.close()  # who had it has just taken it away: make one anew
    if locked is False or (owner and _lives(owner, path, locked)):
        file.close()
        raise InputError(
            f"--workdir: {_in_words(owner)} trains in {workdir}: wait for its end, or give another "
            "--workdir"
        )
    mine = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(" ", "seconds"),
        "started": psutil.Process().create_time(),
    }
    file.truncate(0)
    file.write(json.dumps(mine) + "\n")
    file.flush()
    os.fsync(file.fileno())
    if locked is None:  # two may have come at once: the one who wrote last has it
        time.sleep(1)
        with path.open() as again:
            if (owner := _owner(again)) != mine:
                file.close()
                raise InputError(f"--workdir: {_in_words(owner)} trains in {workdir}")
    return file


def _lock(file: IO[str]) -> bool | None:
    """Whether the lock is ours now; None where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:  # ENOLCK, ENOSYS or ENOTSUP
        return None


def _owner(file: IO[str]) -> dict[str, Any] | None:
    """Whom a lock file names; None if nobody, or if it is only half written."""
    file.seek(0)
    try:
        owner = json.loads(file.read())
        return owner if {"pid", "host", "since", "started"} <= owner.keys() else None
    except (ValueError, AttributeError):
        return None


def _lives(owner: dict[str, Any], path: Path, locked: bool | None) -> bool:
    """Whether the process that a lock file names may still train, though we have the lock."""
    if owner["host"] == socket.gethostname():
        if locked:  # within a machine the system's word holds
            return False
        try:
            return abs(psutil.Process(owner["pid"]).create_time() - owner["started"]) < 1
        except (psutil.Error, TypeError, ValueError):
            return False
    # A killed one of another machine, or a live one that the lock does not reach.
    print(
        f"note: {path} is of {_in_words(owner)}: waiting {SILENT_SECONDS:.0f} seconds for a sign "
        "of life",
        file=sys.stderr,
    )
    touched, end = _touched(path), time.monotonic() + SILENT_SECONDS
    while time.monotonic() < end:
        time.sleep(min(1.0, SILENT_SECONDS / 4))
        if _touched(path) != touched:
            return True
    print("note: there was none; it is taken over", file=sys.stderr)
    return False


def _touched(path: Path) -> int | None:
    """When the file was touched, asked of the server: an open file is looked up anew on NFS."""
    try:
        with path.open() as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return None


def _in_words(owner: dict[str, Any] | None) -> str:
    if owner is None:
        return "another process"
    return f"process {owner['pid']} on {owner['host']} (since {owner['since']})"
