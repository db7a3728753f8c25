import numpy as np
import pytest
from PIL import Image

from jaxdet import InputError, predict


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.jpg", "notes.txt", ".c.png"):
        Image.new("L", (40, 20), 90).save(tmp_path / name, "png" if "png" in name else "jpeg")
    return tmp_path


def test_a_file_a_folder_or_a_glob(folder):
    names = lambda path: [p.name for p in predict.find_files(str(path))]  # noqa: E731
    assert names(folder) == ["a.jpg", "b.png"]
    assert names(folder / "b.png") == ["b.png"]
    assert names(folder / "*.jpg") == ["a.jpg"]
    with pytest.raises(InputError, match="--images=.*/none: no picture there"):
        predict.find_files(str(folder / "none"))


def test_sizes_are_the_files_own_or_those_that_are_known(folder):
    files = predict.find_files(str(folder))
    own = predict.read_pictures(files, None, 32)
    assert own.ids == ["a", "b"] and own.sizes.tolist() == [[20, 40], [20, 40]]
    assert [image.shape for image in own.images] == [(32, 32)] * 2 and own.problems == []
    known = predict.read_pictures(files, {"a": (200, 400)}, 32)
    assert known.ids == ["a"] and known.sizes.tolist() == [[200, 400]]
    assert len(known.problems) == 1 and "no line for image_id b" in known.problems[0]


def test_a_file_that_cannot_be_read_is_a_problem_and_the_rest_go_on(folder):
    (folder / "a.jpg").write_bytes(b"no picture")
    got = predict.read_pictures(predict.find_files(str(folder)), None, 32)
    assert got.ids == ["b"] and "a.jpg" in got.problems[0]


def test_the_pictures_of_a_split_come_in_the_order_of_its_index(dataset):
    order = np.random.default_rng(0).permutation(len(dataset))
    got = predict.split_pictures(dataset.take(order), 64, 4)
    assert got.ids == sorted(dataset.ids.tolist())  # as train_meta.csv has them
    i = int(np.flatnonzero(dataset.ids == got.ids[5])[0])
    np.testing.assert_array_equal(got.images[5], dataset.decode(i, 64))
