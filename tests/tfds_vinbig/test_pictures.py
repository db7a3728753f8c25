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
