import random
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetsched.check import check, problems
from hetsched.check.certificate import certify
from hetsched.errors import OutOfMemoryError
from hetsched.graph.graph import Graph, Loop
from hetsched.machine import HOST, Device, Link, Machine, MemoryNode
from hetsched.placement import plan_graph
from hetsched.placement.costs import RooflineCosts
from hetsched.placement.draft import GraphDraft
from hetsched.placement.memory import Block, pack, reads_of, writes_of
from hetsched.placement.policies import find
from hetsched.placement.problem import problem_of
from hetsched.testing.policy import flat, gpu_only, mix, random_problem, scratch, split
from hetsched.timeline import Copy, Free, Launch, Replica

CPU = Device("cpu", "cpu", 1, languages=("array", "host"), flops_per_second={"float32": 1e9}, shares_lanes=True)
ONE = Machine((CPU,))
GPU = Device("gpu", "gpu", memory="gpu", languages=("accelerator", "array"), flops_per_second={"float32": 1e10})
TWO = Machine((CPU, GPU), (Link(HOST, "gpu"), Link("gpu", HOST)), (MemoryNode(HOST), MemoryNode("gpu")))


def planned(builder, machine=ONE, policy="heft"):
    draft = GraphDraft(problem_of(builder.freeze(), machine, RooflineCosts(machine)))
    find(policy)(draft)
    plan = draft.plan()
    check(plan)
    return plan


def place(plan, name, node=HOST):
    value = plan.graph.value_names.index(name)
    return plan.offsets.get(Replica(value, 0, node))


def edges(plan):
    """Reuse edges as names of what the spans do."""

    def title(span):
        command = span.command
        return plan.graph.task_names[command.task] if isinstance(command, Launch) else f"copy of {plan.graph.value_names[command.value]}"

    return {(title(plan.spans[e.before]), title(plan.spans[e.later])) for e in plan.after}


def test_inputs_and_results_on_the_host_are_not_in_the_arena():
    b = Graph.build()
    x = b.input("x", (4,))
    mid = b.op(scratch, x, name="mid")
    b.output(b.op(scratch, mid, name="out"))
    plan = planned(b)
    assert {plan.graph.value_names[r.value] for r in plan.offsets} == {"mid"}
    assert set(plan.workspaces) == {0, 1}
    assert all(node == HOST and nbytes == 32 and offset % 64 == 0 for node, offset, nbytes in plan.workspaces.values())


def test_a_chain_is_written_in_place_and_takes_one_place():
    b = Graph.build()
    value = b.input("x", (16,))
    for i in range(6):
        value = b.op(mix, value, name=f"t{i}")
    b.output(value)
    plan = planned(b)
    assert plan.arenas == {HOST: 64}
    assert {place(plan, f"t{i}") for i in range(5)} == {0}
    assert edges(plan) == set(), "each launch waits for its input, nothing more is needed"
    freed = [plan.graph.value_names[s.command.replica.value] for s in plan.spans if isinstance(s.command, Free)]
    assert freed == ["t4"], "what was written over is not freed, and the result is the caller's"


def test_nothing_is_written_over_inputs_of_the_graph_or_what_is_read_later():
    b = Graph.build()
    x = b.input("x", (16,))
    a = b.op(mix, x, name="a")
    c = b.op(mix, a, name="c")
    b.output(b.op(mix, c, a, name="out"))
    plan = planned(b)
    assert place(plan, "a") != place(plan, "c")


def test_writing_in_place_waits_for_the_other_readers():
    b = Graph.build()
    a = b.op(mix, b.input("x", (16,)), name="a")
    reader = b.op(split, a, name="reader")
    writer = b.op(mix, a, name="writer", after=[reader[0]])
    b.output(b.op(split, writer, *reader, name="end")[0])
    plan = planned(b)
    assert place(plan, "a") == place(plan, "writer")
    assert ("reader", "writer") in edges(plan)


