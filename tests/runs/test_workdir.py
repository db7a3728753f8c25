import json

import jax
import pytest

from jaxdet import InputError
from jaxdet.runs import workdir


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "new" / "file.json"
    workdir.write_atomically(path, "one")
    assert path.read_text() == "one"
    with pytest.raises(TypeError):
        workdir.write_atomically(path, object())
    assert path.read_text() == "one"
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_files_that_belong_together_are_all_there_or_none(tmp_path):
    workdir.write_together({tmp_path / "a": "one", tmp_path / "b": b"two"})
    assert (tmp_path / "a").read_text() == "one" and (tmp_path / "b").read_bytes() == b"two"
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write .*file/c"):
        workdir.write_together({tmp_path / "a": "new", tmp_path / "file/c": "new"})
    assert (tmp_path / "a").read_text() == "one"
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot write .*folder: it is a folder"):
        workdir.write_together({tmp_path / "a": "new", tmp_path / "folder": "new"})
    assert (tmp_path / "a").read_text() == "one"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "file", "folder"]


def test_a_place_that_cannot_be_written_to_is_named():
    with pytest.raises(InputError, match=r"cannot write /dev/null/x\.json"):
        workdir.write_atomically(workdir.Path("/dev/null/x.json"), "")
    for nameless in (".", "/"):
        with pytest.raises(InputError, match="it is a folder"):
            workdir.write_atomically(workdir.Path(nameless), "")


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    workdir.write_atomically(tmp_path / "file", "one")
    workdir.open_log(tmp_path, 0)(1, {"loss": 1.0})
    assert not list(tmp_path.iterdir())


def test_the_log_goes_on_where_the_run_does(tmp_path):
    """Lines past the step, and one that was not finished, are gone; the others stay to the bit."""
    log = workdir.open_log(tmp_path, 0)
    for step in (1, 2, 3):
        log(step, {"loss": 1 / step})
    log(2, {"mAP@0.4": 0.25, "AP": {"Nodule": None, "Mass": 0.5}})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    workdir.open_log(tmp_path, 2)(3, {"loss": 7.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert lines == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 0.5},
        {"step": 2, "mAP@0.4": 0.25, "AP": {"Nodule": None, "Mass": 0.5}},
        {"step": 3, "loss": 7.0},
    ]
    assert workdir.read_scores(tmp_path, "mAP@0.4") == {2: 0.25}
    assert workdir.read_scores(tmp_path, "loss") == {1: 1.0, 2: 0.5, 3: 7.0}
    assert workdir.read_scores(tmp_path, "wAFROC") == {}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"run": {}}', '{"run": {"classes": []}}'])
def test_a_broken_record_of_a_run_is_named(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json: not the record of a run"):
        workdir.read_config(tmp_path)


def test_no_record_of_a_run_is_named(tmp_path):
    with pytest.raises(InputError, match=r"config\.json: no such file; train first"):
        workdir.read_config(tmp_path)
