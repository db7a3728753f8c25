"""A folder appears whole or not at all: killed at any moment, by any failure, or made twice."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tfds_vinbig import scratch

WHOLE = {"a", "a/x", "y"}


def write(target):
    with scratch.beside(target) as folder:
        (folder / "rest/a").mkdir(parents=True)
        (folder / "rest/a/x").write_text("0")
        (folder / "new/a").mkdir(parents=True)
        (folder / "new/a/x").write_text("1")
        (folder / "new/y").write_text("2")
        scratch.put(folder / "new", target)


def names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def killed(moment, call, target):
    """Whether `call(target)`, in a process of its own, was killed before its n-th audit event.

    Python raises an audit event before whatever it does with files.
    """
    child = os.fork()
    if child == 0:
        events = iter(range(moment))
        sys.addaudithook(lambda *_: next(events, None) is None and signal.raise_signal(9))
        call(target)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def check_kills(folder):
    """Kill the writer at every moment; and at every moment the one who comes after it."""
    moments = 0
    while killed(moments, write, folder / f"{moments}/target"):
        target = folder / f"{moments}/target"
        if target.parent.exists():
            left = set(os.listdir(target.parent)) - {"target"}
            assert len(left) <= 1 and all(name.startswith(".target.scratch-") for name in left)
        if target.exists():
            assert names(target) == WHOLE
            scratch.remove_abandoned(target)
        else:
            write(target)
        assert os.listdir(target.parent) == ["target"] and names(target) == WHOLE
        moments += 1
    assert moments > 20  # or nothing was counted
    again = 0
    while True:
        target = folder / f"again{again}/target"
        assert killed(2 * moments // 3, write, target)
        if not killed(again, scratch.remove_abandoned, target):
            break
        write(target)
        assert os.listdir(target.parent) == ["target"] and names(target) == WHOLE
        again += 1
    assert again > 5


def test_killed_at_any_moment(tmp_path):
    """In a process without threads, as it is forked."""
    code = (
        "import pathlib\n"
        "from tests.tfds_vinbig import test_scratch\n"
        f"test_scratch.check_kills(pathlib.Path({str(tmp_path)!r}))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)


def test_the_first_to_finish_wins(tmp_path):
    target = tmp_path / "target"
    with scratch.beside(target) as slow:
        (slow / "slow").touch()
        write(target)
        assert names(target) == WHOLE and names(slow) == {"slow"}  # not taken for abandoned
        assert not scratch.put(slow, target)
    assert names(target) == WHOLE and os.listdir(tmp_path) == ["target"]


def test_many_at_once(tmp_path):
    """Those who make a scratch folder and those who look for abandoned ones do not disturb."""
    target = tmp_path / "target"
    failed = []

    def work():
        try:
            for i in range(60):
                with scratch.beside(target) as folder:
                    (folder / "x").write_text(str(i))
                    scratch.remove_abandoned(target)
                    assert (folder / "x").read_text() == str(i)
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and os.listdir(tmp_path) == []


@pytest.mark.parametrize("moment", ["mkdtemp", "flock"])
def test_one_taken_for_abandoned_before_it_was_locked_is_made_anew(tmp_path, monkeypatch, moment):
    module = {"mkdtemp": scratch.tempfile, "flock": scratch.fcntl}[moment]
    real, calls = getattr(module, moment), []

    def slow(*args, **keywords):
        calls.append(1)
        if len(calls) > 1:
            return real(*args, **keywords)
        if moment == "mkdtemp":
            made = real(*args, **keywords)
        monkeypatch.setattr(module, moment, real)
        scratch.remove_abandoned(tmp_path / "target")
        assert os.listdir(tmp_path) == []
        monkeypatch.setattr(module, moment, slow)
        return made if moment == "mkdtemp" else real(*args, **keywords)

    monkeypatch.setattr(module, moment, slow)
    write(tmp_path / "target")
    assert len(calls) >= 2
    assert os.listdir(tmp_path) == ["target"] and names(tmp_path / "target") == WHOLE


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_failure_leaves_nothing(tmp_path, error):
    for mine in ({}, {"mine"}):
        for name in mine:
            (tmp_path / "new").mkdir()
            (tmp_path / "new" / name).touch()
        with pytest.raises(error), scratch.beside(tmp_path / "new/folder/target") as folder:
            (folder / "x").touch()
            raise error
        assert names(tmp_path) == ({"new", "new/mine"} if mine else set())


def test_what_is_not_ours_stays(tmp_path):
    target = tmp_path / "[a]*"
    for name in (".[a]*.scratch-mine/x", ".[a]*-mine/lock", ".a.scratch-other/lock"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / ".[a]*.scratch-file").touch()
    before = names(tmp_path)
    write(target)
    assert names(tmp_path) == before | {"[a]*"} | {f"[a]*/{name}" for name in WHOLE}


def test_put(tmp_path):
    def new(name):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
        return tmp_path / name

    (tmp_path / "empty").mkdir()
    assert scratch.put(new("one"), tmp_path / "empty") and names(tmp_path / "empty") == {"x"}
    (tmp_path / "file").touch()
    assert not scratch.put(new("two"), tmp_path / "file") and (tmp_path / "file").is_file()
    with pytest.raises(FileNotFoundError):
        scratch.put(new("three"), tmp_path / "missing/target")


def test_the_folder_has_the_usual_permissions(tmp_path):
    """Unlike what `tempfile` makes, which is for its owner alone."""
    (tmp_path / "usual").mkdir()
    with scratch.beside(tmp_path / "target") as folder:
        scratch.put(folder, tmp_path / "target")
    assert (tmp_path / "target").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    """Folders are made as ever; none is removed, as nothing tells which are abandoned."""

    def refuse(*_):
        raise OSError(38, "Function not implemented")

    with contextlib.suppress(ZeroDivisionError), scratch.beside(tmp_path / "target") as folder:
        monkeypatch.setattr(scratch.fcntl, "flock", refuse)
        write(tmp_path / "target")
        assert folder.exists()
    assert os.listdir(tmp_path) == ["target"]