def test_an_input_given_twice_is_not_written_over():
    b = Graph.build()
    a = b.op(mix, b.input("x", (16,)), name="a")
    twice = b.op(mix, a, a, name="twice")
    b.output(b.op(split, twice, name="end")[0])
    plan = planned(b)
    assert place(plan, "a") != place(plan, "twice")


def test_bytes_of_another_shape_are_not_written_over():
    b = Graph.build()
    row = b.op(split, b.input("x", (1, 16)), name="row")[0]
    column = b.op("tensor.reshape", row, shape=(16, 1), name="column")
    b.output(b.op(split, b.op("tensor.add", column, b.input("y", (1, 1)), name="same"), name="end")[0])
    plan = planned(b)
    assert place(plan, "same") == place(plan, "column") == place(plan, "row.low"), "a view of all the bytes may give them away"
    b = Graph.build()
    row = b.op(split, b.input("x", (1, 16)), name="row")[0]
    b.output(b.op(split, b.op("tensor.add", row, b.input("y", (1, 1, 1)), name="deeper"), name="end")[0])
    plan = planned(b)
    assert place(plan, "deeper") != place(plan, "row.low"), "equal bytes, unequal shapes: the op has not promised this"


def test_a_view_lies_in_what_it_views_and_keeps_it_alive():
    b = Graph.build()
    a = b.op(split, b.input("x", (4, 4)), name="a")[0]
    view = b.op(flat, a, name="view")
    other = b.op(split, b.input("y", (4, 4)), name="other")[0]
    end = b.op(split, view, other, name="end")[0]
    b.output(end)
    plan = planned(b)
    assert place(plan, "view") == place(plan, "a.low")
    assert place(plan, "other.low") == place(plan, "a.high") != place(plan, "a.low"), "a.high is free again at once, a.low is not"


def test_rows_of_an_array_lie_further_on():
    b = Graph.build()
    a = b.op(split, b.input("x", (8, 4)), name="a")[0]
    rows = b.op("tensor.rows", a, start=2, stop=5, name="rows")
    b.output(b.op(split, rows, name="end")[0])
    plan = planned(b)
    assert place(plan, "rows") == place(plan, "a.low") + 2 * 4 * 4


def test_a_result_that_is_a_view_keeps_its_bytes_to_the_end():
    b = Graph.build()
    a = b.op(split, b.input("x", (16,)), name="a")[0]
    b.output(b.op(flat, a, name="view"), "view")
    for _ in range(3):
        a = b.op(mix, b.op(split, a)[0])
    b.output(a, "last")
    plan = planned(b)
    mine = place(plan, "a.low")
    assert place(plan, "view") is None
    assert [r for r, offset in plan.offsets.items() if offset == mine] == [Replica(plan.graph.value_names.index("a.low"), 0, HOST)]


def test_copies_out_come_before_the_next_use_of_the_bytes():
    b = Graph.build()
    value = b.input("x", (1000, 16))
    for i in range(4):
        value = b.op(gpu_only, value, name=f"t{i}")
        b.output(value, f"out{i}")
    plan = planned(b, TWO)
    assert edges(plan) == {("copy of t0", "t3")}, "the stream keeps its own order"
    assert plan.arenas["gpu"] == 3 * 64000


