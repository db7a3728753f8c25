"""Labels in which the detector has a say: the same however often a run was interrupted."""

import shutil

import numpy as np
import pandas as pd
import pytest

from jaxdet import InputError
from jaxdet.data import splits
from jaxdet.data.batches import Images, fuse_readers, make_targets, pad
from jaxdet.data.dataset import open_dataset, read_split
from jaxdet.inference.detector import load_detector, to_table
from jaxdet.runs import checkpoint, workdir
from jaxdet.training import loop, relabel
from tests.conftest import TINY, command
from tests.runs.test_parallel import start_two
from tests.training.test_resume import assert_same_run

# Labels are made again after steps 2 and 4, which are neither evaluated nor saved otherwise. What a
# network of so few steps finds overlaps little.
BDC = [
    *TINY, "--config.data.fusion=bdc@0.01", "--config.data.fusion_every=2",
    "--config.train.steps=5", "--config.train.evaluate_every=3", "--config.train.ema_decay=0.5",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """All runs here are of one config, and compiling is most of their time."""

    def once(make):
        made = []

        def get(*arguments):
            if not made:
                made.append(make(*arguments))
            return made[0]

        return get

    with pytest.MonkeyPatch.context() as patch:
        for name in ("compile_training", "Detector"):
            patch.setattr(loop, name, once(getattr(loop, name)))
        yield


@pytest.fixture(scope="module")
def run(kaggle_folder, tmp_path_factory):
    """Flags of a run on the shapes, of which every reader overlooks a third."""
    from tfds_vinbig.tfds_vinbig_dataset_builder import build

    folder = tmp_path_factory.mktemp("disagree")
    shutil.copytree(kaggle_folder, folder / "kaggle")
    rows = pd.read_csv(folder / "kaggle/train.csv")
    seen = np.random.default_rng(0).random(len(rows)) > 1 / 3
    first = ~rows.duplicated(["image_id", "rad_id"])  # who drew something still does
    rows[seen | first].to_csv(folder / "kaggle/train.csv", index=False)
    build("256", folder / "tfds", manual_dir=folder / "kaggle")
    return [*BDC, f"--config.data.dir={folder / 'tfds'}"]


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """A run that was not interrupted, and the targets that it has learned from."""
    folder, learned, made = tmp_path_factory.mktemp("whole"), [], loop.training_batches

    def training_batches(config, dataset, targets, *rest):
        learned.append(targets)
        return made(config, dataset, targets, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "training_batches", training_batches)
        done = command(*run, f"--workdir={folder}")
    assert done.code == 0, done.stderr
    assert "relabelling" in done.stdout
    return folder, learned


def assert_same(one, other):
    for name, column in one.columns().items():
        np.testing.assert_array_equal(column, getattr(other, name))


@pytest.mark.slow
def test_labels_are_made_of_the_weights_of_their_step(whole, run, config):
    """By way of the checkpoint, and in batches of other images."""
    folder, (first, second, third) = whole
    config.data.dir = run[-1].partition("=")[2]
    builder = open_dataset(config.data.name, config.data.dir)
    train_set, _ = splits.train_and_eval(config.data, builder, read_split(builder, "train"))
    assert_same(first, make_targets(train_set, "skill@0.01", 64))
    for step, targets in ((2, second), (4, third)):
        assert_same(targets, relabel.read(folder, step, len(train_set)))
        # The same findings, but for their boxes and how probable they are.
        np.testing.assert_array_equal(targets.labels, first.labels)
        np.testing.assert_array_equal(targets.mask, first.mask)
    changed = [np.abs(second.soft_targets - x.soft_targets).max() for x in (first, third)]
    assert min(changed) > 1e-3

    from configs import retina
    from jaxdet.runs.config import of_run

    config = of_run(folder, retina.get_fields())
    config.data.dir, config.evaluation.batch_size = "", 8
    loaded = load_detector(config, folder, "4", train_set.num_classes)
    images = Images(train_set, 64, "train")
    found = loaded.detector.detect_all(loaded.weights, lambda i: images[i], len(train_set))
    table = to_table(found, train_set.sizes, 64, train_set.num_classes)
    findings = fuse_readers(train_set, "bdc@0.01", table)
    again = pad(train_set, findings, 64)
    np.testing.assert_allclose(again.soft_targets, third.soft_targets, atol=1e-5)
    np.testing.assert_allclose(again.boxes, third.boxes, atol=1e-2)
    rows = workdir.read_readers(folder)
    assert "the detector" in {row["reader"] for row in rows}
    names = [row["reader"] for row in findings.skills.rows(train_set.class_names)]
    assert [row["reader"] for row in rows] == names


@pytest.mark.slow
def test_a_run_that_is_killed_between_two_labellings_ends_as_one_that_was_not(
    whole, run, tmp_path, monkeypatch
):
    run = [*run, f"--workdir={tmp_path}"]

    class Killed(Exception):
        pass

    def kill(*arguments, **options):
        raise Killed

    def killed_in(owner, name, at):
        function, calls = getattr(owner, name), iter(range(100))

        def call(*arguments, **options):
            return (kill if next(calls) == at else function)(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, call)
            with pytest.raises(Killed):
                command(*run)

    killed_in(checkpoint, "save", 2)  # that of step 4; those of 2 and 3 are there
    assert sorted(p.name for p in (tmp_path / "labels").iterdir()) == ["2.npz"]
    killed_in(relabel, "fuse_readers", 0)  # the labels after step 4
    assert sorted(p.name for p in (tmp_path / "labels").iterdir()) == ["2.npz"]
    assert command(*run).code == 0
    assert_same_run(tmp_path, whole[0])
    for name in ("readers.csv", "labels/2.npz", "labels/4.npz"):
        assert (tmp_path / name).read_bytes() == (whole[0] / name).read_bytes(), name


@pytest.mark.slow
def test_two_processes_make_the_labels_of_one(whole, run, tmp_path):
    processes, errors = start_two(run, tmp_path / "run")
    for process, file in zip(processes, errors, strict=True):
        assert process.wait(timeout=300) == 0, file.read_text()
    for step, targets in zip((2, 4), whole[1][1:], strict=True):
        # Batches of half the size add up in another order.
        made = relabel.read(tmp_path / "run", step, len(targets.mask))
        np.testing.assert_array_equal(made.mask, targets.mask)
        np.testing.assert_array_equal(made.labels, targets.labels)
        np.testing.assert_allclose(made.boxes, targets.boxes, atol=0.1)
        said = np.abs(targets.soft_targets - whole[1][0].soft_targets).max()  # by the detector
        np.testing.assert_allclose(made.soft_targets, targets.soft_targets, atol=said / 20)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["gone", "cut", "of another run"])
def test_labels_that_cannot_be_read_are_named(whole, tmp_path, what):
    (tmp_path / "labels").mkdir()
    file, content = tmp_path / "labels/2.npz", (whole[0] / "labels/2.npz").read_bytes()
    if what != "gone":
        file.write_bytes(content[:500] if what == "cut" else content)
    with pytest.raises(InputError, match=f"{file}: not the labels of this run"):
        relabel.read(tmp_path, 2, 1)


def test_it_cannot_be_the_truth(run, tmp_path):
    for words in (
        [*run, f"--workdir={tmp_path}", "--config.evaluation.ground_truth=bdc@0.4"],
        ["--mode=fuse", "--annotations=a.csv", "--output=o.json", "--fusion=bdc@0.4"],
    ):
        done = command(*words)
        (line,) = done.stderr.splitlines()
        assert done.code == 2 and "for data.fusion alone" in line
