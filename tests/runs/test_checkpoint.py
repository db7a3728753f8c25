import contextlib
import json
import random
import re
import resource
import shutil
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from jaxdet import InputError
from jaxdet.runs import checkpoint, checkpoint_files

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
        said = capsys.readouterr().err
        assert "checkpoint 4 in" in said and "checkpoint 3 in" in said
        with pytest.raises(InputError, match="checkpoint 4 in .* cannot be read"):
            checkpoint.restore(manager, 4, **ABSTRACT)
        for path in (folder / "checkpoints/2").rglob("*"):
            if path.is_file():
                cut(path)
        with pytest.raises(InputError, match="no checkpoint in .* can be read"):
            checkpoint.restore_newest(manager, **ABSTRACT)


def damage(path, how):
    content = path.read_bytes()
    if how == "is gone":
        path.unlink()
    else:
        path.write_bytes(
            content[:-1] if "bytes of" in how else bytes([content[0] ^ 1]) + content[1:]
        )


@pytest.mark.parametrize("how", ["is gone", "bytes of", "is not as it was saved"])
def test_each_file_is_looked_at_before_orbax_is_asked(folder, how, capfd, monkeypatch):
    """Which would say it in hundreds of lines; here it is one, on standard error."""
    asked = []
    theirs = checkpoint.shapes
    monkeypatch.setattr(
        checkpoint,
        "shapes",
        lambda manager, step, *items: asked.append(step) or theirs(manager, step, *items),
    )
    newest = folder / "checkpoints/4"
    files = sorted(path for path in newest.glob("*/**/*") if path.is_file())
    assert len(files) > 8
    for path in files:
        content = path.read_bytes()
        damage(path, how)
        with checkpoint.open_manager(folder) as manager:
            assert checkpoint.restore_newest(manager, **ABSTRACT)[1] == 3
        out, err = capfd.readouterr()
        assert out == "" and err.count("\n") == 1
        assert f"cannot be read: its file {path.relative_to(newest)}" in err and how in err
        path.write_bytes(content)
    assert set(asked) == {3}


def test_a_checkpoint_without_a_list_of_files_is_read_and_damage_said_in_words(folder, capfd):
    """As all were before there was one."""
    for step in ("3", "4"):
        (folder / "checkpoints" / step / "files.json").unlink()
    with checkpoint.open_manager(folder) as manager:
        assert checkpoint.restore_newest(manager, **ABSTRACT)[1] == 4
    (folder / "checkpoints/4/weights/_METADATA").unlink()
    shutil.rmtree(folder / "checkpoints/3/training")
    with checkpoint.open_manager(folder) as manager:
        assert checkpoint.restore_newest(manager, **ABSTRACT)[1] == 2
    one, other = capfd.readouterr().err.splitlines()
    assert "cannot be read: its folder weights is gone, or has no _METADATA" in one
    assert "cannot be read: its folder training is gone" in other


@pytest.mark.parametrize("listed", [True, False])
def test_weights_are_read_where_only_the_state_of_training_is_damaged(folder, capfd, listed):
    """Which predicting does not need; training does."""
    newest = folder / "checkpoints/4"
    if not listed:
        (newest / "files.json").unlink()
    for path in sorted((newest / "training").rglob("*"))[::-1]:
        path.unlink() if path.is_file() else path.rmdir()
        with checkpoint.open_manager(folder) as manager:
            items, step = checkpoint.restore_newest(manager, weights=ABSTRACT["weights"])
        assert step == 4 and items["weights"]["x"].tolist() == [4, 4, 4]
        assert capfd.readouterr().err == ""
    with checkpoint.open_manager(folder) as manager:
        assert checkpoint.restore_newest(manager, **ABSTRACT)[1] == 3
    assert "training" in capfd.readouterr().err.partition("cannot be read")[2]


