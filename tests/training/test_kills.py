"""A run that is killed again and again ends as one that was not."""

import random
import sys

import pytest

from benchmarks import kills


@pytest.mark.slow
def test_a_run_killed_at_ten_moments_ends_as_one_that_was_not(tiny, tmp_path):
    """At a random time after something of each kind has been seen to begin."""
    rng = random.Random(0)
    command = [sys.executable, "run.py", *tiny, *kills.LENGTH]
    reference = tmp_path / "reference"
    kills.run_through(command, reference)
    starting_seconds = kills.run_through(command, tmp_path / "again")  # by compiled programs
    assert kills.differences(tmp_path / "again", reference) == []
    every_kind = list(kills.Moments(tmp_path, rng, 0).kinds)  # in the order of a run
    killed = []
    for i, kinds in enumerate((every_kind, ["in a step", "while saving", "in evaluation"])):
        workdir = tmp_path / f"run{i}"
        killed += kills.trial(command, reference, workdir, kinds, rng, starting_seconds)[0]
    assert len(killed) >= 10
