from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hetsched.check import RULES, check, problems
from hetsched.errors import PlanError
from hetsched.graph.graph import Graph, Loop, Where
from hetsched.graph.op import Op, Work
from hetsched.graph.spec import Opaque, Spec
from hetsched.machine import HOST, Device, Link, Machine, MemoryNode, Resource
from hetsched.timeline import After, Copy, Free, Lane, Launch, Replica, Span, Timeline

GPU = "cuda:0"
N = 16  # elements of the values below: 64 bytes of float32


def _op(name: str, inputs: tuple[str, ...] = ("x",), **more: Any) -> Op:
    def infer(specs: Any, attributes: Any) -> list[Any]:
        return [specs[0]]

    def work(ins: Any, outs: Any, attributes: Any) -> Work:
        return Work(1, 1, 1)

    kernels = {} if more.get("view") else {"array": lambda xp, ins, outs, workspace, attributes: None}
    return Op(name, inputs, ("out",), infer, work, **{"kernels": kernels, **more})


F = _op("test.f")
G = _op("test.g", inplace=((0, 0),))
ADD = _op("test.add", ("a", "b"), inplace=((0, 0), (0, 1)))
VIEW = _op("test.view", view=True)
WAITS = _op("test.waits", waits=True)
HOST_ONLY = _op("test.host", kernels={"host": lambda *args: None})
SCRATCH = _op("test.scratch", workspace=lambda ins, outs, attributes: 64)

MACHINE = Machine(
    (
        Device("cpu", "cpu", lanes=2, io_lanes=1, languages=("host", "array"), shares_lanes=True, widths=(1, 2), uses={"cores": 1.0}),
        Device(GPU, "cuda", lanes=2, memory=GPU, hardware="gpu", uses={"power": 1.0}),
    ),
    (Link(HOST, GPU), Link(GPU, HOST)),
    (MemoryNode(HOST), MemoryNode(GPU, 4096)),
    (Resource("cores", 2.0), Resource("power", 1.0)),
)
CPU0, CPU1, IO = Lane("cpu", 0), Lane("cpu", 1), Lane("cpu", 0, "io")
GPU0, GPU1 = Lane(GPU, 0), Lane(GPU, 1)
DOWN, UP = Lane(f"{HOST}->{GPU}", 0, "copy"), Lane(f"{GPU}->{HOST}", 0, "copy")


class Plan:
    """Spans of a plan by hand: names instead of numbers."""

    def __init__(self, graph: Graph, machine: Machine = MACHINE) -> None:
        self.graph, self.machine = graph, machine
        self.spans: list[Span] = []
        self.ids = {**{n: i for i, n in enumerate(graph.value_names)}, **graph.inputs}

    def at(self, value: str, node: str = HOST) -> Replica:
        return Replica(self.ids[value], 0, node)

    def launch(self, task: str, start: float, finish: float, *lanes: Lane, node: str = HOST) -> int:
        t = self.graph.task_index[task]
        reads = tuple(Replica(v, 0, node) for v in self.graph.reads(t))
        writes = tuple(Replica(v, 0, node) for v in self.graph.writes(t))
        self.spans.append(Span(lanes, Launch(t, 0, reads, writes, len(lanes)), start, finish))
        return len(self.spans) - 1

    def copied(self, value: str, start: float, finish: float, src: str, dst: str, lane: Lane | None = None) -> Span:
        v = self.ids[value]
        return Span((lane or Lane(f"{src}->{dst}", 0, "copy"),), Copy(v, 0, Replica(v, 0, src), Replica(v, 0, dst)), start, finish)

    def copy(self, value: str, start: float, finish: float, src: str, dst: str) -> int:
        self.spans.append(self.copied(value, start, finish, src, dst))
        return len(self.spans) - 1

    def free(self, value: str, when: float, node: str = HOST) -> int:
        self.spans.append(Span((), Free(self.at(value, node)), when, when))
        return len(self.spans) - 1

    def done(self, offsets: Mapping[str, int] | None = None, gpu: Mapping[str, int] | None = None, **more: Any) -> Timeline:
        places = {self.at(name): o for name, o in (offsets or {}).items()} | {self.at(name, GPU): o for name, o in (gpu or {}).items()}
        arenas = {HOST: 1024} if offsets else {}
        return Timeline(self.graph, self.machine, tuple(self.spans), offsets=places, **{"arenas": {**arenas, **({GPU: 1024} if gpu else {})}, **more})


def rules(plan: Timeline) -> set[str]:
    found = problems(plan)
    names = {text.rpartition("in the body of loop")[2].split(": ", 2)[-2 if text.startswith("in the body") else 0] for text in found}
    assert names <= set(RULES), found
    return names


def chain(*ops: Op) -> Graph:
    b = Graph.build()
    value = b.input("x", (N,))
    for i, op in enumerate(ops):
        value = b.op(op, value, name="abcdefgh"[i])
    return b.output(value, "out").freeze()


def test_a_plan_over_two_devices_is_valid_and_check_says_nothing() -> None:
    plan = two_devices()
    assert problems(plan) == []
    check(plan)


