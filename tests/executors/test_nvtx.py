"""NVTX: what is handed to a CUDA stream stands inside a range named after its task. On a CuPy of NumPy and stand-ins of both NVTX modules."""

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import fake_cupy
import numpy as np
import pytest

import hetsched as hs
from hetsched.errors import TaskError
from hetsched.executors import live
from hetsched.machine import HOST, Machine
from hetsched.run import check_inputs
from hetsched.testing.backend import _machine_of


class Recorder:
    """Stands in for an NVTX module: what was begun, and that all of it ended, on the thread that began it."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.open: list[str] = []

    def push(self, name: str) -> None:
        self.begun.append(name)
        self.open.append(name)

    def pop(self) -> None:
        self.open.pop()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "nvtx", None)  # as if it were not installed
    return fake_cupy.install(monkeypatch)


def box(backend: Any) -> Machine:
    machine = _machine_of(backend)
    return replace(machine, devices=tuple(d if d.memory == HOST else replace(d, languages=("array",)) for d in machine.devices))


def graph(op: Any = "tensor.neg") -> hs.Graph:
    b = hs.Graph.build()
    there = hs.Where(("cuda:0",))
    first = b.op(op, b.input("x", (8,)), name="first", where=there)
    b.output(b.op("tensor.exp", first, name="second", where=there), "y")
    return b.freeze()


def run(backend: Any, g: hs.Graph) -> Any:
    plan = hs.plan(g, box(backend))
    return live.run_plan(plan, check_inputs(g, {"x": np.zeros(8, np.float32)}), backends={"cuda": backend})


@pytest.mark.parametrize("module", ["nvtx", "cupy"])
def test_launches_and_copies_are_named_where_nvtx_is_there(fake: Any, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Recorder()
    if module == "nvtx":
        monkeypatch.setitem(sys.modules, "nvtx", SimpleNamespace(push_range=seen.push, pop_range=seen.pop))
    else:
        sys.modules["cupy"].cuda.nvtx = SimpleNamespace(RangePush=seen.push, RangePop=seen.pop)
    assert (run(fake, graph())["y"] == 1).all()
    assert seen.begun == ["copy of x to cuda:0", "first + 1", "copy of second to host"]
    assert seen.open == []


def test_a_range_ends_where_the_launch_fails(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Recorder()
    monkeypatch.setitem(sys.modules, "nvtx", SimpleNamespace(push_range=seen.push, pop_range=seen.pop))

    def broken(xp: Any, ins: Any, outs: Any, workspace: Any, attributes: Any) -> None:
        raise FloatingPointError("kernel broke")

    op = hs.Op("test.bad", ("x",), ("y",), lambda s, a: [s[0]], lambda i, o, a: hs.Work(1, 4, 4), kernels={"array": broken})
    with pytest.raises(TaskError, match="kernel broke"):
        run(fake, graph(op))
    assert "first + 1" in seen.begun
    assert seen.open == []


def test_without_nvtx_nothing_is_named_and_all_runs(fake: Any) -> None:
    """No module of either name, and CuPy's stand-in for a module that could not be imported."""
    assert (run(fake, graph())["y"] == 1).all()
    sys.modules["cupy"].cuda.nvtx = SimpleNamespace(available=False)
    assert (run(fake, graph())["y"] == 1).all()
