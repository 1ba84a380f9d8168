from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"networkx", "cupy", "pyopencl", "rich", "pydantic", "yaml", "onnx", "onnxruntime", "torch", "hypothesis"}


def loaded_by(code: str) -> set[str]:
    """The top-level modules in memory after `code`, in a process of its own."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=600)
    return set(json.loads(done.stdout))


def test_the_package_brings_none_of_its_heavy_libraries() -> None:
    loaded = loaded_by("import hetsched")
    assert "hetsched" in loaded
    assert loaded & (HEAVY | {"numpy"}) == set()


@pytest.mark.parametrize(
    "code",
    [
        "import hetsched as hs; hs.Graph, hs.Machine, hs.check, hs.plan, hs.run",
        "import hetsched.check, hetsched.placement, hetsched.executors, hetsched.machine",
        "import hetsched.testing; hetsched.testing.random_graph, hetsched.testing.broken, hetsched.testing.check_op",
        "from hetsched.graph.ops import registry; registry()",
    ],
)
def test_the_library_needs_none_of_them_before_they_are_used(code: str) -> None:
    assert loaded_by(code) & HEAVY == set()


def test_the_test_sees_what_is_loaded() -> None:
    assert {"yaml", "pydantic"} <= loaded_by("import hetsched.machine.described")


def test_check_is_the_function_whatever_was_imported_first() -> None:
    for code in ("import hetsched.check\nimport hetsched as hs", "import hetsched as hs\nimport hetsched.check", "import hetsched as hs"):
        loaded_by(f"{code}\nassert callable(hs.check), hs.check")


def test_names_of_the_testing_package_are_all_there() -> None:
    import hetsched.testing

    assert [name for name in hetsched.testing.__all__ if not hasattr(hetsched.testing, name)] == []
    assert set(hetsched.testing.__all__) <= set(dir(hetsched.testing))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        hetsched.testing.nothing  # noqa: B018
