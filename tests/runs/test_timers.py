import time

import pytest

from jaxdet.runs import timers
from jaxdet.runs.timers import stage


def test_a_stage_leaves_out_those_inside_it(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timers, "_seconds", {})
    with stage("training"):
        now[0] += 5
        with stage("evaluating"):
            now[0] += 2
        now[0] += 1
    with pytest.raises(ValueError), stage("evaluating"):  # also of what fails
        now[0] += 4
        raise ValueError
    assert timers.summary() == "evaluating 6.0 s, training 6.0 s; 12.0 s in all"
