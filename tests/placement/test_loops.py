"""Plans of loops: random bodies under random durations, and what single rules of the plan say."""

from __future__ import annotations

import pickle
import random
from dataclasses import replace

import numpy as np
import pytest

from hetsched.check import problems
from hetsched.errors import GraphError, OutOfMemoryError, PlacementError
from hetsched.graph.graph import Graph, Loop, Where
from hetsched.graph.op import Op, Work
from hetsched.graph.spec import Spec
from hetsched.machine import HOST, Device, Link, Machine, MemoryNode
from hetsched.placement import plan_graph
from hetsched.placement.costs import RooflineCosts
from hetsched.placement.costs.estimate import Estimate
from hetsched.placement.loops import plan_loop
from hetsched.placement.loops.memory import SPARE_SLOTS
from hetsched.timeline import After, Copy, Launch, Replica
from tests.placement.loop_bodies import CPU, DONE, MACHINES, MEMORIES, MIX, SQUARE, STEP, TABLE, Costs, Run, gpu, kernel, nothing, random_loop


class Table:
    """Seconds by task name and device kind; 0 for views."""

    def __init__(self, seconds, default=1e-3):
        self.seconds, self.default = seconds, default

    def launch(self, graph, task, device, width=1):
        name = graph.task_names[task]
        return Estimate(self.seconds.get((name, device.kind), self.seconds.get(name, self.default)))

    def copy(self, nbytes, link):
        return Estimate(link.seconds(nbytes))


def training(readers: int = 1, turns: int = 6) -> Loop:
    """load -> forward(w) -> backward(w) -> w' = step(w, gradient), and readers of the old weights."""
    b = Graph.build()
    x, w = b.input("x", (8, 8)), b.input("w", (8, 8))
    loaded = b.op(MIX, x, name="load", kind=3)
    forward = b.op(MIX, loaded, w, name="forward", kind=1)
    for i in range(readers):
        b.op(MIX, w, name=f"look{i}")
    b.output(b.op(STEP, w, b.op(MIX, forward, w, name="backward", kind=2), name="step"), "w_next")
    b.output(forward, "loss")
    return Loop(b.freeze(), turns, sequences=("x",), carried=(("w", "w_next"),), collected=("loss",))


def span_of(plan, name):
    return next(i for i, s in enumerate(plan.spans) if isinstance(s.command, Launch) and plan.graph.task_names[s.command.task] == name)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.replace(" ", "-"))
@pytest.mark.parametrize("seed", range(25))
def test_random_bodies_never_overwrite_and_never_stop(seed, machine):
    rng = random.Random(seed)
    loop = random_loop(rng, rng.randint(2, 16), stop=rng.random() < 0.2)
    plan = plan_loop(loop, MACHINES[machine], Costs(random.Random(seed), scale=rng.choice([1e-5, 1e-4, 1e-3])))
    assert problems(plan) == []
    assert plan.period >= plan.bound.seconds * (1 - 1e-9)
    run = Run(plan, 16)
    for k in range(3):
        assert run.overwrites(run.simulate(random.Random(k))) == []


def test_without_reuse_edges_the_simulation_finds_overwrites():
    found = 0
    for seed in range(12):
        rng = random.Random(seed)
        loop = random_loop(rng, 12)
        plan = plan_loop(loop, MACHINES["a stream"], Costs(random.Random(seed)))
        run = Run(replace(plan, after=()), 16)
        found += bool(run.overwrites(run.simulate(random.Random(seed))))
    assert found >= 6


def test_the_same_arguments_give_the_same_plan():
    loop = random_loop(random.Random(5), 14)
    one, two = (plan_loop(loop, MACHINES["two streams"], Costs(random.Random(5))) for _ in range(2))
    assert one.spans == two.spans
    assert one.after == two.after
    assert one.offsets == two.offsets