def overwrites(plan, dice):
    """Run the plan under durations of half to one and a half of what is planned, obeying only data, the graph's order, reuse edges and streams.

    Returns the accesses that found bytes of something else.
    """
    graph, spans = plan.graph, plan.spans
    shared = {d.id for d in plan.machine.devices if d.shares_lanes}
    before = defaultdict(set)
    written = {r: i for i, s in enumerate(spans) for r in writes_of(s)}
    launch = {s.command.task: i for i, s in enumerate(spans) if isinstance(s.command, Launch)}
    for i, span in enumerate(spans):
        before[i] |= {written[r] for r in reads_of(span) if r in written}
    for a, b in graph.after:
        before[launch[b]].add(launch[a])
    for edge in plan.after:
        before[edge.later].add(edge.before)
    for lane, row in plan.by_lane().items():
        if lane.owner not in shared:
            for a, b in pairwise(row):
                before[spans.index(b)].add(spans.index(a))
    start, finish = {}, {}
    todo = [i for i, s in enumerate(spans) if not isinstance(s.command, Free)]
    while todo:
        i = next(i for i in todo if all(p in finish for p in before[i]))
        todo.remove(i)
        start[i] = max((finish[p] for p in before[i]), default=0.0)
        finish[i] = start[i] + (spans[i].finish - spans[i].start) * dice.uniform(0.5, 1.5)
    # Bytes hold, from the start of their writer, its value; whoever reads must find it from start to finish.
    stretch = {r: (o, o + int(graph.value_nbytes[r.value])) for r, o in plan.offsets.items()}
    writes = [
        (start[i], i, r) for r, i in written.items() if r in stretch and not (isinstance(spans[i].command, Launch) and is_view(graph, spans[i]))
    ]
    bad = []
    for i, span in enumerate(spans):
        for r in dict.fromkeys(reads_of(span)):
            if r not in stretch:
                continue
            low, high = stretch[r]
            for when, writer, other in writes:
                a, z = stretch[other]
                touching = other.node == r.node and a < high and low < z and writer != i
                if (
                    touching
                    and root(graph, spans, written, other) != root(graph, spans, written, r)
                    and origin(start, written, graph, spans, r) < when < finish[i]
                ):
                    bad.append((i, writer))
    return bad


def is_view(graph, span):
    return isinstance(span.command, Launch) and getattr(graph.task_ops[span.command.task], "view", False)


def root(graph, spans, written, replica):
    while replica in written and is_view(graph, spans[written[replica]]):
        replica = spans[written[replica]].command.reads[0]
    return replica


def origin(start, written, graph, spans, replica):
    """When the bytes of a replica were written (a view's: those of what it views)."""
    return start[written[root(graph, spans, written, replica)]]


