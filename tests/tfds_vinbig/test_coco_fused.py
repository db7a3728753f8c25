"""Fused boxes as a file for others: read back as meant, from a table and from COCO's JSON."""

import json

import numpy as np
import pandas as pd
import pytest

from jaxdet import InputError
from jaxdet.ops.fusion import fuse_rows
from tests.conftest import command
from tests.tfds_vinbig.test_builder import HEADER
from tests.tfds_vinbig.test_coco import changed, write
from tfds_vinbig import coco, coco_fused, kaggle

TABLE = f"""{HEADER}
a,Cardiomegaly,3,R8,10,20,110,220
a,Cardiomegaly,3,R9,10,20,110,200
a,Cardiomegaly,3,R10,12,20,110,220
b,No finding,14,R8,,,,
b,No finding,14,R9,,,,
b,Nodule/Mass,8,R10,50,50,60,70
"""


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text(TABLE)
    return path


@pytest.mark.parametrize("method", ["wbf@0.4", "earl@0.4", "skill@0.4", "raw"])
def test_what_is_written_is_what_fusion_finds(table, tmp_path, method):
    (tmp_path / "meta.csv").write_text("image_id,dim0,dim1\na,300,200\nb,310,210\n")
    flags = f"--meta={tmp_path}/meta.csv", f"--fusion={method}", f"--output={tmp_path}/f.json"
    done = command("--mode=fuse", f"--annotations={table}", *flags)
    assert done.code == 0, done.stderr
    rows = kaggle.read_annotations(table)
    columns = rows.image, rows.labels, rows.readers, rows.boxes, len(rows.class_names)
    found = fuse_rows(method, *columns)
    assert done.stdout.startswith(f"{len(found.table.image)} findings by {method}")
    again = coco.read_annotations(tmp_path / "f.json")
    assert again.class_names == rows.class_names and again.ids == rows.ids
    assert coco.read_sizes(tmp_path / "f.json") == {"a": (300, 200), "b": (310, 210)}
    boxed = again.labels < len(again.class_names)
    assert again.labels[boxed].tolist() == found.table.labels.tolist()
    assert again.image[boxed].tolist() == found.table.image.tolist()
    np.testing.assert_allclose(again.boxes[boxed], found.table.boxes, atol=0.01)
    entries = json.loads((tmp_path / "f.json").read_text())["annotations"]
    np.testing.assert_allclose([e["score"] for e in entries], found.table.scores, atol=1e-6)
    weights = [e.get("weight") for e in entries]
    if method == "earl@0.4":
        np.testing.assert_allclose(weights, [1, 1 / 3], atol=1e-6)
    else:
        assert weights == [None] * len(entries)


def test_from_a_json_file_with_its_own_ids_and_the_readers_beside(table, tmp_path):
    """Images keep their ids, files and sizes."""
    mode = "--mode=fuse"
    command(mode, f"--annotations={table}", "--fusion=raw", f"--output={tmp_path}/raw.json")
    content = json.loads((tmp_path / "raw.json").read_text())
    for image in content["images"]:
        image |= {"id": f"n{image['id']}", "height": 300, "width": 200, "file_name": "x/y.png"}
    content["images"][1]["file_name"] = "x/z.jpg"
    for row, reader in zip(content["annotations"], ("R8", "R9", "R10", "R10"), strict=True):
        row |= {"image_id": f"n{row['image_id']}", "rad_id": reader}
    (tmp_path / "in.json").write_text(json.dumps(content))
    done = command(mode, f"--annotations={tmp_path}/in.json", f"--output={tmp_path}/out.json")
    assert done.code == 0, done.stderr
    out = json.loads((tmp_path / "out.json").read_text())
    assert out["images"] == content["images"]
    assert [row["image_id"] for row in out["annotations"]] == ["n0", "n1"]
    assert set(pd.read_csv(tmp_path / "out.readers.csv").reader) == {"R8", "R9", "R10"}


