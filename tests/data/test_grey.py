"""Pictures of any kind that are all or nearly of one level, and how notes are said."""

import numpy as np
import pytest
from PIL import Image

from jaxdet.data import grey, images
from tests import dicoms


def test_a_flat_picture_of_any_kind_is_said(tmp_path):
    for name in ("x.png", "x.jpg", "x.tif"):
        Image.new("L", (9, 9), 77).save(tmp_path / name)
        assert images.read(tmp_path / name).notes == (images.FLAT,)
        assert images.check(tmp_path / name)[1] == ()


@pytest.mark.parametrize("size, few", [(30, 8), (100, 99)])
def test_a_nearly_flat_picture_is_said(tmp_path, size, few):
    """Fewer than a hundredth of its pixels have another level."""
    levels = np.full(size * size, 4000, np.uint16)
    levels[:few] = np.linspace(500, 3000, few)
    levels = levels.reshape(size, size)
    Image.fromarray(levels).save(tmp_path / "x.png")
    dicoms.save(tmp_path / "x.dcm", levels, BitsStored=12)
    share = f" ({100 * (1 - few / size**2):.3g} %)"
    for name in ("x.png", "x.dcm"):
        assert images.NEARLY_FLAT + share in images.read(tmp_path / name).notes
    levels.reshape(-1)[: size * size // 100] = np.linspace(500, 3000, size * size // 100)
    Image.fromarray(levels).save(tmp_path / "x.png")
    assert images.read(tmp_path / "x.png").notes == ()


def test_notes_are_counted_and_those_of_pixels_have_names():
    notes = [("b", images.FLAT), ("a", images.FLAT),
             ("c", grey.note(images.PADDED, 0.0125)), ("c", images.ORIENTED),
             ("d", grey.note(images.PADDED, 0.5))]  # fmt: skip
    assert images.summarize(notes) == [
        f"2 pictures: {images.FLAT}: a, b",
        f"2 pictures: {images.PADDED} (at most 50 % of one): c, d",
        f"1 pictures: {images.ORIENTED}",
    ]
    many = images.summarize((f"{i:02}", images.FLAT) for i in range(12))
    assert many[0].endswith("08, 09 and 2 more")
