"""The pictures of a split, and the sizes of the originals that they were made of."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from jaxdet.data import images
from tfds_vinbig.kaggle_csv import META_COLUMNS, size_rows
from tfds_vinbig.pictures import check_shape, read_shapes
from tfds_vinbig.records import STRICT, Allowed, Record, Row, Tally, cut_rows
from tfds_vinbig.tables import read_table


class Meta(NamedTuple):
    """The sizes of the originals by image id, or None without such a table."""

    path: Path
    sizes: dict[str, tuple[int, int]] | None
    whole: bool  # every line of it could be read


def read_meta(
    named: str | Path | None, default: Path, problems: list[str], notes: list[str]
) -> Meta:
    """The table that is named, else the default one; only that may be missing."""
    if named is None and not default.exists():
        notes.append(f"{default}: no such file, so the originals are as large as the pictures")
        return Meta(default, None, True)
    before = len(problems)
    path = Path(named or default)
    table = read_table(path, problems, *META_COLUMNS)
    sizes = size_rows(table, problems) if table else {}
    return Meta(path, sizes, len(problems) == before)


def read_split(
    folder: Path,
    files: Mapping[str, Path],
    index: Mapping[str, int],
    rows_of: Mapping[str, Mapping[str, Row]],
    meta: Meta,
    listed_by: str | Path,
    problems: list[str],
    notes: list[str],
    allowed: Allowed = STRICT,
) -> tuple[list[Record], bool]:
    """The records of the listed images, in that order, and whether any picture is resized.

    Each must be among the pictures of `folder`; others there are skipped, with a note.

    Args:
        files: the pictures of `folder` by image id.
        index: `Record.index` of each listed image.
        rows_of: of an image its rows, by place.
        listed_by: the file that lists the images, for messages.
        allowed: see `Allowed`.
    """
    matched = {name: files[name] for name in index if name in files}
    for name in index if files else ():  # else one problem says so for all
        if name not in files:
            known = images.path_id(name)
            problems.append(
                f"{folder / name}.png: no such image (nor .jpg, .tif, .dicom), but {listed_by} "
                "lists it" + (f": write {known}, without the suffix" if known in files else "")
            )
    if matched and len(matched) < len(files):
        skipped = len(files) - len(matched)
        notes.append(f"{folder}: {skipped} images are not in {listed_by}; they are skipped")
    shapes = read_shapes(matched.values(), folder, problems, notes, allowed.follow_links)
    hint = (
        ""
        if meta.sizes is not None
        else f"; {meta.path} with the sizes of the originals is missing"
    )
    records, resized, tally = [], False, Tally()
    for name, path in matched.items():
        if path in shapes and (size := _original_size(name, path, shapes[path], meta, problems)):
            resized = resized or size != shapes[path]
            rows = rows_of.get(name, {})
            rows = cut_rows(rows, *size, problems, tally, allowed.cut_boxes, hint)
            records.append(Record(name, path, *size, index[name], rows))
    notes += tally.notes(listed_by)
    return records, resized


def _original_size(
    name: str, path: Path, shape: tuple[int, int], meta: Meta, problems: list[str]
) -> tuple[int, int] | None:
    """(height, width) of the original; None where there is none that fits, which is reported."""
    if meta.sizes is None:
        return shape
    if name not in meta.sizes:
        if meta.whole:  # else it may be on the line that is reported
            problems.append(f"{meta.path}: no line for image {name}")
        return None
    if problem := check_shape(path, shape, meta.sizes[name], meta.path):
        problems.append(problem)
        return None
    return meta.sizes[name]
