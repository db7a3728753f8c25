"""How long each stage of a command took."""

import contextlib
import time
from collections.abc import Iterator

_seconds: dict[str, float] = {}
_inside: list[float] = []  # seconds of the stages inside each open one


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Counts the time of the block for `name`, without that of stages inside it."""
    start = time.perf_counter()
    _inside.append(0.0)
    try:
        yield
    finally:
        elapsed = time.perf_counter() - start
        _seconds[name] = _seconds.get(name, 0.0) + elapsed - _inside.pop()
        if _inside:
            _inside[-1] += elapsed


def summary() -> str:
    """The seconds of every stage until now, in the order in which they first ended."""
    parts = [f"{name} {seconds:.1f} s" for name, seconds in _seconds.items()]
    return f"{', '.join(parts)}; {sum(_seconds.values()):.1f} s in all"
