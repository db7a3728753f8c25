"""What a dataset is built from: one folder or annotation file, or several joined to one."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxdet import InputError
from tfds_vinbig import kaggle, vindr
from tfds_vinbig.records import STRICT, Allowed, Folder, note_alike, raise_all


class Source(NamedTuple):
    """Where one set is, and how it is to be read."""

    place: str | Path  # a folder, or an annotation file
    pictures: str | Path | None = None  # of an annotation file
    test_pictures: str | Path | None = None  # of an annotation file, without annotations
    # See `kaggle.read_folder`: train_csv, train_meta, test_meta.
    tables: tuple[str | Path | None, ...] = (None, None, None)
    own: bool = True  # whether it has classes of its own, not VinBigData's
    allowed: Allowed = STRICT
    config: str = ""  # the name of the dataset


class Form(NamedTuple):
    """A form that sets come in."""

    knows: Callable[[Source], bool]  # whether a set looks so
    read: Callable[[Source], Folder]  # InputError with every problem of the set


def _read_coco(source: Source) -> Folder:
    # Late, as its table of detections brings JAX, which the others need not wait for.
    from tfds_vinbig.coco import read_instances

    return read_instances(source.place, source.pictures, source.test_pictures, source.allowed)


def _is_vindr(source: Source) -> bool:
    return source.tables[0] is None and vindr.is_release(source.place)


def _read_vindr(source: Source) -> Folder:
    if not source.own:
        raise InputError(
            f"--config={source.config}: is VinBigData with 14 classes, but {source.place} is the "
            "VinDr-CXR release, with 22: --config=NAME --size=N"
        )
    return vindr.read_folder(source.place, *source.tables[1:], source.allowed)


def _is_kaggle(source: Source) -> bool:
    return source.tables[0] is not None or (Path(source.place) / "train.csv").exists()


def _read_kaggle(source: Source) -> Folder:
    return kaggle.read_folder(source.place, *source.tables, source.own, source.allowed)


# The first that knows a set reads it; where none does, Kaggle's says what is missing.
FORMS = {
    "coco": Form(lambda source: source.pictures is not None, _read_coco),
    "vindr_cxr": Form(_is_vindr, _read_vindr),
    "kaggle": Form(_is_kaggle, _read_kaggle),
}


def read_set(source: Source) -> Folder:
    """One set, read and checked by the form that knows it.

    Raises:
        InputError: for a set that is not as it should be.
    """
    knows = (form for form in FORMS.values() if form.knows(source))
    return next(knows, FORMS["kaggle"]).read(source)


def read_sets(
    config: str,
    own: bool,
    folders: Sequence[str | Path],
    tables: Sequence[str | Path | None],
    coco: Sequence[str | Path],
    images: Sequence[str | Path],
    test_images: str | Path | None,
    allowed: Allowed,
) -> Folder:
    """Every set, read and checked, as one.

    Args:
        config: the name of the dataset.
        own: whether it has classes of its own, not VinBigData's.
        folders: in a form of `FORMS`.
        tables: see `Source`, where there is one folder.
        coco, images: annotation files, each with the folder of its pictures.
        test_images: of the one annotation file.

    Raises:
        InputError: for sets that are not as they should be.
    """
    places = zip(coco, images, strict=True)
    common = {"own": own, "allowed": allowed, "config": config}
    sources = [Source(*place, test_images, **common) for place in places]
    sources += [
        Source(os.path.expanduser(folder), tables=tuple(tables), **common) for folder in folders
    ]
    sets = [read_set(source) for source in sources]
    return join(sets, [str(source.place) for source in sources]) if len(sets) > 1 else sets[0]


def join(sets: Sequence[Folder], places: Sequence[str]) -> Folder:
    """Several sets as one, whose classes are those of all, by name.

    A class that the set of an image does not name may be in it all the same. That nobody found
    anything there says nothing about such classes either, and is left out.

    Args:
        places: what to call each set.

    Raises:
        InputError: where an image is in two of them.
    """
    names = tuple(dict.fromkeys(name for one in sets for name in one.class_names))
    labels, normal = {name: label for label, name in enumerate(names)}, len(names)
    notes = [note for one in sets for note in one.notes]
    problems, place_of, dropped, unknown = [], {}, 0, 0
    splits = {"train": [], "test": []}
    for number, (one, place) in enumerate(zip(sets, places, strict=True)):
        new = [*(labels[name] for name in one.class_names), normal]
        others = set(range(normal)) - set(new)
        for split, joined in splits.items():
            for record in sorted(getattr(one, split), key=lambda record: record.index):
                first, before = place_of.setdefault(record.image_id, (number, place))
                if first != number:  # of one place too, if that is given twice
                    problems.append(
                        f"{record.path}: image {record.image_id} of {place} is in {before} too: "
                        "joined sets need a name of its own for each picture"
                    )
                missing = tuple(sorted(others | {new[label] for label in record.not_exhaustive}))
                rows = [row._replace(label=new[row.label]) for row in record.rows]
                kept = [row for row in rows if not missing or row.label != normal]
                dropped += len(rows) - len(kept)
                unknown += len(missing) if split == "train" else 0
                joined.append(record._replace(index=len(joined), rows=kept, not_exhaustive=missing))
    raise_all(problems, " and ".join(places))
    shared = [name for name in names if sum(name in one.class_names for one in sets) > 1]
    if shared:
        notes.append(f"{', '.join(shared)}: in several sets, and taken for the same class")
    note_alike(names, " and ".join(map(str, places)), notes)
    if unknown:
        notes.append(
            f"{len(sets)} sets are joined: {unknown} pairs of image and class are unknown, and "
            f"{dropped} rows of no finding, of images that may have one, are left out"
        )
    return Folder(names, tuple(range(normal + 1)), *splits.values(), notes)
