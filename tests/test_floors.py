"""The house of docs/architecture.md: a module imports only from a lower floor or from its own folder, placement and executors never each other,
wherever in the file the import stands and also where it is only for types; modules that load each other make no circle;
and what is optional or slow to load is never imported at a module's top.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "hetsched"
FLOOR = {
    "errors": 0, "folders": 0, "quiet": 0, "text": 0, "graph": 1, "machine": 1, "timeline": 2, "check": 2.5, "locked": 2.7, "placement": 3,
    "executors": 3, "rehearsal": 3.5, "dispatching": 3.5, "needs": 3.7, "pipeline": 4, "costing": 4,
    "replanning": 4, "checkpoints": 4.5, "run": 5, "report": 5, "session": 5.5, "testing": 6, "cli": 6,
}  # fmt: skip
# These give the package its names, and the command its start; both load the rest when it is asked for.
ROOTS = {"__init__", "__main__"}
SLOW = {"networkx", "cupy", "pyopencl", "rich", "onnx", "onnxruntime", "ortools", "torch"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """The folder (or top-level module) of the package that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path, *, at_load: bool = False) -> Iterator[tuple[int, str]]:
    """(line, module) of every import; `at_load`: only of those that run when the module is loaded, not those inside functions or for types."""
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
        elif at_load and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            pending += node.orelse
        elif not (at_load and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))):
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
    found = [f"line {line}: {module}" for line, module in imports(path, at_load=True) if module.split(".")[0] in SLOW and not backend]
    assert not found


def test_modules_that_load_each_other_make_no_circle():
    names = {".".join(("hetsched", *p.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): p for p in FILES}
    # `from a.b import c` loads a.b, and a.b.c where that is a module; a package's __init__ may load its own modules.
    loads = {
        name: {m for _, full in imports(path, at_load=True) for m in (full, full.rpartition(".")[0]) if m in names and not name.startswith(f"{m}.")}
        - {name}
        for name, path in names.items()
    }
    done: set[str] = set()

    def follow(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for other in sorted(loads[name]):
                follow(other, (*trail, name))
            done.add(name)

    for name in names:
        follow(name, ())
    assert loads["hetsched.check.order"] >= {"hetsched.check.sheet", "hetsched.timeline"}


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
    assert {m for _, m in imports(file)} == {"rich", "typing.TYPE_CHECKING", "hetsched.cli", "hetsched.run.plan", "cupy"}
    assert {m for _, m in imports(file, at_load=True)} == {"rich", "typing.TYPE_CHECKING", "cupy"}