def test_tiny_tasks_stay_on_one_thread_and_the_period_is_their_sum():
    plan = plan_loop(training(), MACHINES["four threads"], Table({}, 5e-6))
    assert {lane for s in plan.spans for lane in s.lanes} == {plan.spans[0].lanes[0]}
    assert plan.period == pytest.approx(5 * 5e-6)


@pytest.mark.parametrize("machine", ["a stream", "two streams"])
def test_another_device_that_is_not_used_moves_no_tiny_task_to_another_thread(machine):
    """The model of all devices takes threads for alike; what changes hands between them is not free for that."""
    plan = plan_loop(training(2), MACHINES[machine], Table({}, 5e-6), only="cpu")
    assert len({lane for s in plan.spans for lane in s.lanes}) == 1
    assert plan.period == pytest.approx(plan_loop(training(2), MACHINES["four threads"], Table({}, 5e-6)).period)


def test_a_long_load_moves_to_another_thread():
    plan = plan_loop(training(0), MACHINES["four threads"], Table({"load": 1e-3, "forward": 6e-4, "backward": 3e-4, "step": 1e-4}))
    assert plan.spans[span_of(plan, "load")].lanes != plan.spans[span_of(plan, "forward")].lanes
    assert plan.period < 1.2e-3


def test_weights_are_written_in_place_after_all_their_readers():
    plan = plan_loop(training(2), MACHINES["four threads"], Table({}))
    value = plan.graph.outputs["w_next"]
    assert plan.rings[Replica(value, 0, HOST)] == 1
    step = span_of(plan, "step")
    for name in ("forward", "backward", "look0", "look1"):
        assert After(span_of(plan, name), step, 0) in plan.after
    assert After(step, step, 0) not in plan.after


def test_weights_that_must_be_read_after_the_step_take_two_slots():
    b = Graph.build()
    x, w = b.input("x", (8, 8)), b.input("w", (8, 8))
    new = b.op(STEP, w, x, name="step")
    b.output(new, "w_next")
    b.output(b.op(MIX, new, w, name="difference"), "d")
    plan = plan_loop(Loop(b.freeze(), 5, sequences=("x",), carried=(("w", "w_next"),), collected=("d",)), MACHINES["one thread"], Table({}))
    assert plan.rings[Replica(plan.graph.outputs["w_next"], 0, HOST)] == 2
    assert problems(plan) == []


def test_a_device_gets_invariants_once_and_elements_every_turn():
    b = Graph.build()
    x, c, w = b.input("x", (64, 64)), b.input("c", (64, 64)), b.input("w", (64, 64))
    y = b.op(MIX, x, c, name="first")
    b.output(b.op(STEP, w, b.op(MIX, y, w, name="second"), name="step"), "w_next")
    b.output(y, "y")
    loop = Loop(b.freeze(), 5, ("c",), ("x",), (("w", "w_next"),), ("y",))
    fast = {(n, "cuda"): 1e-4 for n in ("first", "second", "step")}
    plan = plan_loop(
        loop, Machine((CPU, gpu(1)), (Link(HOST, "cuda:0"), Link("cuda:0", HOST)), (MemoryNode(HOST), MemoryNode("cuda:0"))), Table(fast, 1e-2)
    )
    names = plan.graph.value_names
    assert {plan.device_of(t) for t in range(3)} == {"cuda:0"}
    assert sorted(names[s.command.value] for s in plan.prologue) == ["c", "w"]
    assert [(names[s.command.value], s.command.dst.node) for s in plan.epilogue] == [("step", HOST)]
    assert sorted((names[s.command.value], s.command.dst.node) for s in plan.copies) == [("first", HOST), ("x", "cuda:0")]
    assert all(isinstance(s.command, Copy) and s.lanes[0].kind == "copy" for s in plan.copies)
    assert problems(plan) == []