def two_devices(**change: Any) -> Timeline:
    """a on cpu, b on the GPU, c on cpu: x -> a -> copy -> b -> copy -> c."""
    p = Plan(chain(F, F, F))
    p.launch("a", 0, 1, CPU0)
    p.copy("a", 1, 2, HOST, GPU)
    p.launch("b", 2, 3, GPU0, node=GPU)
    p.copy("b", 3, 4, GPU, HOST)
    p.launch("c", 4, 5, CPU0)
    return p.done({"a": 0, "b": 64}, {"a": 0, "b": 64}, **change)


def test_the_value_that_the_graph_has_not_is_the_one_that_is_named() -> None:
    command = two_devices().spans[1].command
    assert isinstance(command, Copy)
    for absent in (-3, 99):
        (text,) = problems(edited(two_devices(), 1, dst=command.dst._replace(value=absent)))
        assert f"span 1 names value {absent}; the graph has" in text


def evicting(**change: Any) -> Timeline:
    """x comes to the GPU, is read by a, gives its bytes to what b makes, and comes in again for c."""
    b = Graph.build()
    x = b.input("x", (N,))
    first = b.op(F, x, name="a")
    second = b.op(F, first, name="b")
    p = Plan(b.output(b.op(ADD, x, second, name="c"), "out").freeze())
    p.copy("x", 0, 1, HOST, GPU)
    p.launch("a", 1, 2, GPU0, node=GPU)
    p.launch("b", 2, 3, GPU0, node=GPU)
    again = p.at("x", GPU)._replace(generation=1)
    p.spans.append(Span((DOWN,), Copy(p.ids["x"], 0, p.at("x"), again), 3, 4))
    p.launch("c", 4, 5, GPU0, node=GPU)
    c = p.spans[4].command
    assert isinstance(c, Launch)
    p.spans[4] = p.spans[4]._replace(command=c._replace(reads=(again, p.at("b", GPU))))
    p.copy("c", 5, 6, GPU, HOST)
    plan = p.done(gpu={"x": 0, "a": 64, "b": 0, "c": 0})
    return replace(plan, offsets={**plan.offsets, again: 64}, after=(After(2, 3),), arenas={GPU: 128}, **change)


def test_what_is_evicted_comes_in_again_as_another_generation() -> None:
    plan = evicting()
    assert problems(plan) == []
    read = plan.spans[4].command
    assert isinstance(read, Launch)
    first, again = read.reads[0]._replace(generation=0), read.reads[0]
    assert rules(edited(plan, 4, reads=(first, read.reads[1]))) == {"reuse"}, "it reads what lies there no more"
    assert rules(replace(without(plan, 3), after=())) == {"missing-copy"}
    assert rules(edited(plan, 3, dst=first)) == {"written-once", "missing-copy"}
    assert rules(replace(plan, after=())) == {"reuse-edge"}, "the bytes of a are given up before b has read them"
    assert rules(replace(plan, offsets={**plan.offsets, again: 0})) == {"reuse"}, "b lies there"
    assert rules(edited(plan, 4, writes=(read.writes[0]._replace(generation=1),))) >= {"written-once"}
    assert rules(edited(plan, 3, dst=again._replace(generation=-1))) == {"loop"}
    assert rules(replace(plan, spans=(*plan.spans, Span((), Free(again), 3.5, 3.5)))) == {"free"}


def edited(plan: Timeline, i: int, **change: Any) -> Timeline:
    spans = list(plan.spans)
    command = {k: v for k, v in change.items() if k not in Span._fields}
    span = spans[i]._replace(**{k: v for k, v in change.items() if k in Span._fields})
    spans[i] = span._replace(command=span.command._replace(**command)) if command else span
    return replace(plan, spans=tuple(spans))


def without(plan: Timeline, *dropped: int) -> Timeline:
    return replace(plan, spans=tuple(s for i, s in enumerate(plan.spans) if i not in dropped))


def test_the_error_lists_every_broken_rule_and_names_task_lane_and_times() -> None:
    plan = edited(without(two_devices(), 3), 2, start=1.5, finish=2.5)
    with pytest.raises(PlanError) as caught:
        check(plan)
    text = str(caught.value)
    assert {p.split(":")[0] for p in caught.value.problems} == {"early-start", "missing-copy"}
    assert "launch of 'b' on cuda:0/0 (1.5 to 2.5 s) starts before copy of 'a' host -> cuda:0 on host->cuda:0/0 (1 to 2 s)" in text
    assert "reads 'b' in host; it is only in cuda:0: a copy is missing" in text


