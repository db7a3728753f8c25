"""The VinDr-CXR release (PhysioNet): DICOM films, every reader's boxes, and a test set with boxes.

FOLDER/train/<image_id>.dicom    FOLDER/annotations/annotations_train.csv, image_labels_train.csv
FOLDER/test/<image_id>.dicom     FOLDER/annotations/annotations_test.csv, image_labels_test.csv

Of training images each reader's boxes are there (rad_id), of test images those that five readers
agreed on. Classes go by their names. (Nguyen et al. 2022, Scientific Data 9:429.)
"""

import os
from collections.abc import Iterable
from pathlib import Path

from jaxdet import InputError
from tfds_vinbig.kaggle_csv import BOX_COLUMNS, VINBIGDATA, parse_box
from tfds_vinbig.originals import read_meta, read_split
from tfds_vinbig.pictures import find_pictures
from tfds_vinbig.records import (
    NO_FINDING,
    STRICT,
    Allowed,
    Annotations,
    Folder,
    Record,
    Row,
    check_units,
    drop_empty,
    drop_repeated,
    flatten,
    parse_image_id,
    parse_reader,
    raise_all,
    ranked,
)
from tfds_vinbig.tables import parse_number, read_table

# The 22 local labels by number. The release has none: the 14 that Kaggle has too keep theirs, so
# that a submission means the same to both; Kaggle counts the other eight as "Other lesion".
CLASSES = VINBIGDATA | dict(
    enumerate(
        (
            "Clavicle fracture",
            "Edema",
            "Emphysema",
            "Enlarged PA",
            "Lung cavity",
            "Lung cyst",
            "Mediastinal shift",
            "Rib fracture",
        ),
        start=len(VINBIGDATA),
    )
)
# Of the image as a whole, so they have no box. The last is spelt in two ways.
GLOBAL_LABELS = ("COPD", "Lung tumor", "Pneumonia", "Tuberculosis", "Other diseases",
                 "Other disease")  # fmt: skip
CONSENSUS = "consensus"  # the reader of a table without rad_id

_COLUMNS = ("image_id", "class_name", *BOX_COLUMNS)
_IDS = {name.lower(): class_id for class_id, name in CLASSES.items()}
_LABELS = {class_id: label for label, class_id in enumerate(ranked(CLASSES)[1])}
_GLOBAL = {name.lower() for name in GLOBAL_LABELS}


def is_release(folder: str | Path) -> bool:
    """Whether a folder is laid out as the release is."""
    return _tables(Path(os.path.expanduser(folder)), "train")[0].exists()


def is_table(path: str | Path) -> bool:
    """Whether a file is an annotations_*.csv of the release: classes by name, without numbers."""
    table = read_table(path, [], _COLUMNS)
    if table is None or "class_id" in table.at or not table.rows:
        return False
    return table.rows[0][1][table.at["class_name"]].lower() in _IDS.keys() | _GLOBAL


def read_annotations(path: str | Path) -> Annotations:
    """The rows of annotations_*.csv; images come from image_labels_*.csv too, if it is beside it.

    An image (of a reader) without a box has "No finding".

    Raises:
        InputError: with every problem of the files, each with its line.
    """
    path, problems, notes = Path(os.path.expanduser(path)), [], []
    labels = path.with_name(path.name.replace("annotations", "image_labels"))
    rows = _read_rows(path, labels, problems, notes)
    raise_all(problems, path)
    ids = tuple(dict.fromkeys(row.image_id for row in rows.values()))
    rows = drop_empty(rows, path, notes)
    return Annotations(*ranked(CLASSES), **flatten(rows.values(), ids), notes=notes)


def read_folder(
    folder: str | Path,
    train_meta: str | Path | None = None,
    test_meta: str | Path | None = None,
    allowed: Allowed = STRICT,
) -> Folder:
    """Read and check the whole release; of films it is checked what can be without decoding.

    Where films are resized PNGs, `train_meta` and `test_meta` have the sizes of the originals, as
    in `kaggle.read_folder`. `Record.index` counts the images of image_labels_*.csv. Without a
    folder `test` there is no test split.

    Raises:
        InputError: with every problem of the folder: the message is one line for one problem, and
            for more a count and the first ten.
    """
    folder = Path(os.path.expanduser(folder))
    problems, notes = [], []
    train = _read_records(folder, "train", train_meta, problems, notes, allowed)
    test = []
    if os.path.isdir(folder / "test"):
        test = _read_records(folder, "test", test_meta, problems, notes, allowed)
    else:
        notes.append(f"{folder / 'test'}: no such folder, so there is no test split")
    trained_on = {record.image_id for record in train}
    problems += [
        f"image {record.image_id}: both in train and in test"
        for record in test
        if record.image_id in trained_on
    ]
    raise_all(problems, folder)
    return Folder(*ranked(CLASSES), train, test, notes)


def _tables(folder: Path, split: str) -> tuple[Path, Path]:
    """annotations_*.csv and image_labels_*.csv; copies have them in the folder itself."""
    names = f"annotations_{split}.csv", f"image_labels_{split}.csv"
    place = folder if (folder / names[0]).exists() else folder / "annotations"
    return place / names[0], place / names[1]


