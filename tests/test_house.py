"""The rules of the house that a program can check."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = sorted((ROOT / "jaxdet").rglob("*.py"))
# From the ground up: a folder imports from those before it, and from itself.
FOLDERS = [
    "ops",
    "kernels",
    "models",
    "data",
    "runs",
    "inference",
    "evaluation",
    "training",
    "report",
]
OF_ALL = {"InputError", "ConfigError", "doors"}  # right in jaxdet/


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


def folder_of(path: Path) -> str:
    return path.relative_to(ROOT / "jaxdet").parts[0]


def test_every_room_is_in_a_folder_that_the_list_has():
    assert {folder_of(path) for path in ROOMS} == {*FOLDERS, "__init__.py", "doors.py"}
    assert all((ROOT / "tests" / folder).is_dir() for folder in FOLDERS)


@pytest.mark.parametrize("path", ROOMS, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    assert not roots(path) & {"tfds_vinbig", "configs", "run", "tests", "benchmarks"}
    theirs = {name.split(".")[1] for name in imports(path) if name.startswith("jaxdet.")} - OF_ALL
    below = FOLDERS[: FOLDERS.index(folder_of(path)) + 1] if path.parent.name != "jaxdet" else []
    assert theirs <= set(below)


@pytest.mark.parametrize(
    "path", [p for p in ROOMS if folder_of(p) in ("ops", "kernels", "models")],
    ids=lambda p: str(p.relative_to(ROOT)),
)  # fmt: skip
def test_arrays_and_models_import_no_data_tool(path):
    tools = {"tensorflow_datasets", "grain", "orbax", "pandas", "PIL", "tqdm", "torch",
             "ml_collections", "tensorboardX", "tensorflow"}  # fmt: skip
    assert not roots(path) & tools


@pytest.mark.parametrize("path", sorted((ROOT / "tfds_vinbig").rglob("*.py")), ids=lambda p: p.name)
def test_tfds_vinbig_uses_of_jaxdet_only_pictures_and_errors(path):
    mine = {name for name in imports(path) if name.startswith("jaxdet.")}
    allowed = {"InputError", "data.images", "data.machine", "ops.boxes"}
    assert {".".join(name.split(".")[1:3]) for name in mine} - {"data", "ops"} <= allowed


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
