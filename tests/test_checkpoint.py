import shutil

import numpy as np
import pytest

from jaxdet import InputError, checkpoint

SCORES = {1: 0.1, 2: 0.5, 3: 0.2, 4: 0.3}


@pytest.fixture
def folder(tmp_path):
    """Checkpoints saved before they are scored; the best is neither the first nor the last."""
    scores = {}
    with checkpoint.open_manager(tmp_path, scores) as manager:
        for step, score in SCORES.items():
            checkpoint.save(
                manager, step, weights={"x": np.full(3, step)}, training={"y": np.zeros(2)}
            )
            scores[step] = score
    return tmp_path


ABSTRACT = {"weights": {"x": np.zeros(3, int)}, "training": {"y": np.zeros(2)}}


def test_the_two_newest_and_the_best_are_kept(folder):
    with checkpoint.open_manager(folder) as manager:
        assert sorted(manager.all_steps()) == [2, 3, 4]
        assert checkpoint.find_step(manager, "best", SCORES) == 2
        assert checkpoint.find_step(manager, "latest", SCORES) == 4
        assert checkpoint.find_step(manager, "2", SCORES) == 2
        for which in ("1", "newest"):
            with pytest.raises(InputError, match=f"--checkpoint={which}.* 2, 3, 4; or say best or"):
                checkpoint.find_step(manager, which, SCORES)
        with pytest.raises(InputError, match="2, 3, 4; or say latest"):
            checkpoint.find_step(manager, "best", {})


def test_what_was_saved_comes_back(folder):
    with checkpoint.open_manager(folder) as manager:
        items, step = checkpoint.restore_newest(manager, **ABSTRACT)
    assert step == 4 and items["weights"]["x"].tolist() == [4, 4, 4]


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_one_that_cannot_be_read_is_reported_and_the_one_before_is_used(folder, capsys):
    files = [p for p in (folder / "checkpoints/4").rglob("*") if p.is_file()]
    for path in files:
        cut(path)
    shutil.rmtree(folder / "checkpoints/3/weights")
    with checkpoint.open_manager(folder) as manager:
        items, step = checkpoint.restore_newest(manager, **ABSTRACT)
        assert step == 2 and items["weights"]["x"].tolist() == [2, 2, 2]
        said = capsys.readouterr().out
        assert "checkpoint 4 in" in said and "checkpoint 3 in" in said
        with pytest.raises(InputError, match="checkpoint 4 in .* cannot be read"):
            checkpoint.restore(manager, 4, **ABSTRACT)
        for path in (folder / "checkpoints/2").rglob("*"):
            if path.is_file():
                cut(path)
        with pytest.raises(InputError, match="no checkpoint in .* can be read"):
            checkpoint.restore_newest(manager, **ABSTRACT)


def test_one_of_another_model_is_refused_with_the_first_difference(folder):
    with checkpoint.open_manager(folder) as manager:
        other = {"weights": {"x": np.zeros(5, int)}, "training": {"y": np.zeros(2)}}
        with pytest.raises(InputError, match=r"does not fit .*: x is \(3,\) there and \(5,\) here"):
            checkpoint.restore_newest(manager, **other)


def test_no_checkpoint_is_named(tmp_path):
    with pytest.raises(InputError, match="no checkpoints in .*train first"):
        checkpoint.open_manager(tmp_path)
    with (
        checkpoint.open_manager(tmp_path, {}) as manager,
        pytest.raises(InputError, match="no checkpoints in"),
    ):
        checkpoint.find_step(manager, "latest", {})