def test_what_is_copied_has_two_slots_so_that_a_copy_may_last_as_long_as_a_launch():
    """By the plan a copy takes ten times the launch, so that one slot would do for what it makes; the launch may take as long in the run."""
    b = Graph.build()
    b.output(b.op(MIX, b.input("x", (64, 64)), name="work"), "y")
    loop = Loop(b.freeze(), 20, sequences=("x",), collected=("y",))
    link = Link(HOST, "cuda:0", 0.0, 16384 / 1e-3)
    machine = Machine((CPU, gpu(1)), (link, replace(link, src="cuda:0", dst=HOST, bytes_per_second=16384 / 5e-4)), MEMORIES)
    costs = Table({("work", "cuda"): 1e-4}, 1.0)
    plan = plan_loop(loop, machine, costs)
    assert {plan.rings[r] for r in plan.rings if r.node == "cuda:0"} == {2}
    assert problems(plan) == []
    short = plan_loop(loop, machine, costs, memory={"cuda:0": plan.arenas["cuda:0"] - 1})  # room for it comes first
    assert min(short.rings[r] for r in short.rings if r.node == "cuda:0") == 1
    assert short.period == plan.period


def test_stop_keeps_turns_apart():
    b = Graph.build()
    x = b.input("x", (8, 8))
    y = b.op(MIX, b.op(MIX, x, name="one"), name="two")
    b.output(b.op(DONE, y, name="done"), "done")
    b.output(y, "y")
    plan = plan_loop(Loop(b.freeze(), 5, sequences=("x",), collected=("y",), stop="done"), MACHINES["four threads"], Table({}))
    assert plan.period >= 3e-3 * (1 - 1e-9)
    assert max(s.finish for s in plan.spans) <= plan.period * (1 + 1e-9)


def test_a_task_every_k_turns_counts_for_its_share():
    b = Graph.build()
    x = b.input("x", (8, 8))
    slow = b.op(MIX, x, name="slow")
    b.output(b.op(MIX, slow, x, name="quick", kind=1), "y")
    graph = b.freeze()
    loop = Loop(graph, 8, sequences=("x",), collected=("y",), every={"slow": 4})
    plan = plan_loop(loop, MACHINES["one thread"], Table({"slow": 4e-3, "quick": 1e-3}))
    assert plan.period == pytest.approx(2e-3)
    slots = plan.rings[Replica(graph.task("slow").outputs[0], 0, HOST)]
    assert After(span_of(plan, "quick"), span_of(plan, "slow"), 4 * slots - 3) in plan.after
    assert problems(plan) == []


def test_scratch_has_a_place_and_no_two_turns_at_once():
    scratch = Op("t.scratch", ("x",), ("y",), lambda s, a: [s[0]], nothing, {"array": kernel}, workspace=lambda i, o, a: 1000)
    b = Graph.build()
    b.output(b.op(scratch, b.input("x", (8, 8)), name="work"), "y")
    plan = plan_loop(Loop(b.freeze(), 5, sequences=("x",), collected=("y",)), MACHINES["four threads"], Table({}))
    node, offset, nbytes = plan.workspaces[0]
    assert (node, nbytes) == (HOST, 1000)
    assert offset + nbytes <= plan.arenas[HOST]
    assert After(0, 0, 1) in plan.after


def test_a_view_lies_in_its_input():
    b = Graph.build()
    y = b.op(MIX, b.input("x", (2, 8)), name="make")
    b.output(b.op(MIX, b.op(SQUARE, y, name="square"), name="use"), "z")
    plan = plan_loop(Loop(b.freeze(), 5, sequences=("x",), collected=("z",)), MACHINES["one thread"], Table({"square": 0.0}))
    made, view = plan.graph.task("make").outputs[0], plan.graph.task("square").outputs[0]
    assert plan.offsets[Replica(view, 0, HOST)] == plan.offsets[Replica(made, 0, HOST)]
    assert After(span_of(plan, "use"), span_of(plan, "make"), plan.rings[Replica(made, 0, HOST)]) in plan.after


