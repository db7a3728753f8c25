"""CSV tables: columns by name, rows with their lines, and every problem said."""

import contextlib
import csv
import io
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


class Table(NamedTuple):
    """A CSV file: where each column is, and (line number, fields) of each row of full length."""

    path: Path
    at: dict[str, int]
    rows: list[tuple[int, list[str]]]


def read_table(path: str | Path, problems: list[str], *needed: tuple[str, ...]) -> Table | None:
    """A table with all the columns of one of `needed`, in any order, upper or lower case.

    Rows of nothing but separators, which spreadsheets leave, are passed over. The csv module reads
    it: pandas would silently fill up a row that is too short.
    """
    path = Path(os.path.expanduser(path))
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            text = file.read()
        if "\0" in text:
            raise UnicodeError
        with _long_fields():
            lines = _rows(text)
    except OSError as error:
        problems.append(f"{path}: cannot read this file ({error.strerror})")
    except UnicodeError:
        problems.append(f"{path}: not a text file in UTF-8: save it as one")
    except csv.Error as error:
        problems.append(f"{path}: not a CSV file ({error})")
    except ValueError:  # a zero byte in the name
        problems.append(f"{str(path)!r}: not the name of a file")
    else:
        return _columns(path, lines, problems, needed)
    return None


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    """The csv module takes fields of 131,072 characters; a submission's may be longer."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _rows(text: str) -> list[tuple[int, list[str]]]:
    """Rows that hold something, each with the line where it begins."""
    rows, begins = [], 1
    reader = csv.reader(io.StringIO(text, newline=""))
    for fields in reader:
        fields = [field.strip() for field in fields]
        if any(fields):
            rows.append((begins, fields))
        begins = reader.line_num + 1
    return rows


def _columns(
    path: Path,
    lines: list[tuple[int, list[str]]],
    problems: list[str],
    needed: tuple[tuple[str, ...], ...],
) -> Table | None:
    """The table, if its header has the columns; rows of another length are problems."""
    if not lines:
        problems.append(f"{path}: the file is empty")
        return None
    (header_line, header), *lines = lines
    columns = [name.lower() for name in header]
    if not any(all(columns.count(name) == 1 for name in names) for names in needed):
        wanted = " or ".join(",".join(names) for names in needed)
        problem = f"{path} line {header_line}: needs the columns {wanted}"
        found = [name for mark, name in _SEPARATORS.items() if mark in header[0]]
        if len(header) == 1 and found:
            problem += f", separated by commas, not by {found[0]}"
        else:
            missing = [name for name in needed[-1] if columns.count(name) != 1]
            problem += f"; missing or twice: {','.join(missing)}"
        problems.append(problem)
        return None
    if not lines:
        problems.append(f"{path}: no row under the header")
        return None
    problems += [
        f"{path} line {line}: {len(fields)} fields instead of {len(columns)}"
        for line, fields in lines
        if len(fields) != len(columns)
    ]
    rows = [(line, fields) for line, fields in lines if len(fields) == len(columns)]
    return Table(path, {name: i for i, name in enumerate(columns)}, rows)


def parse_number(word: str) -> float:
    """A finite number, else NaN. Python's 1_000 is none."""
    try:
        number = float(word)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) and "_" not in word else math.nan
