"""Where the values of a loop's body lie: ring slots from lifetimes, reuse edges, offsets in one arena per memory node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from hetsched.errors import InternalError
from hetsched.graph.ops.shape import view_offset
from hetsched.machine import HOST
from hetsched.placement.loops.body import Body, dense
from hetsched.placement.memory import Block, pack, reuse_edges
from hetsched.timeline import After, Copy, Launch, Replica, Span, Timeline

ALIGNMENT = 64
# Rings of a pipeline are deeper than the plan needs where they stay below so many bytes each: who is early goes on, and who is late finds work done.
# Powers of two, so that the slots of all rings repeat soon.
SPARE_SLOTS = (16, 8, 4, 2)
SPARE_NBYTES = 32 << 20
# ... and all of the body below so many: what is spread over more memory is written to pages that are new, and read from no cache.
SPARE_TOTAL_NBYTES = 256 << 20
# Whole nanoseconds: (start, finish) of each span.
Times: TypeAlias = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Memory:
    """The parts of a timeline that say where values lie."""

    offsets: Mapping[Replica, int]
    arenas: Mapping[str, int]
    rings: Mapping[Replica, int]
    workspaces: Mapping[int, tuple[str, int, int]]
    bodies: Mapping[int, Mapping[str, int]]
    after: tuple[After, ...]
    largest: Mapping[str, tuple[int, str, bool]]


def aligned(nbytes: int) -> int:
    """`nbytes` rounded up to a multiple of 64."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def layout(
    body: Body,
    spans: Sequence[Span],
    times: Times,
    period: int,
    prologue: Iterable[Span],
    nested: Mapping[int, Timeline],
    *,
    share: bool = False,
    spare: bool = False,
    double: bool = False,
) -> Memory:
    """Rings, reuse edges and offsets for `spans` that repeat every `period` nanoseconds.

    share: where no two turns overlap, values of a turn may lie in the same bytes one after another; else each has bytes of its own.
    spare: rings have room for durations that vary. double: what is copied from node to node has two slots at least, so that a copy and what computes
    take turns also where they do not last as long as was planned.
    """
    graph = body.graph
    maker: dict[tuple[int, str], int] = {}
    launch_of: dict[int, int] = {}
    node_of: dict[int, str] = {}
    copied = {(s.command.value, s.command.dst.node) for s in spans if isinstance(s.command, Copy)}
    still = {(s.command.value, s.command.dst.node) for s in prologue if isinstance(s.command, Copy) and s.command.value not in body.carried}
    for i, span in enumerate(spans):
        command = span.command
        if isinstance(command, Launch):
            launch_of[command.task] = i
            writes = command.writes
            node_of[command.task] = writes[0].node if writes else command.reads[0].node if command.reads else HOST
            if not body.is_view(command.task):
                maker.update(((r.value, r.node), i) for r in writes)
        elif isinstance(command, Copy):
            maker[command.dst.value, command.dst.node] = i

    def root(value: int, node: str) -> tuple[tuple[int, str] | None, int]:
        """(whose bytes a value uses on a node, from how many turns ago); None: borrowed from outside."""
        distance = 0
        while (value, node) not in copied and (value, node) not in still:
            value, more = body.source(value)
            distance += more
            if more:
                continue
            task = body.producer[value]
            if task < 0:
                if node != HOST:
                    raise InternalError(f"nothing brings {graph.value_names[value]!r} to {node}")
                return None, distance
            if not body.is_view(task):
                break
            value = body.reads[task][0]
        return (value, node), distance

    uses: dict[tuple[int, str], list[tuple[int, int]]] = {key: [] for key in maker}
    for i, span in enumerate(spans):
        command = span.command
        if isinstance(command, Launch):
            if body.is_view(command.task) and not any(r.value in body.wanted for r in command.writes):
                continue
            read: Iterable[Replica] = command.reads
        elif isinstance(command, Copy):
            read = (command.src,)
        else:
            continue
        for replica in dict.fromkeys(read):
            key, distance = root(replica.value, replica.node)
            if key in uses and (i, distance) not in uses[key]:
                uses[key].append((i, distance))

    slots: dict[tuple[int, str], int] = {}
    after: list[After] = []
    state = set(body.carried.values())
    for key, rows in uses.items():
        made, value = maker[key], key[0]
        command = spans[made].command
        k = body.every[body.producer[value]] if body.producer[value] >= 0 else 1
        alone = value in body.one_slot and isinstance(command, Launch)
        rows = [(r, d) for r, d in rows if not (alone and r == made and d == 1)]
        end = max([times[made][1], *(times[r][1] + (d + k - 1) * period for r, d in rows)])
        n = max(1, -(-(end - times[made][0]) // (k * period)))
        if alone and n != 1:
            raise InternalError(f"the plan lets turns of {graph.value_names[value]!r} overlap, which is written in place")
        if spare and not alone and k == 1 and value not in state:
            n = _deeper(n, aligned(int(graph.value_nbytes[value])))
        if double and not alone and k == 1 and value not in state and any(isinstance(spans[i].command, Copy) for i in (made, *(r for r, _ in rows))):
            n = max(n, 2)
        slots[key] = n
        after += [After(r, made, n * k - (k - 1) - d) for r, d in rows]
        if not rows:
            after.append(After(made, made, max(1, n * k - (k - 1))))
        # The k turns that read what was made in one: the last of them frees the slot for all where they are in order (`Body.orders`), each for
        # itself where they are not, as copies are that overlap.
        for r, d in rows if k > 1 else ():
            if isinstance(spans[r].command, Copy):
                after += [After(r, made, n * k - late - d) for late in range(k - 1)]
            else:
                after.append(After(r, r, 1))

    offsets: dict[Replica, int] = {}
    rings: dict[Replica, int] = {}
    arenas: dict[str, int] = {}
    largest: dict[str, tuple[int, str, bool]] = {}

    def take(node: str, nbytes: int, name: str, stays: bool = False) -> int:
        at = arenas.get(node, 0)
        arenas[node] = at + aligned(nbytes)
        largest[node] = max(largest.get(node, (0, "", False)), (nbytes, name, stays))
        return at

    shared = _Shared(spans, times, period) if share and max((t[1] for t in times), default=0) <= period else None
    passing = {key for key, rows in uses.items() if slots[key] == 1 and _passes(body, key[0], rows)} if shared is not None else set()
    for key in [*sorted(still), *maker]:
        value, node = key
        if dense(graph.spec(value)) is None:
            continue
        n = slots.get(key, 1)
        nbytes = int(graph.value_nbytes[value])
        if shared is not None and key in passing:
            shared.add(Replica(value, 0, node), nbytes, maker[key], [r for r, _ in uses[key]])
            rings[Replica(value, 0, node)] = 1
            continue
        offsets[Replica(value, 0, node)] = take(node, n * aligned(nbytes), graph.value_names[value], key in still)
        rings[Replica(value, 0, node)] = n
    if shared is not None:
        for node, size in shared.lay_out(offsets).items():
            at = take(node, size, "values of a turn, which share bytes")
            offsets.update({r: offsets[r] + at for r in shared.on(node)})
        after += shared.edges
    _place_views(body, spans, offsets, rings)

    workspaces: dict[int, tuple[str, int, int]] = {}
    bodies: dict[int, dict[str, int]] = {}
    for task in launch_of:
        nbytes = body.scratch(task)
        if nbytes > 0:
            workspaces[task] = (node_of[task], take(node_of[task], nbytes, f"scratch of {graph.task_names[task]}"), nbytes)
        if task in nested:
            bodies[task] = {node: take(node, n, graph.task_names[task]) for node, n in nested[task].room.items()}
    after += [After(launch_of[o.before], launch_of[o.later], o.turns) for o in body.orders if o.before == o.later]
    return Memory(offsets, arenas, rings, workspaces, bodies, tuple(dict.fromkeys(after)), largest)


def _passes(body: Body, value: int, rows: Sequence[tuple[int, int]]) -> bool:
    """True for a value of one turn: no other turn reads it, and nobody outside (who gathers it) does."""
    k = body.every[body.producer[value]] if body.producer[value] >= 0 else 1
    return k == 1 and value not in body.wanted and value not in body.carried.values() and value not in body.carried and all(d == 0 for _, d in rows)


class _Shared:
    """Values that live within one turn, packed by their lives; no two turns overlap."""

    def __init__(self, spans: Sequence[Span], times: Times, period: int) -> None:
        self.spans, self.times, self.period = spans, times, period
        self.blocks: list[Block] = []
        self.edges: list[After] = []

    def add(self, replica: Replica, nbytes: int, maker: int, users: Sequence[int]) -> None:
        """A value that span `maker` writes and `users` read."""
        last = max(users, default=maker)
        finish = max(self.times[u][1] for u in (maker, *users))
        block = Block(replica.node, nbytes, maker, self.times[maker][0], finish, last, [maker, *sorted(users)], [replica])
        self.blocks.append(block)

    def on(self, node: str) -> list[Replica]:
        """The replicas in `node`."""
        return [b.members[0] for b in self.blocks if b.node == node]

    def lay_out(self, offsets: dict[Replica, int]) -> dict[str, int]:
        """Node -> bytes that the values take together; `offsets` within them."""
        sizes = {}
        self.blocks.sort(key=lambda b: b.first)
        for node in dict.fromkeys(b.node for b in self.blocks):
            row = [b for b in self.blocks if b.node == node]
            sizes[node] = pack(row, 0)
            offsets.update({b.members[0]: b.offset for b in row})
            # The turn after lies in the same bytes: what waits for whom is seen by laying out two turns.
            n = len(self.spans)
            again = [
                replace(
                    b, first=b.first + n, last=b.last + n, start=b.start + self.period, finish=b.finish + self.period, users=[u + n for u in b.users]
                )
                for b in row
            ]
            edges = {(a % n, b % n, b // n - a // n) for a, b in reuse_edges([*row, *again])}
            self.edges += [After(a, b, turns) for a, b, turns in sorted(edges) if (a, turns) != (b, 0)]
        return sizes


def _deeper(slots: int, nbytes: int) -> int:
    """Slots of a ring, with some to spare where they are small."""
    return next((n for n in SPARE_SLOTS if n >= slots and n * nbytes <= SPARE_NBYTES), slots)


def _place_views(body: Body, spans: Sequence[Span], offsets: dict[Replica, int], rings: dict[Replica, int]) -> None:
    """A view's replica lies inside the replica of its input, where that lies in an arena."""
    graph = body.graph
    for span in spans:
        command = span.command
        if not isinstance(command, Launch) or not body.is_view(command.task):
            continue
        source, view = command.reads[0], command.writes[0]
        base = source
        if base not in offsets:
            base = Replica(body.source(source.value)[0], 0, source.node)
        if base in offsets and view not in offsets:
            op = body.op(command.task)
            assert op is not None
            offsets[view] = offsets[base] + view_offset(op, graph.spec(source.value), graph.task_attributes[command.task])
            rings[view] = rings[base]
