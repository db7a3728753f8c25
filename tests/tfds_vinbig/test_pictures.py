"""Pictures of a folder: below which names they are found, and which may be read."""

import unicodedata

import numpy as np
import pytest

from jaxdet import InputError
from tests.tfds_vinbig import test_kaggle
from tests.tfds_vinbig.test_kaggle import change, message, save, write
from tfds_vinbig import kaggle, records

folder = test_kaggle.folder


def test_folders_of_patients(folder):
    """image_id is the path, however the table writes it; two of one name are two."""
    for name in ("p1/view", "p2/view"):
        save(folder / f"train/{name}.png", np.zeros((300, 200), np.uint8))
    (folder / "train_meta.csv").unlink()
    (folder / "train/a.png").unlink()
    (folder / "train/b.png").unlink()
    write(
        folder / "train.csv",
        "p1/view.png,Cardiomegaly,3,R9,1,2,30,40",
        "p2\\view,No finding,14,R9,,,,",
    )
    found = kaggle.read_folder(folder)
    assert [(r.image_id, r.path) for r in found.train] == [
        ("p1__view", folder / "train/p1/view.png"), ("p2__view", folder / "train/p2/view.png"),
    ]  # fmt: skip


def test_two_paths_that_would_be_one_id_are_named(folder):
    save(folder / "train/p/a.png")
    save(folder / "train/p__a.png")
    assert "a second picture of this id, see p/a.png" in message(kaggle.read_folder, folder)


def test_names_are_compared_in_one_form_of_unicode(folder):
    """macOS writes é as two characters."""
    (folder / "train/a.png").rename(folder / f"train/{unicodedata.normalize('NFD', 'é')}.png")
    for table in ("train.csv", "train_meta.csv"):
        change(folder / table, "\na,", "\né,")
    assert [record.image_id for record in kaggle.read_folder(folder).train] == ["é", "b"]


def test_links_are_followed_where_that_is_asked_for(folder, tmp_path):
    (folder / "train").rename(tmp_path / "disk")
    (folder / "train").mkdir()
    (folder / "train/a.png").symlink_to(tmp_path / "disk/a.png")
    (folder / "train/b.png").symlink_to(tmp_path / "disk/b.png")
    with pytest.raises(InputError, match="allow links by --follow_links"):
        kaggle.read_folder(folder)
    found = kaggle.read_folder(folder, allowed=records.Allowed(follow_links=True))
    assert len(found.train) == 2
    # A folder that is a link, and one that leads to itself.
    (folder / "train/a.png").unlink()
    (folder / "train/sub").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/again").symlink_to(tmp_path / "disk")
    for table in ("train.csv", "train_meta.csv"):
        change(folder / table, "\na,", "\nsub/a,")
    with pytest.raises(InputError, match="sub/a.png: a link that leads out of"):
        kaggle.read_folder(folder)
    found = kaggle.read_folder(folder, allowed=records.Allowed(follow_links=True))
    assert [record.image_id for record in found.train] == ["sub__a", "b"]


def test_every_picture_that_cannot_be_read_is_named_at_once(folder):
    rows = [f"x{i},No finding,14,R9,,,," for i in range(25)]
    write(folder / "train.csv", *rows)
    (folder / "train_meta.csv").unlink()
    for i in range(25):
        (folder / f"train/x{i}.png").write_text("no picture")
    with pytest.raises(InputError, match="^25 problems") as caught:
        kaggle.read_folder(folder)
    assert all(f"x{i}.png" in str(caught.value) for i in range(25))


def test_ids_with_a_suffix_are_named(folder):
    change(folder / "train.csv", "b,No", "b.png,No")
    said = message(kaggle.read_folder, folder)
    assert "train/b.png.png: no such image" in said and "write b, without the suffix" in said


@pytest.mark.parametrize("name", ["\udcff", "p\n"])
def test_a_name_that_is_no_text_is_named(folder, name):
    """Bytes of another encoding, or a line break: no id can be made of it."""
    (folder / "sample_submission.csv").unlink()
    (folder / "test_meta.csv").unlink()
    (folder / "train_meta.csv").unlink()
    for picture in "ab":
        save(folder / f"train/{picture}.png", np.zeros((300, 200), np.uint8))
    (folder / "test/p.png").rename(folder / f"test/{name}.png")
    said = message(kaggle.read_folder, folder)
    assert said == f"{folder}/test: the name {f'{name}.png'!a} is no line of text: rename it"


def test_classes_that_differ_in_case_are_said(folder):
    write(folder / "train.csv", "a,Heart,3,R9,10,20,110.5,220", "b,heart,4,R1,1,2,30,40")
    (note,) = kaggle.read_folder(folder, own_classes=True).notes
    assert note.endswith("train.csv: Heart, heart: differ in case alone, and are taken for other "
                         "classes")  # fmt: skip
    assert kaggle.read_annotations(folder / "train.csv").notes == [note]


def test_nan_of_no_finding_is_no_box(folder):
    """As pandas writes it with na_rep."""
    change(folder / "train.csv", "b,No finding,14,R1,,,,", "b,No finding,14,R1,NaN,nan,,NAN")
    assert len(kaggle.read_folder(folder).train[1].rows) == 2
    change(folder / "train.csv", "110.5", "NaN")
    assert "is not four finite numbers" in message(kaggle.read_folder, folder)
