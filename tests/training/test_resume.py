"""The result of a run does not depend on how often it was interrupted, nor on where."""

import contextlib
import itertools
import json
import os
import signal

import jax
import numpy as np
import pytest

from jaxdet.evaluation.evaluate import Evaluator
from jaxdet.runs import checkpoint, parallel
from jaxdet.training import loop
from tests.conftest import command


def lines_of(workdir):
    """Of metrics.jsonl, but for the clock."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]


def state_of(workdir, step):
    """Every array of a checkpoint."""
    with checkpoint.open_manager(workdir) as manager:
        return {k: v for k, v in manager.restore(step).items() if k != "checksums"}


def assert_same_run(one, other):
    """The same parameters, bit for bit, the same metrics, and the same files."""
    last = lines_of(one)[-1]["step"]
    jax.tree.map(np.testing.assert_array_equal, state_of(one, last), state_of(other, last))
    assert lines_of(one) == lines_of(other)
    for name in ("config.json", "evaluation.json", "submission.csv", "detections.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


@contextlib.contextmanager
def signal_as_it_begins(number, owner, name, calls_before=0):
    """This process gets a signal as soon as a function is called, or once it has been."""
    function, calls = getattr(owner, name), itertools.count()

    def with_signal(*arguments, **options):
        if next(calls) >= calls_before:
            os.kill(os.getpid(), number)
        return function(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, with_signal)
        yield


def test_an_interrupted_run_ends_as_one_that_was_not(trained, tiny, tmp_path, monkeypatch):
    run = [*tiny, f"--workdir={tmp_path}"]

    # While step 1 runs, which is neither logged for that reason nor saved otherwise. A batch is
    # also made to compile the step for.
    with signal_as_it_begins(signal.SIGTERM, parallel, "shard_batch", calls_before=1):
        done = command(*run)
    assert done.code == 0 and "goes on from step 1, which is saved" in done.stderr
    assert [line["step"] for line in lines_of(tmp_path)] == [1]
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["1"]

    # In the evaluation after step 2.
    with signal_as_it_begins(signal.SIGINT, Evaluator, "score"):
        done = command(*run)
    assert done.code == 130 and "goes on from what was saved last" in done.stderr
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2]

    # Killed between the line of step 3 and its checkpoint; the evaluation is made up for.
    def fail(manager, step, **items):
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", fail)
        with pytest.raises(RuntimeError):
            command(*run)
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 2, 3]

    assert command(*run).code == 0
    assert_same_run(tmp_path, trained[0])


@pytest.mark.slow
def test_steps_that_are_not_finite_end_a_run_and_can_be_made_again(tiny, tmp_path, monkeypatch):
    pad = loop.pad

    def with_nan(*arguments):
        targets = pad(*arguments)
        targets.soft_targets[targets.mask] = np.nan
        return targets

    run = [*tiny, f"--workdir={tmp_path}"]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "pad", with_nan)
        done = command(*run, "--config.train.max_skipped_steps=2")
    assert done.code == 2
    assert "step 2, as 2 in a row, had a loss (nan)" in done.stderr
    assert f"--replay={tmp_path}/skipped_batch.npz" in done.stderr
    lines = lines_of(tmp_path)
    assert [line["skipped_steps"] for line in lines] == [1, 2]
    assert [line["loss"] for line in lines] == [None, None]  # JSON has no NaN

    done = command(f"--workdir={tmp_path}", f"--replay={tmp_path}/skipped_batch.npz")
    assert done.code == 0, done.stderr
    first, *rest = [line for line in done.stdout.splitlines() if "loss" in line]
    assert first.startswith("step 2: ") and ", loss nan" in first
    assert len(rest) == 4
    for line in rest:  # the images with boxes are to blame
        assert (", loss nan" in line) == (": 0 boxes" not in line), line
    for file, said in (("none.npz", "no such file"), ("config.json", "not a batch that a run")):
        done = command(f"--workdir={tmp_path}", f"--replay={tmp_path}/{file}")
        assert done.code == 2 and said in done.stderr
    # With good targets it goes on.
    assert command(*run).code == 0
    assert lines_of(tmp_path)[-2]["skipped_steps"] == 2
