"""What threads do ahead: in order, so far and no further, and nothing after the end."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdet.data import machine
from jaxdet.data.ahead import in_order


@settings(max_examples=30, deadline=None)
@given(items=st.lists(st.integers()), ahead=st.integers(0, 5))
def test_results_come_in_the_order_of_the_items(items, ahead):
    assert list(in_order(lambda x: 3 * x, items, ahead)) == [3 * x for x in items]


@pytest.mark.parametrize("cores,ahead", [(1, 0), (2, 3)])
def test_no_more_are_begun_than_one_for_each_core_and_those_ahead(monkeypatch, cores, ahead):
    monkeypatch.setattr(machine, "cores", lambda: cores)
    begun = []
    results = in_order(lambda x: begun.append(x) or x, range(100), ahead)
    for taken in range(1, 20):
        next(results)
        time.sleep(0.002)  # for threads to do what they should not
        assert taken <= len(begun) <= taken + cores + ahead
    results.close()


def test_what_was_not_begun_when_one_fails_never_is(monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 1)
    begun, hold = [], threading.Event()

    def fail(x):
        begun.append(x)
        if x:
            hold.wait(5)
        raise ValueError(x)

    results = in_order(fail, range(9), ahead=5)
    threading.Timer(0.2, hold.set).start()
    with pytest.raises(ValueError, match="0"):
        next(results)
    assert begun in ([0], [0, 1]) and list(results) == []
