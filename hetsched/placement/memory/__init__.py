"""Where replicas lie: lifetimes, offsets in one arena per memory node, and the reuse edges that make sharing of bytes safe.

A *block* is a stretch of an arena from the command that first writes it to the last that uses it. A view lies in the block of what it views;
where it is a result, it is handed over after the last command, and its block is kept until then.
An output written in place takes over the block of its input. Scratch of launches and arenas of loop bodies are blocks that live as long
as their launch.

Packing is that of best-fit in order of time; where that wastes bytes, also greedy by size (largest first, lowest place that is free for
the whole life: Pisarchyk, Lee: Efficient memory management for deep neural net inference, 2020, "greedy by size"), and the smaller arena is kept.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hetsched.errors import InternalError, OutOfMemoryError
from hetsched.graph.graph import Graph, Nested
from hetsched.graph.op import Op
from hetsched.graph.ops.shape import view_offset
from hetsched.graph.spec import array_form
from hetsched.machine import HOST, Device
from hetsched.timeline import After, Command, Copy, Free, Launch, Replica, Span, Timeline

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]

ALIGNMENT = 64
# Threads that share their tasks run them in another order than planned: bytes rest for this many launches of mean length before they are used
# again, where the arena grows by no more than this factor (and takes no more than this share of its limit). Else who is early would wait for who
# is late.
REST_LAUNCHES = 8
REST_GROWTH = 2.0
REST_SHARE = 0.5
# Above this many blocks in a node greedy packing (quadratic, though vectorised) is tried only if the plan would not fit otherwise.
GREEDY_BLOCKS = 400


class PlanTooLargeError(OutOfMemoryError):
    """A plan does not fit memory node `node` (where it is known which) by `missing` bytes."""

    def __init__(self, missing: int, message: str, task: str | None = None, node: str | None = None) -> None:
        self.missing, self.task, self.node = missing, task, node
        super().__init__(message)

    def __reduce__(self) -> tuple[type[PlanTooLargeError], tuple[int, str, str | None, str | None]]:
        return type(self), (self.missing, str(self), self.task, self.node)


def smaller(graph: Graph, node: str) -> str:
    """The ways to need less of a memory: smaller batches, and files by rows where they are read whole to the host."""
    whole = node == HOST and any(isinstance(op, Op) and op.name in ("data.read_npz", "data.npy") for op in graph.task_ops)
    return "use smaller batches" + (", or read the file by rows (data.batches)" if whole else "")


@dataclass(eq=False)
class Block:
    """Bytes of `node` in use from span `first` to the last of `users`.

    members: the replicas that lie in it now; writing in place replaces them. kept: in use until the end of the run.
    """

    node: str
    nbytes: int
    first: int
    start: float
    finish: float
    last: int
    users: list[int] = field(default_factory=list)
    members: list[Replica] = field(default_factory=list)
    offset: int = 0
    kept: bool = False

    def use(self, event: int, finish: float) -> None:
        """Span number `event` uses the block until `finish`."""
        self.users.append(event)
        self.last = max(self.last, event)
        self.finish = max(self.finish, finish)

    @property
    def until(self) -> float:
        """When the bytes are free: `finish`, or never."""
        return inf if self.kept else self.finish

    @property
    def closing(self) -> list[int]:
        """The users that must be done before the bytes are written again. The writer comes before every reader, so it counts only alone."""
        return self.users[1:] or self.users

    def precedes(self, other: Block) -> bool:
        """True if this block is done with before `other` is written, in time and in the order of the plan."""
        return not self.kept and self.finish <= other.start and self.last < other.first


@dataclass
class Places:
    """Places that were decided while the plan was written, on the memory nodes `nodes`: offsets of replicas, of scratch, of arenas of bodies."""

    nodes: frozenset[str] = frozenset()
    replicas: dict[Replica, int] = field(default_factory=dict)
    workspaces: dict[int, int] = field(default_factory=dict)
    bodies: dict[tuple[int, str], int] = field(default_factory=dict)


@dataclass
class _Layout:
    """What is found out about a plan on the way to its arenas."""

    blocks: list[Block] = field(default_factory=list)
    block_of: dict[Replica, Block] = field(default_factory=dict)
    # Replica -> bytes from the start of its block, where this is not 0: views that start further on.
    inside: dict[Replica, int] = field(default_factory=dict)
    # Replicas without a place in an arena that still take memory of the host: (start, finish, bytes).
    loose: dict[Replica, tuple[float, float, int]] = field(default_factory=dict)
    # Views of such replicas -> what they view.
    loose_views: dict[Replica, Replica] = field(default_factory=dict)
    workspaces: dict[int, Block] = field(default_factory=dict)
    bodies: dict[int, dict[str, Block]] = field(default_factory=dict)
    edges: set[tuple[int, int]] = field(default_factory=set)


def lay_out(plan: Timeline, limits: Mapping[str, int | None], *, give_up: bool = True, places: Places | None = None) -> Timeline | None:
    """`plan` (spans in the order of time, no frees) with offsets, arenas, workspaces, reuse edges, frees and peaks.

    limits: node -> bytes, None: unbounded. Where a node is too small: `OutOfMemoryError`, or None if not `give_up`.
    places: of nodes where each block has its place already.
    """
    places = places or Places()
    layout = _blocks(plan, places)
    arenas: dict[str, int] = {}
    for node in dict.fromkeys(b.node for b in layout.blocks):
        blocks = [b for b in layout.blocks if b.node == node]
        limit = limits.get(node)
        room = None if limit is None else limit - (_most(layout.loose.values()) if node == HOST else 0)
        if node in places.nodes:
            arenas[node] = max(b.offset + padded(b.nbytes) for b in blocks)
        else:
            arenas[node] = pack(blocks, room, _rest_seconds(plan, node))
        if room is not None and arenas[node] > room:
            if not give_up:
                return None
            raise _out_of_memory(plan, layout, node, blocks, arenas[node], limit or 0, room)
    host_limit = limits.get(HOST)
    if host_limit is not None and HOST not in arenas and _most(layout.loose.values()) > host_limit:
        if not give_up:
            return None
        raise _out_of_memory(plan, layout, HOST, [], 0, host_limit, host_limit - _most(layout.loose.values()))
    edges = layout.edges | reuse_edges(layout.blocks)
    edges -= _implied(plan, edges)
    frees = [Span((), Free(r), at, at) for r, at in _frees(plan, layout)]
    spans = [*plan.spans, *frees]
    order = sorted(range(len(spans)), key=lambda i: (spans[i].start, spans[i].finish))
    number = {old: new for new, old in enumerate(order)}
    return replace(
        plan,
        spans=tuple(spans[i] for i in order),
        after=tuple(sorted(After(number[a], number[b]) for a, b in edges)),
        offsets={r: b.offset + layout.inside.get(r, 0) for r, b in layout.block_of.items()},
        arenas=arenas,
        workspaces={t: (b.node, b.offset, b.nbytes) for t, b in layout.workspaces.items()},
        bodies={t: {node: b.offset for node, b in nodes.items()} for t, nodes in layout.bodies.items()},
        peak=_peaks(layout),
    )


# Blocks -------------------------------------------------------------------------------------------------------------------------


def in_arena(graph: Graph, value: int, node: str, outputs: frozenset[int]) -> bool:
    """False for what is borrowed (inputs and constants on the host), owned by the caller (outputs on the host) or no array."""
    if array_form(graph.value_specs[value]) is None:
        return False
    return node != HOST or (graph.value_task[value] >= 0 and value not in outputs)


def _blocks(plan: Timeline, places: Places) -> _Layout:
    graph, spans = plan.graph, plan.spans
    outputs = frozenset(graph.outputs.values())
    nbytes = graph.value_nbytes.tolist()
    last_reader: dict[Replica, int] = {}
    for i, span in enumerate(spans):
        for replica in reads_of(span):
            last_reader[replica] = i
    layout = _Layout()
    end = max((s.finish for s in spans), default=0.0)
    for i, span in enumerate(spans):
        command = span.command
        reads = reads_of(span)
        for replica in dict.fromkeys(reads):
            block = layout.block_of.get(replica)
            if block is not None:
                block.use(i, span.finish)
                continue
            base = layout.loose_views.get(replica, replica)
            if base in layout.loose and layout.loose[base][1] < span.finish:
                start, _, size = layout.loose[base]
                layout.loose[base] = start, span.finish, size
        op = graph.task_ops[command.task] if isinstance(command, Launch) else None
        taken: set[int] = set()
        for position, replica in enumerate(writes_of(span)):
            value, node = replica.value, replica.node
            if op is not None and not isinstance(op, Nested) and op.view:
                _view(plan, layout, op, command, replica, kept=node == HOST and value in outputs)
                continue
            if not in_arena(graph, value, node, outputs):
                if node == HOST and graph.value_task[value] >= 0:
                    layout.loose[replica] = span.start, end if value in outputs else span.finish, nbytes[value]
                continue
            heir = None
            if op is not None and not isinstance(op, Nested) and op.inplace:
                heir = _donor(plan, layout, i, op, position, last_reader, taken, places.replicas.get(replica))
            if heir is not None:
                taken.add(id(heir))
                layout.edges.update((user, i) for user in heir.closing if user != i)
                heir.users, heir.members = [i], [replica]
                layout.block_of[replica] = heir
            else:
                layout.block_of[replica] = _new(layout, node, nbytes[value], i, span, replica)
                layout.block_of[replica].offset = places.replicas.get(replica, 0)
        if isinstance(command, Launch) and op is not None:
            _private(plan, layout, i, span, command, places)
    return layout


def _view(plan: Timeline, layout: _Layout, op: Op, command: Command, view: Replica, kept: bool) -> None:
    """Let `view` lie in the block of what it views; of borrowed and owned values it has no place either."""
    assert isinstance(command, Launch)
    source = command.reads[0]
    block = layout.block_of.get(source)
    if block is None:
        layout.loose_views[view] = layout.loose_views.get(source, source)
        return
    inside = layout.inside.get(source, 0) + view_offset(op, plan.graph.value_specs[source.value], plan.graph.task_attributes[command.task])
    block.kept = block.kept or kept
    if not kept:
        block.members.append(view)
        layout.block_of[view] = block
        if inside:
            layout.inside[view] = inside
    else:
        layout.loose_views[view] = source


def _new(layout: _Layout, node: str, nbytes: int, event: int, span: Span, *members: Replica) -> Block:
    block = Block(node, nbytes, event, span.start, span.finish, event, [event], list(members))
    layout.blocks.append(block)
    return block


def _donor(
    plan: Timeline, layout: _Layout, event: int, op: Op, position: int, last_reader: Mapping[Replica, int], taken: set[int], place: int | None
) -> Block | None:
    """The block whose bytes output `position` of a launch may overwrite: that of an input which nothing else uses at the same time or later.

    place: the only offset that will do, if not None.
    """
    span, specs = plan.spans[event], plan.graph.value_specs
    reads, written = reads_of(span), writes_of(span)[position]
    for out, into in op.inplace:
        if out != position or into >= len(reads) or specs[reads[into].value] != specs[written.value]:
            continue
        block = layout.block_of.get(reads[into])
        if block is None or block.kept or id(block) in taken or block.node != written.node or (place is not None and place != block.offset):
            continue
        # A view of a part must not give its bytes away, nor may another input lie in the same block.
        whole = block.nbytes == int(plan.graph.value_nbytes[written.value])
        alone = sum(layout.block_of.get(r) is block for r in reads) == 1
        done = all(user == event or plan.spans[user].finish <= span.start for user in block.users)
        last = all(last_reader.get(r, -1) <= event for r in block.members)
        if whole and alone and done and last:
            return block
    return None


def _private(plan: Timeline, layout: _Layout, event: int, span: Span, command: Launch, places: Places) -> None:
    """Blocks of the launch alone: scratch, and the arenas of a loop's body."""
    graph = plan.graph
    op = graph.task_ops[command.task]
    if isinstance(op, Nested):
        body = plan.loops[command.task]
        layout.bodies[command.task] = {node: _new(layout, node, size, event, span) for node, size in body.room.items() if size}
        for node, block in layout.bodies[command.task].items():
            block.offset = places.bodies.get((command.task, node), 0)
    elif op.workspace is not None:
        ins = [graph.value_specs[v] for v in graph.reads(command.task)]
        outs = [graph.value_specs[v] for v in graph.writes(command.task)]
        size = op.workspace(ins, outs, graph.task_attributes[command.task])
        if size > 0:
            node = next((r.node for r in (*command.writes, *command.reads)), HOST)
            layout.workspaces[command.task] = _new(layout, node, size, event, span)
            layout.workspaces[command.task].offset = places.workspaces.get(command.task, 0)