@pytest.mark.parametrize(
    ("rule", "plan"),
    [
        ("task-once", without(two_devices(), 0)),
        ("task-once", replace(two_devices(), spans=(*two_devices().spans, two_devices().spans[4]._replace(start=5.0, finish=6.0)))),
        ("task-once", edited(two_devices(), 0, reads=())),
        ("time", edited(two_devices(), 0, start=-1.0)),
        ("time", edited(two_devices(), 4, finish=3.5)),
        ("time", edited(two_devices(), 1, finish=1.0)),
        ("time", edited(two_devices(), 4, finish=float("nan"))),
        ("lane", edited(two_devices(), 0, lanes=(Lane("cpu", 2),))),
        ("lane", edited(two_devices(), 0, lanes=())),
        ("lane", edited(two_devices(), 0, lanes=(CPU0, CPU1))),
        ("lane", edited(two_devices(), 0, lanes=(CPU0, CPU0), width=2)),
        ("lane", edited(two_devices(), 0, lanes=(CPU0, GPU0), width=2)),
        ("lane", edited(two_devices(), 2, lanes=(GPU0, GPU1), width=2)),
        ("lane", edited(two_devices(), 1, lanes=(UP,))),
        ("lane", edited(two_devices(), 1, lanes=(Lane(f"{HOST}->{GPU}", 1, "copy"),))),
        ("device", edited(two_devices(), 0, lanes=(IO,))),
        ("memory-node", edited(two_devices(), 0, lanes=(GPU1,))),
        ("missing-copy", without(two_devices(), 1)),
        ("written-once", replace(two_devices(), spans=(*two_devices().spans, two_devices().spans[1]._replace(start=5.0, finish=6.0)))),
        ("early-start", edited(two_devices(), 4, start=3.5)),
        ("copy", edited(two_devices(), 1, src=Replica(0, 0, HOST))),
        ("arena", replace(two_devices(), arenas={HOST: 127, GPU: 1024})),
        ("arena", replace(two_devices(), arenas={HOST: 1024, GPU: 8192})),
        ("arena", replace(two_devices(), arenas={HOST: 1024, GPU: 1024, "moon": 1})),
        ("arena", replace(two_devices(), offsets={k: v for k, v in two_devices().offsets.items() if k.node == HOST})),
        ("arena", replace(two_devices(), offsets={k: v + 2 for k, v in two_devices().offsets.items()})),
        ("order", replace(two_devices(), after=(After(4, 0),))),
        ("order", replace(two_devices(), after=(After(0, 9),))),
        ("order", replace(two_devices(), after=(After(0, 4, 1),))),
        ("cycle", replace(two_devices(), after=(After(4, 0),))),
        ("loop", replace(two_devices(), period=1.0)),
        ("loop", replace(two_devices(), turns=2)),
    ],
)
def test_each_rule_is_named(rule: str, plan: Timeline) -> None:
    assert rule in rules(plan)


def test_a_link_that_the_machine_lacks() -> None:
    far = Machine((*MACHINE.devices,), MACHINE.links, (*MACHINE.memories, MemoryNode("far")), MACHINE.resources)
    plan = replace(edited(two_devices(), 1, dst=Replica(1, 0, "far")), machine=far)
    assert "copy" in rules(plan)
    assert "no link from host to far" in "\n".join(problems(plan))


def test_constraints_of_a_task_are_kept() -> None:
    def plan(where: Where) -> Timeline:
        b = Graph.build()
        x = b.input("x", (N,))
        first = b.op(F, x, name="first")
        p = Plan(b.output(b.op(F, first, name="second", where=where), "out").freeze())
        p.launch("first", 0, 1, CPU0)
        p.launch("second", 1, 2, CPU1)
        return p.done({"first": 0})

    assert rules(plan(Where(allow=("gpu", "cpu")))) == set()
    assert rules(plan(Where(same_as="first"))) == set()
    assert rules(plan(Where(allow=("gpu",)))) == {"device"}
    assert rules(plan(Where(exclude=("cpu",)))) == {"device"}
    moved = plan(Where(same_as="first"))
    moved = replace(edited(moved, 1, lanes=(GPU0,)), offsets={})
    assert "wants the device of 'first', cpu" in "\n".join(problems(moved))


def test_a_device_needs_a_kernel_and_waiting_ops_may_use_io_lanes() -> None:
    p = Plan(chain(HOST_ONLY))
    p.launch("a", 0, 1, GPU0, node=GPU)
    assert "device" in rules(p.done(gpu={"x": 0, "a": 64}))
    p = Plan(chain(WAITS))
    p.launch("a", 0, 1, IO)
    assert rules(p.done()) == set()
    assert rules(edited(p.done(), 0, lanes=(Lane("cpu", 1, "io"),))) == {"lane"}


def test_two_spans_on_one_lane_overlap_but_a_span_without_length_does_not() -> None:
    b = Graph.build()
    x = b.input("x", (N,))
    graph = b.output(b.op(F, x, name="a"), "one").output(b.op(F, x, name="b"), "two").freeze()
    p = Plan(graph)
    p.launch("a", 0, 1, CPU0)
    p.launch("b", 0.5, 2, CPU0)
    assert rules(p.done()) == {"overlap"}
    assert rules(edited(p.done(), 1, finish=0.5)) == set()
    assert rules(edited(p.done(), 1, start=1.0)) == set()
    assert rules(edited(p.done(), 1, lanes=(CPU1,))) == set()


