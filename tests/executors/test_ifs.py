"""Ifs: whoever runs a graph with ifs gives the values of a plain walk over it, does the branch taken and nothing of the other."""

import pickle
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_epochs import AtSteps, epoch_problems, for_real, simulate
from threadpoolctl import threadpool_limits

import hetsched as hs
from hetsched.check import problems
from hetsched.errors import GraphError, OutOfMemoryError, TaskError
from hetsched.executors import binding, live, simulated
from hetsched.executors.backends import opencl
from hetsched.executors.backends.emulated import emulate
from hetsched.executors.result import Result
from hetsched.graph.graph import Graph, If, Loop, Where
from hetsched.graph.op import Op, Work
from hetsched.locked import equal_plans, read_plan, write_plan
from hetsched.machine import HOST, Device, Link, Machine, MemoryNode
from hetsched.placement import plan_graph
from hetsched.placement.costs import RooflineCosts
from hetsched.placement.costs.figures import body_use, turn_seconds
from hetsched.placement.why import find_task
from hetsched.report.gantt import gantt
from hetsched.report.perfetto import perfetto
from hetsched.report.pictures import dot, mermaid
from hetsched.report.plan_text import plan_text
from hetsched.report.record import tasks_record
from hetsched.report.summary import device_use, transfers
from hetsched.run import check_inputs
from hetsched.testing.faults import broken
from hetsched.testing.graphs import random_graph, random_machine
from hetsched.testing.plans import plain_plan
from hetsched.testing.reference import interpret
from hetsched.testing.runs import run_problems, value_problems
from hetsched.timeline import Timeline

CPU = Device("cpu", "cpu", lanes=2, languages=("host", "array"), shares_lanes=True, bytes_per_second=10e9, flops_per_second={"float32": 1e10})
ONE = Machine((CPU,), (), (MemoryNode(HOST),))
GPU = Device("gpu:0", "emulated", memory="gpu:0", hardware="gpu", bytes_per_second=1e12, flops_per_second={"float32": 1e14}, launch_seconds=0)
BOX = Machine((CPU, GPU), (Link(HOST, "gpu:0", 1e-6, 1e9), Link("gpu:0", HOST, 1e-6, 1e9)), (MemoryNode(HOST), MemoryNode("gpu:0")))


# Random graphs --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", range(3))
def test_values_order_and_deeds_on_random_graphs(block: int) -> None:
    ifs = 0
    with threadpool_limits(1):
        for seed in range(block * 12, (block + 1) * 12):
            rng = random.Random(seed)
            graph, inputs = random_graph(rng, ifs=True)
            ifs += any(isinstance(op, If) for part in graph.with_inner() for op in part.task_ops)
            before = {name: np.copy(x) for name, x in inputs.items()}
            wanted = interpret(graph, inputs)
            for plan in (hs.plan(graph, hs.Machine.here()), plain_plan(graph, hs.Machine.here(), seed=seed)):
                on_cpu = hs.run(plan, inputs)
                assert value_problems(on_cpu, wanted) == [], seed
                assert run_problems(plan, on_cpu.trace) == [], seed
            plan = hs.plan(graph, random_machine(rng))
            assert problems(plan) == [], seed
            virtual = simulated.run_plan(plan, check_inputs(graph, inputs), spread=0.5, seed=seed)
            assert value_problems(virtual, wanted) == [], seed
            assert run_problems(plan, virtual.trace) == [], seed
            assert simulated.run_plan(plan, check_inputs(graph, inputs), compute=False).trace.makespan >= 0
            for name, x in inputs.items():
                np.testing.assert_array_equal(x, before[name])
    assert ifs > 6


