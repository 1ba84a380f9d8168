"""The search for costed graphs: cycles of annealing, each from the best plan of a line of search.

There is one line at first. Small graphs soon find no more on it: then there are several, in turn, all but the first from a plan that great heat has
made. One that has found nothing for a while begins afresh, unless it is the best.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from hetsched.placement import native
from hetsched.placement.costed.draft import CostedDraft
from hetsched.placement.facts import facts_of
from hetsched.placement.problem import Problem
from hetsched.placement.search import walk as search_walk
from hetsched.placement.search.compiled import kernels
from hetsched.placement.search.walk import Facts, State

# Temperatures at the start of the cycles, in turn, as shares of the makespan. The first is all but descent: large graphs get no further.
HEATS = (1e-4, 1e-3, 1e-2, 3e-2, 3e-3)
# Those of lines after `MILD` cycles, which only small graphs reach. Hotter ones leave the plan behind and seldom come back as low.
MILD = 3 * len(HEATS)
WARM = (0.01, 0.003, 0.03, 0.001, 0.02, 0.005)
# Lines; the heat of one that begins; its cycles without a better plan after which it begins afresh.
LINES, FRESH, STALE = 4, 0.3, 6
# Steps of the first cycle per task; how much longer each of the first `MILD` cycles is than the one before, and then each round of the lines: many
# cycles of about the same length find more than few long ones.
FIRST = 4
GROWTH, SLOWER = 1.3, 1.08
# Seconds between two looks at the clock, about; seconds of search from which a second core helps.
LOOK = 0.01
TOGETHER_FROM = 0.25


class Found(NamedTuple):
    """What a search did: evaluations (plans tried), and seconds that went into loading and compiling it."""

    evaluations: int
    compile_seconds: float


def improve_costed(
    draft: CostedDraft, seconds: float, evaluations: float, *, seed: int, clock: Callable[[], float], compiled: bool, target: float = 0.0
) -> Found:
    """Replace what is booked in `draft` by the best plan found within `seconds` and `evaluations`, whichever is less.

    The n-th plan tried depends on the seed and n alone, so more evaluations are never worse. Stops at a makespan of at most `target`. Where only time
    is limited, and machine code searches, a second core searches too, by a seed of its own.
    """
    began = clock()
    walker = Walker(draft.problem, seed, compiled=compiled)
    walker.begin(draft)
    loading = clock() - began if walker.is_compiled else 0.0
    before = walker.best
    until = clock() + seconds
    if walker.lets_others_run and seconds >= TOGETHER_FROM and evaluations == math.inf and cores() > 1:
        other = Walker(draft.problem, seed + 1, compiled=compiled)
        other.begin(draft)
        with ThreadPoolExecutor(1) as second:
            aside = second.submit(other.run, evaluations, until, clock, target)
            done = walker.run(evaluations, until, clock, target) + aside.result()
        walker = min(walker, other, key=lambda found: found.best)
    else:
        done = walker.run(evaluations, until, clock, target)
    if walker.best < before:
        walker.write(draft)
    return Found(done, loading)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Line(NamedTuple):
    """The best plan of a line of search, its makespan (inf: it begins afresh), and the cycles in turn that found none better."""

    span: float
    order: list[int]
    device: list[int]
    stale: int = 0


class Walker:
    """A search over one problem. `is_compiled`: whether machine code does it: that of `native/costed.c`, or of numba where there is no C compiler."""

    def __init__(self, problem: Problem, seed: int, *, compiled: bool) -> None:
        facts, state = facts_of(problem), _empty(len(problem), sum(pool.lanes for pool in problem.pools))
        code = _machine_code(facts, state) if compiled else None
        self.is_compiled = code is not None
        # Calls through ctypes hold no lock of the interpreter.
        self.lets_others_run = isinstance(code, native.Walk)
        self._code: Any = code or search_walk
        self._n = len(problem)
        self.facts = facts if code else Facts(*(x.tolist() for x in facts))
        self.state = state if code else State(*(x.tolist() for x in state))
        self.state.count[0] = (seed * 2654435761 + 88172645) & 0xFFFFFFFF or 1
        self._cycle, self._length, self._done, self._hot = -1, 0, 0, 0.0
        self._lines, self._at = [Line(math.inf, [], [])], 0
        if code:
            self._warm_up(seed)

    @property
    def best(self) -> float:
        """The makespan of the best plan so far, in seconds."""
        return min(float(self.state.spans[1]), *(line.span for line in self._lines))

    def begin(self, draft: CostedDraft) -> None:
        """Start from the plan in `draft`."""
        start = draft.start_of
        self._stand_at(sorted(draft.booked, key=start.__getitem__), draft.choice_of)
        self._keep()
        self._lines[0] = self._line()

    def run(self, evaluations: float, until: float, clock: Callable[[], float], target: float = 0.0) -> int:
        """Steps until one of the limits; how many were done."""
        total, chunk = 0, 1
        now = clock()
        while total < evaluations and now < until and self.best > target:
            if self._done == self._length:
                self._next_cycle()
            steps = int(min(chunk, self._length - self._done, evaluations - total))
            self._code.walk(self.facts, self.state, steps, self._done, self._length, self._hot)
            self._done += steps
            total += steps
            before, now = now, clock()
            took = max(now - before, 1e-9)
            chunk = max(1, min(4 * chunk, int(steps * min(LOOK, max(until - now, 0.0)) / took)))
        return total

    def write(self, draft: CostedDraft) -> None:
        """Put the best plan into `draft`."""
        best = min(self._line(), *self._lines, key=lambda line: line.span)
        self._stand_at(best.order, best.device)
        s = self.state
        columns: list[list[Any]] = [np.asarray(x).tolist() for x in (s.device, s.start, s.finish, s.lane)]
        device, start, finish, lane = columns
        first = np.asarray(self.facts.lanes).tolist()
        draft.rewrite(device, start, finish, [at - first[on] for at, on in zip(lane, device, strict=True)])

    def _next_cycle(self) -> None:
        """Keep what the line has found, and go on with the best plan of the next one, its tasks in the order of their starts."""
        lines, found = self._lines, self._line()
        here = lines[self._at]
        lines[self._at] = found if found.span < here.span else here._replace(stale=here.stale + 1)
        best = min(lines, key=lambda line: line.span)
        if lines[self._at].stale >= STALE and lines[self._at] is not best:
            lines[self._at] = best._replace(span=math.inf, stale=0)
        self._cycle += 1
        self._done = 0
        turn = 0
        if self._cycle >= MILD:
            if len(lines) == 1:
                lines += [best._replace(span=math.inf)] * (LINES - 1)
            turn, self._at = divmod(self._cycle - MILD, LINES)
        line = lines[self._at]
        self._length = int(FIRST * self._n * GROWTH ** min(self._cycle, MILD) * SLOWER**turn) + 1
        heat = HEATS[self._cycle % len(HEATS)] if self._cycle < MILD else FRESH if line.span == math.inf else WARM[turn % len(WARM)]
        self._hot = heat * best.span
        self._stand_at(line.order, line.device)
        start = self.state.start
        self._stand_at(sorted(line.order, key=start.__getitem__), line.device)
        self._keep()
        self.state.spans[1] = min(line.span, self.state.spans[0]) if line.span < math.inf else math.inf

    def _line(self) -> Line:
        """Of the line in turn, what it has found since it began."""
        s = self.state
        return Line(float(s.spans[1]), list(s.best_order), list(s.best_device))

    def _stand_at(self, order: Any, device: Any) -> None:
        s = self.state
        for i, task in enumerate(order):
            s.order[i] = task
            s.place[task] = i
        s.device[:] = device
        makespan, _ = self._code.evaluate(self.facts, s, 0, self._n, math.inf)
        s.old_lane[:], s.old_finish[:], s.old_why[:] = s.lane, s.finish, s.why
        s.spans[0] = makespan
        self._code.trace(s)
        self._code.look_back(self.facts, s)

    def _keep(self) -> None:
        s = self.state
        s.best_order[:], s.best_device[:] = s.order, s.device
        s.spans[1] = s.spans[0]

    def _warm_up(self, seed: int) -> None:
        """Have everything compiled or loaded, so that no clock counts it: a step of length 0."""
        self._code.walk(self.facts, self.state, 0, 0, 1, 0.0)


def _machine_code(facts: Facts, state: State) -> Any:
    found = native.library()
    return native.Walk(found.code, facts, state) if found is not None else kernels()


def _empty(n: int, lanes: int) -> State:
    real = {"start", "finish", "old_finish", "rest", "free", "spans"}
    size = {"free": lanes, "last": lanes, "count": 2, "spans": 2}
    return State(*(np.zeros(size.get(name, n), np.float64 if name in real else np.int64) for name in State._fields))