def test_wide_launches_and_resources() -> None:
    b = Graph.build()
    x = b.input("x", (N,))
    graph = b.output(b.op(F, x, name="a"), "one").output(b.op(F, x, name="b"), "two").freeze()
    p = Plan(graph)
    p.launch("a", 0, 1, CPU0, CPU1)
    p.launch("b", 1, 2, CPU0)
    assert rules(p.done()) == set()
    narrow = replace(MACHINE, resources=(Resource("cores", 1.0), Resource("power", 1.0)))
    found = problems(replace(p.done(), machine=narrow))
    assert len(found) == 1
    assert found[0].startswith("resource: 2 of cores is taken when launch of 'a' on cpu/0, cpu/1 (0 to 1 s) starts; the machine has 1")


def test_order_only_edges_of_the_graph() -> None:
    b = Graph.build()
    x = b.input("x", (N,))
    first = b.op(F, x, name="first")
    graph = b.output(first, "one").output(b.op(F, x, name="second", after=[first]), "two").freeze()
    p = Plan(graph)
    p.launch("first", 0, 1, CPU0)
    p.launch("second", 1, 2, CPU1)
    assert rules(p.done()) == set()
    assert rules(edited(p.done(), 1, start=0.5)) == {"order"}


def test_outputs_must_end_on_the_host() -> None:
    p = Plan(chain(F))
    p.copy("x", 0, 1, HOST, GPU)
    p.launch("a", 1, 2, GPU0, node=GPU)
    assert rules(p.done(gpu={"x": 0, "a": 64})) == {"output"}
    p.copy("a", 2, 3, GPU, HOST)
    assert rules(p.done(gpu={"x": 0, "a": 64})) == set()


# Bytes ----------------------------------------------------------------------------------------------------------------------------------


def fork(**more: Any) -> tuple[Plan, dict[str, int]]:
    """a feeds b and c; d follows b; out = c + d. On the threads of the cpu, which give no order."""
    b = Graph.build()
    x = b.input("x", (N,))
    a = b.op(F, x, name="a")
    one, two = b.op(F, a, name="b"), b.op(F, a, name="c")
    graph = b.output(b.op(ADD, two, b.op(F, one, name="d"), name="e"), "out").freeze()
    p = Plan(graph)
    spans = {"a": p.launch("a", 0, 1, CPU0), "b": p.launch("b", 1, 2, CPU0), "c": p.launch("c", 1, 2, CPU1)}
    return p, spans | {"d": p.launch("d", 2, 3, CPU0), "e": p.launch("e", 3, 4, CPU0)}


def test_bytes_are_reused_only_behind_an_edge_from_every_reader() -> None:
    p, spans = fork()
    apart = p.done({"a": 0, "b": 64, "c": 128, "d": 192})
    assert rules(apart) == set()
    shared = p.done({"a": 0, "b": 64, "c": 128, "d": 0})  # d over a: b read it before, but nothing makes d wait for c
    found = problems(shared)
    assert len(found) == 1
    assert found[0].startswith("reuse-edge: launch of 'd' on cpu/0 (2 to 3 s) writes 'd' over 'a', and nothing makes it wait for launch of 'c'")
    assert rules(replace(shared, after=(After(spans["c"], spans["d"]),))) == set()


def test_partly_shared_bytes_count_as_shared() -> None:
    p, _ = fork()
    assert rules(p.done({"a": 0, "b": 64, "c": 128, "d": 32})) == {"reuse-edge", "alias"}  # d also covers half of b, which it reads


def test_reuse_too_early_is_seen_in_the_times() -> None:
    p, spans = fork()
    late = edited(p.done({"a": 0, "b": 64, "c": 128, "d": 0}), spans["c"], finish=2.5)
    assert rules(late) == {"reuse"}


def test_lanes_of_streams_give_an_order_and_threads_do_not() -> None:
    b = Graph.build()
    x = b.input("x", (N,))
    one = b.op(F, b.op(F, x, name="a"), name="b")
    two = b.op(F, b.op(F, x, name="c"), name="d")
    graph = b.output(one, "one").output(two, "two").freeze()

    def plan(lanes: tuple[Lane, Lane], node: str) -> Timeline:
        p = Plan(graph)
        start = 0.0
        if node == GPU:
            p.copy("x", 0, 1, HOST, GPU)
        for task, lane in zip("abcd", (lanes[0], lanes[0], lanes[1], lanes[1]), strict=True):
            start += 1
            p.launch(task, start, start + 1, lane, node=node)
        if node == GPU:
            p.copy("b", 5, 6, GPU, HOST)
            p.copy("d", 6, 7, GPU, HOST)
            return p.done(gpu={"x": 0, "a": 64, "b": 128, "c": 64, "d": 192})
        return p.done({"a": 0, "c": 0})

    assert rules(plan((GPU0, GPU0), GPU)) == set()
    assert rules(plan((GPU0, GPU1), GPU)) == {"reuse-edge"}
    assert rules(plan((CPU0, CPU0), HOST)) == {"reuse-edge"}


def test_in_place_only_where_the_op_declares_it() -> None:
    for op, wanted in ((G, set()), (F, {"alias"})):
        p = Plan(chain(F, op, F))
        for i, task in enumerate("abc"):
            p.launch(task, i, i + 1, CPU0)
        assert rules(p.done({"a": 0, "b": 0})) == wanted
        assert rules(p.done({"a": 0, "b": 4})) == {"alias"}


