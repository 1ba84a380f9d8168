"""Small timelines written by hand, whose reports can be told by looking at them."""

from __future__ import annotations

import dataclasses

import numpy as np

from hetsched.graph.graph import Graph, Loop
from hetsched.graph.op import Op, Work
from hetsched.graph.spec import Spec
from hetsched.machine import Device, Link, Machine, MemoryNode
from hetsched.timeline import Bound, Copy, Free, Lane, Launch, Replica, Span, Timeline

same = Op("test.same", ("x",), ("y",), lambda s, a: [s[0]], lambda i, o, a: Work(1, 1, 1), {"array": lambda *a: None})

MACHINE = Machine(
    devices=(
        Device("cpu", "cpu", lanes=2, io_lanes=1),
        Device("gpu:0", "emulated", memory="gpu:0", name="Test GPU"),
        Device("gpu:1", "emulated", memory="gpu:1"),
    ),
    links=tuple(Link(a, b) for a in ("host", "gpu:0", "gpu:1") for b in ("host", "gpu:0", "gpu:1") if a != b),
    memories=(MemoryNode("host"), MemoryNode("gpu:0", 1 << 30), MemoryNode("gpu:1", 1 << 30)),
)
CPU0, CPU1 = Lane("cpu", 0), Lane("cpu", 1)
GPU, UP, DOWN = Lane("gpu:0", 0), Lane("host->gpu:0", 0, "copy"), Lane("gpu:0->host", 0, "copy")


def host(value: int, turn: int = 0) -> Replica:
    return Replica(value, turn, "host")


def gpu(value: int, turn: int = 0) -> Replica:
    return Replica(value, turn, "gpu:0")


def chain(n: int = 3) -> Graph:
    """x -> t0 -> t1 -> ...; value 0 is the input, value i + 1 comes from task i; 4000 bytes each."""
    b = Graph.build()
    value = b.input("x", (1000,))
    for i in range(n):
        value = b.op(same, value, name=f"t{i}")
    return b.output(value, "y").freeze()


def straight(measured: bool = False) -> Timeline:
    """t0 on cpu 0-4 s, its value up 4-6, t1 on the GPU 6-10; meanwhile x up 6-8 (hidden), t2 on the GPU 10-11, down 11-12."""
    spans = (
        Span((CPU0,), Launch(0, 0, (host(0),), (host(1),)), 0.0, 4.0),
        Span((UP,), Copy(1, 0, host(1), gpu(1)), 4.0, 6.0),
        Span((GPU,), Launch(1, 0, (gpu(1),), (gpu(2),)), 6.0, 10.0),
        Span((UP,), Copy(0, 0, host(0), gpu(0)), 6.0, 8.0),
        Span((), Free(gpu(1)), 10.0, 10.0),
        Span((GPU,), Launch(2, 0, (gpu(2),), (gpu(3),)), 10.0, 11.0),
        Span((DOWN,), Copy(3, 0, gpu(3), host(3)), 11.0, 12.0),
    )
    offsets = {gpu(1): 0, gpu(0): 8192, gpu(2): 4096, gpu(3): 0, host(1): 0}
    return Timeline(
        chain(), MACHINE, spans, offsets=offsets, arenas={"gpu:0": 12288, "host": 4096}, policy="heft", measured=measured,
        bound=Bound(10.0, "critical path"),
    )  # fmt: skip


def looped(turns: int = 10, every: int = 1) -> Timeline:
    """A loop of `turns` turns, period 2 s: a on cpu 0-2, its value up 2-3, b on the GPU 3-5. One turn lasts 5 s, three are in flight."""
    b = Graph.build()
    x = b.input("x", (1000,))
    c = b.input("c", (1000,))
    a = b.op(same, x, name="a")
    y = b.op(same, a, name="b")
    extra = b.op(same, c, name="extra")
    body = b.output(y, "y").output(extra, "c2").freeze()
    loop = Loop(body, turns, sequences=("x",), carried=(("c", "c2"),), collected=("y",), every={"extra": every} if every > 1 else {}, name="epochs")
    outer = Graph.build()
    xs = outer.input("xs", (turns, 1000))
    first = outer.input("first", (1000,))
    _last, ys = outer.loop(loop, xs, first, name="train")
    graph = outer.output(ys, "ys").freeze()
    ids = {name: i for i, name in enumerate(body.value_names)}
    spans = (
        Span((CPU0,), Launch(0, 0, (host(ids["x"]),), (host(ids["a"]),)), 0.0, 2.0),
        Span((UP,), Copy(ids["a"], 0, host(ids["a"]), gpu(ids["a"])), 2.0, 3.0),
        Span((GPU,), Launch(1, 0, (gpu(ids["a"]),), (gpu(ids["b"]),)), 3.0, 5.0),
        Span((CPU1,), Launch(2, 0, (host(ids["c"]),), (host(ids["extra"]),)), 0.0, 1.0),
    )
    inner = Timeline(body, MACHINE, spans, period=2.0, loop=loop, turns=turns, arenas={"gpu:0": 16384}, policy="heft")
    launch = Launch(0, 0, tuple(host(v) for v in graph.reads(0)), tuple(host(v) for v in graph.writes(0)))
    return Timeline(
        graph, MACHINE, (Span((CPU0, CPU1, UP, GPU), launch, 1.0, 1.0 + inner.makespan),), loops={0: inner}, policy="heft", bound=Bound(20.0, "load")
    )


def wide(n: int) -> Graph:
    """`n` tasks in groups of two: g0/a, g0/b, g1/a ..."""
    b = Graph.build()
    x = b.input("x", Spec((2,), np.float32))
    for i in range(n // 2):
        with b.scope(f"g{i}"):
            x = b.op(same, b.op(same, x, name="a"), name="b")
    return b.output(x, "y").freeze()


def traced(turns: int = 1000, kept: int = 3, invariant: bool = False) -> Timeline:
    """The trace of `looped(turns)`, of which the first and last `kept` turns were kept; with one copy that ran once."""
    plan = looped(turns)
    inner = plan.loops[0]
    spans = []
    for turn in sorted({*range(min(kept, turns)), *range(max(turns - kept, 0), turns)}):
        for span in inner.spans:
            shift = 1.0 + 2.0 * turn
            spans.append(Span(span.lanes, span.command._replace(turn=turn), span.start + shift, span.finish + shift))
    if invariant:
        spans.append(Span((UP,), Copy(1, 0, host(1), gpu(1)), 1.0, 1.5))
    totals = {"cpu": 3.0 * turns, "gpu:0": 2.0 * turns, "host->gpu:0": 1.0 * turns + 0.5 * invariant}
    body = dataclasses.replace(inner, spans=tuple(sorted(spans, key=lambda s: s.start)), measured=True, totals=totals)
    return dataclasses.replace(plan, measured=True, loops={0: body}, totals=totals)
