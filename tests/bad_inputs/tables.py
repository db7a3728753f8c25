"""Kaggle's folder and tables, COCO's JSON, submissions."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.bad_inputs.files import png
from tests.tfds_vinbig.test_coco import INSTANCES
from tests.tfds_vinbig.test_kaggle import HEADER, ROWS
from tfds_vinbig import coco, kaggle, submission
from tfds_vinbig import results as several

Read = Callable[[Path], object]


def kaggle_folder(change: Callable[[Path], object]) -> Read:
    """A Kaggle folder of two annotated images, changed, and read."""

    def read(folder):
        place = folder / "kaggle"
        (place / "train").mkdir(parents=True)
        for name in "ab":
            (place / f"train/{name}.png").write_bytes(png())
        (place / "train.csv").write_text("\n".join([HEADER, *ROWS]))
        (place / "train_meta.csv").write_text("image_id,dim0,dim1\na,300,200\nb,310,210\n")
        change(place)
        kaggle.read_folder(place)

    return read


def train_csv(content: str | bytes) -> Read:
    data = content.encode() if isinstance(content, str) else content
    return kaggle_folder(lambda folder: (folder / "train.csv").write_bytes(data))


def row(text: str) -> Read:
    return train_csv("\n".join([HEADER, *ROWS, text]))


def box(*corners: object) -> Read:
    return row(f"a,Cardiomegaly,3,R9,{','.join(map(str, corners))}")


def sizes(text: str) -> Read:
    text = f"image_id,dim0,dim1\n{text}\n"
    return kaggle_folder(lambda folder: (folder / "train_meta.csv").write_text(text))


def link_out(folder: Path) -> None:
    picture = folder / "train/a.png"
    picture.rename(folder.parent / "other.png")
    picture.symlink_to(folder.parent / "other.png")


def link_to_itself(folder: Path) -> None:
    picture = folder / "train/a.png"
    picture.unlink()
    picture.symlink_to(picture)


def file_for_folder(folder: Path) -> None:
    shutil.rmtree(folder / "train")
    (folder / "train").touch()


def folder_for_file(folder: Path) -> None:
    (folder / "train.csv").unlink()
    (folder / "train.csv").mkdir()


def instances(content: str | dict) -> Read:
    """COCO's annotations."""

    def read(folder):
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / "x.json").write_text(text)
        coco.read_annotations(folder / "x.json")

    return read


def image(**fields: object) -> Read:
    images = [{**INSTANCES["images"][0], **fields}, *INSTANCES["images"][1:]]
    return instances({**INSTANCES, "images": images})


def annotation(**fields: object) -> Read:
    first, *rest = INSTANCES["annotations"]
    return instances({**INSTANCES, "annotations": [{**first, **fields}, *rest]})


def linked_picture(folder: Path) -> None:
    (folder / "pictures").mkdir()
    (folder / "other.png").write_bytes(png())
    (folder / "pictures/a.png").symlink_to(folder / "other.png")
    entry = {"id": 1, "file_name": "a.png", "height": 8, "width": 8}
    data = {"images": [entry], "annotations": [], "categories": [{"id": 1, "name": "Rib"}]}
    (folder / "x.json").write_text(json.dumps(data))
    coco.read_instances(folder / "x.json", folder / "pictures")


def boxes(*given: list[float]) -> Read:
    """COCO's annotations of one picture of 8 x 8 pixels, to be built."""

    def read(folder):
        (folder / "pictures").mkdir()
        (folder / "pictures/a.png").write_bytes(png())
        entry = {"id": 1, "file_name": "a.png", "height": 8, "width": 8}
        rows = [{"image_id": 1, "category_id": 1, "bbox": box} for box in given]
        data = {"images": [entry], "annotations": rows, "categories": [{"id": 1, "name": "Rib"}]}
        (folder / "x.json").write_text(json.dumps(data))
        coco.read_instances(folder / "x.json", folder / "pictures")

    return read


def results(text: str) -> Read:
    """COCO's detections of those annotations."""

    def read(folder):
        (folder / "x.json").write_text(json.dumps(INSTANCES))
        (folder / "r.json").write_text(text)
        coco.read_detections(folder / "r.json", coco.read_annotations(folder / "x.json"))

    return read


def two_results(folder: Path) -> None:
    row = {"image_id": 7, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.5}
    paths = [folder / "1.json", folder / "2.json"]
    for path, name in zip(paths, ("Rib", "Heart"), strict=True):
        path.write_text(json.dumps([{**row, "category_name": name}]))
    several.read_all(paths)


def submitted(text: str) -> Read:
    def read(folder):
        (folder / "s.csv").write_text(f"image_id,PredictionString\n{text}\n")
        submission.read(folder / "s.csv", kaggle.CLASS_IDS)

    return read


TWICE = {**INSTANCES, "images": [*INSTANCES["images"], INSTANCES["images"][0]]}
SAME_NAME = {
    **INSTANCES,
    "categories": [{**entry, "name": "Rib"} for entry in INSTANCES["categories"]],
}
NO_IMAGES = {name: value for name, value in INSTANCES.items() if name != "images"}
NAN_SCORE = '[{"image_id": 7, "category_id": 9, "bbox": [1, 2, 3, 4], "score": NaN}]'