def test_in_place_not_while_another_reads() -> None:
    b = Graph.build()
    x = b.input("x", (N,))
    a = b.op(F, x, name="a")
    graph = b.output(b.op(F, b.op(G, a, name="b"), name="d"), "one").output(b.op(F, a, name="c"), "two").freeze()
    p = Plan(graph)
    p.launch("a", 0, 1, CPU0)
    c = p.launch("c", 1, 2, CPU0)
    b_ = p.launch("b", 2, 3, CPU1)
    p.launch("d", 3, 4, CPU1)
    plan = p.done({"a": 0, "b": 0})
    assert rules(plan) == {"reuse-edge"}
    assert rules(replace(plan, after=(After(c, b_),))) == set()
    assert rules(edited(plan, b_, start=1.5)) == {"reuse"}


def test_a_view_keeps_the_bytes_alive_and_lies_inside_them() -> None:
    b = Graph.build()
    x = b.input("x", (N,))
    a = b.op(F, x, name="a")
    v = b.op(VIEW, a, name="v")
    c = b.op(F, x, name="c")
    graph = b.output(b.op(ADD, v, c, name="d"), "out").freeze()
    p = Plan(graph)
    p.launch("a", 0, 1, CPU0)
    p.launch("v", 1, 1, CPU0)
    i = p.launch("c", 1, 2, CPU0)
    p.launch("d", 2, 3, CPU0)
    assert rules(p.done({"a": 0, "v": 0, "c": 64})) == set()
    assert rules(p.done({"a": 0, "v": 64, "c": 128})) == {"alias"}
    assert rules(p.done({"a": 0, "v": 0, "c": 0})) == {"reuse", "reuse-edge"}
    # Nobody reads a itself after v: only the reader of the view holds the bytes, and it is later than c.
    assert "launch of 'd'" in problems(edited(p.done({"a": 0, "v": 0, "c": 0}), i, start=1.0))[0]


def test_an_output_that_is_a_view_is_kept_to_the_end() -> None:
    b = Graph.build()
    x = b.input("x", (N,))
    a = b.op(F, x, name="a")
    last = b.op(F, b.op(F, a, name="c"), name="d")
    graph = b.output(b.op(VIEW, a, name="v"), "view").output(last, "last").freeze()
    p = Plan(graph)
    for i, task in enumerate("avcd"):
        p.launch(task, i, i + 1, CPU0)
    assert rules(p.done({"a": 0, "v": 0, "c": 64})) == set()
    assert rules(p.done({"a": 0, "v": 0, "c": 0})) == {"reuse", "alias"}


def test_workspaces_are_bytes_like_others() -> None:
    p = Plan(chain(F, SCRATCH, F))
    for i, task in enumerate("abc"):
        p.launch(task, i, i + 1, CPU0)
    plan = p.done({"a": 0, "b": 64})
    assert rules(plan) == {"arena"}
    assert rules(replace(plan, workspaces={1: (HOST, 128, 64)})) == set()
    assert rules(replace(plan, workspaces={1: (HOST, 1000, 64)})) == {"arena"}
    assert rules(replace(plan, workspaces={1: (GPU, 0, 64)}, arenas={HOST: 1024, GPU: 64})) == {"arena"}
    assert rules(replace(plan, workspaces={1: (HOST, 0, 64)})) == {"alias"}  # over its own input
    assert "alias" in rules(replace(plan, workspaces={1: (HOST, 64, 64)}))  # over its own output


def test_frees_come_after_the_last_use() -> None:
    p, _ = fork()
    late = p.free("a", 2)
    plan = p.done({"a": 0, "b": 64, "c": 128, "d": 192})
    assert rules(plan) == set()
    assert rules(edited(plan, late, start=1.5, finish=1.5)) == {"free"}
    assert rules(edited(plan, late, finish=3.0)) == {"free"}
    assert rules(edited(plan, late, replica=Replica(1, 0, GPU))) == {"free"}


def test_every_path_is_found_through_long_chains() -> None:
    """Bytes of the first task are used again by the last of a chain: the only path is the chain itself."""
    b = Graph.build()
    x = b.input("x", (N,))
    value = b.op(F, x, name="t0")
    for i in range(1, 400):
        value = b.op(F, value, name=f"t{i}")
    p = Plan(b.output(value, "out").freeze())
    for i in range(400):
        p.launch(f"t{i}", i, i + 1, CPU0)
    offsets = {f"t{i}": (i % 3) * 64 for i in range(399)}
    assert rules(p.done(offsets)) == set()
    offsets["t300"] = offsets["t299"]  # over its own input, without in-place
    assert rules(p.done(offsets)) == {"alias"}


# Loops ----------------------------------------------------------------------------------------------------------------------------------


def body_graph(op: Op = F) -> Graph:
    """s' = s + load(x); y = s'."""
    b = Graph.build("body")
    x, s = b.input("x", (N,)), b.input("s", (N,))
    loaded = b.op(op, x, name="load")
    new = b.op(ADD, s, loaded, name="new")
    return b.output(new, "new").output(b.op(F, loaded, name="y"), "y").freeze()


