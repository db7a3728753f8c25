"""The Kaggle folder: what it may look like, and what is said of one that is broken."""

import io
import struct
import zlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from jaxdet import InputError
from tfds_vinbig import kaggle

HEADER = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"
ROWS = [
    "a,Cardiomegaly,3,R9,10,20,110.5,220",
    "b,No finding,14,R1,,,,",
    "a,Aortic enlargement,0,R8,0,0,200,300",
    "b,No finding,14,R2,,,,",
]
# The picture of 8 x 8 that every folder here is made of.
GRAY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def save(path, array=GRAY):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two annotated images, originals of height 300 and width 200, and three of test."""
    folder = tmp_path / "kaggle"
    for name in ("train/a", "train/b", "test/p", "test/q", "test/r"):
        save(folder / f"{name}.png")
    (folder / "train.csv").write_text("\n".join([HEADER, *ROWS]))
    (folder / "train_meta.csv").write_text("image_id,dim0,dim1\nb,310,210\na,300,200\n")
    (folder / "test_meta.csv").write_text("image_id,dim0,dim1\nq,40,30\np,50,60\nr,70,80\n")
    (folder / "sample_submission.csv").write_text(
        "image_id,PredictionString\nr,14 1 0 0 1 1\np,14 1 0 0 1 1\nq,14 1 0 0 1 1\n"
    )
    return folder


def message(function, *arguments, **keywords):
    with pytest.raises(InputError) as caught:
        function(*arguments, **keywords)
    return str(caught.value)


# Tables


def test_annotations_are_the_rows_of_the_file(folder):
    table = kaggle.read_annotations(folder / "train.csv")
    assert list(table) == ["image_id", "class_id", "rad_id", "x_min", "y_min", "x_max", "y_max"]
    assert list(table.image_id) == ["a", "b", "a", "b"]
    assert list(table.class_id) == [3, 14, 0, 14]
    assert list(table.rad_id) == ["R9", "R1", "R8", "R2"]
    boxes = table[["x_min", "y_min", "x_max", "y_max"]].to_numpy()
    np.testing.assert_array_equal(boxes[[0, 2]], [[10, 20, 110.5, 220], [0, 0, 200, 300]])
    assert np.isnan(boxes[[1, 3]]).all()


def test_annotation_columns_are_found_by_name(tmp_path, folder):
    table = pd.read_csv(folder / "train.csv", dtype=str, keep_default_na=False)
    columns = ["y_max", "class_id", "x_min", "image_id", "y_min", "x_max"]
    text = table[columns].to_csv(index=False)
    (tmp_path / "x.csv").write_text("\ufeff" + text, encoding="utf-8")
    # Without rad_id the two rows of "b" are one reader's twice.
    assert "No finding of reader R1 for image b, again" in message(
        kaggle.read_annotations, tmp_path / "x.csv"
    )
    table[::-1].drop_duplicates(["image_id", "class_id"]).assign(split="test")[
        ["y_max", "class_id", "split", "x_min", "image_id", "y_min", "x_max"]
    ].to_csv(tmp_path / "x.csv")
    rows = kaggle.read_annotations(tmp_path / "x.csv")
    assert list(rows.image_id) == ["b", "a", "a"]
    assert list(rows.y_max[1:]) == [300, 220]
    assert set(rows.rad_id) == {"R1"} and set(rows.split) == {"test"}


def test_no_finding_may_carry_the_box_of_a_submission(tmp_path):
    (tmp_path / "x.csv").write_text(f"{HEADER}\na,No finding,14,R1,0,0,1,1\n")
    assert kaggle.read_annotations(tmp_path / "x.csv").x_max.isna().all()


@pytest.mark.parametrize(
    "row, said",
    [
        ("a,Cardiomegaly,3,R9,10,20,110", "7 fields instead of 8"),
        ("a,Cardiomegaly,3,R9,10,20,110,220,5", "9 fields instead of 8"),
        ("a,Cardiomegaly,3,R9,10,20,wide,220", "not four finite numbers"),
        ("a,Cardiomegaly,3,R9,10,20,inf,220", "not four finite numbers"),
        ("a,Cardiomegaly,3,R9,nan,20,110,220", "not four finite numbers"),
        ("a,Cardiomegaly,3,R9,,,,", "x_min is empty"),
        ("a,Cardiomegaly,3,R9,10,20,110,", "y_max is empty"),
        ("a,Cardiomegaly,3,R9,110,20,10,220", "upside down"),
        ("a,Cardiomegaly,3,R9,10,220,110,20", "upside down"),
        ("a,Cardiomegaly,3,R9,10,20,10,220", "empty"),
        ("a,Cardiomegaly,15,R9,10,20,110,220", "unknown class_id '15'"),
        ("a,Cardiomegaly,-1,R9,10,20,110,220", "unknown class_id '-1'"),
        ("a,Cardiomegaly,3.5,R9,10,20,110,220", "unknown class_id '3.5'"),
        ("a,Cardiomegaly,heart,R9,10,20,110,220", "unknown class_id 'heart'"),
        ("a,Cardio,3,R9,10,20,110,220", "class_name 'Cardio' is unknown"),
        ("a,Atelectasis,3,R9,10,20,110,220", "does not go with class_id 3"),
        ("a,No finding,3,R9,10,20,110,220", "does not go with class_id 3"),
        (",Cardiomegaly,3,R9,10,20,110,220", "image_id is empty"),
        ("b,No finding,14,R1,,,,", "No finding of reader R1 for image b, again"),
        ("a,No finding,14,R9,10,20,110,220", "leave it empty"),
        ("a,No finding,14,R9,0,0,1,", "y_max is empty"),
    ],
)
def test_a_wrong_row_is_named_with_its_line(folder, row, said):
    path = folder / "train.csv"
    path.write_text("\n".join([HEADER, *ROWS, row, ""]))
    for text in (message(kaggle.read_annotations, path), message(kaggle.read_folder, folder)):
        assert "\n" not in text
        assert f"{path} line 6: " in text and said in text


BINARY = np.random.default_rng(0).bytes(3000)


@pytest.mark.parametrize("name", ["train.csv", "train_meta.csv", "sample_submission.csv"])
@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "empty"),
        (b"nonsense\n1\n", "line 1: needs the columns image_id"),
        (b"nonsense\n1,2\n3,4\n", "line 1: needs the columns image_id"),
        (b"image_id,image_id,x\n1,2,3\n", "line 1: needs the columns image_id"),
        (BINARY, "not a text file in UTF-8"),
        ("image_id,größe\n".encode("latin-1"), "not a text file in UTF-8"),
        (f"{HEADER},dim0,dim1\n".encode(), "no row under the header"),
        (None, "Is a directory"),
    ],
)
def test_a_file_that_is_no_such_table_is_named(folder, name, content, said):
    path = folder / name
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)
    text = message(kaggle.read_folder, folder)
    assert text.startswith(str(path)) and said in text and "\n" not in text


def test_ten_problems_are_shown_and_all_are_counted(folder):
    lines = [f"x{i},Cardiomegaly,3,R9,10,20,5,220" for i in range(12)]
    (folder / "train.csv").write_text("\n".join([HEADER, *ROWS, *lines]))
    (folder / "train" / "a.png").unlink()  # found only after the table is read
    text = message(kaggle.read_folder, folder).splitlines()
    assert text[0] == f"13 problems in {folder}, the first ten:"
    assert len(text) == 11 and all(line.startswith("  ") for line in text[1:])
    assert "line 6" in text[1] and "line 15" in text[10]


@pytest.mark.parametrize(
    "text",
    [
        "image_id,dim0,dim1\nb,310,210\na,300,200\n",
        "dim1,dim0,image_id\n210,310,b\n200,300,a\n",
        "image_id,height,width\nb,310,210\na,300,200\n",
        ",Image_ID,Width,Height\n0,b,210.0,310.0\n1,a,200.0,300.0\n\n",
    ],
)
def test_size_columns_are_found_by_name(tmp_path, text):
    (tmp_path / "meta.csv").write_text(text)
    sizes = kaggle.read_sizes(tmp_path / "meta.csv")
    assert list(sizes.items()) == [("b", (310, 210)), ("a", (300, 200))]


@pytest.mark.parametrize(
    "text, said",
    [
        ("image_id,rows,columns\na,300,200\n", "line 1: needs the columns"),
        ("image_id,dim0,width\na,300,200\n", "line 1: needs the columns"),
        ("image_id,dim0,dim1\na,300,0\n", "line 2: '300,0' is no size"),
        ("image_id,dim0,dim1\na,300,-2\n", "line 2: '300,-2' is no size"),
        ("image_id,dim0,dim1\na,300,2.5\n", "line 2: '300,2.5' is no size"),
        ("image_id,dim0,dim1\na,300,wide\n", "line 2: '300,wide' is no size"),
        ("image_id,dim0,dim1\na,300,inf\n", "line 2: '300,inf' is no size"),
        ("image_id,dim0,dim1\na,300,200\na,300,200\n", "line 3: image_id a is there twice"),
        ("image_id,dim0,dim1\n,300,200\n", "line 2: image_id is empty"),
    ],
)
def test_a_wrong_size_is_named(tmp_path, text, said):
    (tmp_path / "meta.csv").write_text(text)
    assert said in message(kaggle.read_sizes, tmp_path / "meta.csv")


# Pictures


def png(samples, colour_type, bits):
    """A PNG of any kind, where Pillow writes only some: samples [height, width, channels]."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    height, width, _ = samples.shape
    dtype = ">u2" if bits == 16 else np.uint8
    lines = b"".join(b"\0" + line.astype(dtype).tobytes() for line in samples)
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


