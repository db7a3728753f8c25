"""One process at a time trains in a workdir."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest

from jaxdet import InputError
from jaxdet.runs import lock
from tests.conftest import ROOT, command

NOBODY = 2**22 + 1  # no process has that number


def record(path, **changes):
    """A lock file that was left by this process, or by another one."""
    owner = {"pid": os.getpid(), "host": lock.socket.gethostname(), "since": "yesterday",
             "started": psutil.Process().create_time()}  # fmt: skip
    path.mkdir(exist_ok=True)
    (path / lock.NAME).write_text(json.dumps(owner | changes) + "\n")


@pytest.fixture
def no_locks(monkeypatch):
    """A file system that has none, as NFS where the server's daemon does not run."""

    def flock(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: None)


def test_a_second_one_is_told_who_trains_there(tmp_path):
    with lock.held(tmp_path):
        host = re.escape(lock.socket.gethostname())
        said = rf"^--workdir: process {os.getpid()} on {host} \(since 20[\d: +-]+\) trains in "
        with pytest.raises(InputError, match=said), lock.held(tmp_path):
            pass
        assert (tmp_path / lock.NAME).exists()  # it is still the first one's
        with pytest.raises(InputError), lock.held(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []
    with lock.held(tmp_path):
        pass


def test_a_folder_of_which_nothing_came_is_not_left(tmp_path):
    with lock.held(tmp_path / "a/b"):
        assert (tmp_path / "a/b" / lock.NAME).exists()
    assert list(tmp_path.iterdir()) == []
    with lock.held(tmp_path / "a/b"):
        (tmp_path / "a/b/config.json").touch()
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["config.json"]


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    code = (
        "import sys, time, pathlib\n"
        "from jaxdet.runs import lock\n"
        "with lock.held(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"process {child.pid} on "), lock.held(tmp_path):
            pass
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    assert (tmp_path / lock.NAME).exists()
    with lock.held(tmp_path):
        assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("left", ["", "{", "[]", '{"pid": 1}'])
def test_a_lock_file_that_says_nothing_is_taken_over(tmp_path, left):
    (tmp_path / lock.NAME).write_text(left)
    with lock.held(tmp_path):
        assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()


def test_without_locks_the_processes_of_this_machine_tell(tmp_path, no_locks):
    record(tmp_path)
    with pytest.raises(InputError, match=r"\(since yesterday\) trains"), lock.held(tmp_path):
        pass
    for dead in ({"pid": NOBODY}, {"started": 1.0}):  # gone, or its number another one's now
        record(tmp_path, **dead)
        with lock.held(tmp_path):
            assert json.loads((tmp_path / lock.NAME).read_text())["since"] != "yesterday"


def test_without_locks_the_last_of_two_that_come_at_once_has_it(tmp_path, no_locks, monkeypatch):
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: record(tmp_path, pid=7))
    with pytest.raises(InputError, match="process 7 on "), lock.held(tmp_path):
        pass


def test_another_machine_is_given_time_to_show_that_it_lives(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lock, "SILENT_SECONDS", 0.2)
    record(tmp_path, host="node7", pid=NOBODY)
    with lock.held(tmp_path):
        pass
    err = capsys.readouterr().err
    assert f"is of process {NOBODY} on node7" in err and "it is taken over" in err

    record(tmp_path, host="node7")
    monkeypatch.setattr(lock.time, "sleep", lambda s: os.utime(tmp_path / lock.NAME, (1, 1)))
    with (
        pytest.raises(InputError, match=r"on node7 \(since yesterday\) trains"),
        lock.held(tmp_path),
    ):
        pass


def test_who_trains_touches_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
    with lock.held(tmp_path):
        os.utime(tmp_path / lock.NAME, (1, 1))
        end = time.monotonic() + 10
        while lock._touched(tmp_path / lock.NAME) == 10**9 and time.monotonic() < end:
            time.sleep(0.01)
        assert lock._touched(tmp_path / lock.NAME) != 10**9


def test_only_process_0_of_several_takes_it(tmp_path, monkeypatch):
    monkeypatch.setattr(lock.jax, "process_index", lambda: 1)
    with lock.held(tmp_path / "run"):
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mode", ["train", "crossval"])
def test_the_same_command_twice_is_one_line(tiny, tmp_path, mode):
    with lock.held(tmp_path):
        done = command(*tiny, f"--workdir={tmp_path}", f"--mode={mode}")
    assert done.code == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and f"process {os.getpid()} on " in done.stderr


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").touch()
    said = "--workdir: cannot write in .*file/run: Not a directory"
    with pytest.raises(InputError, match=said), lock.held(tmp_path / "file/run"):
        pass
