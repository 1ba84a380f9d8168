"""A plan being written. A policy asks when a task would finish on each choice and books one; copies, lanes and resources are booked with it.

Two drafts behind one face: `GraphDraft` writes the plan of a graph on a machine (copies queue on links, resources run out, memory is laid out);
`hetsched.placement.costed.planning.CostedDraft` writes that of a costed graph, where links are contention-free, and is fast.

Placement is by insertion: a task goes into the earliest gap that is long enough (Topcuoglu, Hariri, Wu: HEFT, IEEE TPDS 13(3), 2002, section
4.2). Gaps, not tasks, are kept for each lane, so that a search is a bisection.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise, repeat
from math import inf
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from hetsched.errors import InternalError, PlanError
from hetsched.graph.graph import Nested
from hetsched.placement import native
from hetsched.placement.facts import graph_facts
from hetsched.placement.gaps import Gaps, Undo, Usage, find_common
from hetsched.placement.memory import lay_out
from hetsched.placement.problem import FloatArray, Problem
from hetsched.placement.ranks import code_for, least_tails
from hetsched.placement.shared import Shared, near_run, shared_run
from hetsched.placement.written import Commands, commands_of, spans_of, written
from hetsched.timeline import Lane, Launch, Replica, Span, Timeline


class Offer(NamedTuple):
    """What a draft can do for a task: `choice` (a column of the problem) is `device` at `width`; from `start` to `finish`, in seconds."""

    task: int
    choice: int
    device: str
    width: int
    start: float
    finish: float


class HopelessError(Exception):
    """A plan is certain to be longer than `Draft.give_up_above`. Policies let it pass to whoever set that."""


class Draft(ABC):
    """What is common to the drafts: what is booked, and the constraint that tasks share a device.

    choice_of, start_of, finish_of: of each task; choice -1: not booked yet. booked: tasks in the order of booking. notes: remarks for the user.
    give_up_above: a makespan in seconds; `place_all` raises `HopelessError` as soon as the plan is certain to be longer.
    """

    give_up_above = inf

    def __init__(self, problem: Problem) -> None:
        n = len(problem)
        self.problem = problem
        self.choice_of = [-1] * n
        self.start_of = [0.0] * n
        self.finish_of = [0.0] * n
        self.booked: list[int] = []
        self.notes: list[str] = []

    def finish_times(self, task: int) -> FloatArray:
        """float64[C]: when `task` would finish on each choice, copies, queues and resources counted; inf: it cannot.

        Its predecessors must be booked.
        """
        out = np.full(len(self.problem.choices), inf)
        for choice, _, finish in self._options(task):
            out[choice] = finish
        return out

    def offers(self, task: int) -> Iterator[Offer]:
        """The same as objects, only for choices that are possible."""
        for choice, start, finish in self._options(task):
            device = self.problem.choices[choice].device
            yield Offer(task, choice, self.problem.device_ids[device] if device >= 0 else "loop", self.problem.choices[choice].width, start, finish)

    def earliest(self, task: int, behind: Sequence[float] | None = None) -> int:
        """The choice with the least finish time, or with the least sum of finish time and `behind[choice]`; the first of equals."""
        best, least = -1, inf
        for choice, _, finish in self._options(task):
            if behind is not None:
                finish += behind[choice]
            if finish < least:
                best, least = choice, finish
        if best < 0:
            raise InternalError(f"task {self.problem.name(task)!r} has no choice left")
        return best

    def place_all(self, order: Sequence[int], behind: FloatArray | None = None, wanted: Sequence[int] | None = None) -> None:
        """Book the tasks one after another, each where `earliest` has it. behind: float64[n, C]; what `earliest` is told of each task.

        wanted: for each task of the problem a choice that is taken instead, where tasks that must share its device allow it; -1: none.
        """
        rows = behind[order].tolist() if behind is not None else repeat(None)
        tails = least_tails(self.problem).tolist() if self.give_up_above < inf else None
        for task, row in zip(order, rows):
            choice = wanted[task] if wanted is not None else -1
            if choice < 0 or not self.fits_group(task, choice):
                choice = self.earliest(task, row)
            finish = self.place(task, choice)
            if tails is not None and finish + tails[task] > self.give_up_above:
                raise HopelessError

    def book(self, offer: Offer) -> None:
        """Accept an offer. Other bookings may have come between; the task then starts when it can."""
        self.place(offer.task, offer.choice)

    @abstractmethod
    def place(self, task: int, choice: int, not_before: float = 0.0) -> float:
        """Book `task` on `choice`, with all it needs, at the earliest start from `not_before` on. Returns its finish.

        Raises `PlanError` for a task that is booked already, or before a predecessor, or cannot run there.
        """

    def adopt(self, other: Draft) -> None:
        """Take over all that is booked in another draft of the same problem, which must not be used any more."""
        if other.problem is not self.problem or type(other) is not type(self):
            raise InternalError("a draft can only take over one of the same problem")
        vars(self).clear()
        vars(self).update(vars(other))

    @abstractmethod
    def finish(self) -> float:
        """Book what remains when every task is booked (copies of outputs to the host), and give the makespan in seconds."""

    def expected(self) -> float:
        """The makespan in seconds that a run is expected to have; as `finish`, it ends the draft."""
        return self.finish()

    @abstractmethod
    def _options(self, task: int) -> Iterator[tuple[int, float, float]]:
        """(choice, start, finish) of each possible choice, ascending by choice."""

    def fits_group(self, task: int, choice: int) -> bool:
        """False where the task must share a device with one that is booked elsewhere."""
        group = self.problem.groups.get(task)
        if group is None:
            return True
        fixed = next((self.choice_of[t] for t in group if self.choice_of[t] >= 0), -1)
        return fixed < 0 or self.problem.choices[fixed].device == self.problem.choices[choice].device

    def _refuse(self, task: int, why: str) -> PlanError:
        return PlanError(f"task {self.problem.name(task)!r} cannot be booked: {why}")

    def __repr__(self) -> str:
        until = max((self.finish_of[t] for t in self.booked), default=0.0)
        return f"<{type(self).__name__}: {len(self.booked)} of {len(self.problem)} tasks booked, until {until:.6g} s>"


Policy: TypeAlias = Callable[[Draft], None]


class _Copied(NamedTuple):
    value: int
    src: int
    dst: int
    start: float
    finish: float
    engine: int
    turn: int  # how many tasks were booked before


class GraphDraft(Draft):
    """The plan of a graph on a machine, being written. A whole list of tasks is booked by machine code where there is some (`place_all`).

    lane_of: of each booked task, the number of its lane among those of its pool.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        graph, machine = problem.graph, problem.machine
        if graph is None or machine is None:
            raise InternalError("a GraphDraft needs a problem made from a graph")
        self.graph, self.machine = graph, machine
        self._delivered = False
        self.lane_of = [0] * len(problem)
        # What machine code booked: value, src, dst, start, finish, engine and turn of each copy; else None, and `_copies` has them.
        self._copied: Any = None

    # What follows from the problem alone is shared by all drafts of it, and made only where it is asked for: machine code does without.

    def _shared(self, name: str, make: Callable[[], Any]) -> Any:
        memo = self.problem.memo
        if name not in memo:
            memo[name] = make()
        return memo[name]

    @cached_property
    def reads(self) -> list[list[int]]:
        """The values that each task reads, each once."""

        def make() -> list[list[int]]:
            starts, values = self.graph.input_start.tolist(), self.graph.input_values.tolist()
            return [list(dict.fromkeys(values[a:b])) for a, b in pairwise(starts)]

        found: list[list[int]] = self._shared("reads", make)
        return found

    @cached_property
    def _outputs(self) -> list[int]:
        found: list[int] = self._shared("outputs", self.graph.output_start.tolist)
        return found

    @cached_property
    def _producer(self) -> list[int]:
        found: list[int] = self._shared("producer", self.graph.value_task.tolist)
        return found

    @cached_property
    def _nbytes(self) -> list[int]:
        found: list[int] = self._shared("nbytes", self.graph.value_nbytes.tolist)
        return found

    @cached_property
    def _after(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = self._shared("after", self._find_after)
        return found

    @cached_property
    def _seconds(self) -> list[list[float]]:
        found: list[list[float]] = self._shared("rows", self.problem.durations.tolist)
        return found

    @cached_property
    def _possible(self) -> list[list[int]]:
        found: list[list[int]] = self._shared("possible", lambda: [[c for c, s in enumerate(row) if s != inf] for row in self._seconds])
        return found

    @cached_property
    def _latency(self) -> list[list[float]]:
        found: list[list[float]] = self.problem.latency.tolist()
        return found

    @cached_property
    def _per_byte(self) -> list[list[float]]:
        found: list[list[float]] = self.problem.seconds_per_byte.tolist()
        return found

    @cached_property
    def _uses(self) -> list[list[float]]:
        found: list[list[float]] = self.problem.uses.tolist()
        return found

    @cached_property
    def _crossing(self) -> list[float]:
        return [self.machine.devices[p.device].crossing_seconds for p in self.problem.pools]

    @cached_property
    def _loop_uses(self) -> dict[int, list[float]]:
        return {t: self._body_uses(t) for t in self.problem.loops} if self._usage else {}

    # What is booked, where Python books.

    @cached_property
    def _pools(self) -> list[list[Gaps]]:
        return [[Gaps() for _ in range(pool.lanes)] for pool in self.problem.pools]

    @cached_property
    def _engines(self) -> list[list[list[Gaps]]]:
        m = range(len(self.problem.node_names))
        return [[[Gaps() for _ in range(int(self.problem.engines[a, b]))] for b in m] for a in m]

    @cached_property
    def _usage(self) -> list[Usage]:
        return [Usage(float(c)) for c in self.problem.resource_capacity]

    @cached_property
    def _loop_gaps(self) -> dict[int, list[Gaps]]:
        return {t: [self._gaps(lane) for lane in lanes] for t, lanes in self.problem.loop_lanes.items()}

    @cached_property
    def _there(self) -> list[dict[int, float]]:
        """value -> node -> when it is there. Inputs and constants are on the host from the start."""
        first = self._outputs[0] if self._outputs else len(self._nbytes)
        return [{self.problem.host: 0.0} if v < first else {} for v in range(len(self._nbytes))]

    @cached_property
    def _known_lanes(self) -> dict[tuple[int, int], tuple[Lane, ...]]:
        """(pool, lane, -1: all of them) -> what a launch there holds."""
        return {}

    @cached_property
    def _copies(self) -> list[_Copied]:
        return [] if self._copied is None else [_Copied(*row) for row in self._copied.tolist()]

    @cached_property
    def _offered(self) -> list[tuple[int, int, float, int]]:
        """The last that was asked of each choice: task, how many were booked then, start, lane. What was found holds until the next booking."""
        return [(-1, -1, 0.0, 0)] * len(self.problem.choices)

    def _find_after(self) -> dict[int, list[int]]:
        out: dict[int, list[int]] = {}
        for before, task in self.graph.after:
            out.setdefault(task, []).append(before)
        return out

    # Booking --------------------------------------------------------------------------------------------------------------------

    def place_all(self, order: Sequence[int], behind: FloatArray | None = None, wanted: Sequence[int] | None = None) -> None:
        code = None
        if type(self) is GraphDraft and not self.booked and not self.problem.loops and len(order) == len(self.problem):
            code = code_for(self.problem)
        found = None
        if code is not None:
            tails = least_tails(self.problem) if self.give_up_above < inf else None
            found = native.draft(code, graph_facts(self.problem), order, behind, wanted, tails, self.give_up_above)
            if found is None:
                raise HopelessError
        if found is None or len(found.choice) < len(order):
            super().place_all(order, behind, wanted)  # tells what is wrong with the list
            return
        self.choice_of, self.lane_of = found.choice.tolist(), found.lane.tolist()
        self.start_of, self.finish_of = found.start.tolist(), found.finish.tolist()
        self.booked = order if isinstance(order, list) else list(order)
        self._copied, self._delivered = found.copies, True

    def place(self, task: int, choice: int, not_before: float = 0.0) -> float:
        self._check(task, choice)
        return self._book(task, choice, not_before)

    def _book(self, task: int, choice: int, not_before: float) -> float:
        where = self.problem.choices[choice]
        seconds = self._seconds[task][choice]
        ready = max(not_before, self._fetch(task, where.node, keep=True))
        asked, booked, start, lane = self._offered[choice]
        if asked != task or booked != len(self.booked) or start < not_before:
            start, lane = self._slot(task, choice, ready)
        finish = start + seconds
        if where.pool < 0:
            for gaps in self._loop_gaps[task]:
                gaps.take(start, finish)
        else:
            self.lane_of[task] = lane
            for i in range(self.problem.pools[where.pool].lanes) if where.width > 1 else (lane,):
                self._pools[where.pool][i].take(start, finish)
        for usage, amount in zip(self._usage, self._amounts(task, choice), strict=False):
            usage.take(start, finish, amount)
        self.choice_of[task], self.start_of[task], self.finish_of[task] = choice, start, finish
        self.booked.append(task)
        for value in range(self._outputs[task], self._outputs[task + 1]):
            self._there[value][where.node] = finish
        return finish

    def finish(self) -> float:
        if not self._delivered:
            if len(self.booked) < len(self.problem):
                missing = next(t for t, c in enumerate(self.choice_of) if c < 0)
                raise PlanError(f"the policy booked {len(self.booked)} of {len(self.problem)} tasks; {self.problem.name(missing)!r} is not booked")
            self._delivered = True
            host = self.problem.host
            away = [v for v in dict.fromkeys(self.graph.outputs.values()) if host not in self._there[v]]
            for value in sorted(away, key=lambda v: min(self._there[v].values())):
                self._copy(value, host)
        copied = max((c.finish for c in self._copies), default=0.0) if self._copied is None else float(self._copied["finish"].max(initial=0.0))
        return max(max(self.finish_of, default=0.0), copied)

    def expected(self) -> float:
        finish = self.finish()
        return finish if self._as_run is None else self._as_run.makespan

    @cached_property
    def _as_run(self) -> Shared | None:
        """The finished draft as it will be run, worked out once."""
        return shared_run(self, self._copies_in_rows())

    def plan(self) -> Timeline:
        """The finished plan, as the threads will run it (`shared`), laid out in memory.

        Raises `OutOfMemoryError` where it does not fit, even with every copy as late as it can be.
        """
        self.finish()
        problem = self.problem
        straight = Timeline(self.graph, self.machine, (), loops=dict(problem.loops), notes=(*problem.notes, *self.notes))
        limits = dict(zip(problem.node_names, problem.capacity, strict=True))
        near = near_run(self, self._copies_in_rows())
        plan = written(problem, self._commands_of(near), near.told(straight), limits) if near is not None else None
        if plan is None and self._as_run is not None:
            plan = written(problem, self._commands_of(self._as_run), straight, limits)
        if plan is None:
            plan = written(problem, self._commands(self._copies_in_rows()), straight, limits)
        if plan is None:
            launches = [self._launch_span(t) for t in self.booked]
            late = postponed(self._copies, launches, problem.node_names)
            spans = spans_of(problem, self._commands(np.array(late, native.COPIED)))
            plan = lay_out(replace(straight, spans=tuple(spans)), limits)
        assert plan is not None
        return plan

    def _copies_in_rows(self) -> Any:
        return self._copied if self._copied is not None else np.array(self._copies, native.COPIED)

    def _commands_of(self, found: Shared) -> Commands:
        return commands_of(self.problem, self.booked, self.choice_of, found.lane, found.start, found.finish, found.copies)

    def _commands(self, copies: Any) -> Commands:
        return commands_of(self.problem, self.booked, self.choice_of, self.lane_of, self.start_of, self.finish_of, copies)

    def _check(self, task: int, choice: int) -> None:
        if self.choice_of[task] >= 0:
            raise self._refuse(task, "it is booked already")
        if self._delivered:
            raise self._refuse(task, "the draft is finished")
        if not (0 <= choice < len(self.problem.choices) and self._seconds[task][choice] != inf and self.fits_group(task, choice)):
            raise self._refuse(task, f"choice {choice} is not possible; possible: {self._possible[task]}")
        self._check_waits(task)

    def _check_waits(self, task: int) -> None:
        choice_of = self.choice_of
        for value in self.reads[task]:
            if self._producer[value] >= 0 and choice_of[self._producer[value]] < 0:
                raise self._refuse(task, f"it needs {self.problem.name(self._producer[value])!r}, which is not booked yet")
        for before in self._after.get(task, ()):
            if choice_of[before] < 0:
                raise self._refuse(task, f"it needs {self.problem.name(before)!r}, which is not booked yet")

    # Searching ------------------------------------------------------------------------------------------------------------------

    def _options(self, task: int) -> Iterator[tuple[int, float, float]]:
        self._check_waits(task)
        ready: dict[int, float] = {}
        for choice in self._possible[task]:
            if task in self.problem.groups and not self.fits_group(task, choice):
                continue
            node = self.problem.choices[choice].node
            if node not in ready:
                ready[node] = self._fetch(task, node, keep=False)
            start, lane = self._slot(task, choice, ready[node])
            self._offered[choice] = task, len(self.booked), start, lane
            yield choice, start, start + self._seconds[task][choice]

    def _fetch(self, task: int, node: int, keep: bool) -> float:
        """When everything that `task` waits for is in `node`; with `keep` the copies stay booked."""
        ready = 0.0
        for before in self._after.get(task, ()):
            ready = max(ready, self.finish_of[before])
        missing = []
        for value in self.reads[task]:
            at = self._there[value].get(node)
            if at is None:
                missing.append(value)
            elif at > ready:
                ready = at
        if not missing:
            return ready
        if len(missing) == 1 and not keep:
            return max(ready, self._best_copy(missing[0], node).finish)
        missing.sort(key=lambda v: min(self._there[v].values()))
        taken: list[tuple[int, Undo | None]] = []
        for value in missing:
            taken.append((value, self._copy(value, node)))
            ready = max(ready, self._there[value][node])
        if not keep:
            for value, undo in reversed(taken):
                del self._there[value][node]
                self._copies.pop()
                if undo is not None:
                    undo()
        return ready

    def _best_copy(self, value: int, node: int) -> _Copied:
        """The copy of `value` to `node` that arrives first, over any link from where it is."""
        best = None
        for src, at in self._there[value].items():
            seconds = self._latency[src][node] + self._nbytes[value] * self._per_byte[src][node]
            engines = self._engines[src][node]
            start, engine = min((gaps.find(at, seconds)[1], i) for i, gaps in enumerate(engines)) if engines else (at, 0)
            if best is None or start + seconds < best.finish:
                best = _Copied(value, src, node, start, start + seconds, engine, len(self.booked))
        if best is None:
            raise InternalError(f"value {self.graph.value_names[value]!r} is nowhere")
        return best

    def _copy(self, value: int, node: int) -> Undo | None:
        copy = self._best_copy(value, node)
        self._copies.append(copy)
        self._there[value][node] = copy.finish
        engines = self._engines[copy.src][node]
        return engines[copy.engine].take(copy.start, copy.finish) if engines else None

    def _slot(self, task: int, choice: int, ready: float) -> tuple[float, int]:
        """(start, lane) of the earliest place on `choice` from `ready` on at which lanes and resources are free."""
        where, seconds = self.problem.choices[choice], self._seconds[task][choice]
        amounts = self._amounts(task, choice)
        apart = self._apart(task, where.pool) if where.pool >= 0 and where.width == 1 else None
        at, lane = ready, 0
        while True:
            if where.pool < 0:
                start = find_common(self._loop_gaps[task], at, seconds)
            elif where.width > 1:
                start = find_common(self._pools[where.pool], at, seconds)
            else:
                start, lane = self._lane(self._pools[where.pool], where.pool, at, seconds, apart)
            later = start
            if seconds > 0:
                for usage, amount in zip(self._usage, amounts, strict=False):
                    if amount:
                        later = max(later, usage.find(later, seconds, amount))
            if later == start:
                return start, lane
            at = later

    def _lane(self, lanes: list[Gaps], pool: int, ready: float, seconds: float, apart: dict[tuple[int, int], float] | None) -> tuple[float, int]:
        """The lane that is free first; of equals the one that leaves the least idle time."""
        # What others hand over comes last of all from lane `own`, which itself has to wait for the rest alone.
        own, at_own, elsewhere = -1, ready, ready
        if apart:
            for (of, number), handed in apart.items():
                if handed > elsewhere:
                    own, at_own, elsewhere = number if of == pool else -1, elsewhere, handed
                elif handed > at_own:
                    at_own = handed
        best, best_from, lane = inf, -1.0, 0
        for i, gaps in enumerate(lanes):
            here = at_own if i == own else elsewhere
            since = gaps.starts[-1]
            if here >= since:
                start = here
            else:
                gap, start = gaps.find(here, seconds)
                since = gaps.starts[gap]
            if start < best or (start == best and since > best_from):
                best, best_from, lane = start, since, i
        return best, lane

    def _apart(self, task: int, pool: int) -> dict[tuple[int, int], float] | None:
        """Lane -> when what predecessors on it made reaches the other lanes of the device: handing work to another thread takes time."""
        crossing = self._crossing[pool]
        if crossing == 0.0:
            return None
        device = self.problem.pools[pool].device
        choices = self.problem.choices
        out: dict[tuple[int, int], float] = {}
        for value in self.reads[task]:
            producer = self._producer[value]
            if producer >= 0 and (on := choices[self.choice_of[producer]]).device == device and on.pool >= 0:
                key = on.pool, self.lane_of[producer]
                out[key] = max(out.get(key, 0.0), self.finish_of[producer] + crossing)
        return out

    def uses_of(self, task: int) -> list[float]:
        """float[R]: what a booked task takes of each resource that devices share."""
        return self._amounts(task, self.choice_of[task])

    def _amounts(self, task: int, choice: int) -> list[float]:
        if not self._usage:
            return []
        return self._loop_uses[task] if self.problem.choices[choice].pool < 0 else self._uses[choice]

    # The rest -------------------------------------------------------------------------------------------------------------------

    def _gaps(self, lane: Lane) -> Gaps:
        """The gaps of a lane by its name."""
        problem = self.problem
        if lane.kind == "copy":
            link = next(x for x in self.machine.links if x.id == lane.owner)
            engines = self._engines[problem.node_names.index(link.src)][problem.node_names.index(link.dst)]
            return engines[lane.number] if engines else Gaps()
        device = problem.device_ids.index(lane.owner)
        pool = next(i for i, p in enumerate(problem.pools) if p.device == device and p.kind == lane.kind)
        return self._pools[pool][lane.number]

    def _body_uses(self, task: int) -> list[float]:
        """What a loop takes of each resource: all its lanes at once, at most what there is."""
        total = [0.0] * len(self._usage)
        for lane in self.problem.loop_lanes[task]:
            if lane.kind == "compute":
                uses = self.machine.device(lane.owner).uses
                total = [x + uses.get(name, 0.0) for x, name in zip(total, self.problem.resource_names, strict=True)]
        return total

    def _lanes(self, task: int) -> tuple[Lane, ...]:
        """The lanes that a booked task holds."""
        choice = self.problem.choices[self.choice_of[task]]
        if choice.pool < 0:
            return self.problem.loop_lanes[task]
        only = self.lane_of[task] if choice.width == 1 else -1
        found = self._known_lanes.get((choice.pool, only))
        if found is None:
            pool = self.problem.pools[choice.pool]
            numbers = range(pool.lanes) if only < 0 else (only,)
            found = tuple(Lane(self.problem.device_ids[choice.device], i, pool.kind) for i in numbers)
            self._known_lanes[choice.pool, only] = found
        return found

    def _launch_span(self, task: int) -> Span:
        choice = self.problem.choices[self.choice_of[task]]
        node = self.problem.node_names[choice.node]
        reads = tuple(Replica(v, 0, node) for v in self.graph.reads(task))
        writes = tuple(Replica(v, 0, node) for v in self.graph.writes(task))
        lanes = self._lanes(task)
        width = len(lanes) if isinstance(self.graph.task_ops[task], Nested) else choice.width
        return Span(lanes, Launch(task, 0, reads, writes, width), self.start_of[task], self.finish_of[task])


def postponed(copies: list[_Copied], launches: list[Span], node_names: tuple[str, ...]) -> list[_Copied]:
    """The copies, each as late as its readers and the next copy of its lane allow, so that replicas live no longer than they must."""
    needed: dict[tuple[int, int], float] = {}
    number = {name: i for i, name in enumerate(node_names)}
    for span in launches:
        command = span.command
        assert isinstance(command, Launch)
        for replica in command.reads:
            key = replica.value, number[replica.node]
            needed[key] = min(needed.get(key, inf), span.start)
    # A loop may hold lanes of links: what was copied before it began still is.
    looped: dict[tuple[str, int], list[float]] = {}
    for span in launches:
        for on in span.lanes:
            if on.kind == "copy":
                looped.setdefault((on.owner, on.number), []).append(span.start)
    lane_free: dict[tuple[int, int, int], float] = {}
    out = []
    for copy in sorted(copies, key=lambda c: (c.start, c.finish), reverse=True):
        seconds = copy.finish - copy.start
        lane = copy.src, copy.dst, copy.engine
        latest = min(needed.get((copy.value, copy.dst), copy.finish), lane_free.get(lane, inf))
        held = looped.get((f"{node_names[copy.src]}->{node_names[copy.dst]}", copy.engine), ()) if looped else ()
        latest = min([latest, *(start for start in held if start >= copy.finish)]) - seconds
        start = max(copy.start, latest)
        out.append(copy._replace(start=start, finish=start + seconds))
        lane_free[lane] = start
        key = copy.value, copy.src
        needed[key] = min(needed.get(key, inf), start)
    return out[::-1]