def body_plan(*, period: float = 2.0, turns: int = 10, slots: int = 2, after: bool = True, **more: Any) -> Timeline:
    """load [0, 2) on cpu/0, new [2, 3) and y [3, 4) on cpu/1: two stages at a period of 2."""
    graph = body_graph()
    loop = Loop(graph, turns, sequences=("x",), carried=(("s", "new"),), collected=("y",))
    p = Plan(graph)
    p.launch("load", 0, 2, CPU0)
    p.launch("new", 2, 3, CPU1)
    p.launch("y", 3, 4, CPU1)
    edges = ((After(1, 0, slots), After(2, 0, slots)) if after else ()) + (After(2, 2, 1),)  # y has one slot
    plan = p.done({"load": 0, "new": 256, "y": 320}, period=period, turns=turns, loop=loop, after=edges, rings={p.at("load"): slots}, **more)
    return plan


def test_a_body_that_overlaps_turns_is_valid() -> None:
    assert problems(body_plan()) == []
    assert problems(body_plan(turns=1, slots=1)) == []
    assert problems(body_plan(turns=0)) == []


def test_rings_need_enough_slots_and_their_edges() -> None:
    assert rules(body_plan(slots=1)) == {"reuse", "order"}  # load of turn 1 runs while turn 0 is read
    assert rules(body_plan(after=False)) == {"reuse-edge"}
    assert rules(body_plan(slots=1, period=4.0)) == set()
    assert rules(body_plan(slots=0)) == {"loop"}
    far = body_plan(slots=15)
    assert "arena" in rules(replace(far, arenas={HOST: 512}))


def test_lanes_wrap_around_the_period() -> None:
    plan = body_plan()
    assert rules(edited(plan, 2, lanes=(CPU0,))) == {"overlap"}  # y [3, 4) against load of turn 1 [2, 4)
    # A span longer than the period: fine while turns can rotate over the device's lanes, and no longer than that.
    long = edited(body_plan(period=2.0, slots=4), 0, start=0.0, finish=3.0)
    long = edited(edited(long, 1, start=3.0, finish=3.25), 2, start=3.25, finish=3.5)
    assert rules(long) == set()
    too_long = edited(edited(edited(long, 0, finish=4.0), 1, start=4.0, finish=4.25), 2, start=4.25, finish=4.5)
    assert "overlap" in rules(too_long)


def test_carried_state_runs_from_turn_to_turn() -> None:
    b = Graph.build("body")
    s = b.input("s", (N,))
    graph = b.output(b.op(F, b.op(F, s, name="a"), name="new"), "new").freeze()
    loop = Loop(graph, 5, carried=(("s", "new"),))
    p = Plan(graph)
    p.launch("a", 0, 1, CPU0)
    p.launch("new", 1, 2, CPU1)
    plan = p.done({"a": 0, "new": 64}, loop=loop, turns=5, period=2.0)
    assert rules(plan) == set()
    assert "early-start" in rules(replace(plan, period=1.5))  # turn 1 reads new of turn 0 before it is there
    in_place = replace(plan, offsets={p.at("a"): 0, p.at("new"): 0})
    assert rules(in_place) == {"alias"}


def test_carried_state_may_be_updated_in_place() -> None:
    graph = body_graph()
    plan = body_plan()
    assert graph.task_ops[graph.task_index["new"]] is ADD
    assert rules(plan) == set()  # new of turn i lies over new of turn i - 1, which it reads as s
    with_f = body_graph(F)
    b = Graph.build("body")
    x, s = b.input("x", (N,)), b.input("s", (N,))
    loaded = b.op(F, x, name="load")
    strict = _op("test.strict", ("a", "b"))
    graph = b.output(b.op(strict, s, loaded, name="new"), "new").output(b.op(F, loaded, name="y"), "y").freeze()
    loop = Loop(graph, 10, sequences=("x",), carried=(("s", "new"),), collected=("y",))
    assert rules(replace(plan, graph=graph, loop=loop)) == {"alias"}
    assert len(with_f) == len(graph)


def test_what_is_carried_is_not_overwritten_after_the_last_turn() -> None:
    b = Graph.build("body")
    s = b.input("s", (N,))
    graph = b.output(b.op(F, s, name="new"), "new").output(b.op(F, b.op(F, s, name="a"), name="y"), "y").freeze()
    loop = Loop(graph, 4, carried=(("s", "new"),), collected=("y",))
    p = Plan(graph)
    p.launch("new", 0, 1, CPU0)
    p.launch("a", 1, 2, CPU0)
    p.launch("y", 2, 3, CPU0)
    edges = (After(1, 0, 1), After(2, 1, 1))
    assert rules(p.done({"new": 0, "a": 128, "y": 192}, loop=loop, turns=4, period=3.0, rings={p.at("new"): 2}, after=edges)) == set()
    over = p.done({"new": 0, "a": 0, "y": 192}, loop=loop, turns=4, period=3.0, after=(*edges, After(2, 0, 1)))
    assert "needed to the end" in "\n".join(problems(over))


