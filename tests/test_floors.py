"""The house of docs/architecture.md: a module imports only from a lower floor or from its own folder, placement and executors never each other;
and what is optional or slow to load is never imported at a module's top.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "hetsched"
FLOOR = {
    "errors": 0, "graph": 1, "machine": 1, "timeline": 2, "check": 3, "placement": 3, "executors": 3, "pipeline": 4, "run": 5, "report": 5,
    "testing": 6, "cli": 6,
}  # fmt: skip
# These give the package its names, and the command its start; both load the rest when it is asked for.
ROOTS = {"__init__", "__main__"}
SLOW = {"networkx", "cupy", "pyopencl", "rich", "onnx", "onnxruntime", "ortools", "torch"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """The folder (or top-level module) of the package that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path, top_only: bool = False) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, but those only for types; `top_only`: not those inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            pending += node.orelse
        elif not (top_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))):
            pending += ast.iter_child_nodes(node)


@pytest.mark.parametrize("path", [p for p in FILES if room(p) not in ROOTS], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_from_lower_floors_or_its_own_folder(path):
    here = room(path)
    for line, module in imports(path):
        if not module.startswith("hetsched."):
            continue
        there = module.split(".")[1]
        if there not in FLOOR:  # a name of the package itself, such as its version
            assert here == "cli", f"{path.name}:{line}: imports {module}"
            continue
        assert there == here or FLOOR[there] < FLOOR[here], f"{path.name}:{line}: {here} (floor {FLOOR[here]}) imports {there} (floor {FLOOR[there]})"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_what_is_slow_or_optional_is_loaded_only_when_it_is_needed(path):
    backend = path.parent.name == "backends" and path.name != "__init__.py"
    found = [f"line {line}: {module}" for line, module in imports(path, top_only=True) if module.split(".")[0] in SLOW and not backend]
    assert not found


def test_every_room_has_a_floor():
    rooms = {room(p) for p in FILES} - ROOTS
    assert rooms == set(FLOOR)


def test_the_test_sees_what_it_should(tmp_path):
    file = tmp_path / "x.py"
    file.write_text(
        "import rich\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import hetsched.cli\n"
        "def f():\n    from hetsched.run import plan\ntry:\n    import cupy\nexcept ImportError:\n    pass\n",
        encoding="utf-8",
    )
    assert {m for _, m in imports(file)} == {"rich", "typing.TYPE_CHECKING", "hetsched.run.plan", "cupy"}
    assert {m for _, m in imports(file, top_only=True)} == {"rich", "typing.TYPE_CHECKING", "cupy"}
