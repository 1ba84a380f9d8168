"""Without a lock around the interpreter what counts on one stays away, and the crew's own does the work. (Simulated: it says that it has none.)"""

import ast
import random
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import hetsched as hs
from hetsched.executors import binding, kept, pages, relay, replay, rounds, sharing
from hetsched.machine import HOST, Device, Machine, MemoryNode
from hetsched.run import check_inputs
from hetsched.testing.graphs import random_graph
from hetsched.testing.reference import interpret
from hetsched.testing.runs import run_problems, value_problems

CPU = Device("cpu", "cpu", lanes=2, languages=("host", "array"), shares_lanes=True, bytes_per_second=10e9, flops_per_second={"float32": 1e8})
SLOW = Machine((CPU,), (), (MemoryNode(HOST),))  # so slow that tasks are worth a thread

EXECUTORS = Path(sharing.__file__).parent


def interpreter(asked: int | None, has_now: bool) -> Any:
    return SimpleNamespace(flags=SimpleNamespace(gil=asked), _is_gil_enabled=lambda: has_now)


@pytest.fixture
def no_gil(monkeypatch):
    """No run takes the ways that need the interpreter's lock."""

    def never(*args: Any) -> Any:
        raise AssertionError("this way needs an interpreter that does one thing at a time")

    monkeypatch.setattr(sharing, "sys", interpreter(None, False))
    monkeypatch.setattr(relay, "Relay", never)
    monkeypatch.setattr(rounds, "Rounds", never)
    monkeypatch.setattr(replay.SHORT_WORK, "enter", never)
    kept.give_back()


@pytest.mark.parametrize(
    ("asked", "has_now", "is_atomic"),
    [
        (1, True, True),  # a build with the lock, or one without that was told to have it
        (None, False, False),
        (None, True, False),  # it has the lock while a module in C is imported: for how long, nobody knows
        (0, False, False),
    ],
)
def test_only_a_lock_that_stays_counts(asked, has_now, is_atomic, monkeypatch):
    monkeypatch.setattr(sharing, "sys", interpreter(asked, has_now))
    assert sharing.is_atomic() is is_atomic


def test_an_interpreter_that_knows_of_no_other_kind_has_a_lock(monkeypatch):
    monkeypatch.setattr(sharing, "sys", SimpleNamespace(flags=SimpleNamespace()))  # 3.11 and 3.12
    assert sharing.is_atomic()


@pytest.mark.parametrize("block", range(4))
def test_random_graphs_on_threads_give_the_values_of_a_plain_loop(block, no_gil):
    with threadpool_limits(1):
        for seed in range(block * 10, (block + 1) * 10):
            graph, inputs = random_graph(random.Random(seed))
            wanted = interpret(graph, inputs)
            plan = hs.plan(graph, SLOW, policy="heft", learn=False)
            for _ in range(3):
                result = hs.run(plan, inputs, learn=False)
                assert value_problems(result, wanted) == [], seed
                assert run_problems(plan, result.trace) == [], seed


def test_sessions_called_from_many_threads_give_each_its_own(no_gil):
    b = hs.Graph.build()
    x = b.input("x", (64,))
    graph = b.output(b.op("tensor.add", b.op("tensor.scale", x, factor=2.0), x), "y").freeze()
    wrong: list[Any] = []

    def call(n: int) -> None:
        for i in range(100):
            value = np.float32(100 * n + i)
            found = f(np.full(64, value, np.float32))["y"]
            if not (found == 3 * value).all():
                wrong.append((n, i, found))

    with hs.Session(SLOW) as session:
        f = session.compile(graph, policy="heft", buffers=2)
        threads = [threading.Thread(target=call, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_what_two_runs_leave_at_the_same_time_is_told_apart():
    """A ticket is like no other, so nobody is given what another plan has left. (Numbers that threads count up at once may come twice.)"""
    graph, inputs = random_graph(random.Random(3))
    plans = [hs.plan(graph, SLOW, policy="heft", learn=False) for _ in range(2)]
    for plan in plans:
        hs.run(plan, inputs, learn=False)
    tickets = [ticket for plan in plans for row in kept.kept_of(plan).tickets.values() for ticket in row]
    assert len(tickets) == 2
    assert all(type(ticket).__eq__ is object.__eq__ and type(ticket).__hash__ is object.__hash__ for ticket in tickets)


def test_the_last_array_of_an_area_is_told_by_a_list():
    """`list.pop` is whole without the interpreter's lock, `next` of an iterator is not: of two arrays that go at once both could be the last one."""
    kinds = [((pages.HUGE,), np.dtype(np.uint8))] * 3
    held = pages.arrays(kinds)
    area = held[0].base
    while not isinstance(area, pages._Area):
        area = area.obj if isinstance(area, memoryview) else area.base
    assert type(area.left) is list
    assert len(area.left) == 2


def shared_iterators(path: Path) -> list[str]:
    """Calls of `next` on what is no local: on an attribute, an item, or a name of the module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    at_top = {name.id for line in tree.body if isinstance(line, (ast.Assign, ast.AnnAssign)) for name in ast.walk(line) if isinstance(name, ast.Name)}
    found = []
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "next" and call.args:
            of = call.args[0]
            if isinstance(of, (ast.Attribute, ast.Subscript)) or (isinstance(of, ast.Name) and of.id in at_top):
                found.append(f"{path.name}:{call.lineno}: {ast.unparse(call)}")
    return found


def test_threads_share_iterators_only_where_the_interpreter_has_been_asked():
    asked = {Path(module.__file__) for module in (relay, rounds)}
    assert all("is_atomic()" in path.read_text(encoding="utf-8") for path in asked)
    assert any(shared_iterators(path) for path in asked), "or this test sees none"
    others = [path for path in EXECUTORS.rglob("*.py") if path not in asked]
    assert [each for path in others for each in shared_iterators(path)] == []


def test_who_looks_while_a_step_becomes_code_has_its_calls():
    """Another thread may take the calls away between two looks at them."""
    b = hs.Graph.build()
    x = b.input("x", (8,))
    graph = b.output(b.op("tensor.scale", x, factor=2.0), "y").freeze()
    plan = hs.plan(graph, SLOW, policy="heft", learn=False)
    frame = replay.Frame(kept.program_of(plan), check_inputs(graph, {"x": np.ones(8, np.float32)}))

    class Fleeting:
        """Its calls are there at the first look only."""

        def __init__(self, calls: Any) -> None:
            self._calls = [calls]

        @property
        def calls(self) -> Any:
            return self._calls.pop() if self._calls else None

    calls = frame.bindings.calls(0, 0)
    assert calls
    frame.bindings.bound = lambda step, turn: Fleeting(calls)  # type: ignore[assignment,return-value]
    assert frame.bindings.calls(0, 0) is calls


def test_short_calls_that_are_awaited_are_done_at_once_without_a_lock_too(no_gil):
    """A round trip to a thread takes as long, whoever has a lock."""
    b = hs.Graph.build()
    x = b.input("x", (8,))
    graph = b.output(b.op("tensor.scale", x, factor=2.0), "y").freeze()
    fast = Machine((Device(**{**vars(CPU), "flops_per_second": {"float32": 1e10}}),), (), (MemoryNode(HOST),))
    with hs.Session(fast) as session:
        f = session.compile(graph, policy="heft", buffers=1)
        for _ in range(2 * binding.HOT_RUNS):
            f(np.ones(8, np.float32))
        assert f._replay.is_instant
