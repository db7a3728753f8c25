"""Labels that are not whole, as LVIS says it: what is not boxed in an image, and may be there.

Of an entry of "images", `neg_category_ids` are the classes that are not there; where there is such
a list, a class that is neither in it nor has a box in the image is unknown. Of those in
`not_exhaustive_category_ids` there may be more than is boxed (Gupta et al. 2019, "LVIS").
"""

from collections.abc import Collection, Iterable, Mapping

from jaxdet import InputError
from tfds_vinbig.json_lists import parse_whole, show
from tfds_vinbig.records import Row, has_area

ABSENT, PARTLY = FIELDS = ("neg_category_ids", "not_exhaustive_category_ids")
CROWD = "a crowd"  # a region where a class is, but not boxed
EMPTY = "a box without area"  # which is left out, so that the class is there, but not boxed


def read(
    entries: Iterable[tuple[str, tuple[str, dict]]],
    labels: Mapping[int, int],
    passed_over: Collection[int],
    rows: Mapping[str, Row],
    crowded: Collection[tuple[str, int | None]],
    problems: list[str],
) -> dict[str, tuple[int, ...]]:
    """The labels of which there may be more than is boxed, of each image that has such labels.

    Args:
        entries: image_id, place and entry of each image.
        labels: of the classes, by their ids.
        passed_over: ids of categories that are no classes.
        rows: of the annotations, by place.
        crowded: (image_id, label) of the crowds.
    """
    boxed, found = {}, {}
    for place, row in rows.items():
        of_image = boxed.setdefault(row.image_id, {})
        if has_area(row[3:]):
            of_image[row.label] = place
        else:
            of_image.setdefault(row.label, EMPTY)
    for image_id, label in crowded:
        boxed.setdefault(image_id, {}).setdefault(label, CROWD)
    for image_id, (place, entry) in entries:
        try:
            if partial := not_exhaustive(entry, labels, passed_over, boxed.get(image_id, {})):
                found[image_id] = partial
        except InputError as error:
            problems.append(f"{place}: image {image_id}: {error}")
    return found


def with_absent(entries: Iterable[tuple[str, tuple[str, dict]]]) -> frozenset[str]:
    """The images that list what is not there: of these a class whose boxes are all left out is
    unknown. The arguments are those of `read`."""
    return frozenset(image_id for image_id, (_, entry) in entries if entry.get(ABSENT) is not None)


def not_exhaustive(
    entry: dict,
    labels: Mapping[int, int],
    passed_over: Collection[int],
    boxed: Mapping[int, str],
) -> tuple[int, ...]:
    """As `read`, of one image.

    Args:
        entry: of "images".
        boxed: of each label that has a box in the image, where the file says so.

    Raises:
        InputError: for lists that are not as they should be, without the place.
    """
    absent, partly = (_labels_of(entry, name, labels, passed_over) for name in FIELDS)
    if absent is None and partly is None:
        return ()
    for label, said in (absent or {}).items():
        if label in (partly or {}):
            raise InputError(f"{said} is in {PARTLY} too")
        if label in boxed:
            raise InputError(f"{said} has a box in the image ({boxed[label]})")
    unknown = set()
    if absent is not None:
        drawn = {label for label, place in boxed.items() if place not in (CROWD, EMPTY)}
        unknown = set(labels.values()) - absent.keys() - drawn
    return tuple(sorted(unknown | (partly or {}).keys()))


def _labels_of(
    entry: dict, name: str, labels: Mapping[int, int], passed_over: Collection[int]
) -> dict[int, str] | None:
    """The labels of a list, each with how to call it; None without the list."""
    ids, found = entry.get(name), {}
    if ids is None:
        return None
    if not isinstance(ids, list):
        raise InputError(f"{name} {show(ids)} is not a list of ids of categories")
    for value in ids:
        number = parse_whole(value)
        if number in labels:
            found[labels[number]] = f"{name}: {number}"
        elif number is None or number not in passed_over:
            raise InputError(f"{name}: {show(value)} is in no category")
    return found
