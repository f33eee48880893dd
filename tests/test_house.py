"""The house: arrows run down only, none runs in a circle, and every room is on the plan (docs/design.md)."""

from __future__ import annotations

import ast
import re
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).resolve().parent.parent
# The rooms from the ground floor up. A file imports from its own room and from those that stand before it.
FLOORS = (
    "numba_kernels",
    *("errors", "guesses", "rooms", "sizes", "escapes", "tables", "texts", "resources", "machine", "statistics"),
    *("formats", "checkpoints", "models", "convert", "adapters"),
    *("engine", "chat", "calibration", "verify", "tiny", "download", "endpoints", "cluster", "fit", "harness"),
    *("measure", "planning", "report", "compare", "serve", "cli", "__main__"),
)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def files() -> dict[str, Path]:
    """The path of every module of the two packages."""
    return {module_of(path): path for package in ("numba_kernels", "oss_tools") for path in (ROOT / package).rglob("*.py")}


def room_of(module: str) -> str:
    """numba_kernels, or what follows oss_tools; the package itself, which knows its version only, is in no room: ''."""
    first, _, rest = module.partition(".")
    return first if first == "numba_kernels" else rest.partition(".")[0]


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports_of(node: ast.AST, known: frozenset[str]) -> set[str]:
    """The modules that a piece of code imports, inside of functions as well, but not for types alone."""
    found: set[str] = set()
    for child in ast.iter_child_nodes(node):
        if is_for_types(child):
            continue
        if isinstance(child, ast.Import):
            found |= {name.name for name in child.names}
        elif isinstance(child, ast.ImportFrom) and child.module:
            full = [f"{child.module}.{name.name}" for name in child.names]
            found |= {name if name in known else child.module for name in full}
        else:
            found |= imports_of(child, known)
    return found & known


@cache
def arrows() -> dict[str, set[str]]:
    known = frozenset(files())
    return {module: imports_of(ast.parse(path.read_text()), known) - {module} for module, path in files().items()}


def test_no_arrow_runs_up() -> None:
    upward = [
        f"{module} imports {other}"
        for module, others in arrows().items()
        for other in others
        if room_of(module) and room_of(other) and FLOORS.index(room_of(other)) > FLOORS.index(room_of(module))
    ]
    assert not upward, "\n".join(sorted(upward))


def test_nothing_imports_in_a_circle() -> None:
    try:
        TopologicalSorter(arrows()).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_every_room_is_on_a_floor_and_on_the_plan() -> None:
    rooms = {room_of(module) for module in files()} - {""}
    assert rooms == set(FLOORS)
    plan = (ROOT / "docs" / "design.md").read_text()
    missing = [room for room in rooms if (ROOT / "oss_tools" / room).is_dir() and f"| `oss_tools/{room}/`" not in plan]
    assert not missing


def test_every_file_that_the_plan_names_is_there() -> None:
    plan = (ROOT / "docs" / "design.md").read_text()
    named = set(re.findall(r"`((?:oss_tools|numba_kernels|configs|evals|tests)/[\w./*-]+)`", plan))
    assert len(named) > 60
    assert not [name for name in named if "*" not in name and not (ROOT / name).exists()]
    for life in ("request", "tensor", "answer"):
        steps = plan.partition(f"## The life of a{'n' * (life == 'answer')} {life}")[2].partition("\n## ")[0]
        assert len(re.findall(r"^\d\. ", steps, re.MULTILINE)) == 7


def test_an_upward_arrow_is_seen() -> None:
    """The test sees imports in functions, and passes over those that are for types."""
    code = "if TYPE_CHECKING:\n    import a.x\ndef f():\n    from a.y import z\nfrom a import w"
    assert imports_of(ast.parse(code), frozenset({"a", "a.x", "a.y", "a.w"})) == {"a.y", "a.w"}


def test_the_structure_is_printed() -> None:
    """`pytest -s tests/test_house.py -k printed` shows it."""
    sizes = {module: path.stat().st_size for module, path in files().items()}
    largest = max(sizes, key=lambda module: sizes[module])
    edges = sum(len(others) for others in arrows().values())
    above = sum(size > 14_336 for size in sizes.values())
    print(f"{len(sizes)} files in {len(FLOORS)} rooms, {edges} imports, median {median(sizes.values()):,.0f} bytes")
    print(f"largest {sizes[largest]:,} bytes ({largest}), {above} above 14 KiB")
    assert edges > len(sizes)


def test_no_two_files_of_tests_have_the_same_name() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name not in ("__init__.py", "conftest.py")]
    assert sorted(names) == sorted(set(names)), "pytest imports them by their names alone"


def test_the_name_of_no_test_holds_what_gzip_wrote(request: pytest.FixtureRequest) -> None:
    """gzip writes the time: processes that start a second apart would collect different tests, and pytest-xdist refuses."""
    assert not [item.nodeid for item in request.session.items if "\\x1f\\x8b" in item.nodeid]