def test_what_a_checkpoint_without_a_list_has_lost_is_said_in_words(folder, capfd):
    """Whichever file of its weights it is, and of the oldest one no other is taken."""
    for step in "23":
        shutil.rmtree(folder / "checkpoints" / step)
    newest = folder / "checkpoints/4"
    (newest / "files.json").unlink()
    needed = [p for p in newest.glob("*/**/*") if p.is_file() and p.name != "commit_success.txt"]
    for path in needed:
        for how in ("is gone", "bytes of", "is not as it was saved"):
            content = path.read_bytes()
            damage(path, how)
            with checkpoint.open_manager(folder) as manager, contextlib.suppress(InputError):
                checkpoint.restore_newest(manager, **ABSTRACT)
            path.write_bytes(content)
            said = capfd.readouterr().err
            assert said.count("\n") <= 1 and "the one before" not in said
            assert len(said) < 200 and not re.search("[A-Z]{4}_|[Tt]ensor|zarr", said), said
            assert said or how != "is gone" or path.parent.name == "d"
    for path in needed:
        path.unlink()
    with checkpoint.open_manager(folder) as manager, pytest.raises(InputError, match="no checkp"):
        checkpoint.restore_newest(manager, **ABSTRACT)
    said = capfd.readouterr().err
    assert said.endswith("cannot be read: its folder training is gone, or has no _METADATA\n")
    assert said.count("\n") == 1


def test_threads_that_report_too_late_show_no_trace(folder):
    shown = []
    hook = checkpoint._WithoutLateThreads(lambda *error: shown.append(error[1]))
    other = ValueError("Event loop is closed")
    for error in (RuntimeError("Event loop is closed"), RuntimeError("else"), other):
        hook(type(error), error, None)
    assert [str(error) for error in shown] == ["else", "Event loop is closed"]


def test_types_are_compared_before_checksums(folder):
    other = {"weights": {"x": np.zeros(3, np.int32)}, "training": {"y": np.zeros(2)}}
    with checkpoint.open_manager(folder) as manager:
        with pytest.raises(InputError, match=r"x is int64 \(3,\) there and int32 \(3,\) here$"):
            checkpoint.restore(manager, 4, **other)
        with jax.enable_x64(True), pytest.raises(InputError, match="JAX_ENABLE_X64.*: unset it"):
            checkpoint.restore(manager, 4, **other)


def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path):
    """Orbax notices those in its own tables; in the numbers, only the checksums do."""
    x = np.random.default_rng(0).random(1000)
    saved = {"weights": {"x": x}, "training": {"y": np.zeros(2)}}
    with checkpoint.open_manager(tmp_path, {}) as manager:
        checkpoint.save(manager, 1, **saved)
    (tmp_path / "checkpoints/1/files.json").unlink()  # which would notice all of them
    rng, damaged = random.Random(0), 0
    for path in sorted(p for p in (tmp_path / "checkpoints").rglob("*") if p.is_file()):
        content = path.read_bytes()
        for _ in range(3):
            flipped = bytearray(content)
            flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            path.write_bytes(flipped)
            with checkpoint.open_manager(tmp_path) as manager:
                try:
                    items = checkpoint.restore(manager, 1, **saved)
                except checkpoint.Unreadable as error:
                    damaged += "x is not as it was saved" in str(error)
                else:
                    jax.tree.map(np.testing.assert_array_equal, items, saved)
        path.write_bytes(content)
    assert damaged


@pytest.mark.parametrize("share", [0.0, 0.4, 0.8, 1.0])
def test_one_that_was_half_deleted_does_no_harm(folder, share):
    """Killed while the oldest was deleted: the next save deletes the rest."""
    oldest, scores = folder / "checkpoints/2", {4: 0.3}
    paths = sorted(oldest.rglob("*"), key=lambda path: -len(path.parts))
    for path in paths[: round(share * len(paths))]:
        path.rmdir() if path.is_dir() else path.unlink()
    with checkpoint.open_manager(folder, scores) as manager:
        assert checkpoint.restore_newest(manager, **ABSTRACT)[1] == 4
        new = {"weights": {"x": np.full(3, 5)}, "training": {"y": np.zeros(2)}}
        checkpoint.save(manager, 5, **new)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["4", "5"]
    with checkpoint.open_manager(folder) as manager:
        assert checkpoint.restore_newest(manager, **ABSTRACT)[1] == 5


