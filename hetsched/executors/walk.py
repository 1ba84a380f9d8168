"""The walk along a plan: which step of which turn may start now. Pure: it sees no thread, no clock and no array.

A walk counts, for every step of every turn in flight, the arcs that still hold it back. `begin` gives what may start at once, `finish` takes
what has ended and gives what may start because of it. Arcs carry a distance in turns: (u, v, d) holds back v of turn i until u of turn i - d
has finished; where there is no turn i - d the arc is met from the beginning. A distance may be negative (on a stream, the copy for a later turn
stands before the kernel of an earlier one). A straight plan is a walk of one turn.

On devices that run ahead of the host an arc may be *soft*: it is met when the step before has been handed to its stream (`issue`), because the stream
keeps the order; the others are met when it has finished.

At most `window` turns are in flight, so that the memory of the walk does not grow with the number of turns. The window only delays:
the order of the arcs (data, reuse, lanes) alone is what makes a run correct.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from hetsched.errors import InternalError


class Arc(NamedTuple):
    """Step `later` of turn i waits for step `before` of turn i - `turns`."""

    before: int
    later: int
    turns: int = 0


class Walk:
    """The state of one walk: `turns` times `steps` steps, held back by `arcs`. Not thread-safe: one lock around it, held by the caller."""

    def __init__(self, steps: int, arcs: Iterable[Arc], turns: int = 1, window: int = 4, soft: Callable[[Arc], bool] | None = None) -> None:
        self.steps = steps
        self.turns = turns
        self.window = max(1, window)
        self.finished_steps = 0
        self._near: list[list[int]] = [[] for _ in range(steps)]
        self._far: list[list[tuple[int, int]]] = [[] for _ in range(steps)]
        self._soft: list[list[tuple[int, int]]] = [[] for _ in range(steps)]
        incoming: list[list[int]] = [[] for _ in range(steps)]
        for before, later, distance in dict.fromkeys(arcs):
            if soft is not None and soft(Arc(before, later, distance)):
                self._soft[before].append((later, distance))
            elif distance == 0:
                self._near[before].append(later)
            else:
                self._far[before].append((later, distance))
            incoming[later].append(distance)
        self._incoming = incoming
        self._deepest = max((d for row in incoming for d in row), default=0)
        self._ahead = -min((d for row in incoming for d in row), default=0)
        self.window = max(self.window, self._ahead + 1)
        self._steady = [len(row) for row in incoming]
        self._waiting: dict[int, list[int]] = {}
        self._left: dict[int, int] = {}
        self._end = turns  # turns from here on do not begin (`hold`)
        self._open = 0  # turns below are in flight or done
        self._oldest = 0  # the first turn that is not done

    @property
    def done(self) -> bool:
        """True when every step of every turn has finished."""
        return self._oldest >= self.turns

    @property
    def held(self) -> bool:
        """True when every turn that may begin has finished, and others are left."""
        return self._end < self.turns and self._oldest >= self._end

    @property
    def begun(self) -> int:
        """Turns that are in flight or done."""
        return self._open

    def hold(self, turn: int) -> None:
        """No turn from `turn` on begins, until the end; none of them may have begun."""
        if turn < self._open:
            raise InternalError(f"the walk cannot be held before turn {turn}: {self._open} turns have begun")
        self._end = min(self._end, turn)

    @property
    def oldest(self) -> int:
        """The first turn that has not finished."""
        return self._oldest

    def tells(self, step: int) -> bool:
        """True if something waits until a step is done, not only until it has been handed over."""
        return bool(self._near[step] or self._far[step])

    def begin(self) -> list[tuple[int, int]]:
        """What may start at once, as (step, turn)."""
        if self.steps == 0:
            self._oldest = self.turns
        return self._admit()

    def issue(self, step: int, turn: int) -> list[tuple[int, int]]:
        """Step `step` of `turn` has been handed to its stream; what may now be handed over behind it (along soft arcs)."""
        return self._release(self._soft[step], turn)

    def _release(self, arcs: list[tuple[int, int]], turn: int) -> list[tuple[int, int]]:
        ready: list[tuple[int, int]] = []
        for later, distance in arcs:
            target = turn + distance
            if not 0 <= target < self.turns:
                continue
            counters = self._waiting.get(target)
            if counters is None:
                counters = self._waiting[target] = self._fresh(target)
            counters[later] -= 1
            if counters[later] == 0 and target < self._open:
                ready.append((later, target))
        return ready

    def finish(self, step: int, turn: int) -> list[tuple[int, int]]:
        """Step `step` of `turn` has finished; what may start because of it."""
        ready: list[tuple[int, int]] = []
        waiting = self._waiting[turn]
        for later in self._near[step]:
            waiting[later] -= 1
            if waiting[later] == 0:
                ready.append((later, turn))
        if self._far[step]:
            ready += self._release(self._far[step], turn)
        self.finished_steps += 1
        left = self._left[turn] = self._left[turn] - 1
        if left == 0 and turn == self._oldest:
            while self._oldest < self._open and self._left[self._oldest] == 0:
                del self._waiting[self._oldest], self._left[self._oldest]
                self._oldest += 1
            ready += self._admit()
        return ready

    def stop_after(self, turn: int) -> list[tuple[int, int]]:
        """No turn after `turn` begins; what may start because it no longer waits for one of those.

        None of them may have begun (the stop value's step precedes every step of the next turn).
        """
        if self._open > turn + 1 and any(self._left[t] < self.steps for t in range(turn + 1, self._open)):
            raise InternalError(f"turn {turn} stops the loop, but a later turn has begun")
        ready: list[tuple[int, int]] = []
        before, self.turns = self.turns, turn + 1
        for step in range(self.steps):
            for later, distance in (*self._far[step], *self._soft[step]):
                for source in range(turn + 1, min(before, turn + 1 - distance)):
                    counters = self._waiting.get(source + distance)
                    if source + distance <= turn and counters is not None:
                        counters[later] -= 1
                        if counters[later] == 0 and source + distance < self._open:
                            ready.append((later, source + distance))
        for t in range(turn + 1, self._open):
            del self._waiting[t], self._left[t]
        self._open = min(self._open, turn + 1)
        return ready

    def skip_to(self, turn: int) -> list[tuple[int, int]]:
        """Every turn below `turn` has finished, without a call for each; what may start now. For a walk of one step that waits for itself."""
        if self.steps != 1 or self._incoming[0] != [1]:
            raise InternalError("only a walk of one step, each turn of which waits for the one before, can skip")
        self._waiting.clear()
        self._left.clear()
        self.finished_steps += turn - self._oldest
        self._oldest = self._open = turn
        if turn >= min(self.turns, self._end):
            return []
        self._waiting[turn], self._left[turn] = [0], 1
        self._open = turn + 1
        return [(0, turn)]

    def _fresh(self, turn: int) -> list[int]:
        if self._deepest <= turn < self.turns - max(self._ahead, 0):
            return list(self._steady)
        return [sum(0 <= turn - d < self.turns for d in row) for row in self._incoming]

    def _admit(self) -> list[tuple[int, int]]:
        ready: list[tuple[int, int]] = []
        while self._open < min(self.turns, self._end, self._oldest + self.window):
            turn = self._open
            counters = self._waiting.get(turn)
            if counters is None:
                counters = self._waiting[turn] = self._fresh(turn)
            self._left[turn] = self.steps
            ready += [(s, turn) for s, n in enumerate(counters) if n == 0]
            self._open += 1
        return ready

    def stuck(self) -> list[tuple[int, int, int]]:
        """(step, turn, arcs still unmet) of every step in flight that has not become ready: for the text of a deadlock."""
        return [(s, t, n) for t, row in sorted(self._waiting.items()) for s, n in enumerate(row) if n > 0]


def find_cycle(steps: int, arcs: Sequence[Arc]) -> list[int] | None:
    """A cycle of arcs within one turn, as step numbers, or None."""
    out: list[list[int]] = [[] for _ in range(steps)]
    degree = [0] * steps
    for before, later, distance in arcs:
        if distance == 0:
            out[before].append(later)
            degree[later] += 1
    ready = [s for s in range(steps) if degree[s] == 0]
    left = steps
    while ready:
        s = ready.pop()
        left -= 1
        for later in out[s]:
            degree[later] -= 1
            if degree[later] == 0:
                ready.append(later)
    if not left:
        return None
    step = next(s for s in range(steps) if degree[s] > 0)
    back: list[list[int]] = [[] for _ in range(steps)]
    for before, later, distance in arcs:
        if distance == 0 and degree[before] > 0 and degree[later] > 0:
            back[later].append(before)
    seen: dict[int, int] = {}
    path: list[int] = []
    while step not in seen:
        seen[step] = len(path)
        path.append(step)
        step = back[step][0]
    return path[seen[step] :][::-1]