OPAQUE = np.full_like(GRAY, 255)


@pytest.mark.parametrize(
    "array",
    [GRAY, np.stack([GRAY] * 3, -1), np.stack([GRAY, OPAQUE], -1), np.stack([GRAY] * 4, -1)],
    ids=["gray", "rgb", "gray+alpha", "rgba"],
)
def test_every_form_of_a_gray_picture_reads_the_same(tmp_path, array):
    save(tmp_path / "x.png", array)
    image = kaggle.read_image(tmp_path / "x.png")
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, GRAY)


@pytest.mark.parametrize("transparency", [None, 0, bytes(range(64))])
@pytest.mark.filterwarnings("error")
def test_a_palette_is_looked_up(tmp_path, transparency):
    picture = Image.frombytes("P", (8, 8), bytes(range(64)))
    picture.putpalette(np.repeat(GRAY.ravel()[::-1], 3).tobytes())
    keywords = {} if transparency is None else {"transparency": transparency}
    picture.save(tmp_path / "x.png", **keywords)
    np.testing.assert_array_equal(
        kaggle.read_image(tmp_path / "x.png"), GRAY.ravel()[::-1].reshape(8, 8)
    )


def test_one_bit_is_black_and_white(tmp_path):
    save(tmp_path / "x.png", GRAY > 100)
    np.testing.assert_array_equal(kaggle.read_image(tmp_path / "x.png"), (GRAY > 100) * 255)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("brightest", ["full", "just above the depth below"])