def test_a_full_disk_leaves_the_last_checkpoint_and_is_named(folder):
    """A file may not grow, as on a full disk: known at the latest as the next one is saved."""
    large = {
        "weights": {"x": np.random.default_rng(0).random(200_000)},
        "training": {"y": np.zeros(2)},
    }
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        named = "cannot save .*: File too large; that of step 4 is kept"
        with checkpoint.open_manager(folder, SCORES) as manager:
            checkpoint.save(manager, 5, **large)
            with pytest.raises(InputError, match=named):
                checkpoint.wait(manager)
            checkpoint.save(manager, 6, **large)
            with pytest.raises(InputError, match=named):
                checkpoint.save(manager, 7, **large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with checkpoint.open_manager(folder, SCORES) as manager:
        assert checkpoint.restore_newest(manager, **ABSTRACT)[1] == 4
        items = {"weights": {"x": np.full(3, 5)}, "training": {"y": np.zeros(2)}}
        checkpoint.save(manager, 5, **items)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["2", "4", "5"]


def test_one_of_another_model_is_refused_with_the_first_difference(folder):
    with checkpoint.open_manager(folder) as manager:
        other = {"weights": {"x": np.zeros(5, int)}, "training": {"y": np.zeros(2)}}
        with pytest.raises(
            InputError, match=r"does not fit .*: x is int64 \(3,\) there and int64 \(5,\) here"
        ):
            checkpoint.restore_newest(manager, **other)


def test_how_an_optimizer_is_chained_does_not_matter(tmp_path):
    """One part more before Adam, one less, a wrapper around it: the same arrays, to the same place;
    the two counts, which have the same name, in their order."""
    params = {"kernel": np.zeros(3, np.float32)}
    adam = optax.adam(optax.constant_schedule(0.1))
    saved = adam.init(params)
    moments, scale = saved[0], saved[1]
    saved = (
        moments._replace(count=np.int32(7), mu={"kernel": np.full(3, 1.0, np.float32)},
                         nu={"kernel": np.full(3, 2.0, np.float32)}),
        scale._replace(count=np.int32(5)),
    )  # fmt: skip
    with checkpoint.open_manager(tmp_path, {}) as manager:
        checkpoint.save(manager, 1, training={"opt_state": (optax.EmptyState(), saved)})
    with checkpoint.open_manager(tmp_path) as manager:
        for optimizer in (
            adam,
            optax.chain(optax.identity(), optax.identity(), adam),
            optax.chain(optax.masked(adam, {"kernel": True}), optax.identity()),
        ):
            abstract = {"opt_state": optimizer.init(params)}
            found = checkpoint.restore(manager, 1, training=abstract)["training"]
            assert jax.tree.structure(found) == jax.tree.structure(abstract)
            leaves = jax.tree.leaves(found)
            assert [np.unique(x).tolist() for x in leaves] == [[7], [1.0], [2.0], [5]]
        other = {"opt_state": optax.sgd(0.1, momentum=0.9).init(params)}
        with pytest.raises(InputError, match=r": opt_state\.count is int32 \(\) there and None"):
            checkpoint.restore(manager, 1, training=other)


def test_no_checkpoint_is_named(tmp_path):
    with pytest.raises(InputError, match="no checkpoints in .*train first"):
        checkpoint.open_manager(tmp_path)
    with (
        checkpoint.open_manager(tmp_path, {}) as manager,
        pytest.raises(InputError, match="no checkpoints in"),
    ):
        checkpoint.find_step(manager, "latest", {})


@pytest.mark.parametrize(
    "text",
    ["", "{}", '{"training/x": [1, 2]}', '{"": [1, 2]}', '{"weights/x": 1}', "[" * 200_000],
)
def test_a_damaged_list_of_files_is_none(tmp_path, text):
    """Then the files themselves are looked at."""
    folder = tmp_path / "3"
    shutil.copytree(Path(__file__).parents[1] / "old_run/checkpoints/3", folder)
    (folder / "files.json").write_text(text)
    assert checkpoint_files.check(folder, ["weights"]) == ""
    (folder / "weights/manifest.ocdbt").unlink()
    assert checkpoint_files.check(folder, ["weights"]) == "files of weights are gone"


@pytest.mark.parametrize("name", ["\0", "\ud800"])
def test_a_list_of_no_names_of_files(tmp_path, name):
    listed = {"weights/" + name: [1, 2], "checksums/metadata": [1, 2]}
    (tmp_path / "files.json").write_text(json.dumps(listed))
    said = checkpoint_files.check(tmp_path, ["weights"])
    assert said.startswith("its list files.json has ") and said.isprintable()
