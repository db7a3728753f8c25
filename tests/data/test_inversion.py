from pathlib import Path

import numpy as np

from jaxdet.data import images
from jaxdet.data.inversion import grey_levels, looks_inverted


def test_negatives_of_films_look_inverted_and_films_do_not(tmp_path):
    """Real chest films where they are at hand, and films of the phantom."""
    from tfds_vinbig.phantom import draw_folder

    draw_folder(tmp_path / "phantom", num_train=24, num_test=0, size=64, workers=1)
    folders = [tmp_path / "phantom/train"]
    real = Path(__file__).parents[3] / "shared/data/lungs_ccby/train"
    for folder in [*folders, real] if real.exists() else folders:
        paths = sorted(folder.iterdir())
        films = np.stack([images.resize(images.read(path).pixels, 64) for path in paths])
        levels = grey_levels(films[::2])
        assert not any(looks_inverted(film, levels) for film in films[1::2])
        found = [looks_inverted(255 - film, levels) for film in films[1::2]]
        assert np.mean(found) > 0.95


def test_films_that_are_all_alike_have_levels_too():
    flat = np.full((4, 32, 32), 60, np.uint8)
    levels = grey_levels(flat)
    assert not looks_inverted(flat[0], levels)
    assert looks_inverted(255 - flat[0], levels)