def test_what_the_annotations_leave_open_stays_open(tmp_path):
    data = changed("images[0]", neg_category_ids=[2])
    data["images"][1]["not_exhaustive_category_ids"] = [5]
    crowd = {"image_id": 30, "category_id": 9, "bbox": [1, 1, 9, 9], "iscrowd": 1}
    data["annotations"].append(crowd)
    rows, images = coco_fused.read(write(tmp_path / "x.json", data))
    found = fuse_rows("wbf@0.4", rows.image, rows.labels, rows.readers, rows.boxes, 3)
    text = coco_fused.to_json(rows, images, found.table, None, "wbf@0.4")
    again = coco.read_annotations(write(tmp_path / "again.json", json.loads(text)))
    assert not rows.exhaustive.all() and len(rows.crowds) == 1
    np.testing.assert_array_equal(again.exhaustive, rows.exhaustive)
    assert again.crowds == rows.crowds
    nothing = [of.image[of.labels == 3].tolist() for of in (rows, again)]
    assert nothing[0] == nothing[1]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--fusion=x"], "fusion 'x': not raw"),
        (["--annotations=nothing.csv"], "nothing.csv"),
        (["--meta=nothing.csv"], "nothing.csv"),
        (["--output="], "--output: needs a path"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(table, tmp_path, flags, says):
    given = f"--annotations={table}", f"--output={tmp_path}/f.json"
    done = command("--mode=fuse", *given, *flags)
    assert done.code == 2 and says in done.stderr and not (tmp_path / "f.json").exists()


@pytest.mark.parametrize("name", ["train.csv", "f.csv", ".", "folder.json", "train.json"])
def test_an_output_that_is_no_new_json_file_is_refused(table, tmp_path, name):
    (tmp_path / "folder.json").mkdir()
    command("--mode=fuse", f"--annotations={table}", f"--output={tmp_path}/train.json")
    before = {p: p.is_file() and p.read_bytes() for p in tmp_path.iterdir()}
    given = tmp_path / "train.json" if name == "train.json" else table
    output = "." if name == "." else tmp_path / name
    done = command("--mode=fuse", f"--annotations={given}", f"--output={output}", "--fusion=raw")
    assert done.code == 2 and len(done.stderr.splitlines()) == 1 and name in done.stderr
    assert {p: p.is_file() and p.read_bytes() for p in tmp_path.iterdir()} == before


def test_the_table_of_readers_and_the_findings_are_both_written_or_neither(table, tmp_path):
    (tmp_path / "f.readers.csv").mkdir()
    done = command("--mode=fuse", f"--annotations={table}", f"--output={tmp_path}/f.json")
    assert done.code == 2 and "f.readers.csv: it is a folder" in done.stderr
    assert not (tmp_path / "f.json").exists()
    own = table.rename(tmp_path / "g.readers.csv")
    done = command("--mode=fuse", f"--annotations={own}", f"--output={tmp_path}/g.json")
    assert done.code == 2 and "g.readers.csv is read" in done.stderr and own.read_text() == TABLE


@pytest.mark.parametrize(
    ("row", "sizes", "says"),
    [
        ("", "a,300,200", "m.csv: has no size of 1 images"),
        ("", "a,300,200\nb,40,210", "train.csv: 1 of 4 boxes leave their image, that of image b"),
        ("c,ILD,5,R8,-9,0,20,20", "a,300,200\nb,90,90\nc,90,90", "image c from -9,0 to 20,20"),
        ("c,ILD,5,R8,0.1,0.1,0.4,0.4", "", "look like shares of the image"),
    ],
)
def test_boxes_that_cannot_be_of_their_images_are_refused(table, tmp_path, row, sizes, says):
    table.write_text(f"{TABLE}{row}\n")
    (tmp_path / "m.csv").write_text(f"image_id,dim0,dim1\n{sizes}\n")
    with pytest.raises(InputError, match=says):
        coco_fused.read(table, tmp_path / "m.csv" if sizes else None)


def test_boxes_written_as_corners_are_refused(tmp_path):
    data = changed("images[0]", height=100, width=100)
    box = {"image_id": data["images"][0]["id"], "bbox": [60, 60, 90, 90]}
    data["annotations"] = [data["annotations"][0] | box | {"id": i, "rad_id": i} for i in range(3)]
    with pytest.raises(InputError, match="from 60,60 to 150,150 .* write x, y, width, height"):
        coco_fused.read(write(tmp_path / "x.json", data))


def test_boxes_of_a_table_are_not_taken_for_another_form(table, tmp_path):
    """Those of three readers leave the image; as x, y, width, height they would not."""
    rows = [f"a,Nodule/Mass,8,R{i},60,60,150,150" for i in range(3)]
    table.write_text("\n".join([TABLE.splitlines()[0], *rows]))
    (tmp_path / "m.csv").write_text("image_id,dim0,dim1\na,100,100\n")
    with pytest.raises(InputError, match="3 of 3 boxes leave .* 100 high: mend them, or its size"):
        coco_fused.read(table, tmp_path / "m.csv")


@pytest.mark.parametrize("method", ["skill@0.4", "earl@0.4"])
def test_the_order_of_the_films_does_not_matter(table, tmp_path, method):
    """To the byte, and of skill no order of the rows does."""
    head, *lines = TABLE.splitlines()
    written = set()
    films = [lines[3:] + lines[:3]] + [lines[::-1]] * (method == "skill@0.4")
    for order in (lines, *films):
        table.write_text("\n".join([head, *order]))
        flags = f"--fusion={method}", f"--output={tmp_path}/f.json"
        assert command("--mode=fuse", f"--annotations={table}", *flags).code == 0
        written.add((tmp_path / "f.json").read_bytes())
    assert len(written) == 1
