"""A run that is killed again and again ends as one that was not."""

import random
import sys

import pytest

from benchmarks import kills


@pytest.mark.slow
def test_a_run_killed_at_every_kind_of_moment_ends_as_one_that_was_not(tiny, tmp_path):
    """At a random time after something of each kind has been seen to begin."""
    rng = random.Random(0)
    command = [sys.executable, "run.py", *tiny, *kills.LENGTH]
    reference = tmp_path / "reference"
    kills.run_through(command, reference)
    starting_seconds = kills.run_through(command, tmp_path / "again")  # by compiled programs
    assert kills.differences(tmp_path / "again", reference) == []
    kinds = list(kills.Moments(tmp_path, rng, 0).kinds)  # in the order of a run
    killed, _ = kills.trial(command, reference, tmp_path / "run", kinds, rng, starting_seconds)
    assert len(killed) >= len(kinds) - 1  # the last may come too late