def reads_of(span: Span) -> tuple[Replica, ...]:
    """The replicas that a span reads."""
    command = span.command
    if isinstance(command, Launch):
        return command.reads
    return (command.src,) if isinstance(command, Copy) else ()


def writes_of(span: Span) -> tuple[Replica, ...]:
    """The replicas that a span writes."""
    command = span.command
    if isinstance(command, Launch):
        return command.writes
    return (command.dst,) if isinstance(command, Copy) else ()


# Packing ------------------------------------------------------------------------------------------------------------------------


def _rest_seconds(plan: Timeline, node: str) -> float:
    """How long bytes of a node rest before they are used again: not at all but where several threads share the tasks."""
    shared = {d.id for d in plan.machine.devices if d.shares_lanes and d.memory == node}
    launches = [s for s in plan.launches if any(lane.owner in shared for lane in s.lanes)]
    if len({lane for s in launches for lane in s.lanes}) < 2:
        return 0.0
    return REST_LAUNCHES * sum(s.finish - s.start for s in launches) / len(launches)


def pack(blocks: Sequence[Block], limit: int | None = None, rest_seconds: float = 0.0) -> int:
    """Give every block (of one node, ascending by `first`) an offset, a multiple of 64. Returns the bytes of the arena.

    rest_seconds: how long bytes shall lie idle between two blocks, where there is room for it.
    """
    best = _by_time(blocks)
    offsets = [b.offset for b in blocks]
    if rest_seconds > 0:
        wider = _by_time(blocks, rest_seconds)
        if best < wider <= REST_GROWTH * best and (limit is None or wider <= REST_SHARE * limit):
            return wider
        for block, offset in zip(blocks, offsets, strict=True):
            block.offset = offset
    alive = _most((b.start, b.until, padded(b.nbytes)) for b in blocks)
    too_big = limit is not None and best > limit >= alive  # and where more is alive at once, no packing fits
    if best > alive and (too_big or len(blocks) <= GREEDY_BLOCKS):
        other = _by_size(blocks)
        if other >= best:
            for block, offset in zip(blocks, offsets, strict=True):
                block.offset = offset
        best = min(best, other)
    return best