@pytest.mark.parametrize("block", range(2))
def test_random_graphs_on_emulated_devices_again_and_again(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls with other conditions, interpreted and as code: frames and arenas of both branches are used again."""
    used = 0
    with threadpool_limits(1):
        for seed in range(block * 9, (block + 1) * 9):
            rng = random.Random(seed)
            graph, inputs = random_graph(rng, ifs=True)
            other = {k: np.asarray(not v) if v.dtype == bool else np.array(v[::-1] if np.ndim(v) else v) for k, v in inputs.items()}
            wanted, wanted_other = interpret(graph, inputs), interpret(graph, other)
            monkeypatch.setattr(binding, "HOT_RUNS", 2 if seed % 2 else 50)
            for machine in (None, emulate(random_machine(rng))):
                with hs.Session(machine) as session:
                    f = session.compile(graph, trace=True, policy="round_robin" if machine is not None and seed % 3 else "auto")
                    used += bool(live.drives(f.plan))
                    for given, values in ((inputs, wanted), (other, wanted_other), (inputs, wanted), (other, wanted_other)):
                        result = f(given)
                        assert value_problems(result, values) == [], seed
                        assert run_problems(f.plan, result.trace) == [], seed
    assert used > 0


@pytest.mark.skipif(not opencl.find().devices, reason="no OpenCL device works here")
def test_random_graphs_on_opencl() -> None:
    used = 0
    with threadpool_limits(1):
        for seed in range(8):
            graph, inputs = random_graph(random.Random(seed), ifs=True)
            plan = hs.plan(graph, hs.Machine.here(), policy="round_robin")
            assert problems(plan) == [], seed
            used += any(live.drives(branch) for _, branch in plan.nested)
            result = hs.run(plan, inputs)
            assert value_problems(result, interpret(graph, inputs)) == [], seed
            assert run_problems(plan, result.trace, skew_seconds=1e-3) == [], seed
    assert used > 0


def test_random_graphs_under_memory_limits() -> None:
    refused = 0
    with threadpool_limits(1):
        for seed in range(4):
            rng = random.Random(seed)
            graph, inputs = random_graph(rng, ifs=True)
            machine = random_machine(rng, memory_limits=False)
            free = hs.plan(graph, machine)
            wanted = interpret(graph, inputs)
            for share in (1.0, rng.uniform(0.3, 1.0)):
                limits = {node: max(int(n * share), 1) for node, n in free.peak.items()}
                try:
                    plan = hs.plan(graph, machine, memory=limits)
                except OutOfMemoryError as error:
                    refused += "bytes" in str(error)
                    continue
                assert problems(plan) == []
                assert value_problems(simulated.run_plan(plan, check_inputs(graph, inputs), spread=0.5, seed=seed), wanted) == [], seed
    assert 0 < refused < 8


@pytest.mark.parametrize("run", [simulate, for_real], ids=["simulated", "real"])
def test_random_graphs_planned_anew(run: Callable[..., Result]) -> None:
    """A branch under way goes on to its end; ifs that have not begun are planned anew."""
    anew = 0
    with threadpool_limits(1):
        for seed in range(10):
            rng = random.Random(900 + seed)
            graph, inputs = random_graph(rng, ifs=True)
            machine = emulate(random_machine(rng, memory_limits=False))
            plan = hs.plan(graph, machine)
            result = run(plan, inputs, AtSteps(machine, [rng.randint(0, 12) for _ in range(rng.randint(1, 3))], "auto"), seed)
            assert value_problems(result, interpret(graph, inputs)) == [], seed
            assert epoch_problems(result) == [], seed
            anew += len(result.plans) - 1
    assert anew > 1


def test_plans_on_disk_pickles_and_reports_of_random_graphs(tmp_path: Path) -> None:
    for seed in range(8):
        graph, inputs = random_graph(seed, ifs=True)
        machine = random_machine(seed, memory_limits=False)
        plan = plan_graph(graph, machine, policy=random.Random(seed).choice(["auto", "heft", "earliest_finish", "round_robin"]))
        write_plan(plan, tmp_path / "plan.json")
        again, _ = random_graph(seed, ifs=True)
        found = read_plan(tmp_path / "plan.json", again, random_machine(seed, memory_limits=False))
        assert equal_plans(plan, found)
        back = pickle.loads(pickle.dumps(plan))
        for read in (found, back):
            result = simulated.run_plan(read, check_inputs(read.graph, inputs))
            assert not value_problems(result, interpret(graph, inputs))
        for timeline in (plan, result.trace):
            assert gantt(timeline)
            assert device_use(timeline)
            assert transfers(timeline).seconds >= 0
            assert tasks_record(timeline)
            assert perfetto(timeline)["traceEvents"]
        assert mermaid(graph)
        assert dot(graph)
        assert plan_text(plan)
        same = Graph.from_networkx(graph.to_networkx())
        assert not value_problems(interpret(same, inputs), interpret(graph, inputs))


# By hand --------------------------------------------------------------------------------------------------------------------------------


def branches(n: int = 64) -> tuple[Graph, Graph]:
    """A product, or a sum; both read `x`, and one more each."""
    b = Graph.build()
    x, w = b.input("x", (n, n)), b.input("w", (n, n))
    y = b.op("nn.relu", b.op("tensor.matmul", x, w, name="product"), name="y")
    then = b.output(y, "y").output(b.op("tensor.sum", y, name="sum"), "total").freeze()
    b = Graph.build()
    x, k = b.input("x", (n, n)), b.input("k", (n, n))
    y = b.op("tensor.add", x, k, name="y")
    return then, b.output(y, "y").output(b.op("tensor.sum", y, name="sum"), "total").freeze()


def choosing(n: int = 64, likelihood: float | None = None) -> Graph:
    b = Graph.build()
    c, x, w, k = b.input("c", (), np.bool_), b.input("x", (n, n)), b.input("w", (n, n)), b.input("k", (n, n))
    out = b.branch(c, *branches(n), {"x": x, "w": w, "k": k}, likelihood=likelihood, name="pick")
    return b.output(out["y"], "y").output(b.op("tensor.neg", out["total"], name="minus"), "total").freeze()


def arrays(n: int = 64) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=(n, n)).astype(np.float32) for name in "xwk"}


@pytest.mark.parametrize("machine", [ONE, emulate(BOX)], ids=["threads", "emulated"])
def test_only_the_branch_taken_runs(machine: Machine) -> None:
    plan = hs.plan(choosing(), machine)
    given = arrays()
    for condition in (True, False, True):
        result = hs.run(plan, {**given, "c": np.asarray(condition)})
        y = np.maximum(given["x"] @ given["w"], 0) if condition else given["x"] + given["k"]
        np.testing.assert_allclose(result["y"], y, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(result["total"], -y.sum(), rtol=1e-3)
        (taken,) = result.trace.loops.values()
        assert [taken.graph.task_names[s.command.task] for s in taken.launches] == (["product", "y", "sum"] if condition else ["y", "sum"])
        (row,) = [r for r in tasks_record(result.trace) if r["op"] == "if"]
        assert row["branch"] == ("then" if condition else "otherwise")


def test_each_branch_is_planned_for_the_devices_and_reads_only_what_it_needs() -> None:
    """The product goes to the fast device; the sum stays where its inputs are, and copies nothing."""
    plan = hs.plan(choosing(512), BOX)
    then = next(iter(plan.loops.values()))
    assert then.otherwise is not None
    assert then.device_of(0) == "gpu:0"
    assert {then.graph.value_names[s.command.value] for s in then.copies if s.command.dst.node == "gpu:0"} == {"x", "w"}
    assert then.otherwise.owners == {"cpu"}
    launch = next(s for s in plan.launches if s.command.task in plan.loops)
    assert {lane.owner for lane in launch.lanes} >= then.owners | then.otherwise.owners


def test_a_plan_books_the_longer_branch_or_the_mean_by_likelihood() -> None:
    def booked(likelihood: float | None) -> tuple[float, float, float]:
        plan = hs.plan(choosing(likelihood=likelihood), ONE)
        then = next(iter(plan.loops.values()))
        assert then.otherwise is not None
        (seconds,) = (s.finish - s.start for s in plan.launches if s.command.task in plan.loops)
        return seconds, then.makespan, then.otherwise.makespan

    seconds, then, other = booked(None)
    assert then > 2 * other
    assert seconds == pytest.approx(then)
    assert booked(0.25)[0] == pytest.approx(0.25 * then + 0.75 * other)
    assert booked(0.0)[0] == pytest.approx(other)


def test_a_plan_books_what_beginning_a_branch_takes_where_the_costs_know() -> None:
    class Costs(RooflineCosts):
        def beginning(self, body: Timeline) -> float:
            return 1e-3 if body.prefix == "" and len(body.graph) == 3 else 5e-3

    plan = plan_graph(choosing(likelihood=0.5), ONE, Costs(ONE))
    then = next(iter(plan.loops.values()))
    assert then.otherwise is not None
    (seconds,) = (s.finish - s.start for s in plan.launches if s.command.task in plan.loops)
    assert (then.begin_seconds, then.otherwise.begin_seconds) == (1e-3, 5e-3)
    assert seconds == pytest.approx(3e-3 + (then.makespan + then.otherwise.makespan) / 2)


def test_memory_is_that_of_the_larger_branch() -> None:
    plan = hs.plan(choosing(), ONE)
    ((task, then),) = plan.loops.items()
    assert then.otherwise is not None
    assert then.arenas[HOST] > then.otherwise.arenas.get(HOST, 0)
    assert plan.arenas[HOST] < then.arenas[HOST] + 64 * 64 * 4  # and the total beside it; results are the caller's
    assert set(plan.bodies[task]) == {HOST}


def test_a_condition_that_changes_from_turn_to_turn() -> None:
    """x doubles while it is small, then loses one; the condition is made by the turn itself, on an emulated device where that is planned so."""
    up = Graph.build()
    up = up.output(up.op("tensor.scale", up.input("x", (3,)), factor=2.0), "next").freeze()
    down = Graph.build()
    down = down.output(down.op("tensor.sub", down.input("x", (3,)), down.constant(np.float32(1.0))), "next").freeze()
    b = Graph.build()
    x = b.input("x", (3,))
    small = b.op("tensor.less", b.op("tensor.max", x, axes=(0,)), b.constant(np.float32(10.0)))
    b.output(b.branch(small, up, down, {"x": x})["next"], "next").output(small, "small")
    loop = Loop(b.freeze(), 9, carried=(("x", "next"),), collected=("small", "next"))
    b = Graph.build()
    last, small, every = b.loop(loop, b.input("x", (3,)))
    graph = b.output(last, "last").output(b.op("data.whole", small), "small").output(b.op("data.whole", every), "every").freeze()
    x = np.array([1.0, 2.0, 3.0], np.float32)
    rows, flags = [], []
    for _ in range(9):
        flags.append(x.max() < 10)
        x = x * 2 if flags[-1] else x - 1
        rows.append(x)
    assert 1 < sum(flags) < 8
    for machine, policy in ((ONE, "auto"), (emulate(BOX), "auto"), (emulate(BOX), "round_robin")):
        result = hs.run(hs.plan(graph, machine, policy=policy), {"x": np.array([1.0, 2.0, 3.0], np.float32)})
        np.testing.assert_array_equal(result["small"].reshape(-1), flags)
        np.testing.assert_array_equal(result["every"].reshape(9, 3), np.stack(rows))
        np.testing.assert_array_equal(result["last"], x)


def test_inputs_constants_and_one_value_twice_as_outputs() -> None:
    """What no task of the branch makes in its place is brought there."""
    then = Graph.build()
    x = then.input("x", (4,))
    y = then.op("tensor.neg", x)
    then = then.output(x, "a").output(y, "b").output(y, "c").output(then.op("tensor.reshape", y, shape=(2, 2)), "d").freeze()
    other = Graph.build()
    k = other.constant(np.full(4, 7, np.float32))
    x = other.input("x", (4,))
    other = other.output(k, "a").output(x, "b").output(x, "c").output(other.op("tensor.reshape", x, shape=(2, 2)), "d").freeze()
    b = Graph.build()
    for name, value in b.branch(b.input("c", (), np.int64), then, other, {"x": b.input("x", (4,))}).items():
        b.output(value, name)
    graph = b.freeze()
    x = np.arange(4, dtype=np.float32)
    for machine in (ONE, emulate(BOX)):
        plan = hs.plan(graph, machine)
        for c in (2, 0, -1):
            result = hs.run(plan, {"c": np.asarray(c), "x": x})
            wanted = [x, -x, -x, -x.reshape(2, 2)] if c else [np.full(4, 7), x, x, x.reshape(2, 2)]
            for name, value in zip("abcd", wanted, strict=True):
                np.testing.assert_array_equal(result[name], value)
                assert not np.shares_memory(result[name], x)


def failing_branches() -> tuple[Graph, Graph]:
    """A branch whose task 'boom' fails, and one that negates x."""

    def bad(xp, inputs, outputs, workspace, attributes):
        raise ValueError("no such thing")

    op = Op("bad", ("x",), ("y",), lambda specs, a: [specs[0]], lambda i, o, a: Work(1, 1, 1), kernels={"array": bad})
    then = Graph.build()
    then = then.output(then.op(op, then.input("x", (4,)), name="boom"), "y").freeze()
    other = Graph.build()
    other = other.output(other.op("tensor.neg", other.input("x", (4,))), "y").freeze()
    return then, other


def test_a_failure_in_a_branch_names_its_task() -> None:
    then, other = failing_branches()
    b = Graph.build()
    plan = hs.plan(b.output(b.branch(b.input("c", (), np.bool_), then, other, {"x": b.input("x", (4,))})["y"], "y").freeze(), ONE)
    given = {"x": np.ones(4, np.float32)}
    with pytest.raises(TaskError, match="'boom' failed: ValueError: no such thing"):
        hs.run(plan, {**given, "c": np.asarray(True)})
    np.testing.assert_array_equal(hs.run(plan, {**given, "c": np.asarray(False)})["y"], -given["x"])


# What is wrong --------------------------------------------------------------------------------------------------------------------------


def test_every_mistake_is_told_at_once() -> None:
    then, other = Graph.build(), Graph.build()
    then.output(then.op("tensor.neg", then.input("x", (4,))), "y").output(then.op("tensor.neg", then.input("q", (2,))), "z")
    other.output(other.op("tensor.neg", other.input("x", (5,))), "y")
    b = Graph.build()
    b.branch(b.input("c", (), np.bool_), then.freeze(), other.freeze(), {"x": b.input("x", (4,)), "q": b.input("q", (2,))}, likelihood=2.0)
    with pytest.raises(GraphError) as caught:
        b.freeze()
    told = "\n".join(caught.value.problems)
    for part in (
        "if 'if': likelihood must be from 0 to 1, got 2.0",
        "output 'y' is float32[4] of `then` and float32[5] of `otherwise`",
        "branch `otherwise` has no output 'z'",
        "input 'x' is float32[4] of `then` and float32[5] of `otherwise`",
    ):
        assert part in told


@pytest.mark.parametrize(
    ("condition", "given", "message"),
    [
        ((), {"x": (64, 64), "w": (64, 64), "k": (64, 64)}, "the condition must be a scalar of bool or of an integer dtype, got float32[]"),
        ((2,), {"x": (64, 64), "w": (64, 64), "k": (64, 64)}, "the condition must be a scalar"),
        (None, {"x": (64, 64), "w": (64, 8), "k": (64, 64)}, r"input 'w' wants float32[64, 64], got float32[64, 8]"),
        (None, {"x": (64, 64), "w": (64, 64)}, "input 'k' is not bound"),
        (None, {"x": (64, 64), "w": (64, 64), "k": (64, 64), "kk": (1,)}, "no branch has an input 'kk'"),
    ],
)
def test_what_does_not_fit_is_refused(condition: tuple[int, ...] | None, given: dict[str, tuple[int, ...]], message: str) -> None:
    b = Graph.build()
    c = b.input("c", (), np.bool_) if condition is None else b.input("c", condition)
    out = b.branch(c, *branches(), {name: b.input(name, shape) for name, shape in given.items()})
    assert list(out) == ["y", "total"]
    with pytest.raises(GraphError) as caught:
        b.freeze()
    assert message in str(caught.value)


def test_outputs_without_a_known_shape_are_refused() -> None:
    def graph() -> Graph:
        b = Graph.build()
        return b.output(b.op("tensor.neg", b.input("x", (hs.UpTo(4),))), "y").freeze()

    b = Graph.build()
    b.branch(b.input("c", (), np.bool_), graph(), graph(), {"x": b.input("x", (hs.UpTo(4),))})
    with pytest.raises(GraphError, match="arrays of known shapes"):
        b.freeze()


def test_a_gradient_through_an_if_is_refused() -> None:
    b = Graph.build()
    x = b.input("x", (64, 64))
    out = b.branch(b.input("c", (), np.bool_), *branches(), {"x": x, "w": b.input("w", (64, 64)), "k": b.input("k", (64, 64))}, name="pick")
    with pytest.raises(GraphError, match="goes through if 'pick'; differentiate inside its branches"):
        hs.gradient(b, out["total"], [x])


def test_plans_that_are_wrong_inside_a_branch_are_refused() -> None:
    plan = hs.plan(choosing(), BOX)
    assert problems(plan) == []
    wrong = [(name, bad) for name, bad in broken(plan) if name.startswith(("loop/", "otherwise/"))]
    assert {name.partition("/")[0] for name, _ in wrong} == {"loop", "otherwise"}
    for name, bad in wrong:
        found = problems(bad)
        assert any(f"in branch `{'then' if name.startswith('loop/') else 'otherwise'}` of if 'pick'" in text for text in found), name
    ((task, then),) = plan.loops.items()
    assert then.otherwise is not None
    assert any("needs a plan of each branch" in p for p in problems(replace(plan, loops={task: replace(then, otherwise=None)})))
    assert any("needs a plan of each branch" in p for p in problems(replace(plan, loops={})))
    swapped = replace(then.otherwise, otherwise=replace(then, otherwise=None))
    assert any("the plan of branch `then` is one of" in p for p in problems(replace(plan, loops={task: swapped})))
    held = [s._replace(lanes=tuple(x for x in s.lanes if x.owner != "gpu:0")) if s.command == plan.spans[1].command else s for s in plan.spans]
    assert problems(replace(plan, spans=tuple(held))) or plan.spans[1].command.task != task


def test_why_tells_what_it_does_not_know_yet() -> None:
    graph = choosing()
    assert find_task(graph, "minus")[0] == "minus"
    for name, message in (("pick", "'pick' is an if"), ("pick/then/product", "in a branch of the if 'pick'")):
        with pytest.raises(hs.errors.CommandLineError, match=message):
            find_task(graph, name)


def test_what_needs_a_branch_that_failed_is_left_out_and_the_rest_runs() -> None:
    then, other = failing_branches()
    b = Graph.build()
    x = b.input("x", (4,))
    y = b.branch(b.input("c", (), np.bool_), then, other, {"x": x})["y"]
    graph = b.output(b.op("nn.relu", y, name="after"), "after").output(b.op("tensor.scale", x, factor=2.0), "twice").freeze()
    given = {"x": np.ones(4, np.float32)}
    for machine in (ONE, emulate(BOX)):
        plan = hs.plan(graph, machine)
        result = hs.run(plan, {**given, "c": np.asarray(True)}, keep_going=True)
        assert "after" not in result
        np.testing.assert_array_equal(result["twice"], 2 * given["x"])
        assert any("boom" in str(error) for error in result.failed.values())
        np.testing.assert_array_equal(hs.run(plan, {**given, "c": np.asarray(False)}, keep_going=True)["after"], np.zeros(4))


def test_figures_of_an_if_are_those_of_the_branch_that_is_booked() -> None:
    """The longer branch is the second one here: what it takes is what counts."""
    short, long = Graph.build(), Graph.build()
    short = short.output(short.op("tensor.neg", short.input("x", (64, 64))), "y").freeze()
    x = long.input("x", (64, 64))
    for _ in range(5):
        x = long.op("tensor.matmul", x, x)
    long = long.output(x, "y").freeze()
    b = Graph.build()
    graph = b.output(b.branch(b.input("c", (), np.bool_), short, long, {"x": b.input("x", (64, 64))})["y"], "y").freeze()
    (body,) = hs.plan(graph, ONE).loops.values()
    busy, used = body_use(body)
    assert body.otherwise is not None
    assert busy == body_use(replace(body.otherwise, branch=None))[0]
    assert used == {"cpu"}
    assert turn_seconds(body) == body.otherwise.makespan > turn_seconds(replace(body, branch=None, otherwise=None))


def test_a_device_for_a_loop_or_an_if_holds_for_those_inside() -> None:
    inner = Graph.build()
    inner = inner.output(inner.op("tensor.neg", inner.input("x", (4,))), "y").freeze()
    body = Graph.build()
    x = body.input("x", (4,))
    body.output(body.branch(body.input("c", (), np.bool_), inner, inner, {"x": x})["y"], "y")
    loop = Loop(body.freeze(), 3, invariants=("c",), carried=(("x", "y"),))
    for where in ("cpu", "gpu:0"):
        b = Graph.build()
        (last,) = b.loop(loop, b.input("c", (), np.bool_), b.input("x", (4,)), where=Where((where,)))
        (outer,) = hs.plan(b.output(last, "last").freeze(), BOX).loops.values()
        (branch,) = outer.loops.values()
        for plan in branch.alternatives:
            assert {s.lanes[0].owner for s in plan.launches} == {where}
