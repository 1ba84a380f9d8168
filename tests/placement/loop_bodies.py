"""Random loop bodies of costed stand-in ops, machines for them, and a simulation that takes nothing from the planner but the plan."""

from __future__ import annotations

import random
from collections import defaultdict
from itertools import pairwise

import numpy as np

from hetsched.graph.graph import Graph, Loop
from hetsched.graph.op import Attribute, Op, Work
from hetsched.graph.spec import Opaque, Spec
from hetsched.machine import HOST, Device, Link, Machine, MemoryNode
from hetsched.placement.costs.estimate import Estimate
from hetsched.placement.loops.body import Body
from hetsched.timeline import Copy, Launch, Replica


def same(specs, attributes):
    return [specs[0]]


def nothing(ins, outs, attributes):
    return Work(0, 0, 0)


def kernel(xp, inputs, outputs, workspace, attributes):
    raise AssertionError("never run")


EVERYWHERE = {"array": kernel, "cuda": kernel}
# A cost model is asked once for tasks that are equal in op, attributes and specs: this tells them apart.
KIND = {"kind": Attribute(int, 0)}
MIX = Op("test.mix", ("x*",), ("y",), same, nothing, EVERYWHERE, attributes=KIND)
STEP = Op("test.step", ("w", "g"), ("w",), same, nothing, EVERYWHERE, inplace=((0, 0),), attributes=KIND)
PAIR = Op("test.pair", ("x", "z"), ("a", "b"), lambda s, a: [s[0], s[1]], nothing, EVERYWHERE, attributes=KIND)
FLAT = Op("test.flat", ("x",), ("y",), lambda s, a: [Spec((s[0].size,), s[0].dtype)], nothing, {}, view=True)
SQUARE = Op("test.square", ("x",), ("y",), lambda s, a: [Spec((4, s[0].size // 4), s[0].dtype)], nothing, {}, view=True)
WAIT = Op("test.wait", ("x",), ("y",), same, nothing, {"array": kernel}, waits=True, attributes=KIND)
SCRATCH = Op("test.scratch", ("x*",), ("y",), same, nothing, EVERYWHERE, workspace=lambda i, o, a: 100, attributes=KIND)
TABLE = Op("test.table", ("x",), ("t",), lambda s, a: [Opaque("table")], nothing, {"array": kernel}, attributes=KIND)
LOOKUP = Op("test.lookup", ("t", "x"), ("y",), lambda s, a: [s[1]], nothing, {"array": kernel}, attributes=KIND)
DONE = Op("test.done", ("x",), ("stop",), lambda s, a: [Spec((), np.bool_)], nothing, EVERYWHERE)

CPU = Device("cpu", "cpu", lanes=4, io_lanes=2, crossing_seconds=8e-6, shares_lanes=True, widths=(1, 4))
SINGLE = Device("cpu", "cpu", lanes=1, shares_lanes=True)
LINKS = (Link(HOST, "cuda:0", 5e-6, 1e8), Link("cuda:0", HOST, 5e-6, 1e8))
MEMORIES = (MemoryNode(HOST), MemoryNode("cuda:0"))


def gpu(lanes: int) -> Device:
    return Device("cuda:0", "cuda", lanes=lanes, memory="cuda:0", hardware="gpu", languages=("cuda",))


MACHINES = {
    "one thread": Machine((SINGLE,)),
    "four threads": Machine((CPU,)),
    "a stream": Machine((CPU, gpu(1)), LINKS, MEMORIES),
    "two streams": Machine((CPU, gpu(2)), LINKS, MEMORIES),
}


class Costs:
    """Seconds by a table of the task's name; copies by the link."""

    def __init__(self, rng: random.Random, scale: float = 1e-4, gpu_speed: float = 4.0) -> None:
        self.rng, self.scale, self.gpu_speed = rng, scale, gpu_speed
        self.table: dict[tuple[str, str], float] = {}

    def launch(self, graph, task, device, width=1):
        if graph.task_ops[task].view:
            return Estimate(0.0)
        key = graph.task_attributes[task].get("kind", 0), device.kind
        if key not in self.table:
            speed = self.gpu_speed if device.kind == "cuda" else 1.0
            self.table[key] = self.scale * self.rng.uniform(0.1, 2.0) / speed
        return Estimate(self.table[key] / (1 if width == 1 else 1.2))

    def copy(self, nbytes, link):
        return Estimate(link.seconds(nbytes))


def random_loop(rng: random.Random, tasks: int, turns: int = 9, *, stop: bool = False, every: bool = True) -> Loop:
    """A body with invariants, sequences, carried state updated in place or not, views, waits, opaque values, scratch, tasks every k turns."""
    while True:
        loop = _any_loop(rng, tasks, turns, stop, every)
        if not (loop.problems() or Body(loop).problems()):  # a state may only view itself, or another one
            return loop


def _any_loop(rng: random.Random, tasks: int, turns: int, stop: bool, every: bool) -> Loop:
    b = Graph.build()

    def op(kind, *inputs, **options):
        return b.op(kind, *inputs, kind=rng.randrange(1 << 30), **options)

    spec = Spec((4, 4))
    sequences = [b.input(f"s{i}", spec) for i in range(rng.randint(1, 2))]
    fixed = [b.input(f"c{i}", spec) for i in range(rng.randint(0, 2))]
    state = [b.input(f"w{i}", spec) for i in range(rng.randint(0, 3))]
    turn = b.input("turn", (), np.int64) if rng.random() < 0.3 else None
    values = [*sequences, *fixed, *state]
    tables = []
    for i in range(tasks):
        kind = rng.random()
        x = rng.choice(values[-6:] if rng.random() < 0.6 else values)
        if kind < 0.1:
            values.append(b.op(SQUARE, b.op(FLAT, x, name=f"flat{i}"), name=f"square{i}"))
        elif kind < 0.18:
            values.append(op(WAIT, x, name=f"wait{i}"))
        elif kind < 0.24:
            tables.append(op(TABLE, x, name=f"table{i}"))
        elif kind < 0.3 and tables:
            values.append(op(LOOKUP, rng.choice(tables), x, name=f"lookup{i}"))
        elif kind < 0.4:
            values.append(op(SCRATCH, x, rng.choice(values), name=f"scratch{i}"))
        elif kind < 0.5:
            values += op(PAIR, x, rng.choice(values), name=f"pair{i}")
        else:
            values.append(op(MIX, *(rng.choice(values) for _ in range(rng.randint(1, 3))), name=f"mix{i}"))
    made = [v for v in values if v not in (*sequences, *fixed, *state)]
    carried = []
    for i, w in enumerate(state):
        new = op(STEP, w, rng.choice(values), name=f"step{i}") if rng.random() < 0.7 or not made else rng.choice(made)
        b.output(new, f"n{i}")
        carried.append((f"w{i}", f"n{i}"))
        values.append(new)
    for i in range(rng.randint(0, 3)):
        values.append(op(MIX, rng.choice(values), rng.choice(values), name=f"late{i}"))
    collected = []
    for i in range(rng.randint(0, 2)):
        b.output(rng.choice([v for v in values if v not in (*sequences, *fixed, *state)] or [op(MIX, values[0])]), f"o{i}")
        collected.append(f"o{i}")
    if stop:
        b.output(b.op(DONE, values[-1], name="done"), "done")
    if turn is not None:
        op(MIX, turn, name="clock")
    graph = b.freeze()
    mixes = [n for n in graph.task_names if n.startswith("mix")]
    slow = {n: rng.randint(2, 3) for n in mixes if every and rng.random() < 0.1}
    loop = Loop(
        graph, turns, tuple(v.name for v in fixed), tuple(v.name for v in sequences), tuple(carried), tuple(collected),
        turn="turn" if turn is not None else None, stop="done" if stop else None, every=slow,
    )  # fmt: skip
    return loop


def stride(nbytes: int) -> int:
    return -(-nbytes // 64) * 64


class Run:
    """The events of the first `turns` turns of a plan: what waits for what, and which bytes each reads and writes."""

    def __init__(self, plan, turns: int) -> None:
        self.plan, self.graph, self.turns = plan, plan.graph, turns
        loop = plan.loop
        self.carried = {self.graph.inputs[a]: self.graph.outputs[b] for a, b in loop.carried}
        self.every = {self.graph.task_index[n]: k for n, k in loop.every.items()}
        self.copy_of = {(s.command.value, s.command.dst.node): i for i, s in enumerate(plan.spans) if isinstance(s.command, Copy)}
        self.launch_of = {s.command.task: i for i, s in enumerate(plan.spans) if isinstance(s.command, Launch)}
        self.once = {(s.command.value, s.command.dst.node) for s in plan.prologue}
        self.waits: dict[tuple[int, int], set[tuple[int, int]]] = {(i, t): set() for i in range(len(plan.spans)) for t in range(turns)}
        self.stored: dict[tuple[int, int, str], tuple[str, int, int]] = {}
        self.readers: dict[tuple[int, int, str], set[tuple[int, int]]] = defaultdict(set)
        self.writers: dict[tuple[int, int, str], tuple[int, int] | None] = {}
        for (i, t), needs in self.waits.items():
            command = plan.spans[i].command
            reads = command.reads if isinstance(command, Launch) else (command.src,)
            for r in reads:
                self.read(r.value, r.node, t, (i, t), needs)
            if isinstance(command, Launch) and t % self.every.get(command.task, 1) == 0:
                task = self.graph.task_ops[command.task]
                for w in command.writes if not task.view else ():
                    self.store(w.value, w.node, t, (i, t))
            elif isinstance(command, Copy):
                self.store(command.value, command.dst.node, t, (i, t))
        for a, b, d in plan.after:
            for t in range(turns):
                if (b, t + d) in self.waits and (a, t) in self.waits:
                    self.waits[b, t + d].add((a, t))
        for a, b in self.graph.after:
            for t in range(turns):
                self.waits[self.launch_of[b], t].add((self.launch_of[a], t))
        shared = {d.id for d in plan.machine.devices if d.shares_lanes}
        rows = defaultdict(list)
        for i, s in enumerate(plan.spans):
            for lane in s.lanes:
                if lane.owner not in shared:
                    rows[lane] += [(s.start + t * plan.period, s.finish + t * plan.period, (i, t)) for t in range(turns)]
        for row in rows.values():
            row.sort()
            for a, b in pairwise(row):
                self.waits[b[2]].add(a[2])
        if loop.stop is not None:
            at = self.copy_of.get((self.graph.outputs[loop.stop], HOST))
            at = self.launch_of[int(self.graph.value_task[self.graph.outputs[loop.stop]])] if at is None else at
            for (_, t), needs in self.waits.items():
                if t:
                    needs.add((at, t - 1))

    def block(self, value: int, turn: int) -> int:
        k = self.every.get(int(self.graph.value_task[value]), 1)
        return turn // k * k

    def read(self, value, node, turn, event, needs) -> None:
        """`event` reads a value: follow it to the bytes; `needs` gets the events that make them (and the views on the way)."""
        while True:
            if (value, node) in self.copy_of:
                needs.add((self.copy_of[value, node], turn))
                break
            if (value, node) in self.once and value not in self.carried:
                return
            if value in self.carried:
                value, turn = self.carried[value], turn - 1
                if turn < 0:
                    # The first value lies in the slot of turn -1; follow views to the root without waiting.
                    needs = set()
                continue
            task = int(self.graph.value_task[value])
            if task < 0:
                assert node == HOST, f"{self.graph.value_names[value]} is read on {node} and never brought there"
                return
            turn = self.block(value, turn)
            if turn >= 0:
                needs.add((self.launch_of[task], turn))
            if not self.graph.task_ops[task].view:
                break
            value = self.graph.reads(task)[0]
        turn = self.block(value, turn)
        command = self.plan.spans[event[0]].command
        is_view = isinstance(command, Launch) and self.graph.task_ops[command.task].view
        if not is_view:
            self.readers[value, turn, node].add(event)
        if turn < 0:
            self.store(value, node, turn, None)

    def store(self, value, node, turn, event) -> None:
        turn = self.block(value, turn)
        if isinstance(self.graph.spec(value), Opaque):
            place = (f"{node}#{value}", 0, 1)
        else:
            replica = Replica(value, 0, node)
            nbytes = int(self.graph.value_nbytes[value])
            k = self.every.get(int(self.graph.value_task[value]), 1)
            at = self.plan.offsets[replica] + turn // k % self.plan.rings.get(replica, 1) * stride(nbytes)
            assert at + nbytes <= self.plan.arenas[node]
            place = (node, at, at + nbytes)
        if event is not None and (value, turn, node) in self.writers:
            # A copy of a value made every k turns writes the same bytes again on the turns between.
            return
        self.stored[value, turn, node] = place
        self.writers[value, turn, node] = event

    def simulate(self, rng: random.Random) -> dict[tuple[int, int], tuple[float, float]]:
        """Start and finish of every event: as soon as it may, with durations 0.5 to 1.5 times the planned ones."""
        left = {e: len(n) for e, n in self.waits.items()}
        later = defaultdict(list)
        for e, needs in self.waits.items():
            for n in needs:
                later[n].append(e)
        ready = [e for e, n in left.items() if n == 0]
        times: dict[tuple[int, int], tuple[float, float]] = {}
        while ready:
            e = ready.pop()
            begin = max((times[n][1] for n in self.waits[e]), default=0.0)
            span = self.plan.spans[e[0]]
            times[e] = begin, begin + (span.finish - span.start) * rng.uniform(0.5, 1.5)
            for n in later[e]:
                left[n] -= 1
                if not left[n]:
                    ready.append(n)
        assert len(times) == len(self.waits), "the plan waits for itself"
        return times

    def overwrites(self, times) -> list[str]:
        """Every pair of a value still in use and a write over its bytes."""
        bad = []
        by_node = defaultdict(list)
        for key, place in self.stored.items():
            by_node[place[0]].append((key, place))
        for rows in by_node.values():
            for key, (_, low, high) in rows:
                made = self.writers[key]
                begin = times[made][0] if made is not None else -1.0
                users = [*self.readers[key], *([made] if made is not None else [])]
                end = max((times[u][1] for u in users), default=0.0)
                for other, (_, lo, hi) in rows:
                    writer = self.writers[other]
                    if other == key or writer is None or hi <= low or lo >= high:
                        continue
                    start, finish = times[writer]
                    if finish <= begin + 1e-15:
                        continue
                    others = max((times[u][1] for u in users if u != writer), default=0.0)
                    in_place = writer in self.readers[key] and (lo, hi) == (low, high)
                    if start < (others if in_place else end) - 1e-15:
                        bad.append(f"{self.graph.value_names[other[0]]}@{other[1]} over {self.graph.value_names[key[0]]}@{key[1]} on {key[2]}")
        return bad
