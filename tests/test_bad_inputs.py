"""Each bad input is one line that names the fault: no traceback, no hang, no gigabyte."""

import re
import signal
from pathlib import Path

import numpy as np
import pytest
from absl.testing import flagsaver
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import jaxdet.training.loop  # noqa: F401  defines flags of its tools, which are not to be forgotten
import run
from configs import retina
from jaxdet import InputError
from jaxdet.models.weights import init_from as weights
from tests.bad_inputs import files, places, runs, tables
from tests.conftest import ROOT
from tests.models.test_pth import NUMBERS, pickled, tensor
from tests.models.test_pth import write as write_pth

TABLE = ROOT / "docs/bad_inputs.md"
HEAD = """# Bad inputs

What somebody gets who gives one of these to the command line: exit code 2, and this line (`…` is
the folder). No path in a file is followed out of its folder, and no pickle is executed. Written by

    python -m pytest tests/test_bad_inputs.py    # fails where the program says something else, and
                                                 # leaves what it says in docs/bad_inputs.md.new

Each takes less than 20 seconds and a gigabyte of memory.
"""


class TooLong(BaseException):
    pass


def kilobytes(name: str) -> int:
    """What the system says of this process, such as its VmRSS."""
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def what_it_gets(read, folder: Path) -> str:
    """The one line, and no more than 20 seconds and a gigabyte for it."""

    def end(*_):
        raise TooLong

    handler = signal.signal(signal.SIGALRM, end)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM, the most memory, counts from now
    before = kilobytes("VmRSS")
    signal.alarm(20)
    try:
        with pytest.raises(InputError) as caught:
            read(folder)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
    assert kilobytes("VmHWM") - before < 2**20
    return str(caught.value)


CASES = files.CASES | places.CASES | tables.CASES | runs.CASES


@pytest.fixture
def dataset(data_dir, monkeypatch):
    monkeypatch.setenv("DATASET", f"{data_dir}/tfds_vinbig/256")


def test_a_bad_input_is_one_line(dataset, tmp_path):
    """All of them in one test, so that the table is of all."""
    assert sum(map(len, CASES.values())) >= 40
    parts, count = [HEAD], 0
    for group, members in CASES.items():
        parts.append(f"\n## {group}\n\n| what is wrong | what is said |\n|---|---|\n")
        for wrong, read in members.items():
            count += 1
            folder = tmp_path / str(count)
            folder.mkdir()
            said = what_it_gets(read, folder)
            # A file with several faults has a line for each.
            assert "\n" not in said or re.match(r"\d+ problems in", said), (wrong, said)
            assert len(said) < 500, (wrong, said)
            assert not (folder / "executed").exists(), wrong
            said = said.replace(str(folder), "…").replace("|", "\\|").replace("\n ", "<br>")
            said = re.sub(r"there are [\w., ]+", "there are …", said)  # all fields of a section
            said = re.sub(r"is damaged \(.*\):", "is damaged (…):", said)  # as others say it
            said = re.sub(r"no picture there \(.*\)", "no picture there (…)", said)  # all endings
            parts.append(f"| {wrong} | {said} |\n")
    table = "".join(parts)
    if not TABLE.exists() or table != TABLE.read_text():
        TABLE.with_suffix(".md.new").write_text(table)
        pytest.fail("docs/bad_inputs.md is not what the program says; see docs/bad_inputs.md.new")


def test_nothing_reads_a_pickle():
    """But for the reader of .pth, which takes tensors alone: see test_pth."""
    loads, banned = 0, r"torch\.load|joblib|\bdill\b|marshal|yaml\.load|read_pickle"
    for path in [*(ROOT / "jaxdet").rglob("*.py"), *(ROOT / "tfds_vinbig").rglob("*.py")]:
        text = path.read_text()
        assert not re.search(banned, text), path
        calls = re.findall(r"np\.load\(.*", text)
        assert all("allow_pickle=False" in call for call in calls), path
        loads += len(calls)
        if path.name != "pth.py":
            assert not re.search(r"^\s*(import|from) pickle", text, re.M), path
    assert loads


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**40), 10**40),
    st.integers(-2, 70),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.one_of(st.integers(-2, 10**12), st.floats(), st.text(max_size=3)), max_size=4).map(
        tuple
    ),
)
FIELDS = list(retina.get_fields())


@settings(max_examples=40, deadline=None)
@given(field=st.sampled_from(FIELDS), value=VALUES)
def test_any_value_of_any_field_is_taken_or_named(field, value):
    try:
        runs.override(field, value)(None)
    except InputError as error:
        assert str(error).startswith("config.") and "\n" not in str(error)


@settings(max_examples=60, deadline=None)
@example("\n")
@example("--config.no\nfield=1")
@example("--config.train.learning-rate=1")
@example("--config.model.if=1")
@example("--config.=1")
@given(
    word=st.one_of(
        st.builds("--config.{}={}".format, st.sampled_from(FIELDS), st.text(max_size=8)),
        st.builds(
            "--{}={}".format,
            st.sampled_from(sorted(set().union(*run.MODES.values()))),
            st.text(max_size=8),
        ),
        st.text(max_size=12),
    ).filter(lambda word: "\0" not in word and "help" not in word)
)
def test_any_word_on_the_command_line_is_taken_or_named(word):
    with flagsaver.flagsaver(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [])
        try:
            run.parse(
                ["run.py", "--config=configs/phantom.py", word],
                ROOT / "configs/of_workdir.py",
                run.MODES,
            )
        except InputError as error:
            assert "\n" not in str(error)


@settings(max_examples=50, deadline=None)
@given(
    kind=st.sampled_from(["npz", "safetensors", "pth"]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damaged_weights_are_read_or_named(tmp_path_factory, kind, changes):
    path = tmp_path_factory.getbasetemp() / f"weights.{kind}"
    if kind == "npz":
        np.savez(path, a=np.arange(9.0), b=np.zeros((2, 3), np.float32))
    elif kind == "safetensors":
        save_file({"a": np.arange(9.0), "b": np.zeros((2, 3), np.float32)}, path)
    else:
        write_pth(path, pickled({"a": tensor()}), {"0": NUMBERS.tobytes()})
    data = bytearray(path.read_bytes())
    for share, byte in changes:
        data[int(share * (len(data) - 1))] = byte
    path.write_bytes(data)
    try:
        assert all(isinstance(x, np.ndarray) for x in weights.read(path).values())
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)
