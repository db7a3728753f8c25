"""SIGTERM and SIGINT (Ctrl-C) end a run after the current step, so that nothing is lost.

    with signals.caught():               # around a whole command
        ...                              # a signal raises `Stopped` at once: nothing is to be saved
        with signals.held():             # around training
            ...  signals.asked()  ...    # it waits until somebody looks
        with signals.ending("waiting"):  # around what waits outside of Python: it ends the process
            ...

A second signal ends the process at once, whatever it is doing: files of a run are whole or not
there, so nothing is harmed but what came after the last checkpoint.
"""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

CAUGHT = (signal.SIGTERM, signal.SIGINT)
# Schedulers send one to the process and to its parent, which passes it on: that is one.
SAME_SECONDS = 1.0

_asked = 0  # the signal that came, or 0
_holding = False
_ending = ""  # what the process is ended in the midst of, see `ending`


class Stopped(BaseException):
    """A signal has stopped the run. Not an Exception, so that no handler takes it for an error.

    Attributes:
        number: of the signal.
        step: that was saved because of it, if one was.
    """

    def __init__(self, number: int, step: int | None = None):
        super().__init__(number, step)
        self.number, self.step = number, step

    @property
    def name(self) -> str:
        """Such as "SIGTERM"."""
        return signal.Signals(self.number).name

    def goes_on(self, workdir: Path) -> str:
        """What the same command does next, with what is saved of the run in `workdir` now."""
        if self.step is not None:
            return f"the same command goes on from step {self.step}, which is saved"
        # Of a cross-validation each fold has its own. A name without more is of a finished one.
        steps = [
            path for pattern in ("", "fold*/") for path in workdir.glob(f"{pattern}checkpoints/*")
        ]
        if any(path.name.isdecimal() for path in steps):
            return "the same command goes on from what was saved last"
        return "nothing of the run is saved yet: the same command starts it anew"


@contextlib.contextmanager
def caught() -> Iterator[None]:
    """Within the block, signals raise `Stopped`, or are recorded (see `held`)."""
    global _asked
    _asked = 0
    before = {number: signal.signal(number, _handle) for number in CAUGHT}
    # Python's handlers run between two instructions of the main thread, which may be compiling, or
    # waiting for another machine. A thread hears of a signal at once.
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_end_at_the_second, args=(ours,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        theirs.close()
        _asked = 0


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Within the block, a first signal is only recorded; see `asked`."""
    global _holding
    _raise_if_asked()
    _holding = True
    try:
        yield
    finally:
        _holding = False
    _raise_if_asked()


@contextlib.contextmanager
def ending(doing: str) -> Iterator[None]:
    """Within the block a first signal ends the process, with a line that says in the midst of what.

    For what waits outside of Python, where no exception can be raised.
    """
    global _ending
    _ending = doing
    try:
        yield
    finally:
        _ending = ""


def asked() -> int:
    """The number of the signal that came, or 0."""
    return _asked


def _raise_if_asked() -> None:
    if _asked:
        raise Stopped(_asked)


def _handle(number, frame) -> None:
    global _asked
    if _asked:  # a second one is for the thread
        return
    _asked = number
    if not _holding:
        raise Stopped(number)


def _end_at_the_second(received: socket.socket) -> None:
    first = None
    with received:
        while number := received.recv(1):
            now = time.monotonic()
            if number[0] not in CAUGHT or (first is not None and now - first < SAME_SECONDS):
                continue
            if _ending and first is None:
                line = f"run.py: {signal.Signals(number[0]).name}: ended while {_ending}\n"
                with contextlib.suppress(OSError):
                    os.write(2, line.encode())
            if _ending or first is not None:
                os._exit(128 + number[0])
            first = now
            if _holding:
                name = signal.Signals(number[0]).name
                line = f"{name}: saving after this step; another one ends at once\n"
                with contextlib.suppress(OSError):
                    os.write(2, line.encode())
