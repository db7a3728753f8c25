"""What all doors share: an entry of a table, given those fields of a section that it takes."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any


def takes(entry: Callable, name: str) -> bool:
    """Whether a function or class has an argument of that name."""
    function = entry.__init__ if isinstance(entry, type) else entry
    return name in inspect.signature(function).parameters


def fields_of(entry: Callable, section: Any) -> dict[str, Any]:
    """The fields of a config's section that are arguments of an entry; the rest is for others.

    Args:
        section: a dictionary or a ConfigDict.
    """
    return {name: value for name, value in section.items() if takes(entry, name)}


def choose(table: Mapping[str, Callable], name: str, section: Any) -> Callable:
    """The entry of that name, with those fields of the section that it takes filled in."""
    return functools.partial(table[name], **fields_of(table[name], section))