def _read_records(
    folder: Path,
    split: str,
    meta: str | Path | None,
    problems: list[str],
    notes: list[str],
    allowed: Allowed,
) -> list[Record]:
    annotations, labels = _tables(folder, split)
    rows_of = {}  # image id: its rows, by place
    for place, row in _read_rows(annotations, labels, problems, notes).items():
        rows_of.setdefault(row.image_id, {})[place] = row
    index = {name: i for i, name in enumerate(rows_of)}
    unsaid = []  # that films are as large as the originals goes without saying
    sizes = read_meta(meta, folder / f"{split}_meta.csv", problems, unsaid)
    files = find_pictures(folder / split, problems)
    place, listed = folder / split, (index, rows_of, sizes, annotations)
    records = read_split(place, files, *listed, problems, notes, allowed)[0]
    check_units((row for record in records for row in record.rows), annotations, problems)
    return records


def _read_rows(
    annotations: Path, labels: Path, problems: list[str], notes: list[str]
) -> dict[str, Row]:
    """The rows of both tables by place, in the order of the images of `labels`."""
    rows, without_box, denied = {}, {}, {}  # by reader and image; those who say "No finding"
    table = read_table(annotations, problems, _COLUMNS)
    for line, fields in table.rows if table else []:
        place = f"{annotations} line {line}"
        image_id, word, *corners = (fields[table.at[name]] for name in _COLUMNS)
        reader = fields[table.at["rad_id"]] if "rad_id" in table.at else CONSENSUS
        try:
            image_id = parse_image_id(image_id)
            reader = parse_reader(reader)
            class_id = _IDS.get(word.lower())
            if class_id is None and word.lower() not in _GLOBAL:
                raise InputError(f"unknown class_name {word!r}; the release has 22 with boxes")
            if class_id is not None and CLASSES[class_id] == NO_FINDING:
                denied[image_id, reader] = None
            if class_id is None or CLASSES[class_id] == NO_FINDING:
                if any(corners):
                    raise InputError(f"{word} with the box {','.join(corners)}; it has none")
                without_box.setdefault((image_id, reader), place)
                continue
            box = parse_box(CLASSES[class_id], corners)
            row = Row(image_id, _LABELS[class_id], reader, *box)
        except InputError as error:
            problems.append(f"{place}: {error}")
        else:
            rows[place] = row
    with_box = {(row.image_id, row.rad_id) for row in rows.values()}
    both = {key for key in denied if key in with_box}

    order = {}
    if os.path.exists(labels):
        listed = _read_labels(labels, problems)
        order = {image_id: None for image_id, _ in listed}
        elsewhere = 0
        for key, (place, is_normal) in listed.items():
            without_box.setdefault(key, place)
            elsewhere += not is_normal and key not in with_box
            if is_normal and key in with_box:
                both.add(key)
        if elsewhere:
            notes.append(
                f"{labels}: {elsewhere} readings have a label but {NO_FINDING}, and no box; they "
                f"count as {NO_FINDING}"
            )
    else:
        notes.append(f"{labels}: no such file, so only the images of {annotations.name} are known")
    if both:
        image_id, reader = min(both)
        notes.append(
            f"{annotations}: {len(both)} times one reader has a box and {NO_FINDING} on one image, "
            f"{reader} on image {image_id} first; the boxes are kept"
        )
    normal = len(CLASSES) - 1
    for (image_id, reader), place in without_box.items():
        if (image_id, reader) not in with_box:
            rows[place] = Row(image_id, normal, reader, *[float("nan")] * 4)
    rows = drop_repeated(rows, normal, annotations, notes)
    return _by_image(rows, order)


def _read_labels(path: Path, problems: list[str]) -> dict[tuple[str, str], tuple[str, bool]]:
    """Of each image and reader the place, and whether the label is "No finding"."""
    table = read_table(path, problems, ("image_id", NO_FINDING.lower()))
    found = {}
    for line, fields in table.rows if table else []:
        image_id, word = fields[table.at["image_id"]], fields[table.at[NO_FINDING.lower()]]
        reader = fields[table.at["rad_id"]] if "rad_id" in table.at else CONSENSUS
        try:
            image_id = parse_image_id(image_id)
            reader = parse_reader(reader)
            if word and parse_number(word) not in (0, 1):
                raise InputError(f"{NO_FINDING} is {word!r}, not 0 or 1")
        except InputError as error:
            problems.append(f"{path} line {line}: {error}")
        else:
            found[image_id, reader] = f"{path} line {line}", parse_number(word) == 1
    return found


def _by_image(rows: dict[str, Row], order: Iterable[str]) -> dict[str, Row]:
    """The rows image by image, first those of `order`."""
    rank = {name: i for i, name in enumerate(order)}
    for row in rows.values():
        rank.setdefault(row.image_id, len(rank))
    return dict(sorted(rows.items(), key=lambda item: rank[item[1].image_id]))
