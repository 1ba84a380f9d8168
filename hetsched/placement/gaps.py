"""Free time on one lane, and how much of a shared resource is taken at each instant. What is not taken is kept, so that a search is a bisection."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from math import inf
from typing import TypeAlias

Undo: TypeAlias = Callable[[], None]


class Gaps:
    """The free intervals of one lane, ascending; the last one never ends."""

    __slots__ = ("ends", "starts")

    def __init__(self) -> None:
        self.starts: list[float] = [0.0]
        self.ends: list[float] = [inf]

    def find(self, ready: float, seconds: float) -> tuple[int, float]:
        """(number of the gap, start) of the earliest place for `seconds` at or after `ready`."""
        starts, ends = self.starts, self.ends
        if ready >= starts[-1]:
            return len(starts) - 1, ready
        i = bisect_left(ends, ready + seconds)
        while True:
            start = max(starts[i], ready)
            if start + seconds <= ends[i]:
                return i, start
            i += 1

    def take(self, start: float, finish: float) -> Undo:
        """Book `[start, finish)`, which must lie in one gap. Returns what gives it back; calls of it must be in reverse order."""
        starts, ends = self.starts, self.ends
        i = max(0, bisect_right(starts, start) - 1)
        gap_start, gap_end = starts[i], ends[i]
        pieces = []
        if start > gap_start:
            pieces.append((gap_start, start))
        if finish < gap_end:
            pieces.append((finish, gap_end))
        starts[i : i + 1] = [a for a, _ in pieces]
        ends[i : i + 1] = [b for _, b in pieces]
        n = len(pieces)

        def undo() -> None:
            starts[i : i + n] = [gap_start]
            ends[i : i + n] = [gap_end]

        return undo

    def __repr__(self) -> str:
        return f"<Gaps: {len(self.starts)}, free for good from {self.starts[-1]:.6g} s>"


class Usage:
    """How much of one resource is taken, piece by piece over time: `levels[i]` from `times[i]` to `times[i + 1]`."""

    __slots__ = ("capacity", "levels", "times")

    def __init__(self, capacity: float) -> None:
        self.capacity = capacity
        self.times: list[float] = [0.0]
        self.levels: list[float] = [0.0]

    def find(self, ready: float, seconds: float, amount: float) -> float:
        """The earliest start at or after `ready` from which `amount` is free for `seconds`. Amounts above the capacity are cut to it."""
        times, levels = self.times, self.levels
        room = self.capacity - min(amount, self.capacity) + 1e-9 * self.capacity
        start = ready
        i = max(0, bisect_right(times, start) - 1)
        while i < len(times) and times[i] < start + seconds:
            if levels[i] > room:
                start = times[i + 1]  # the last level is 0, so there is a next one
            i += 1
        return start

    def take(self, start: float, finish: float, amount: float) -> None:
        """Add `amount` to what is taken over `[start, finish)`."""
        if finish <= start or amount == 0:
            return
        amount = min(amount, self.capacity)
        first, last = self._cut(start), self._cut(finish)
        for i in range(first, last):
            self.levels[i] += amount

    def _cut(self, at: float) -> int:
        i = bisect_left(self.times, at)
        if i == len(self.times) or self.times[i] != at:
            self.times.insert(i, at)
            self.levels.insert(i, self.levels[i - 1])
        return i


def find_common(lanes: Sequence[Gaps], ready: float, seconds: float) -> float:
    """The earliest start at or after `ready` at which every one of `lanes` is free for `seconds`."""
    start = ready
    settled = 0
    while settled < len(lanes):
        settled = 0
        for lane in lanes:
            found = lane.find(start, seconds)[1]
            if found > start:
                start, settled = found, 1
            else:
                settled += 1
    return start
