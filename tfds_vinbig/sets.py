"""What a dataset is built from: one folder or annotation file, or several joined to one."""

from collections.abc import Sequence
from pathlib import Path

from jaxdet import InputError
from tfds_vinbig import kaggle, vindr
from tfds_vinbig.records import Allowed, Folder, raise_all


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
        folders: in Kaggle's form, or the VinDr-CXR release.
        tables: see `kaggle.read_folder`, where there is one folder.
        coco, images: annotation files, each with the folder of its pictures.
        test_images: of the one annotation file.

    Raises:
        InputError: for sets that are not as they should be.
    """
    sets = []
    for file, pictures in zip(coco, images, strict=True):
        # Late, as its table of detections brings JAX, which the others need not wait for.
        from tfds_vinbig.coco import read_instances

        sets.append(read_instances(file, pictures, test_images, allowed))
    for folder in folders:
        if tables[0] is None and vindr.is_release(folder):
            if not own:
                raise InputError(
                    f"--config={config}: is VinBigData with 14 classes, but {folder} is "
                    "the VinDr-CXR release, with 22: --config=NAME --size=N"
                )
            sets.append(vindr.read_folder(folder, *tables[1:], allowed))
        else:
            sets.append(kaggle.read_folder(folder, *tables, own, allowed))
    return join(sets, [*map(str, coco), *map(str, folders)]) if len(sets) > 1 else sets[0]


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
    for one, place in zip(sets, places, strict=True):
        new = [*(labels[name] for name in one.class_names), normal]
        others = set(range(normal)) - set(new)
        for split, joined in splits.items():
            for record in sorted(getattr(one, split), key=lambda record: record.index):
                if (before := place_of.setdefault(record.image_id, place)) != place:
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
    if unknown:
        notes.append(
            f"{len(sets)} sets are joined: {unknown} pairs of image and class are unknown, and "
            f"{dropped} rows of no finding, of images that may have one, are left out"
        )
    return Folder(names, tuple(range(normal + 1)), *splits.values(), notes)
