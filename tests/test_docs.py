"""What README.md and docs/ name is there: commands, flags, fields, files, links."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from absl.testing import flagsaver

from configs import reference, retina

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FIELDS = list(retina.get_fields())


def code_of(page: Path) -> tuple[list[str], list[str]]:
    """The lines of a page's shell blocks, continued ones as one, and what stands in backticks."""
    text = page.read_text()
    blocks = re.findall(r"^```(?:bash|sh)\n(.*?)^```", text, re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    rest = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return lines, [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", rest)]


def commands():
    """(page, words) of each command in a shell block, and of each `python ...` in the text."""
    for page in PAGES:
        lines, spans = code_of(page)
        for line in [*lines, *(span for span in spans if span.startswith("python "))]:
            words = []
            for word in [*shlex.split(line.replace("; ", " ; "), comments=True), "&&"]:
                if word in ("&&", "|", ";", ">", ">>", "do", "done"):
                    # In the text a command may be named without its flags.
                    named = words[1:] == ["-m", "tfds_vinbig"] or "..." in words
                    if words and Path(words[0]).name in ("python", "python3") and not named:
                        yield page.name, words[1:]
                    words = []
                elif words or not re.match(r"[A-Z_]+=", word):
                    words.append(word)


COMMANDS = list(commands())


def parse_run(words):
    """As `run.py` does; where there is no config, the run in the workdir has one."""
    import jaxdet.training.loop  # noqa: F401  its tools define flags
    import run
    from jaxdet.runs.command_line import parse

    words = [re.sub(r"^--config=C$", "--config=configs/phantom.py", word) for word in words]
    if any(word.startswith("--config.") for word in words) and not any(
        word.startswith("--config=") for word in words
    ):
        words = ["--config=configs/retina.py", *words]
    with flagsaver.flagsaver(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [])
        parse(["run.py", *words], ROOT / "configs/of_workdir.py", run.MODES)


def test_there_are_commands():
    assert len(COMMANDS) > 30 and {page for page, _ in COMMANDS} > {"README.md", "own_data.md"}


@pytest.mark.parametrize("page,words", COMMANDS, ids=lambda x: x if isinstance(x, str) else "")
def test_a_command_has_flags_and_fields_that_there_are(page, words):
    if words[0] == "-m":
        assert importlib.util.find_spec(words[1]), words
        if words[1] == "tfds_vinbig":
            from tfds_vinbig.__main__ import parse

            alternatives = [re.sub(r"\|.*", "", word) for word in words[2:]]
            parse([word.replace("--size=N", "--size=64") for word in alternatives])
    elif words[0] == "run.py":
        parse_run(words[1:])
    elif words[0] == "example.py":
        assert page == "export.md"  # which says where it is
    elif words[0].endswith(".py"):
        source = (ROOT / words[0]).read_text()
        for word in words[1:]:
            if flag := re.match(r"--([\w-]+)", word):
                assert re.search(rf'"(--)?{flag[1]}"', source), (words[0], word)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_files_and_fields_are_there(page):
    assert not re.search(r"\b[A-Z]+_WORDS|TODO|FIXME|MINUTES|THREE_SEEDS", page.read_text())
    text = page.read_text()
    plain = re.sub(r"^```.*?^```|`[^`]+`", "", text, flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", plain):
        assert "://" in link or (page.parent / link).exists(), link
    for name in re.findall(
        r"\b(?:tests|configs|benchmarks|jaxdet|docs|tfds_vinbig)/[\w/]+\.(?:py|md|png|jsonl)\b",
        text,
    ):
        assert (ROOT / name).exists() or (ROOT / "jaxdet" / name).exists(), name
    sections = {field.split(".")[0] for field in FIELDS}
    for span in code_of(page)[1]:
        field = re.fullmatch(r"(?:--)?(?:config\.)?(\w+(?:\.\w+)+)(?:=.*)?", span)
        if span.endswith((".json", ".npz")):
            continue
        if field and field[1].split(".")[0] in sections - {"train", "data"}:
            assert any(f"{name}.".startswith(f"{field[1]}.") for name in FIELDS), span


def test_the_reference_of_the_config_is_up_to_date():
    """`python -m configs.reference > docs/config.md` mends it."""
    page = (ROOT / "docs/config.md").read_text()
    assert page == reference.reference()
    for name in FIELDS:
        assert page.count(f"| `{name}`") == 1


def test_the_reference_says_what_a_field_means_and_may_be():
    page = (ROOT / "docs/config.md").read_text()
    assert all(field.meaning for field in retina.get_fields().values())
    assert (
        "| `augment.flip` | `0.5` | `0.0` | 0 to 1 | of affine: probability of mirroring |" in page
    )
    assert "| `data.num_workers`* | `4` |  | above 0 | threads that read ahead |" in page