def test_16_bit_is_scaled_by_its_depth(tmp_path, bits, brightest):
    top = 2**bits - 1
    pixels = np.linspace(0, top if brightest == "full" else 2 ** (bits - 2), 256)
    pixels = pixels.astype(np.uint16).reshape(16, 16)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    image = kaggle.read_image(tmp_path / "x.png")
    np.testing.assert_array_equal(image, np.round(pixels * (255 / top)))
    assert (np.diff(image.ravel().astype(int)) >= 0).all()  # nothing wraps
    if brightest == "full":
        assert image.max() == 255


@pytest.mark.parametrize("colour_type, channels", [(2, 3), (4, 2), (6, 4)])
def test_16_bit_with_more_channels_reads_at_8_bits(tmp_path, colour_type, channels):
    samples = np.repeat(GRAY[..., None].astype(int) * 257, channels, axis=-1)
    (tmp_path / "x.png").write_bytes(png(samples, colour_type, 16))
    np.testing.assert_array_equal(kaggle.read_image(tmp_path / "x.png"), GRAY)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_reads_as_gray(tmp_path, mode):
    Image.fromarray(GRAY).convert(mode).save(tmp_path / "x.jpg", quality=100, subsampling=0)
    image = kaggle.read_image(tmp_path / "x.jpg")
    np.testing.assert_allclose(image.astype(int), GRAY, atol=3)