def test_a_nested_loop_holds_its_lanes_and_its_arena():
    inner = training(0)
    b = Graph.build()
    xs, w = b.input("xs", Spec((6, 8, 8))), b.input("w", (8, 8))
    before = b.op(MIX, w, name="before")
    last, _ = b.loop(inner, xs, before, name="epoch")
    b.output(last, "w_next")
    plan = plan_loop(Loop(b.freeze(), 3, ("xs",), (), (("w", "w_next"),)), MACHINES["four threads"], Table({}))
    body = plan.loops[1]
    assert plan.bodies[1][HOST] + body.arenas[HOST] <= plan.arenas[HOST]
    assert {lane for s in body.spans for lane in s.lanes} <= set(plan.spans[span_of(plan, "epoch")].lanes)
    assert problems(plan) == []


def test_little_memory_makes_the_plan_slower_and_less_memory_is_an_error():
    loop = training(0)
    costs = Table({"load": 1e-3, "forward": 6e-4, "backward": 3e-4, "step": 1e-4})
    roomy = plan_loop(loop, MACHINES["four threads"], costs)
    bare = plan_loop(loop, MACHINES["four threads"], costs, memory={HOST: roomy.arenas[HOST] - 1})
    assert bare.arenas[HOST] < roomy.arenas[HOST]  # first the slots to spare go
    assert bare.period == roomy.period
    tight = plan_loop(loop, MACHINES["four threads"], costs, memory={HOST: bare.arenas[HOST] - 1})
    assert tight.arenas[HOST] < bare.arenas[HOST]
    assert tight.period > roomy.period
    with pytest.raises(OutOfMemoryError, match=r"needs \d+ bytes of host, where 100 are free.*Raise the limit of host to at least \d+ bytes"):
        plan_loop(loop, MACHINES["four threads"], costs, memory={HOST: 100})


@pytest.mark.parametrize("deep", [False, True])
def test_a_loop_that_does_not_fit_is_told_by_the_name_of_its_task(deep):
    inner = Graph.build()
    inner.output(inner.op(MIX, inner.input("x", (8, 8)), name="first", kind=1), "y")
    loop = Loop(inner.freeze(), 4, carried=(("x", "y"),))
    if deep:
        outer = Graph.build()
        outer.output(outer.loop(loop, outer.input("x", (8, 8)), name="inner")[0], "y")
        loop = Loop(outer.freeze(), 3, carried=(("x", "y"),))
    b = Graph.build()
    b.output(b.loop(loop, b.input("x", (8, 8)), name="epochs")[0], "y")
    with pytest.raises(OutOfMemoryError, match=f"^loop '{'inner' if deep else 'epochs'}' needs ") as caught:
        plan_graph(b.freeze(), MACHINES["one thread"], Table({}), memory={HOST: 100})
    assert caught.value.task == "epochs"
    assert pickle.loads(pickle.dumps(caught.value)).task == "epochs"


def test_what_stays_for_all_turns_is_said_and_a_smaller_batch_is_no_remedy():
    b = Graph.build()
    b.output(b.op(MIX, b.input("x", (8, 8)), b.input("table", (512, 8)), name="look", kind=1), "y")
    loop = Loop(b.freeze(), 4, invariants=("table",), sequences=("x",), collected=("y",))
    where = Where(("gpu",))
    with pytest.raises(OutOfMemoryError) as told:
        plan_loop(loop, MACHINES["a stream"], Table({"look": 1e-3}), memory={"cuda:0": 8192}, where=where)
    for part in (
        "needs ",
        "where 8192 are free",
        "'table'",
        "task 'look' reads",
        "stays there for all turns",
        "Raise the limit of cuda:0 to at least",
        "cpu",
    ):
        assert part in str(told.value)
    assert "batch" not in str(told.value)


def test_a_loop_for_one_device_stays_there_where_it_can():
    loop = training(0)
    plan = plan_loop(loop, MACHINES["a stream"], Table({}, 1e-3), where=Where(("gpu",)))
    assert {plan.device_of(t) for t in range(len(loop.body))} == {"cuda:0"}
    plan = plan_loop(loop, MACHINES["a stream"], Table({}, 1e-3), only="cpu")
    assert {plan.device_of(t) for t in range(len(loop.body))} == {"cpu"}