def gpu_body(**more: Any) -> Timeline:
    """w (invariant) and s (carried) live on the GPU; x is copied every turn; new = f(s, x) there."""
    b = Graph.build("body")
    x, w, s = b.input("x", (N,)), b.input("w", (N,)), b.input("s", (N,))
    scaled = b.op(ADD, x, w, name="scaled")
    graph = b.output(b.op(ADD, s, scaled, name="new"), "new").freeze()
    loop = Loop(graph, 6, invariants=("w",), sequences=("x",), carried=(("s", "new"),))
    p = Plan(graph)
    p.copy("x", 0, 1, HOST, GPU)
    p.launch("scaled", 1, 2, GPU0, node=GPU)
    p.launch("new", 2, 3, GPU0, node=GPU)
    prologue = (p.copied("w", 0, 1, HOST, GPU), p.copied("s", 1, 2, HOST, GPU))
    epilogue = (p.copied("new", 0, 1, GPU, HOST),)
    settings = {"loop": loop, "turns": 6, "period": 2.0, "rings": {p.at("x", GPU): 2}, "after": (After(1, 0, 2),)}
    return p.done(gpu={"w": 0, "x": 64, "scaled": 256, "new": 320}, **{**settings, "prologue": prologue, "epilogue": epilogue, **more})


def test_invariants_and_state_reach_a_device_by_prologue_and_leave_by_epilogue() -> None:
    plan = gpu_body()
    assert rules(plan) == set()
    assert rules(replace(plan, prologue=plan.prologue[:1])) == {"missing-copy"}
    assert rules(replace(plan, prologue=plan.prologue[1:])) == {"missing-copy"}
    assert rules(replace(plan, epilogue=())) == {"output"}
    assert rules(replace(plan, after=())) == {"reuse-edge"}
    assert "overlap" in rules(replace(plan, period=1.5))
    over = {k: (0 if k.value == plan.graph.writes(0)[0] else v) for k, v in plan.offsets.items()}
    assert "reuse" in rules(replace(plan, offsets=over))  # over the invariant, which every turn reads


def test_a_task_that_runs_every_k_turns_serves_the_turns_between() -> None:
    b = Graph.build("body")
    x, w = b.input("x", (N,)), b.input("w", (N,))
    slow = b.op(F, w, name="slow")
    graph = b.output(b.op(ADD, x, slow, name="y"), "y").freeze()
    loop = Loop(graph, 12, invariants=("w",), sequences=("x",), collected=("y",), every={"slow": 3})
    p = Plan(graph)
    p.launch("slow", 0, 1, CPU0)
    p.launch("y", 1, 2, CPU1)
    plan = p.done({"slow": 0, "y": 128}, loop=loop, turns=12, period=1.0, after=(After(1, 1, 1),))
    # With one slot, slow of turn 3 [3, 4) runs while y of turn 2 [3, 4) still reads slow of turn 0.
    assert rules(plan) == {"reuse", "reuse-edge"}
    ring = replace(plan, rings={p.at("slow"): 2}, after=tuple(After(1, 0, d) for d in (4, 5, 6)))
    assert rules(ring) == {"reuse-edge"}  # y itself has one slot, too
    # y of turns 0, 1 and 2 read slot 0, which slow of turn 6 writes again: an edge from the last of them is enough where they are in order.
    assert rules(replace(ring, after=(After(1, 0, 4), After(1, 1, 1)))) == set()
    two = {p.at("slow"): 2, p.at("y"): 2}
    assert rules(replace(ring, rings=two, after=(After(1, 0, 4), After(1, 1, 2)))) == {"reuse-edge"}
    assert rules(replace(ring, rings=two, after=(*ring.after, After(1, 1, 2)))) == set()


def outer(body: Timeline, *lanes: Lane, **more: Any) -> Timeline:
    b = Graph.build()
    assert body.loop is not None
    x, s = b.input("xs", (10, N)), b.input("s0", (N,))
    out = b.loop(body.loop, x, s, name="train")
    p = Plan(b.output(out[0], "last").output(out[1], "ys").freeze())
    p.launch("train", 0, 30, *lanes)
    bodies = {0: {HOST: 0}}
    return p.done({}, loops={0: body}, **{"arenas": {HOST: 1024}, "bodies": bodies, **more})


def test_a_loop_holds_the_lanes_and_the_memory_of_its_body() -> None:
    body = body_plan()
    assert rules(outer(body, CPU0, CPU1)) == set()
    assert rules(outer(body, CPU0)) == {"lane"}
    assert rules(outer(body, CPU0, CPU1, bodies={})) == {"arena"}
    assert rules(outer(body, CPU0, CPU1, bodies={0: {HOST: 512}})) == {"arena"}
    assert rules(replace(outer(body, CPU0, CPU1), loops={})) == {"loop"}
    assert rules(replace(outer(body, CPU0, CPU1), loops={0: body_plan(turns=9)})) == {"loop"}


def test_what_is_wrong_in_a_body_is_told_with_the_loop() -> None:
    found = problems(outer(edited(body_plan(), 2, lanes=(CPU0,)), CPU0, CPU1))
    assert len(found) == 1
    assert found[0].startswith("in the body of loop 'train': overlap: on cpu/0 launch of 'y' on cpu/0 at turn 0 (3 to 4 s) starts while")


