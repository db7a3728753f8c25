"""The rules of the house that a program can check."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = sorted((ROOT / "jaxdet").rglob("*.py"))
ARRAYS = [ROOT / f"jaxdet/{n}.py" for n in ["boxes", "anchors", "matching", "losses", "nms",
          "fusion", "metrics", "curves", "errors", "cpu", "winograd"]]  # fmt: skip
MODELS = sorted((ROOT / "jaxdet/models").glob("*.py"))


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def roots(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def test_there_is_something_to_check():
    assert len(ROOMS) > 20 and len(MODELS) > 4 and all(path.exists() for path in ARRAYS)


@pytest.mark.parametrize("path", ROOMS, ids=lambda p: str(p.relative_to(ROOT)))
def test_jaxdet_imports_nothing_of_tfds_vinbig(path):
    assert not roots(path) & {"tfds_vinbig", "configs", "run", "tests", "benchmarks"}


@pytest.mark.parametrize("path", ARRAYS + MODELS, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrays_and_models_import_no_data_tool(path):
    tools = {"tensorflow_datasets", "grain", "orbax", "pandas", "PIL", "tqdm", "torch",
             "ml_collections", "tensorboardX", "tensorflow"}  # fmt: skip
    assert not roots(path) & tools
    mine = {name.split(".")[1] for name in imports(path) if name.startswith("jaxdet.")}
    arrays = {p.stem for p in ARRAYS}
    allowed = arrays | {"InputError"} | (set() if path in ARRAYS else {"models", "compilation"})
    assert mine <= allowed


@pytest.mark.parametrize("path", sorted((ROOT / "tfds_vinbig").rglob("*.py")), ids=lambda p: p.name)
def test_tfds_vinbig_uses_of_jaxdet_only_pictures_and_errors(path):
    mine = {name for name in imports(path) if name.startswith("jaxdet.")}
    assert {name.split(".")[1] for name in mine} <= {"InputError", "images", "boxes"}
    assert not {name for name in mine if "boxes." in name} - {"jaxdet.boxes.BoxTable"}


def test_no_circles():
    """Imports at the top of a file point down."""
    graph = {}
    for path in ROOMS:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found = set()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
        graph[name] = found
    done, doing = set(), []

    def visit(name):
        assert name not in doing, f"{' -> '.join([*doing, name])}"
        if name in done or name not in graph:
            return
        doing.append(name)
        for other in sorted(graph[name] - {"jaxdet"}):
            visit(other)
        doing.pop()
        done.add(name)

    for name in graph:
        visit(name)


@pytest.mark.parametrize(
    "path",
    [p for folder in ("jaxdet", "configs", "tfds_vinbig", "tests", "benchmarks")
     for p in sorted((ROOT / folder).rglob("*.py"))] + [ROOT / "run.py"],
    ids=lambda p: str(p.relative_to(ROOT)),
)  # fmt: skip
def test_a_file_is_of_400_lines_at_most(path):
    assert len(path.read_text().splitlines()) <= 400


def test_no_room_has_a_name_that_says_nothing():
    names = {part.lower() for path in ROOMS for part in path.with_suffix("").parts}
    assert not names & {"utils", "util", "common", "helpers", "misc"}
