"""What is kept of a plan between its runs: the same values from runs one after another and at once, bounded, and nothing when the plan is gone."""

import gc
import random
import threading
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

import hetsched as hs
from hetsched.errors import CommandLineError, RunTimeoutError, TaskError
from hetsched.executors import kept, memory
from hetsched.graph.graph import Loop
from hetsched.machine import HOST, Device, Machine, MemoryNode
from hetsched.testing.graphs import random_graph
from hetsched.testing.reference import interpret

CPU = Device("cpu", "cpu", lanes=2, languages=("host", "array"), shares_lanes=True, bytes_per_second=10e9, flops_per_second={"float32": 1e8})
SLOW = Machine((CPU,), (), (MemoryNode(HOST),))  # so slow that a task of thousands of elements is worth a thread


@pytest.fixture(autouse=True)
def nothing_kept_before():
    kept.give_back()
    yield
    kept.give_back()


def diamonds(n: int = 6, size: int = 4096) -> hs.Graph:
    """n times: two products of the value before, added."""
    b = hs.Graph.build()
    x = b.input("x", (size,))
    for _ in range(n):
        x = b.op("tensor.add", b.op("tensor.scale", x, factor=0.5), b.op("tensor.scale", x, factor=0.25))
    return b.output(x, "y").freeze()


def plan_of(graph: hs.Graph) -> hs.Timeline:
    return hs.plan(graph, SLOW, policy="heft", learn=False)


def expected(x: np.ndarray, n: int = 6) -> np.ndarray:
    for _ in range(n):
        x = x * np.float32(0.5) + x * np.float32(0.25)
    return x


def arenas_of(plan: hs.Timeline) -> list[weakref.ref]:
    """The arenas kept of a plan."""
    rows = [kept._shelf[t] for tickets in kept.kept_of(plan).tickets.values() for t in tickets if t in kept._shelf]
    frames = [getattr(row.thing, "frame", row.thing) for row in rows]
    return [weakref.ref(m.buffer) for f in frames for m in f.memories.values()]


@pytest.mark.parametrize("size", [8, 4096])  # one step of the caller's thread, and steps that threads share
def test_every_run_has_its_own_values(size):
    graph = diamonds(size=size)
    plan = plan_of(graph)
    results = []
    for seed in range(5):
        x = np.random.default_rng(seed).normal(size=size).astype(np.float32)
        results.append((x, hs.run(plan, {"x": x}, learn=False)))
    for x, result in results:  # no later run has written into what an earlier one gave
        np.testing.assert_array_equal(result["y"], expected(x))
        assert result.plan is plan
        assert len(result.trace.spans) == len(graph)
    assert len(kept._shelf) == 1


def test_a_program_is_made_once_for_a_plan(monkeypatch):
    made = []
    compiled = kept.compile_plan
    monkeypatch.setattr(kept, "compile_plan", lambda *args, **options: made.append(1) or compiled(*args, **options))
    plan = plan_of(diamonds())
    for _ in range(3):
        hs.run(plan, {"x": np.ones(4096, np.float32)}, learn=False)
        hs.run(plan, {"x": np.ones(4096, np.float32)}, learn=False, timeout=600)
    with hs.Session() as session:
        session.compile(plan)
    assert len(made) <= 2  # with a timeout a plan is never one step


def test_random_plans_run_again_give_the_values_of_a_plain_loop():
    for seed in range(25):
        graph, inputs = random_graph(seed, tasks=14)
        plan = hs.plan(graph, SLOW, policy="heft", learn=False)
        wanted = interpret(graph, inputs)
        for run in range(3):
            result = hs.run(plan, inputs, learn=False)
            for name, value in wanted.items():
                np.testing.assert_allclose(result[name], value, rtol=1e-5, atol=1e-6, err_msg=f"seed {seed}, run {run}, output {name}")


