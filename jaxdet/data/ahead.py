"""Work that threads do ahead of whoever asks for it, and no further."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jaxdet.data import machine


def in_order(function: Callable[[Any], Any], items: Iterable[Any], ahead: int = 0) -> Iterator[Any]:
    """`function(item)` of each item, in their order, by as many threads as there are cores.

    One call for each core, and `ahead` more, are under way or wait to be asked for, so that memory
    does not grow with the items. What a call raises is raised when its turn comes; then, and when
    the iterator is closed, those that have not begun never do.
    """
    cores = machine.cores()
    pool, waiting = ThreadPoolExecutor(cores), deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) == cores + ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