def test_tasks_tied_together_share_a_device():
    b = Graph.build()
    x = b.input("x", (8, 8))
    y = b.op(MIX, x, name="one")
    b.output(b.op(MIX, y, name="two", kind=1, where=Where(same_as="one")), "y")
    costs = Table({("one", "cpu"): 5e-3, ("one", "cuda"): 1e-4, ("two", "cpu"): 1e-3, ("two", "cuda"): 4e-3})
    plan = plan_loop(Loop(b.freeze(), 5, sequences=("x",), collected=("y",)), MACHINES["a stream"], costs)
    assert plan.device_of(0) == plan.device_of(1) == "cuda:0"


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.replace(" ", "-"))
def test_an_empty_body_is_planned(machine):
    b = Graph.build()
    b.input("x", (8, 8))
    plan = plan_loop(Loop(b.freeze(), 3, sequences=("x",)), MACHINES[machine], Table({}))
    assert plan.spans == ()
    assert problems(plan) == []


def test_mistakes_are_named():
    b = Graph.build()
    w = b.input("w", (8, 8))
    b.output(b.op(SQUARE, w, name="square"), "w_next")
    graph = b.freeze()
    with pytest.raises(GraphError, match="no task ever gives carried 'w' a new value; make it an invariant"):
        plan_loop(Loop(graph, 5, carried=(("w", "w_next"),)), MACHINES["one thread"], Table({}))
    b = Graph.build()
    v, w, x = (b.input(name, (4, 4)) for name in "vwx")
    b.output(b.op(SQUARE, w, name="older"), "v_next")
    b.output(b.op(STEP, w, b.op(MIX, x, v), name="step"), "w_next")
    with pytest.raises(GraphError, match="carried 'v' becomes 'step' as it was, without a task that makes it; give it a copy"):
        plan_loop(Loop(b.freeze(), 5, sequences=("x",), carried=(("v", "v_next"), ("w", "w_next"))), MACHINES["one thread"], Table({}))
    nowhere = Op("t.nowhere", ("x",), ("y",), lambda s, a: [s[0]], lambda i, o, a: Work(0, 0, 0), {"opencl": kernel})
    b = Graph.build()
    b.output(b.op(nowhere, b.input("x", (8, 8)), name="lost"), "y")
    with pytest.raises(PlacementError, match="lost"):
        plan_loop(Loop(b.freeze(), 5, sequences=("x",), collected=("y",)), MACHINES["one thread"], Table({}))


def test_objects_stay_in_one_cell():
    b = Graph.build()
    t = b.op(TABLE, b.input("x", (8, 8)), name="table")
    lookup = Op("t.lookup", ("t",), ("y",), lambda s, a: [Spec((8, 8))], nothing, {"array": kernel})
    b.output(b.op(lookup, t, name="lookup"), "y")
    plan = plan_loop(Loop(b.freeze(), 5, sequences=("x",), collected=("y",)), MACHINES["four threads"], Table({}))
    value = plan.graph.task("table").outputs[0]
    assert Replica(value, 0, HOST) not in plan.offsets
    assert After(span_of(plan, "lookup"), span_of(plan, "table"), 1) in plan.after


def test_shared_cores_are_not_promised_twice():
    from hetsched.machine import Resource

    cores = {"cores": 1.0}
    cpu = Device("cpu", "cpu", lanes=2, crossing_seconds=8e-6, shares_lanes=True, uses=cores)
    pocl = Device("opencl:0", "opencl", memory="opencl:0", languages=("cuda",), uses=cores)
    links = (Link(HOST, "opencl:0"), Link("opencl:0", HOST))
    machine = Machine((cpu, pocl), links, (MemoryNode(HOST), MemoryNode("opencl:0")), (Resource("cores", 2.0),))
    for seed in range(8):
        plan = plan_loop(random_loop(random.Random(seed), 10), machine, Costs(random.Random(seed), 1e-3))
        assert problems(plan) == []