CASES = {
    "Kaggle's folder and tables": {
        "an empty train.csv": train_csv(""),
        "the home of nobody": lambda _: kaggle.read_folder("~nobody-has-this-name/kaggle"),
        "only a header": train_csv(HEADER),
        "bytes that are no text": train_csv(b"\xff\xfe\x00\x01" * 9),
        "UTF-16": train_csv("\n".join([HEADER, *ROWS]).encode("utf-16")),
        "semicolons": train_csv("\n".join([HEADER, *ROWS]).replace(",", ";")),
        "a missing column": train_csv("image_id,class_id\na,3"),
        "a quote that is never closed": row('"a,Cardiomegaly,3,R9,1,1,2,2'),
        "too few fields": row("a,Cardiomegaly,3"),
        "a NaN in a box": box("nan", 1, 2, 2),
        "an infinite corner": box(1, 1, "inf", 2),
        "a corner of 1e300": box(1, 1, "1e300", 2),
        "a negative corner": box(-50, 1, 2, 2),
        "a box upside down": box(9, 1, 2, 2),
        "words for numbers": box("one", 1, 2, 2),
        "a number of 5,000 digits": row(f"a,Cardiomegaly,{'9' * 5000},R9,1,1,2,2"),
        "a class that there is not": row("a,Broken rib,77,R9,1,1,2,2"),
        "a name of another number": row("a,Cardiomegaly,4,R9,1,1,2,2"),
        "an image_id with a path": row("../../etc/passwd,Cardiomegaly,3,R9,1,1,2,2"),
        "an absolute image_id": row("/etc/passwd,Cardiomegaly,3,R9,1,1,2,2"),
        "a reader's name of 5,000 letters": row(f"a,Cardiomegaly,3,{'R' * 5000},1,1,2,2"),
        "a zero byte": row("a\0b,Cardiomegaly,3,R9,1,1,2,2"),
        "an image that is not there": row("c,Cardiomegaly,3,R9,1,1,2,2"),
        "a negative size": sizes("a,-300,200\nb,310,210"),
        "a size of 0": sizes("a,0,200\nb,310,210"),
        "a size of 1e300": sizes("a,1e300,200\nb,310,210"),
        "an image of two sizes": sizes("a,300,200\na,310,210\nb,310,210"),
        "a picture that is a link out of the folder": kaggle_folder(link_out),
        "a picture that is a link to itself": kaggle_folder(link_to_itself),
        "train is a file": kaggle_folder(file_for_folder),
        "train.csv is a folder": kaggle_folder(folder_for_file),
        "no folder": lambda folder: kaggle.read_folder(folder / "none"),
    },
    "COCO's JSON": {
        "an empty file": instances(""),
        "a list 200,000 deep": instances("[" * 200_000),
        "Python for JSON": instances("{'images': []}"),
        "a number": instances("1e999"),
        "no images": instances(NO_IMAGES),
        "images that are no list": instances({**INSTANCES, "images": {"a": 1}}),
        "an image twice": instances(TWICE),
        "a file name with ..": image(file_name="../../a.png"),
        "an absolute file name": image(file_name="/etc/a.png"),
        "a height of NaN": image(height=float("nan")),
        "a negative width": image(width=-5),
        "a box of three numbers": annotation(bbox=[1, 2, 3]),
        "a box of infinite width": annotation(bbox=[1, 2, float("inf"), 3]),
        "a box of words": annotation(bbox="1 2 3 4"),
        "a mask that is none": annotation(bbox=None, segmentation=[[1, 2, 3]]),
        "run lengths that go on after their end": annotation(
            bbox=None, segmentation={"size": [60, 90], "counts": "PPP"}
        ),
        "run lengths of gigapixels": annotation(
            bbox=None, segmentation={"size": [10**9, 10**9], "counts": [1]}
        ),
        "two ids of one class": instances(SAME_NAME),
        "an unknown category": annotation(category_id=99),
        "absent classes that are no list": image(neg_category_ids="2"),
        "a class that is absent and not all boxed": image(
            neg_category_ids=[2, 5], not_exhaustive_category_ids=[5]
        ),
        "an unknown image": annotation(image_id=99),
        "a picture that is a link out of the folder": linked_picture,
        "boxes that are shares of the image": boxes([0.1, 0.1, 0.5, 0.5]),
        "a box of shares among pixels": boxes([0, 0, 5, 5], [0.1, 0.1, 0.5, 0.5]),
        "corners for a width and a height": boxes([1, 1, 4, 4], [2, 2, 5, 5], [4, 4, 8, 8]),
        "a box that leaves its image": boxes([1, 1, 2, 2], [4, 4, 9, 9]),
        "run lengths of another size than the image": annotation(
            bbox=None, segmentation={"size": [20, 10], "counts": [0, 2, 198]}
        ),
        "a width in words": image(width="640px"),
        "results that are no list": results("{}"),
        "a score of NaN": results(NAN_SCORE),
        "results of one id for two classes": two_results,
    },
    "Submissions": {
        "five words for a box": submitted("a,3 0.5 1 1 9"),
        "a NaN": submitted("a,3 nan 1 1 9 9"),
        "a corner of 1e300": submitted("a,3 0.5 1 1 9 1e300"),
        "an unknown class": submitted("a,99 0.5 1 1 9 9"),
        "a box upside down": submitted("a,3 0.5 9 1 1 9"),
        "an image twice": submitted("a,3 0.5 1 1 9 9\na,3 0.5 1 1 9 9"),
        "an image_id with a path": submitted("../a,3 0.5 1 1 9 9"),
    },
}
