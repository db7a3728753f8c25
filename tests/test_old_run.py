"""A run of an earlier version, read by this one: the same numbers.

`old_run/` was made by commit 28ca199, before fields had a `before`, on the shapes of conftest:
three steps of a tiny network with an image head, on four devices. `continued.jsonl` has what that
version logged as it went on to step 5, `exported.npz` what its exported detector found in one
picture.
"""

import json
import shutil
from pathlib import Path

import jax.export
import numpy as np
import pytest

from tests.conftest import command

OLD = Path(__file__).parent / "old_run"


@pytest.fixture(scope="module")
def old(dataset, data_dir, tmp_path_factory):
    """Flags of a copy of the run, and the copy."""
    folder = tmp_path_factory.mktemp("old") / "run"
    shutil.copytree(OLD, folder)
    # The fingerprint of a dataset is of its PNGs as they are packed, which a newer zlib may pack
    # otherwise; only then is today's taken for the run's.
    if (np.load(OLD / "exported.npz")["checksums"] != dataset.checksums).any():
        record = json.loads((folder / "config.json").read_text())
        record["run"]["dataset"] = dataset.fingerprint()
        (folder / "config.json").write_text(json.dumps(record))
    return [f"--workdir={folder}", f"--config.data.dir={data_dir}"], folder


def run(*arguments):
    done = command(*arguments)
    assert done.code == 0, done.stderr


def numbers(value, name=""):
    """(name, value) of everything in a JSON."""
    if isinstance(value, dict):
        for key in value:
            yield from numbers(value[key], f"{name}/{key}")
    elif isinstance(value, list):
        for i, x in enumerate(value):
            yield from numbers(x, f"{name}/{i}")
    else:
        yield name, value


def assert_same_numbers(found, expected):
    """What was there is there, to 1e-4; what has been added since is not looked at."""
    found = dict(numbers(found))
    for name, value in numbers(expected):
        is_number = isinstance(value, float)
        assert found[name] == (pytest.approx(value, 1e-4, 1e-4) if is_number else value), name


def test_it_is_evaluated(old):
    flags, folder = old
    run(*flags, "--mode=evaluate")
    found, expected = (
        json.loads((place / "evaluation.json").read_text()) for place in (folder, OLD)
    )
    assert_same_numbers(found, expected)


def test_it_predicts(old, tmp_path):
    flags, _ = old
    run(*flags, "--mode=predict", f"--output={tmp_path}")
    found, expected = (
        json.loads((place / "detections.json").read_text()) for place in (tmp_path, OLD)
    )
    assert len(found) == len(expected) > 100
    # Their order within an image may differ where scores are alike.
    rows = [
        (x["image_id"], x["category_id"], *np.round(x["bbox"], 1), x["score"], *x["bbox"])
        for table in (found, expected) for x in table
    ]  # fmt: skip
    found, expected = sorted(rows[: len(found)]), sorted(rows[len(found) :])
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a[6:], b[6:], rtol=1e-4, atol=1e-4 * 512)


def test_it_exports(old, tmp_path):
    flags, _ = old
    run(*flags, "--mode=export", f"--output={tmp_path}")
    detector = jax.export.deserialize((tmp_path / "detector.bin").read_bytes())
    expected = dict(np.load(OLD / "exported.npz"))
    found = detector.call(expected.pop("picture")[None])
    del expected["checksums"]
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name][0], value, rtol=1e-4, atol=1e-4, err_msg=name)


def test_it_goes_on(old):
    """Parameters, Adam's moments and the counts of steps come over, or the losses would differ."""
    flags, folder = old
    run(*flags, "--config.train.steps=5")
    found, expected = (
        [json.loads(line) for line in file.open()]
        for file in (folder / "metrics.jsonl", OLD / "continued.jsonl")
    )
    found = [line for line in found if line["step"] > 3]
    assert len(found) == len(expected) == 4
    for ours, theirs in zip(found, expected, strict=True):
        for clock in (ours, theirs):
            clock.pop("images_per_second", None)
        if "loss" in theirs:
            assert_same_numbers(ours, theirs)