def test_bounds_on_bytes_are_multiples_of_64():
    plan = plan_loop(random_loop(random.Random(3), 14), MACHINES["four threads"], Costs(random.Random(3)))
    assert all(offset % 64 == 0 for offset in plan.offsets.values())
    assert all(np.isfinite([s.start, s.finish]).all() for s in plan.spans)


def wide_body(n: int, tile: int, turns: int = 10) -> Loop:
    """x becomes x @ x, by tiles: n**3 products and as many sums, most of which may run at once."""
    b = Graph.build()
    x = {(i, j): b.input(f"x{i}_{j}", (tile, tile)) for i in range(n) for j in range(n)}
    for i in range(n):
        for j in range(n):
            total = b.op("tensor.matmul", x[i, 0], x[0, j])
            for k in range(1, n):
                total = b.op("tensor.add", total, b.op("tensor.matmul", x[i, k], x[k, j]))
            b.output(b.op("tensor.scale", total, factor=0.1), f"y{i}_{j}")
    return Loop(b.freeze(), turns, carried=tuple((f"x{i}_{j}", f"y{i}_{j}") for i, j in x))


THREADS = Device(
    "cpu", "cpu", lanes=2, languages=("host", "array"), shares_lanes=True, bytes_per_second=1e10, flops_per_second={"float32": 1e11},
    crossing_seconds=2e-5,
)  # fmt: skip


@pytest.mark.parametrize("lanes", [2, 4])
@pytest.mark.parametrize("n", [4, 5])
def test_a_wide_body_of_many_tasks_uses_all_threads(n, lanes):
    machine = Machine((replace(THREADS, lanes=lanes),))
    plan = plan_loop(wide_body(n, 256), machine, RooflineCosts(machine))
    assert len({lane for s in plan.spans for lane in s.lanes}) == lanes
    assert plan.period < 1.25 * plan.bound.seconds
    assert not problems(plan)


def test_a_body_of_many_tasks_is_planned_for_several_devices_without_one_modulo_schedule(monkeypatch):
    """Each would take seconds, and comes no nearer to the load of the devices than the list does."""

    def never(*args, **options):
        raise AssertionError("a list schedule was near enough")

    monkeypatch.setattr("hetsched.placement.periods.Search.order", never)
    box = MACHINES["a stream"]
    machine = Machine((THREADS, replace(gpu(1), flops_per_second={"float32": 1e11}, languages=("array",))), box.links, box.memories)
    plan = plan_loop(wide_body(5, 128), machine, RooflineCosts(machine))
    assert plan.period < 2 * plan.bound.seconds


def test_no_pipeline_over_threads_is_looked_for_where_another_device_beats_all_of_them(monkeypatch):
    box = MACHINES["a stream"]
    for speed, is_asked in ((1e14, False), (1e9, True)):
        asked = []
        monkeypatch.setattr("hetsched.placement.loops._dealt", lambda core, asked=asked: asked.append(1) or [0] * core.n)
        other = replace(gpu(1), flops_per_second={"float32": speed}, bytes_per_second=speed / 100, languages=("array",))
        machine = Machine((THREADS, other), tuple(replace(x, bytes_per_second=1e12) for x in box.links), box.memories)
        plan = plan_loop(wide_body(4, 256), machine, RooflineCosts(machine))
        assert bool(asked) == is_asked
        assert not problems(plan)


def test_rings_of_many_large_values_have_no_slots_to_spare():
    machine = Machine((THREADS,))
    small, large = (plan_loop(wide_body(4, tile), machine, RooflineCosts(machine)) for tile in (128, 512))
    for plan in (small, large):
        assert len({lane for s in plan.spans for lane in s.lanes}) == 2
    assert max(small.rings.values()) == SPARE_SLOTS[0]
    assert max(large.rings.values()) < SPARE_SLOTS[0]
    assert large.arenas[HOST] < SPARE_SLOTS[0] * sum(large.graph.value_nbytes.tolist()) / 2