def padded(nbytes: Any) -> Any:
    """`nbytes` (a number or an array) rounded up to a multiple of 64."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


class _Holes:
    """Free stretches of an arena that can grow at its end."""

    def __init__(self) -> None:
        self.by_place: list[tuple[int, int]] = []  # (offset, bytes), never touching each other
        self.by_size: list[tuple[int, int]] = []  # (bytes, offset)
        self.top = 0

    def take(self, nbytes: int) -> int:
        """The smallest hole that is large enough, else new bytes at the end."""
        i = bisect_left(self.by_size, (nbytes, -1))
        if i < len(self.by_size):
            size, offset = self.by_size.pop(i)
            _drop(self.by_place, (offset, size))
            if size > nbytes:
                self._add(offset + nbytes, size - nbytes)
            return offset
        offset = self.top
        if self.by_place and sum(self.by_place[-1]) == self.top:
            offset, size = self.by_place.pop()
            _drop(self.by_size, (size, offset))
        self.top = offset + nbytes
        return offset

    def give(self, offset: int, nbytes: int) -> None:
        """Return bytes; holes that touch become one."""
        i = bisect_left(self.by_place, (offset, 0))
        if i < len(self.by_place) and self.by_place[i][0] == offset + nbytes:
            size = self.by_place.pop(i)[1]
            _drop(self.by_size, (size, offset + nbytes))
            nbytes += size
        if i and sum(self.by_place[i - 1]) == offset:
            offset, size = self.by_place.pop(i - 1)
            _drop(self.by_size, (size, offset))
            nbytes += size
        self._add(offset, nbytes)

    def _add(self, offset: int, nbytes: int) -> None:
        insort(self.by_place, (offset, nbytes))
        insort(self.by_size, (nbytes, offset))


def _drop(rows: list[tuple[int, int]], row: tuple[int, int]) -> None:
    del rows[bisect_left(rows, row)]


def _by_time(blocks: Sequence[Block], rest_seconds: float = 0.0) -> int:
    holes = _Holes()
    live: list[tuple[float, int, int]] = []  # (finish, last, number)
    for number, block in enumerate(blocks):
        kept = []
        while live and live[0][0] + rest_seconds <= block.start:
            done = heapq.heappop(live)
            old = blocks[done[2]]
            if old.precedes(block):
                holes.give(old.offset, padded(old.nbytes))
            else:
                kept.append(done)
        for entry in kept:
            heapq.heappush(live, entry)
        if block.nbytes:
            block.offset = holes.take(padded(block.nbytes))
            heapq.heappush(live, (block.until, block.last, number))
    return holes.top


def _by_size(blocks: Sequence[Block]) -> int:
    columns = ([b.start for b in blocks], [b.until for b in blocks], [b.first for b in blocks], [b.last for b in blocks])
    start, until, first, last = map(np.array, columns)
    top, offset = place_by_size(start, until, first, last, np.array([padded(b.nbytes) for b in blocks], dtype=np.int64))
    for block, at in zip(blocks, offset.tolist(), strict=True):
        block.offset = at
    return top


def place_by_size(start: FloatArray, until: FloatArray, first: IntArray, last: IntArray, size: IntArray) -> tuple[int, IntArray]:
    """(bytes of the arena, offset of each block), the largest placed first. until: when its bytes are free; size: a multiple of 64."""
    n = len(size)
    offset = np.zeros(n, dtype=np.int64)
    placed = np.zeros(n, dtype=bool)
    top = 0
    for i in sorted(range(n), key=lambda k: (-size[k], start[k])):
        if not size[i]:
            continue
        earlier = (until <= start[i]) & (last < first[i])
        later = (start >= until[i]) & (first > last[i])
        rivals = np.flatnonzero(placed & ~earlier & ~later)
        at = 0
        for low, high in sorted(zip(offset[rivals].tolist(), (offset[rivals] + size[rivals]).tolist(), strict=True)):
            if low - at >= size[i]:
                break
            at = max(at, high)
        offset[i], placed[i] = at, True
        top = max(top, at + int(size[i]))
    return top, offset


# Reuse --------------------------------------------------------------------------------------------------------------------------


def reuse_edges(blocks: Sequence[Block]) -> set[tuple[int, int]]:
    """(user of what lay in some bytes, first writer of what lies there next), over neighbours in time only: older ones are done before."""
    edges: set[tuple[int, int]] = set()
    rows: dict[str, tuple[list[int], list[tuple[int, int, Block]]]] = {}
    for block in blocks:
        if not block.nbytes:
            continue
        lows, row = rows.setdefault(block.node, ([], []))
        low, high = block.offset, block.offset + block.nbytes
        i = max(bisect_right(lows, low) - 1, 0)
        j = bisect_left(lows, high)
        if i < j and row[i][1] <= low:
            i += 1
        covered = row[i:j]
        left = [(a, low, b) for a, _, b in covered[:1] if a < low]
        right = [(high, z, b) for _, z, b in covered[-1:] if z > high]
        row[i:j] = [*left, (low, high, block), *right]
        lows[i:j] = [a for a, _, _ in row[i : i + len(left) + 1 + len(right)]]
        for old in {id(b): b for _, _, b in covered}.values():
            if not old.precedes(block):
                raise InternalError(f"memory: two blocks of {block.node} share bytes {low} to {high} at the same time")
            edges.update((user, block.first) for user in old.closing)
    return edges


def _implied(plan: Timeline, edges: set[tuple[int, int]]) -> set[tuple[int, int]]:
    """Those of `edges` that hold anyway: the later span reads what the earlier one wrote, or both are on one stream, which is walked in order."""
    streams = {d.id for d in plan.machine.devices if not d.shares_lanes}
    spans = plan.spans
    out = set()
    for before, later in edges:
        made = set(writes_of(spans[before]))
        same_stream = any(lane in spans[later].lanes for lane in spans[before].lanes if lane.kind != "copy" and lane.owner in streams)
        if same_stream or any(r in made for r in reads_of(spans[later])):
            out.add((before, later))
    return out


# The rest -----------------------------------------------------------------------------------------------------------------------


def _frees(plan: Timeline, layout: _Layout) -> list[tuple[Replica, float]]:
    """(replica, when its bytes are free). What a launch wrote over, and what the caller owns, is not freed."""
    out = [(r, b.finish) for b in layout.blocks for r in b.members if not b.kept]
    outputs = set(plan.graph.outputs.values())
    return out + [(r, finish) for r, (_, finish, _) in layout.loose.items() if r.value not in outputs]


def _most(lives: Iterable[tuple[float, float, int]]) -> int:
    """The most bytes alive at once of (start, finish, bytes)."""
    moments: list[tuple[float, int]] = []
    for start, finish, nbytes in lives:
        moments += [(start, nbytes), (finish, -nbytes)]
    now = most = 0
    for _, change in sorted(moments):
        now += change
        most = max(most, now)
    return most


def _peaks(layout: _Layout) -> dict[str, int]:
    lives: dict[str, list[tuple[float, float, int]]] = {}
    for block in layout.blocks:
        lives.setdefault(block.node, []).append((block.start, block.until, block.nbytes))
    for replica, life in layout.loose.items():
        lives.setdefault(replica.node, []).append(life)
    return {node: _most(rows) for node, rows in lives.items()}


def _would_fit(plan: Timeline, name: str, device: Device) -> bool:
    """True if `device` has a kernel for the task called `name`, and a memory that holds its values."""
    graph = plan.graph
    task = graph.task_index.get(name)
    op = graph.task_ops[task] if task is not None else None
    if task is None or not isinstance(op, Op):
        return False
    values = {*graph.reads(task), *graph.writes(task)}
    limit = plan.machine.memory(device.memory).nbytes
    room = limit is None or sum(padded(int(graph.value_nbytes[v])) for v in values) <= limit
    return room and op.kernel_for(device, [graph.value_specs[v] for v in graph.reads(task)]) is not None


def _out_of_memory(plan: Timeline, layout: _Layout, node: str, blocks: Sequence[Block], arena: int, limit: int, room: int) -> PlanTooLargeError:
    """Names the first command that finds no room, what is free then, and what would help."""
    graph = plan.graph
    loose = _most(layout.loose.values()) if node == HOST else 0
    culprit = next((b for b in blocks if b.offset + b.nbytes > room), None) if room >= 0 else None
    if culprit is None:
        largest = max(layout.loose, key=lambda r: layout.loose[r][2], default=None)
        name = repr(graph.value_names[largest.value]) if largest is not None else "?"
        maker = int(graph.value_task[largest.value]) if largest is not None else -1
        name += f", by task {graph.task_names[maker]!r}" if maker >= 0 else ""
        return PlanTooLargeError(
            loose - limit,
            f"results and objects on the {node} need {loose} bytes, its limit is {limit}; the largest is {name}. "
            f"Raise the limit of {node} to at least {loose} bytes, or process the data in smaller batches",
            graph.task_names[maker] if maker >= 0 else None,
            node,
        )
    command = plan.spans[culprit.first].command
    if isinstance(command, Launch):
        what, task = f"task {graph.task_names[command.task]!r}", graph.task_names[command.task]
    else:
        assert isinstance(command, Copy)
        reader = next(
            (s.command.task for s in plan.spans if isinstance(s.command, Launch) and command.dst in s.command.reads),
            int(graph.value_task[command.value]),
        )
        task = graph.task_names[reader] if reader >= 0 else graph.value_names[command.value]
        what = f"task {task!r} (copy of {graph.value_names[command.value]!r} to {node})"
    alive = sum(padded(b.nbytes) for b in blocks if b is not culprit and b.first <= culprit.first and not b.precedes(culprit))
    elsewhere = [d.id for d in sorted(plan.machine.devices, key=lambda d: d.id) if d.memory != node and _would_fit(plan, task, d)]
    move = f", or place {task!r} on another memory (device: {elsewhere[0]})" if elsewhere else ""
    free = max(0, room - alive)
    pieces = " (in pieces)" if free >= culprit.nbytes else ""
    return PlanTooLargeError(
        arena - room,
        f"{what} needs {culprit.nbytes} bytes in {node}, where {free} of {limit} are free{pieces} at {culprit.start:.6g} s. "
        f"Raise the limit of {node} to at least {arena + loose} bytes{move}, or {smaller(graph, node)}",
        task,
        node,
    )