def encoded(kind):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8))
    picture.save(buffer := io.BytesIO(), kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["png", "jpeg"])
@pytest.mark.parametrize("left", [0, 1, 10, 100, 0.5, -20, -5, -1])
def test_a_cut_image_is_no_image(tmp_path, kind, left):
    data = encoded(kind)
    path = tmp_path / f"x.{kind}"
    path.write_bytes(data)
    kaggle.read_image(path)
    path.write_bytes(data[: int(left * len(data)) if isinstance(left, float) else left])
    text = message(kaggle.read_image, path)
    assert str(path) in text and "\n" not in text


@pytest.mark.parametrize("kind", ["flipped", "text", "bmp", "missing", "folder"])
def test_what_is_no_image_is_named(tmp_path, kind):
    path, data = tmp_path / "x.png", bytearray(encoded("png"))
    data[len(data) // 2] ^= 255
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes({"flipped": data, "text": b"hello", "bmp": encoded("bmp")}[kind])
    assert str(path) in message(kaggle.read_image, path)


# Folders


def test_a_folder_as_kaggle_has_it(folder):
    found = kaggle.read_folder(folder)
    assert found.notes == []
    a, b = found.train
    assert (a.image_id, a.height, a.width, a.index) == ("a", 300, 200, 1)
    assert (b.image_id, b.height, b.width, b.index) == ("b", 310, 210, 0)
    assert a.path == folder / "train" / "a.png"
    assert [row.rad_id for row in a.rows] == ["R9", "R8"]
    assert a.rows[0][3:] == (10, 20, 110.5, 220)
    assert [row.rad_id for row in b.rows] == ["R1", "R2"]
    # In the order of sample_submission.csv, sizes by name from test_meta.csv.
    assert [(r.image_id, r.index, r.height, r.width) for r in found.test] == [
        ("r", 0, 70, 80), ("p", 1, 50, 60), ("q", 2, 40, 30),
    ]  # fmt: skip
    assert all(record.rows == [] for record in found.test)


def test_the_order_of_test_without_a_sample_submission(folder):
    (folder / "sample_submission.csv").unlink()
    assert [record.image_id for record in kaggle.read_folder(folder).test] == ["q", "p", "r"]
    (folder / "test_meta.csv").unlink()
    found = kaggle.read_folder(folder)
    assert [(r.image_id, r.index, r.height, r.width) for r in found.test] == [
        ("p", 0, 8, 8), ("q", 1, 8, 8), ("r", 2, 8, 8),
    ]  # fmt: skip
    assert "test_meta.csv" in found.notes[0]


def test_the_smallest_folder(tmp_path):
    """No test, no meta: pictures are as large as the originals, in the order of train.csv."""
    for name in ("b.JPG", "c.jpeg", "a.png"):
        save(tmp_path / "train" / name)
    (tmp_path / "train.csv").write_text(
        "image_id,class_id,x_min,y_min,x_max,y_max\nb,3,0,0,8,8\na,14,,,,\nc,14,,,,\n"
    )
    found = kaggle.read_folder(tmp_path)
    assert [(r.image_id, r.index, r.height, r.width) for r in found.train] == [
        ("b", 0, 8, 8), ("a", 1, 8, 8), ("c", 2, 8, 8),
    ]  # fmt: skip
    assert found.test == []
    assert [note.split(":")[0] for note in found.notes] == [
        f"{tmp_path}/train_meta.csv", f"{tmp_path}/test",
    ]  # fmt: skip


def test_tables_elsewhere(folder, tmp_path):
    for name in ("train.csv", "train_meta.csv", "test_meta.csv"):
        (folder / name).rename(tmp_path / name)
    found = kaggle.read_folder(
        folder, tmp_path / "train.csv", tmp_path / "train_meta.csv", tmp_path / "test_meta.csv"
    )
    assert found.notes == []
    assert [record.height for record in found.train + found.test] == [300, 310, 70, 50, 40]


def test_pictures_that_nobody_lists_are_skipped(folder):
    for name in ("train/x", "train/y", "test/z", "train/._a"):
        save(folder / f"{name}.png")
    (folder / "train" / "notes.txt").write_text("not a picture")
    found = kaggle.read_folder(folder)
    assert [record.image_id for record in found.train] == ["a", "b"]
    assert len(found.test) == 3
    assert "train: 2 images are not in" in found.notes[0]
    assert "test: 1 images are not in" in found.notes[1]


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    "old, new",
    [("0,0,200,300", "0,0,200.5,300"), ("0,0,200,300", "0,0,200,301"), ("10,20,", "-1,20,"),
     ("10,20,", "10,-1,")],
)  # fmt: skip
def test_a_box_that_leaves_its_image_is_named(folder, old, new):
    change(folder / "train.csv", old, new)
    text = message(kaggle.read_folder, folder)
    assert "train.csv line " in text and "image a" in text and "200 wide and 300 high" in text
    assert "\n" not in text and "missing" not in text