def test_a_loop_takes_of_resources_what_its_body_takes_at_most() -> None:
    body = body_plan()
    plan = outer(body, CPU0, CPU1)
    one_core = replace(MACHINE, resources=(Resource("cores", 1.0), Resource("power", 1.0)))
    assert rules(replace(plan, machine=one_core, loops={0: replace(body, machine=one_core)})) == {"resource"}
    slow = edited(edited(replace(body, period=4.0, machine=one_core), 1, start=2.0), 2, start=3.0)
    assert rules(replace(plan, machine=one_core, loops={0: slow})) == set()


def test_ten_thousand_spans_of_tangled_bytes() -> None:
    """Layers of 20 tasks on 2 GPU lanes and shared bytes: every rule is looked at, and one missing edge is found."""
    layers, wide = 500, 20
    b = Graph.build()
    row = [b.input(f"x{i}", (N,)) for i in range(wide)]
    for layer in range(layers):
        row = [b.op(ADD, row[i], row[(i + 7) % wide], name=f"t{layer}.{i}") for i in range(wide)]
    for i, value in enumerate(row):
        b.output(value, f"out{i}")
    graph = b.freeze()
    machine = Machine((Device("cpu", "cpu", lanes=wide, shares_lanes=True),))
    p = Plan(graph, machine)
    spans: dict[tuple[int, int], int] = {}
    after = []
    for layer in range(layers):
        for i in range(wide):
            spans[layer, i] = p.launch(f"t{layer}.{i}", layer, layer + 1, Lane("cpu", i))
            # Bytes alternate between two rows: t(l).i writes over t(l-2).i, which (l-1).i and (l-1).(i-7) have read.
            after += [After(spans[layer - 1, j % wide], spans[layer, i]) for j in (i, i - 7) if layer >= 2]
    offsets = {p.at(f"t{layer}.{i}"): 64 * (i + wide * (layer % 2)) for layer in range(layers - 1) for i in range(wide)}
    plan = Timeline(graph, machine, tuple(p.spans), after=tuple(after), offsets=offsets, arenas={HOST: 64 * 2 * wide})
    assert problems(plan) == []
    gone = After(spans[249, 13], spans[250, 0])  # t249.13 reads t248.0 (13 + 7 = 20); t250.0 reads t249.0 and t249.7 only
    assert gone in after
    assert rules(replace(plan, after=tuple(e for e in after if e != gone))) == {"reuse-edge"}


def test_an_object_of_a_body_has_one_cell_for_all_turns() -> None:
    def infer(specs: Any, attributes: Any) -> list[Any]:
        return [Opaque("table")]

    def count(specs: Any, attributes: Any) -> list[Any]:
        return [Spec((), np.int64)]

    make, use = replace(_op("test.make"), infer=infer), replace(_op("test.use"), infer=count)
    b = Graph.build("body")
    graph = b.output(b.op(use, b.op(make, b.input("x", (N,)), name="make"), name="use"), "n").freeze()
    loop = Loop(graph, 5, sequences=("x",), collected=("n",))
    p = Plan(graph)
    p.launch("make", 0, 1, CPU0)
    p.launch("use", 1, 2, CPU1)
    plan = p.done({"use": 0}, loop=loop, turns=5, period=2.0, after=(After(1, 0, 1), After(1, 1, 1)))
    assert rules(plan) == set()
    assert rules(replace(plan, after=(After(1, 1, 1),))) == {"reuse-edge"}
    assert "reuse" in rules(replace(plan, period=1.0))


def test_dtypes_of_values_decide_alignment() -> None:
    b = Graph.build()
    x = b.input("x", (N,), np.float64)
    p = Plan(b.output(b.op(F, b.op(F, x, name="a"), name="b"), "out").freeze())
    p.launch("a", 0, 1, CPU0)
    p.launch("b", 1, 2, CPU0)
    assert p.graph.spec(p.ids["a"]) == Spec((N,), np.float64)
    assert rules(p.done({"a": 4})) == {"arena"}
    assert rules(p.done({"a": 8})) == set()


def test_the_first_carried_value_lies_on_the_host_before_the_first_turn() -> None:
    b = Graph.build("body")
    s = b.input("s", (N,))
    graph = b.output(b.op(F, b.input("x", (N,)), name="new"), "new").output(b.op(F, s, name="y"), "y").freeze()
    loop = Loop(graph, 6, sequences=("x",), carried=(("s", "new"),), collected=("y",))
    p = Plan(graph)
    p.launch("y", 0, 1, CPU0)
    p.launch("new", 1, 2, CPU1)
    ring = {"rings": {p.at("new"): 3}, "loop": loop, "turns": 6, "period": 2.0}
    plan = p.done({"new": 0, "y": 256}, after=(After(0, 1, 2), After(0, 0, 1)), **ring)
    assert rules(plan) == set()
    # y of turn 0 reads the first value where turn 2 writes; from turn 1 on y follows new of the turn before, which is then far enough behind.
    chained = p.done({"new": 0, "y": 256}, after=(After(1, 0, 1), After(0, 0, 1), After(1, 1, 1)), **ring)
    assert rules(chained) == {"reuse-edge"}
    assert "writes 'new' over 's'" in "\n".join(problems(chained))
