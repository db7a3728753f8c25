"""Folders that appear whole or not at all, though their writers be killed or several run at once.

    with scratch.beside(target) as folder:
        ...  # fill it
        scratch.put(folder, target)

The scratch folder lies hidden beside its target, `.TARGET.scratch-XXXXXXXX`, with a file in it that
is locked (flock) for as long as the process lives. The system unlocks it however the process ends:
what is not locked is abandoned, and the next call for the same target removes it.
"""

import contextlib
import errno
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def beside(target: Path) -> Iterator[Path]:
    """An empty folder on the disk of `target` for the time of the block.

    The parents of `target` are made; what was new of them goes again if the block fails.

    Raises:
        OSError: if nothing can be written there.
    """
    remove_abandoned(target)
    new = [path for path in target.parents if not path.exists()]
    try:
        scratch, lock = _make(target)
        try:
            yield scratch / "new"
        finally:
            _remove(scratch, lock)
    except BaseException:
        for path in new:
            with contextlib.suppress(OSError):  # it is not empty: someone else's
                path.rmdir()
        raise


def put(folder: Path, target: Path) -> bool:
    """Give a finished folder its final name, which may be an empty folder's until now.

    Returns:
        False where something else has that name already, such as what another process made at the
        same time. That one stays.

    Raises:
        OSError: if it cannot be renamed for another reason.
    """
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise
        return False
    return True


def remove_abandoned(target: Path) -> None:
    """Remove the scratch folders of `target` whose processes were killed. Others are left alone."""
    for name in glob.glob(glob.escape(str(_prefix(target))) + "*"):
        scratch = Path(name)
        try:
            lock = os.open(scratch / "lock", os.O_RDWR)
        except OSError:  # no lock yet, or no more; there is nothing else then
            with contextlib.suppress(OSError):
                scratch.rmdir()
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # its process lives, or the file system knows no locks
            os.close(lock)
        else:
            _remove(scratch, lock)


def _prefix(target: Path) -> Path:
    return target.parent / f".{target.name}.scratch-"


def _make(target: Path) -> tuple[Path, int]:
    """A new scratch folder with its lock held.

    Between making the folder and locking it another process may take it for abandoned; whoever has
    the lock while the lock's file is there owns the folder.
    """
    for attempt in range(10):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            prefix = _prefix(target)
            scratch = Path(tempfile.mkdtemp(prefix=prefix.name, dir=prefix.parent))
            lock = os.open(scratch / "lock", os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:  # removed under our hands
            if attempt == 9:
                raise
            continue
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        if (scratch / "lock").exists():
            (scratch / "new").mkdir()
            return scratch, lock
        os.close(lock)
    raise FileNotFoundError(errno.ENOENT, "others keep removing it", str(scratch))


def _remove(scratch: Path, lock: int) -> None:
    """Remove a scratch folder whose lock is held: what was written, then the lock, then the folder.

    In this order, so that one killed meanwhile leaves what the next call recognises and removes.
    """
    shutil.rmtree(scratch / "new", ignore_errors=True)
    with contextlib.suppress(OSError):
        if not (scratch / "new").exists():
            (scratch / "lock").unlink()
    os.close(lock)
    with contextlib.suppress(OSError):
        scratch.rmdir()
