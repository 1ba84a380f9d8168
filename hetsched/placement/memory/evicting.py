"""Plans that hold no more than a memory node has, by eviction.

Tasks are booked in an order that is given, so the next use of every value is known. Where a launch finds no room, what is needed farthest in the
future gives up its bytes (Belady: A study of replacement algorithms for a virtual-storage computer, IBM Systems Journal 5(2), 1966): it is copied
to the host, unless it lies elsewhere still, and copied in again before its next reader. All of it is booked on the links, so the plan's times are
true. Times are free of the order of booking: a copy goes as early as its source, its link and the bytes it fills allow, so it runs beside kernels
wherever room allows.

A device's memory suffices whenever it holds what each single task needs. The host has nowhere to copy to: only what lies on a device too may go.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from hetsched.errors import InternalError
from hetsched.graph.graph import Graph, Nested
from hetsched.machine import HOST
from hetsched.placement.draft import GraphDraft, HopelessError
from hetsched.placement.memory import Places, PlanTooLargeError, in_arena, lay_out, smaller
from hetsched.placement.memory.arena import ALIGNMENT, Arena, Held, Rank, Want, Window, padded
from hetsched.placement.problem import Problem
from hetsched.placement.ranks import least_tails
from hetsched.timeline import Copy, Lane, Launch, Replica, Span, Timeline


class Turn(NamedTuple):
    """A task, and the choice that it is booked on."""

    task: int
    choice: int


@dataclass(frozen=True)
class Rule:
    """How to choose what gives up its bytes, and whether a task may go to another device where the planned one is short of memory."""

    name: str
    rank: Callable[[EvictingDraft], Rank]
    moves: bool = False


def _farthest(draft: EvictingDraft) -> Rank:
    def rank(window: Window, when: float) -> tuple[float, ...]:
        return (-draft.nearest(window), draft.traffic(window.victims), max(window.free_at - when, 0.0))

    return Rank(lambda held: -draft.distance(held), rank)


def _beside(draft: EvictingDraft) -> Rank:
    def rank(window: Window, when: float) -> tuple[float, ...]:
        free_at = max(draft.free_time(v) for v in window.victims)
        late = max(window.free_at - when, free_at - when, 0.0)
        return (late > 0.0, -draft.nearest(window), draft.traffic(window.victims), late)

    return Rank(lambda held: -draft.distance(held), rank)


def _longest_unused(draft: EvictingDraft) -> Rank:
    def rank(window: Window, when: float) -> tuple[float, ...]:
        return (max(v.used for v in window.victims), max(window.free_at - when, 0.0))

    return Rank(lambda held: held.used, rank)


FARTHEST = Rule("farthest next use first", _farthest)
BESIDE = Rule("farthest next use first, of what can go without waiting", _beside)
ELSEWHERE = Rule("farthest next use first, tasks elsewhere where that is sooner", _beside, moves=True)
# What a cache without a view of the future would do; where the past resembles the future it is as good, and its copies may fall better.
LEAST_RECENT = Rule("least recently used first", _longest_unused)


def evicted(problem: Problem, sequence: Sequence[Turn], rule: Rule, *, host: bool, notes: Sequence[str] = (), shorter_than: float = inf) -> Timeline:
    """The plan that books `sequence` and evicts by `rule`. Raises `PlanTooLargeError` where that does not fit.

    host: keep to the limit of the host while booking too; else the host's memory is laid out when all is booked, which wastes less of it.
    shorter_than: a makespan in seconds; raises `HopelessError` as soon as the plan is certain not to be shorter.
    """
    draft = EvictingDraft(problem, sequence, rule, host)
    draft.notes += notes
    tails = least_tails(problem).tolist()
    for turn in sequence:
        finish = draft.place(turn.task, draft.sooner(turn.task, turn.choice) if rule.moves else turn.choice)
        if finish + tails[turn.task] >= shorter_than:
            raise HopelessError
    if draft.finish() >= shorter_than:
        raise HopelessError
    return draft.plan()


class _Facts:
    """What is asked of a graph again and again, by task and by value; the same for all drafts of a problem."""

    def __init__(self, graph: Graph) -> None:
        ops, tasks, values = graph.task_ops, range(len(graph)), range(len(graph.value_specs))
        self.results = frozenset(graph.outputs.values())
        self.reads = [graph.reads(t) for t in tasks]
        self.writes = [graph.writes(t) for t in tasks]
        self.loop = [isinstance(op, Nested) for op in ops]
        self.view = [not isinstance(op, Nested) and op.view for op in ops]
        self.inplace = [() if isinstance(op, Nested) else tuple(op.inplace) for op in ops]
        self.lies = [in_arena(graph, v, "", self.results) for v in values]  # in an arena of a device
        self.lies_on_host = [in_arena(graph, v, HOST, self.results) for v in values]
        self.scratch = [_scratch(graph, t) for t in tasks]


def _scratch(graph: Graph, task: int) -> int:
    """Bytes of workspace of a task that is no loop."""
    op = graph.task_ops[task]
    if isinstance(op, Nested) or op.workspace is None:
        return 0
    reads, writes = ([graph.value_specs[v] for v in values] for values in (graph.reads(task), graph.writes(task)))
    return op.workspace(reads, writes, graph.task_attributes[task])


class EvictingDraft(GraphDraft):
    """A draft that keeps to the capacity of the memory nodes at every instant. Tasks are placed in the order of `sequence`."""

    def __init__(self, problem: Problem, sequence: Sequence[Turn], rule: Rule, host: bool) -> None:
        super().__init__(problem)
        self.rule = rule
        graph, n = self.graph, len(problem)
        facts: _Facts = self._shared("evicting", lambda: _Facts(graph))
        self._facts, self._results = facts, facts.results
        # node, or -1 for all of them -> value -> positions of its readers there, ascending
        self._readers: list[list[list[int]]] = [[[] for _ in self._nbytes] for _ in (*problem.node_names, -1)]
        for position, (task, choice) in enumerate(sequence):
            here, everywhere = self._readers[problem.choices[choice].node], self._readers[-1]
            for value in self.reads[task]:
                here[value].append(position)
                everywhere[value].append(position)
        for value in self._results:
            if self._producer[value] >= 0:
                self._readers[problem.host][value].append(n)
                self._readers[-1][value].append(n)
        self._now = 0  # position of the task that is being booked
        self._arenas: dict[int, Arena] = {}
        for node, nbytes in enumerate(problem.capacity):
            if nbytes is not None and (host or node != problem.host):
                room = max(nbytes - (self._owned() if node == problem.host else 0), 0)
                self._arenas[node] = Arena(room, rule.rank(self), self._fixed)
        self._held: dict[tuple[int, int], Held] = {}  # (value, node) -> what it lies in
        self._replicas: dict[tuple[int, int], Replica] = {}  # (value, node) -> the last replica there
        self._spans: list[Span] = []
        self._distances: dict[Held, float] = {}
        self.places = Places(frozenset(problem.node_names[i] for i in self._arenas))
        self.evictions = 0

    def _owned(self) -> int:
        """Bytes of the host that are in no arena: results, and objects."""
        graph, made = self.graph, [v for v, task in enumerate(self._producer) if task >= 0]
        name = self.problem.node_names[self.problem.host]
        views = {v for v in made if getattr(graph.task_ops[self._producer[v]], "view", False) and v not in self._results}
        return sum(self._nbytes[v] for v in made if not in_arena(graph, v, name, self._results) and v not in views)

    def _lies(self, node: int) -> list[bool]:
        """value -> whether its replica in `node` has a place in the arena (`in_arena`)."""
        return self._facts.lies_on_host if node == self.problem.host else self._facts.lies

    # Booking --------------------------------------------------------------------------------------------------------------------

    def place(self, task: int, choice: int, not_before: float = 0.0) -> float:
        self._check(task, choice)
        self._now = len(self.booked)
        node = self.problem.choices[choice].node
        ready, scratch, donors = self._make_room(task, node)
        finish = self._book(task, choice, max(ready, not_before))
        self._settle(task, node, finish, scratch, donors)
        return finish

    def sooner(self, task: int, planned: int) -> int:
        """The choice on which the task would finish first, moves of memory counted roughly; `planned` where none is better."""
        best, least = planned, inf
        self._now = len(self.booked)
        self._forget(*self.reads[task])
        for choice in [planned, *(c for c in self._possible[task] if c != planned and self.fits_group(task, c))]:
            seconds = self._guess(task, choice)
            if seconds < least * (1 - 1e-9):
                best, least = choice, seconds
        return best

    def _guess(self, task: int, choice: int) -> float:
        """When the task might finish on `choice`: copies in one after another, then the launch; what is evicted counts both ways."""
        node, host = self.problem.choices[choice].node, self.problem.host
        ready, back = 0.0, 0.0
        for value in self.reads[task]:
            at = self._there[value].get(node)
            if at is None:
                at = min(t + self._latency[src][node] + self._nbytes[value] * self._per_byte[src][node] for src, t in self._there[value].items())
                back += self._nbytes[value] * self._per_byte[host][node] if node != host else 0.0
            ready = max(ready, at)
        if node in self._arenas and node != host:
            self._pin(task, node, True)
            wants = [Want(n, ready) for _, n in self._wanted(task, node)[0]]
            found = self._arenas[node].fit(wants)
            self._pin(task, node, False)
            gone = found[1] if found is not None else [p.held for p in self._arenas[node].pieces if p.held is not None]
            back += self.traffic(gone) * (self._per_byte[host][node])
        return self._slot(task, choice, ready)[0] + self._seconds[task][choice] + back

    def _make_room(self, task: int, node: int) -> tuple[float, list[Held], dict[int, Held]]:
        """Bring in what the task reads and take bytes for what it writes: (when these are free, its scratch, output -> block it takes over)."""
        self._forget(*self.reads[task])
        self._pin(task, node, True)
        ready = 0.0
        scratch: list[Held] = []
        try:
            wants, donors = self._wanted(task, node)
            offsets = self._room(task, node, wants)
            if offsets is None:  # the task's own inputs lie badly: everything goes, and comes in again side by side
                self._pin(task, node, False)
                self._now -= 1  # the task still needs them
                self._forget(*self.reads[task])
                self._clear(node)
                self._now += 1
                self._forget(*self.reads[task])
                self._pin(task, node, True)
                wants, donors = self._wanted(task, node)
                offsets = self._room(task, node, wants)
                if offsets is None:  # what the task may write over gives up its bytes to it, even if it is needed again
                    wants, donors = self._wanted(task, node, over_all=True)
                    for value in donors.values():
                        if list(self._there[value]) == [node] and node != self.problem.host and self._need(value, node) < inf:
                            self._save(value)
                    offsets = self._room(task, node, wants)
                if offsets is None:
                    raise self._too_tight(task, node, sum(padded(n) for _, n in wants))
            brought = []
            for (value, nbytes), offset in zip(wants, offsets, strict=True):
                held = Held(node, nbytes, [value] if value >= 0 else [], pinned=True)
                free_at = self._arenas[node].lay(held, offset) if node in self._arenas else 0.0
                if value >= 0:
                    self._held[value, node] = held
                    if self._producer[value] != task:
                        brought.append((value, free_at))
                        continue
                else:
                    scratch.append(held)
                    self.places.workspaces[task] = offset
                ready = max(ready, free_at)
            brought += [(v, 0.0) for v in self.reads[task] if node not in self._there[v] and (v, node) not in self._held]
            for value, free_at in sorted(brought, key=lambda x: min(self._there[x[0]].values())):
                self._bring(value, node, free_at)
            for out, into in donors.items():
                held = self._held[into, node]
                ready = max(ready, held.free_at)
                self._held[out, node] = held
            if isinstance(self.graph.task_ops[task], Nested):
                ready = max(ready, self._room_for_body(task, scratch))
        finally:
            self._pin(task, node, False)
        return ready, scratch, {out: self._held[out, node] for out in donors}

    def _wanted(self, task: int, node: int, over_all: bool = False) -> tuple[list[tuple[int, int]], dict[int, int]]:
        """((value, or -1 for scratch; bytes) of what needs room in the arena of `node`; output -> the input whose bytes it takes over).

        over_all: also over inputs that are needed again.
        """
        facts, lies = self._facts, self._lies(node)
        wants = [(v, self._nbytes[v]) for v in self.reads[task] if node not in self._there[v] and lies[v]]
        donors: dict[int, int] = {}
        if not facts.view[task]:
            for position, value in enumerate(facts.writes[task]):
                if not lies[value]:
                    continue
                into = self._donor(task, node, position, donors, over_all) if facts.inplace[task] else None
                if into is None:
                    wants.append((value, self._nbytes[value]))
                else:
                    donors[value] = into
        if facts.scratch[task] > 0:
            wants.append((-1, facts.scratch[task]))
        return wants, donors

    def _donor(self, task: int, node: int, position: int, taken: dict[int, int], over_all: bool) -> int | None:
        """The input whose bytes output `position` may take over, because nothing needs them there after the launch."""
        specs, lies = self.graph.value_specs, self._lies(node)
        reads, out = self._facts.reads[task], self._facts.writes[task][position]
        for written, into in self._facts.inplace[task]:
            if written != position or into >= len(reads) or specs[reads[into]] != specs[out]:
                continue
            value = reads[into]
            held = self._held.get((value, node))
            if held is None and (node in self._there[value] or not lies[value]):
                continue
            inside = [value] if held is None else held.values
            alone = sum((r == value if held is None else self._held.get((r, node)) is held) for r in reads) == 1
            whole = held is None or held.nbytes == self._nbytes[out]
            last = all(self._need(v, node, arriving=held is None) == inf for v in inside)
            last = last or (over_all and len(inside) == 1 and (node != self.problem.host or set(self._there[value]) != {node}))
            if alone and whole and last and not (held is not None and held.kept) and value not in taken.values():
                return value
        return None

    def _room(self, task: int, node: int, wants: Sequence[tuple[int, int]]) -> list[int] | None:
        """Offsets for `wants` in the arena of `node`, what lay there evicted; None where they do not fit beside what must stay."""
        if node not in self._arenas:
            return [0] * len(wants)
        when = max((self._there[v][node] for v in self.reads[task] if node in self._there[v]), default=0.0)
        rows = []
        for value, nbytes in wants:
            soon = when
            if value >= 0 and self._producer[value] != task:
                soon = min(self._link(src, node, value, at)[0] for src, at in self._there[value].items())
            rows.append(Want(nbytes, soon))
        found = self._arenas[node].fit(rows)
        if found is None:
            return None
        for victim in found[1]:
            self._evict(victim)
        return found[0]

    def _room_for_body(self, task: int, scratch: list[Held]) -> float:
        """Take the bytes of a loop's body on every node it uses; gives when they are free."""
        ready = 0.0
        for name, nbytes in self.problem.loops[task].room.items():
            node = self.problem.node_names.index(name)
            if not nbytes or node not in self._arenas:
                continue
            offsets = self._room(task, node, [(-1, nbytes)])
            if offsets is None:
                raise self._too_tight(task, node, nbytes)
            held = Held(node, nbytes, [], pinned=True)
            ready = max(ready, self._arenas[node].lay(held, offsets[0]))
            scratch.append(held)
            self.places.bodies[task, name] = offsets[0]
        return ready

    def _settle(self, task: int, node: int, finish: float, scratch: list[Held], donors: dict[int, Held]) -> None:
        """The task is booked: note what it used, and give up what nobody needs any more."""
        name, position, facts = self.problem.node_names[node], self._now, self._facts
        written, there = facts.writes[task], self._there
        reads = tuple([self._replica(v, node) for v in facts.reads[task]])
        writes = tuple([Replica(v, 0, name) for v in written])
        for replica in writes:
            self._replicas[replica.value, node] = replica
        if facts.view[task]:
            base = self._held.get((facts.reads[task][0], node))
            if base is not None:
                view = written[0]
                if node == self.problem.host and view in self._results:
                    base.kept = True
                else:
                    base.values.append(view)
                    self._held[view, node] = base
                    self._changed(base)
        choice = self.problem.choices[self.choice_of[task]]
        lanes = self._lanes(task)
        width = len(lanes) if facts.loop[task] else choice.width
        self._spans.append(Span(lanes, Launch(task, 0, reads, writes, width), self.start_of[task], finish))
        for value in (*self.reads[task], *written):
            held = self._held.get((value, node))
            if held is not None:
                held.free_at, held.used, held.pinned = max(held.free_at, finish), position, False
        for held in scratch:
            held.free_at, held.pinned = finish, False
            if held.node in self._arenas:
                self._arenas[held.node].give_up(held)
        for held in donors.values():
            for old in held.values:
                if node in there[old]:
                    del there[old][node], self._held[old, node]
        for out, held in donors.items():
            held.values = [out]
            self._changed(held)
        if node in self._arenas and not facts.view[task]:
            for replica in writes:
                held = self._held.get((replica.value, node))
                if held is not None:
                    self.places.replicas[replica] = held.offset
        used = dict.fromkeys((*self.reads[task], *written))
        self._forget(*used)
        for value in used:
            # The host comes last: what lies there is needed for as long as others may be brought in from it.
            for where in [*(m for m in there[value] if m != self.problem.host), self.problem.host]:
                self._give_up_dead(value, where)

    def _give_up_dead(self, value: int, node: int) -> None:
        """Give up the bytes that `value` lies in, if nothing in them is needed there any more."""
        held = self._held.get((value, node))
        if held is None or held.kept or any(self._need(v, node) < inf for v in held.values):
            return
        for v in held.values:
            self._there[v].pop(node, None)
            del self._held[v, node]
            self._forget(v)
        self._changed(held)
        if node in self._arenas:
            self._arenas[node].give_up(held)

    # What is needed when --------------------------------------------------------------------------------------------------------

    def _need(self, value: int, node: int, *, arriving: bool = False) -> float:
        """Position of the next launch, after the one being booked, for which `value` must be in `node`; inf: none.

        The last replica of a value is needed for whoever reads the value anywhere; on the host it is kept for them too, as what others are
        brought in from. arriving: it is not there yet, so it is elsewhere.
        """
        there = self._there[value]
        alone = node == self.problem.host or not (arriving or (there if node not in there else len(there) > 1))
        positions = self._readers[-1 if alone else node][value]
        if not positions or positions[-1] <= self._now:
            return inf
        return positions[bisect_right(positions, self._now)]

    def distance(self, held: Held) -> float:
        """Position of the next launch that needs what lies in `held`."""
        found = self._distances.get(held)
        if found is None:
            found = self._distances[held] = min([self._need(v, held.node) for v in held.values], default=inf)
        return found

    def nearest(self, window: Window) -> float:
        """The distance of what is needed next of what lies in `window`."""
        return min(self.distance(v) for v in window.victims)

    def _forget(self, *values: int) -> None:
        """What is known of when `values` are needed has changed."""
        for value in values:
            for node in self._there[value]:
                held = self._held.get((value, node))
                if held is not None:
                    self._changed(held)

    def traffic(self, victims: Sequence[Held]) -> float:
        """Bytes that evicting `victims` would copy, out and in again."""
        total = 0.0
        for held in victims:
            for v in held.values:
                if self._need(v, held.node) < inf:
                    total += self._nbytes[v] * (1 if len(self._there[v]) > 1 else 2)
        return total

    def free_time(self, held: Held) -> float:
        """When the bytes of `held` could be free: after its uses, and after the copy of what lies nowhere else."""
        host, at = self.problem.host, held.free_at
        for v in held.values:
            if len(self._there[v]) == 1 and self._need(v, held.node) < inf:
                at = max(at, self._link(held.node, host, v, self._there[v][held.node])[0] + self._seconds_of(v, held.node, host))
        return at

    def _fixed(self, held: Held) -> bool:
        """True for what cannot give up its bytes."""
        if held.pinned or held.kept or not held.values:
            return True
        return held.node == self.problem.host and any(len(self._there[v]) == 1 for v in held.values)

    def _pin(self, task: int, node: int, on: bool) -> None:
        for value in self.reads[task]:
            held = self._held.get((value, node))
            if held is not None:
                held.pinned = on

    def _changed(self, held: Held) -> None:
        """When what lies in `held` is needed, or was used, has changed."""
        self._distances.pop(held, None)
        if held.key is not None:
            self._arenas[held.node].touch(held)

    # Moving ---------------------------------------------------------------------------------------------------------------------

    def _evict(self, held: Held) -> None:
        """Let `held` give up its bytes, what is still needed copied to the host first unless it lies elsewhere."""
        node, host = held.node, self.problem.host
        for value in held.values:
            if self._need(value, node) < inf:
                self.evictions += 1
                if len(self._there[value]) == 1:
                    if node == host:
                        raise InternalError(f"value {self.graph.value_names[value]!r} lies on the host alone and cannot be evicted")
                    self._save(value)
            del self._there[value][node], self._held[value, node]
            self._forget(value)
        self._arenas[node].give_up(held)
        self._changed(held)

    def _clear(self, node: int) -> None:
        """Evict everything that can be."""
        for piece in list(self._arenas[node].pieces):
            if piece.held is not None and not self._fixed(piece.held):
                self._evict(piece.held)

    def _save(self, value: int) -> None:
        """Copy `value` to the host."""
        host, free_at = self.problem.host, 0.0
        if host in self._arenas and self._lies(host)[value]:
            held = Held(host, self._nbytes[value], [value])
            found = self._arenas[host].fit([Want(held.nbytes, 0.0)])
            if found is None:
                raise self._too_tight(None, host, held.nbytes, value)
            for victim in found[1]:
                self._evict(victim)
            free_at = self._arenas[host].lay(held, found[0][0])
            self._held[value, host] = held
        self._bring(value, host, free_at)

    def _seconds_of(self, value: int, src: int, dst: int) -> float:
        return float(self._latency[src][dst] + self._nbytes[value] * self._per_byte[src][dst])

    def _link(self, src: int, dst: int, value: int, at: float) -> tuple[float, int]:
        """(start, engine) of the earliest copy from `at` on."""
        engines, seconds = self._engines[src][dst], self._seconds_of(value, src, dst)
        return min((gaps.find(at, seconds)[1], i) for i, gaps in enumerate(engines)) if engines else (at, 0)

    def _bring(self, value: int, node: int, not_before: float) -> None:
        """Book the copy of `value` to `node` that arrives first."""
        best: tuple[float, float, int, int] | None = None
        for src, at in self._there[value].items():
            start, engine = self._link(src, node, value, max(at, not_before))
            finish = start + self._seconds_of(value, src, node)
            if best is None or finish < best[0]:
                best = finish, start, engine, src
        if best is None:
            raise InternalError(f"value {self.graph.value_names[value]!r} is nowhere")
        finish, start, engine, src = best
        if self._engines[src][node]:
            self._engines[src][node][engine].take(start, finish)
        source = self._held.get((value, src))
        if source is not None:
            source.free_at = max(source.free_at, finish)
        read = self._replica(value, src)
        before = self._replicas.get((value, node))
        written = Replica(value, 0, self.problem.node_names[node], before.generation + 1 if before is not None else 0)
        self._replicas[value, node] = written
        self._there[value][node] = finish
        self._forget(value)
        held = self._held.get((value, node))
        if held is not None:
            held.free_at = max(held.free_at, finish)
            if node in self._arenas:
                self.places.replicas[written] = held.offset
        link = self.machine.link(read.node, written.node)
        self._spans.append(Span((Lane(link.id, engine, "copy"),), Copy(value, 0, read, written), start, finish))

    def _replica(self, value: int, node: int) -> Replica:
        """What lies in `node` of `value`: what was last brought or made there, or what was there from the start."""
        found = self._replicas.get((value, node))
        return found if found is not None else Replica(value, 0, self.problem.node_names[node])

    def _too_tight(self, task: int | None, node: int, nbytes: int, value: int | None = None) -> PlanTooLargeError:
        arena, name, graph = self._arenas[node], self.problem.node_names[node], self.graph
        free = arena.nbytes - sum(padded(p.held.nbytes) for p in arena.pieces if p.held is not None and self._fixed(p.held))
        what = f"task {graph.task_names[task]!r}" if task is not None else f"what is evicted of {graph.value_names[value or 0]!r}"
        short = max(nbytes - free, ALIGNMENT)
        limit = self.problem.capacity[node] or 0
        return PlanTooLargeError(
            short,
            f"{what} needs {nbytes} bytes in {name}, where {free} of {limit} are free or could be made free. "
            f"Raise the limit of {name} to at least {limit + short} bytes, or {smaller(graph, name)}",
            graph.task_names[task] if task is not None else None,
            name,
        )

    # The plan -------------------------------------------------------------------------------------------------------------------

    def finish(self) -> float:
        if not self._delivered:
            self._delivered = True
            host = self.problem.host
            away = [v for v in self.graph.outputs.values() if host not in self._there[v]]
            for value in sorted(dict.fromkeys(away), key=lambda v: min(self._there[v].values())):
                self._bring(value, host, 0.0)
        return float(max((s.finish for s in self._spans), default=0.0))

    def plan(self) -> Timeline:
        """The finished plan. Raises `PlanTooLargeError` where the host does not suffice."""
        self.finish()
        problem = self.problem
        if self.evictions:
            self.notes.append(f"{self.evictions} evictions, {self.rule.name}")
        spans = tuple(sorted(self._spans, key=lambda s: (s.start, s.finish)))  # stable: of spans without length, a task's copies come first
        plan = Timeline(self.graph, self.machine, spans, loops=dict(problem.loops), notes=(*problem.notes, *self.notes))
        limits = dict(zip(problem.node_names, problem.capacity, strict=True))
        found = lay_out(plan, limits, places=self.places)
        assert found is not None
        return found