def test_runs_at_once_share_nothing():
    plan = plan_of(diamonds())
    wrong = []

    def call(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(6):
            x = np.full(4096, rng.random(), np.float32)
            if not np.array_equal(hs.run(plan, {"x": x}, learn=False)["y"], expected(x)):
                wrong.append(seed)

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert 1 <= len(kept._shelf) <= 4


def test_nothing_is_kept_when_the_plan_is_gone():
    plan = plan_of(diamonds())
    hs.run(plan, {"x": np.ones(4096, np.float32)}, learn=False)
    arenas = arenas_of(plan)
    assert arenas
    assert kept.held() > 0
    gone = weakref.ref(plan)
    gc.disable()  # what goes, goes at once
    try:
        del plan
        assert gone() is None
        assert [a() for a in arenas] == [None] * len(arenas)
        assert kept.held() == 0
    finally:
        gc.enable()


def test_nothing_grows_with_the_number_of_plans():
    graph, x = diamonds(n=2), np.ones(4096, np.float32)
    hs.run(plan_of(graph), {"x": x}, learn=False)
    gc.collect()
    before = len(kept._kept)
    for _ in range(40):
        hs.run(plan_of(graph), {"x": x}, learn=False)
        assert len(kept._kept) <= before + 2  # a plan and the one that takes its place
        assert len(kept._shelf) <= 2
    gc.collect()
    assert len(kept._kept) <= before
    assert not kept._shelf


def test_no_arena_is_kept_of_a_plan_that_was_made_for_one_run():
    results = [hs.run(diamonds(), {"x": np.ones(4096, np.float32)}, machine=SLOW, policy="heft", learn=False) for _ in range(2)]
    assert all(np.array_equal(r["y"], results[0]["y"]) for r in results)
    assert not kept._shelf
    hs.run(results[0].plan, {"x": np.ones(4096, np.float32)}, learn=False)  # but of who means it
    assert len(kept._shelf) == 1


def test_many_plans_are_kept_within_bounds(monkeypatch):
    graph = diamonds(size=65536)
    x = np.ones(65536, np.float32)
    monkeypatch.setenv("HETSCHED_KEEP_MIB", "1")
    plans = [plan_of(graph) for _ in range(12)]
    for plan in plans:
        hs.run(plan, {"x": x}, learn=False)
        assert kept.held() <= 1 << 20
    assert arenas_of(plans[-1])
    assert not arenas_of(plans[0])  # the oldest went first
    monkeypatch.setenv("HETSCHED_KEEP_MIB", "0")
    np.testing.assert_array_equal(hs.run(plans[0], {"x": x}, learn=False)["y"], expected(x))
    assert kept.held() == 0


def test_no_more_frames_than_bounds_allow(monkeypatch):
    monkeypatch.setattr(kept, "MOST_FRAMES", 3)
    plans = [plan_of(diamonds(n=2)) for _ in range(5)]
    for plan in plans:
        hs.run(plan, {"x": np.ones(4096, np.float32)}, learn=False)
    assert len(kept._shelf) == 3


def test_a_limit_of_the_host_counts_what_others_have_left():
    graph = diamonds(size=65536)
    x = np.ones(65536, np.float32)
    first = plan_of(graph)
    hs.run(first, {"x": x}, learn=False)
    assert kept.held() > 0
    need = first.peak[HOST]
    second = hs.plan(graph, SLOW, policy="heft", learn=False, memory=need)
    hs.run(second, {"x": x}, learn=False)
    assert not arenas_of(first)
    assert arenas_of(second)


def test_what_is_kept_is_given_back_where_memory_is_short(monkeypatch):
    plan = plan_of(diamonds())
    hs.run(plan, {"x": np.ones(4096, np.float32)}, learn=False)
    asked = []

    def arrays(kinds, *how):
        asked.append(kinds)
        if len(asked) == 1:
            raise MemoryError
        return [np.zeros(shape, dtype) for shape, dtype in kinds]

    monkeypatch.setattr(memory, "arrays", arrays)
    (made,) = memory.fresh([((4,), np.float32)])
    assert made.shape == (4,)
    assert len(asked) == 2
    assert kept.held() == 0
    asked.clear()
    with pytest.raises(MemoryError):  # nobody has anything left to give
        memory.fresh([((4,), np.float32)])


def test_a_run_that_fails_keeps_nothing_and_spoils_nothing():
    broken = [True]

    @hs.op(hs.Spec((4096,), np.float32))
    def twice(x):
        if broken[0]:
            raise ValueError("no")
        return x + x

    b = hs.Graph.build()
    x = b.input("x", (4096,))
    b.output(b.op("tensor.add", b.op(twice, x), b.op("tensor.scale", x, factor=2.0)), "y")
    plan = plan_of(b.freeze())
    x = np.ones(4096, np.float32)
    with pytest.raises(TaskError):
        hs.run(plan, {"x": x}, learn=False)
    assert not kept._shelf
    broken[0] = False
    for _ in range(2):
        np.testing.assert_array_equal(hs.run(plan, {"x": x}, learn=False)["y"], 4 * x)
    broken[0] = True
    with pytest.raises(TaskError):
        hs.run(plan, {"x": x}, learn=False)
    assert not kept._shelf
    broken[0] = False
    with pytest.raises(RunTimeoutError):
        hs.run(plan, {"x": x}, learn=False, timeout=1e-9)
    np.testing.assert_array_equal(hs.run(plan, {"x": x}, learn=False)["y"], 4 * x)


def test_no_input_and_no_output_is_held_after_a_run():
    plan = plan_of(diamonds())
    x = np.ones(4096, np.float32)
    result = hs.run(plan, {"x": x}, learn=False)
    given, made = weakref.ref(x), weakref.ref(result["y"])
    assert kept._shelf
    del x, result
    gc.collect()
    assert given() is None
    assert made() is None


def test_a_loop_runs_again_in_the_frames_of_the_run_before():
    body = hs.Graph.build()
    s, x = body.input("s", (64,)), body.input("x", (64,))
    body.output(body.op("tensor.add", body.op("tensor.scale", s, factor=0.5), x), "s2")
    b = hs.Graph.build()
    loop = Loop(body.freeze(), 9, sequences=("x",), carried=(("s", "s2"),), collected=("s2",))
    last, every = b.loop(loop, b.input("x", (9, 64)), b.input("s", (64,)))
    b.output(last, "last")
    b.output(every, "every")
    plan = plan_of(b.freeze())
    for seed in range(4):
        rng = np.random.default_rng(seed)
        x, s = rng.normal(size=(9, 64)).astype(np.float32), rng.normal(size=64).astype(np.float32)
        result = hs.run(plan, {"x": x, "s": s}, learn=False)
        for row, found in zip(x, result["every"], strict=True):
            s = s * np.float32(0.5) + row
            np.testing.assert_array_equal(found, s)
        np.testing.assert_array_equal(result["last"], s)
    assert len(kept._shelf) == 1


def test_a_size_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv("HETSCHED_KEEP_MIB", "much")
    with pytest.raises(CommandLineError, match="HETSCHED_KEEP_MIB='much' is no whole number"):
        hs.run(diamonds(), {"x": np.ones(4096, np.float32)}, learn=False)


def test_a_thread_that_comes_when_another_has_just_made_the_program_finds_all_it_needs():
    """Between the program and the list of its frames no thread may find one without the other."""
    graph = diamonds(1)
    plan = plan_of(graph)
    found = kept.kept_of(plan)
    program = found.program(True, False)
    found.tickets.clear()  # as another thread may see it
    with kept.lent(plan, program, lambda: SimpleNamespace(close=lambda: None), lambda thing: True) as thing:
        assert thing is not None
    kept.let_go(plan)