def test_boxes_that_leave_the_pictures_hint_at_the_missing_sizes(folder):
    (folder / "train_meta.csv").unlink()
    text = message(kaggle.read_folder, folder)
    assert text.startswith("2 problems") and text.count("train_meta.csv with the sizes") == 2


@pytest.mark.parametrize(
    "break_it, said",
    [
        (lambda f: (f / "train/a.png").unlink(), "train/a.png: no such image"),
        (lambda f: (f / "test/q.png").unlink(), "test/q.png: no such image"),
        (lambda f: save(f / "train/a.jpg"), "train/a.png: a second picture"),
        (lambda f: (f / "train/a.png").write_bytes(encoded("png")[:900]), "train/a.png: broken"),
        (lambda f: (f / "test/q.png").write_bytes(b"text"), "test/q.png: not a PNG"),
        (lambda f: change(f / "train_meta.csv", "a,300,200", "c,300,200"), "no line for image a"),
        (lambda f: change(f / "test_meta.csv", "q,40,30", "c,40,30"), "no line for image q"),
        (lambda f: change(f / "train_meta.csv", "a,300,200", "a,300"), "line 3: 2 fields"),
        (lambda f: change(f / "test_meta.csv", "q,40,30", "q,40,0"), "line 2: '40,0'"),
        (lambda f: change(f / "sample_submission.csv", "p,", "r,"), "line 3: image_id r is there"),
        (lambda f: (f / "train").rename(f / "images"), "train: cannot read this folder"),
        (lambda f: [p.unlink() for p in (f / "test").iterdir()], "test: no PNG or JPEG"),
    ],
)
def test_one_fault_is_one_line(folder, break_it, said):
    break_it(folder)
    text = message(kaggle.read_folder, folder)
    assert "\n" not in text and str(folder) in text and said in text


def test_an_image_of_both_train_and_test_is_named(folder):
    save(folder / "test" / "a.png")
    change(folder / "sample_submission.csv", "q,", "a,")
    change(folder / "test_meta.csv", "q,", "a,")
    assert "image a: both in" in message(kaggle.read_folder, folder)


def test_a_path_that_is_not_there_is_named(folder, tmp_path):
    gone = tmp_path / "gone"
    assert message(kaggle.read_folder, gone) == f"{gone}: no such folder"
    assert message(kaggle.read_folder, folder / "train.csv").endswith("train.csv: no such folder")
    assert message(kaggle.read_folder, folder, gone) == f"{gone}: no such file"
    for table in ("train_meta", "test_meta"):
        assert str(gone) in message(kaggle.read_folder, folder, **{table: gone})
    (folder / "train.csv").unlink()
    assert message(kaggle.read_folder, folder) == f"{folder}/train.csv: no such file"
