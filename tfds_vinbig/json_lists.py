"""JSON files of lists of objects: entries with their places, and every problem said."""

import json
import math
import re
import reprlib
from pathlib import Path
from typing import Any

_quote = reprlib.Repr()
_quote.maxstring = _quote.maxother = _quote.maxlong = 80
show = _quote.repr  # whatever is in a file: short, and on one line


def load(path: Path, problems: list[str]) -> Any:
    """What a JSON file holds; None where it cannot be read, which is a problem."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        problems.append(f"{path}: cannot read this file ({error.strerror})")
    except UnicodeDecodeError:
        problems.append(f"{path}: not a text file in UTF-8: save it as one")
    except RecursionError:
        problems.append(f"{path}: nested too deeply for a JSON file of boxes")
    except ValueError as error:  # also a number of more digits than Python reads
        problems.append(f"{path}: not a JSON file ({error})")
    return None


def entries_of(data: list, path: Path, name: str, problems: list[str]) -> list[tuple[str, dict]]:
    """The entries of a list that are objects, each with its place."""
    placed = [(f"{path}: {name}[{i}]", entry) for i, entry in enumerate(data)]
    problems += [
        f"{place}: {show(entry)} is not an object in braces"
        for place, entry in placed
        if not isinstance(entry, dict)
    ]
    return [(place, entry) for place, entry in placed if isinstance(entry, dict)]


def list_of(data: Any, path: Path, name: str, problems: list[str]) -> list[tuple[str, dict]]:
    """The entries of a list of the file, which must be there."""
    found = data.get(name) if isinstance(data, dict) else None
    if not isinstance(found, list):
        problems.append(f'{path}: needs a list "{name}"')
        return []
    return entries_of(found, path, name, problems)


def load_detections(path: Path, problems: list[str]) -> list[tuple[str, dict]]:
    """The entries of a file in COCO's results form, which is one list."""
    data = load(path, problems)
    if not problems and not isinstance(data, list):
        problems.append(f"{path}: not a list of detections")
    return entries_of(data if isinstance(data, list) else [], path, "", problems)


def parse_id(value: Any) -> int | str | None:
    """An id as COCO files have them: a whole number, or a name."""
    if isinstance(value, str) and value and value.isprintable():
        return value
    return parse_whole(value)


def parse_whole(value: Any) -> int | None:
    """A whole number from 0 on, also written as 3.0, or as text ("3") in its usual form."""
    if isinstance(value, str) and re.fullmatch("0|[1-9][0-9]{0,17}", value.strip(), re.ASCII):
        return int(value)
    number = parse_number(value)
    return int(value) if number.is_integer() and 0 <= number < 2**63 else None


def parse_number(value: Any) -> float:
    """A finite number, else NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        number = float(value)
    except OverflowError:
        return math.nan
    return number if math.isfinite(number) else math.nan