def test_reuse_edges_keep_live_bytes_whatever_things_take():
    broken_without = 0
    for seed in range(12):
        problem = random_problem(seed, 45)
        draft = GraphDraft(problem)
        find("heft")(draft)
        plan = draft.plan()
        for k in range(3):
            assert overwrites(plan, random.Random(k)) == []
        broken_without += any(overwrites(replace(plan, after=()), random.Random(k)) for k in range(3))
    assert broken_without > 0, "the edges are there for a reason"


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 8), st.integers(0, 300)), max_size=40), st.booleans())
def test_blocks_alive_at_the_same_time_share_no_bytes(rows, tight):
    rows = sorted(rows)
    blocks = [Block(HOST, nbytes, i, float(a), float(a + n), i, [i]) for i, (a, n, nbytes) in enumerate(rows)]
    size = pack(blocks, 0 if tight else None)
    for i, a in enumerate(blocks):
        assert a.offset % 64 == 0
        assert a.offset + a.nbytes <= size
        for b in blocks[i + 1 :]:
            assert a.precedes(b) or a.offset + a.nbytes <= b.offset or b.offset + b.nbytes <= a.offset
    assert size <= sum(-(-b.nbytes // 64) * 64 for b in blocks)


def test_a_plan_that_fits_keeps_the_limit_and_one_that_cannot_names_the_task():
    b = Graph.build()
    x = b.input("x", (1000,))
    wide = [b.op(gpu_only, x, name=f"t{i}", flops=1e6) for i in range(8)]
    b.output(b.op(gpu_only, *wide, name="end"))
    graph = b.freeze()
    plan = plan_graph(graph, TWO, memory={"gpu": 1 << 20})
    assert plan.machine.memory("gpu").nbytes == 1 << 20
    assert problems(plan) == []
    with pytest.raises(
        OutOfMemoryError, match=r"'end' needs 36288 bytes in gpu at once .*, where 20000 are free, .*Raise the limit of gpu to at least 36288 bytes"
    ) as error:
        plan_graph(graph, TWO, memory={"gpu": 20_000})
    assert error.value.exit_code == 5
    assert any(f"'{name}'" in str(error.value) for name in graph.task_names)
    enough = int(str(error.value).split("at least ")[1].split(" ")[0])
    assert problems(plan_graph(graph, TWO, memory={"gpu": enough})) == []


def test_results_alone_can_be_too_much_for_the_host():
    b = Graph.build()
    b.output(b.op(mix, b.input("x", (1000,)), name="big"))
    with pytest.raises(OutOfMemoryError, match="results and objects on the host need 4000 bytes, its limit is 3000; the largest is 'big'"):
        plan_graph(b.freeze(), ONE, memory={HOST: 3000})


def test_auto_takes_a_slower_plan_where_the_fastest_does_not_fit():
    cpu = replace(CPU, lanes=4)
    b = Graph.build()
    sums = []
    x = b.input("x", (10_000,))
    for i in range(4):
        big = b.op(split, x, name=f"big{i}", flops=1e6)
        sums.append(b.op("tensor.sum", b.op(split, *big, name=f"more{i}", flops=1e6)[0]))
    b.output(b.op(mix, *sums))
    machine, graph = Machine((cpu,)), b.freeze()
    free = plan_graph(graph, machine)
    limit = free.arenas[HOST] // 2
    tight = plan_graph(graph, machine, memory={HOST: limit})
    assert tight.arenas[HOST] <= limit
    assert tight.makespan > free.makespan
    assert "does not fit the memory; this one books the tasks anew, in an order that holds little at once" in tight.notes[-1]
    assert problems(tight) == []


def test_late_copies_make_room():
    b = Graph.build()
    total = b.op(gpu_only, b.input("x0", (1000,)), flops=1e8)
    for i in range(1, 5):
        total = b.op(gpu_only, total, b.input(f"x{i}", (1000,)), flops=1e8)
    b.output(total)
    graph = b.freeze()
    free = plan_graph(graph, TWO, policy="heft")
    assert free.arenas["gpu"] == 6 * 4032
    tight = plan_graph(graph, TWO, policy="heft", memory={"gpu": 4 * 4032})
    assert tight.makespan == free.makespan
    assert problems(tight) == []
    assert max(s.finish for s in tight.spans if isinstance(s.command, Copy) and s.command.dst.node == "gpu") > tight.makespan / 2


@pytest.mark.parametrize("nbytes_less", [64, 4000])
def test_a_loop_gets_what_the_rest_of_the_graph_leaves(nbytes_less):
    """A body that fits the memory by itself, rings and all, and not beside what the graph holds meanwhile: its rings become smaller."""
    body = Graph.build()
    row = body.input("row", (5000,))
    big = body.op("tensor.exp", body.op("tensor.matmul", body.op("tensor.reshape", row, shape=[50, 100]), body.input("w", (100, 50))))
    body.output(body.op("tensor.sum", body.op("nn.softmax", big)), "sum")
    loop = Loop(body.freeze(), turns=20, invariants=("w",), sequences=("row",), collected=("sum",))
    b = Graph.build()
    held = b.op("tensor.exp", b.input("z", (100, 50)), name="held")
    (sums,) = b.loop(loop, held, b.input("x", (20, 5000)), name="loop")
    total = b.op("tensor.sum", b.op("data.whole", sums))
    b.output(b.op("tensor.sum", b.op("tensor.add", held, total)))
    graph, machine = b.freeze(), Machine((replace(CPU, lanes=2),))
    free = plan_graph(graph, machine)
    limit = certify(free).memory[HOST].peak - nbytes_less
    task = graph.task_names.index("loop")
    tight = plan_graph(graph, machine, memory={HOST: limit})
    assert problems(tight) == []
    assert certify(tight).memory[HOST].peak <= limit
    assert tight.loops[task].arenas[HOST] < free.loops[task].arenas[HOST] <= limit
