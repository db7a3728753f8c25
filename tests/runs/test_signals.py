import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from jaxdet.runs import signals
from tests.conftest import ROOT, command
from tfds_vinbig import drawn


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_at_once_what_has_nothing_to_save(number):
    before = signal.getsignal(number)
    with pytest.raises(signals.Stopped) as stopped, signals.caught():
        send(number)
        time.sleep(5)
    assert stopped.value.number == number and stopped.value.step is None
    assert signal.getsignal(number) is before and signals.asked() == 0


def test_a_signal_waits_for_what_has_something_to_save(capfd):
    done = []
    with pytest.raises(signals.Stopped), signals.caught(), signals.held():
        assert signals.asked() == 0
        send(signal.SIGTERM)
        send(signal.SIGTERM)  # as a scheduler and the parent that it tells
        assert signals.asked() == signal.SIGTERM
        time.sleep(0.2)
        done.append("saved")
    assert done == ["saved"]
    said = capfd.readouterr().err
    assert said == "SIGTERM: saving after this step; another one ends at once\n"


def test_a_signal_that_was_swallowed_still_counts():
    """Raised where Python ignores exceptions, such as in a finaliser."""
    with pytest.raises(signals.Stopped), signals.caught():
        with contextlib.suppress(signals.Stopped):
            send(signal.SIGINT)
        with signals.held():
            raise AssertionError


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_process_that_hangs(number):
    """It hangs outside of Python, where Python's own handlers never run."""
    code = (
        "import ctypes\n"
        "from jaxdet.runs import signals\n"
        "signals.SAME_SECONDS = 0.2\n"
        "with signals.caught(), signals.held():\n"
        "    print('hangs', flush=True)\n"
        "    ctypes.CDLL(None).usleep.argtypes = [ctypes.c_uint]\n"
        "    while True: ctypes.CDLL(None).sleep(60) or [0 for _ in iter(int, 1)]\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"hangs\n"
    process.send_signal(number)
    assert b"another one ends at once" in process.stderr.readline()
    time.sleep(0.4)
    assert process.poll() is None
    process.send_signal(number)
    assert process.wait(timeout=10) == 128 + number
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_who_waits_for_other_processes(number):
    """JAX waits outside of Python, for minutes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    code = (
        "from jaxdet.runs import parallel, signals\n"
        "with signals.caught():\n"
        f"    parallel.join_processes('localhost:{port}', 4, 0)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr.readline() == "waiting for 3 others, 120 seconds at most\n"
    time.sleep(1)  # by then it waits
    process.send_signal(number)
    name = signal.Signals(number).name
    assert process.stderr.read() == f"run.py: {name}: ended while waiting for the others\n"
    assert process.wait(timeout=10) == 128 + number


def test_what_is_said_of_the_next_start_is_true(tmp_path):
    """Before the first checkpoint there is nothing to go on from, whatever was drawn or read."""
    stop = signals.Stopped(signal.SIGTERM)
    anew = "nothing of the run is saved yet: the same command starts it anew"
    assert stop.goes_on(tmp_path / "none") == anew
    (tmp_path / "run/checkpoints/5.orbax-checkpoint-tmp").mkdir(parents=True)
    assert stop.goes_on(tmp_path / "run") == anew
    for finished in ("run/checkpoints/5", "cv/fold0/checkpoints/5"):
        (tmp_path / finished).mkdir(parents=True)
    for workdir in ("run", "cv"):
        said = "the same command goes on from what was saved last"
        assert stop.goes_on(tmp_path / workdir) == said
    stop = signals.Stopped(signal.SIGINT, 7)
    assert stop.goes_on(tmp_path) == "the same command goes on from step 7, which is saved"


def test_a_signal_while_the_phantom_is_drawn(tmp_path, monkeypatch):
    def interrupted(folder):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(drawn, "drawn_phantom", interrupted)
    done = command(
        "--config=configs/phantom.py", f"--config.data.dir={tmp_path}/data",
        f"--workdir={tmp_path}/run",
    )  # fmt: skip
    assert done.code == 0
    assert done.stderr == (
        "run.py: SIGTERM: nothing of the run is saved yet: the same command starts it anew\n"
    )
    assert not (tmp_path / "run").exists()
