"""The steps of a program: what is dispatched at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from hetsched.timeline import Lane, Span

# Makes a named tuple of a tuple, three times as fast as calling its class.
_new: Any = tuple.__new__


class Step(NamedTuple):
    """What is dispatched at once. `spans` are indices into the plan's spans; `start` and `seconds` are the plan's, for priorities."""

    index: int  # type: ignore[assignment]
    spans: tuple[int, ...]
    lanes: tuple[Lane, ...]
    start: float
    seconds: float

    @property
    def owner(self) -> str:
        """The device (or link) that the step runs on; of a loop, its first (none where its body is empty)."""
        lanes = self.lanes
        lane = lanes[0] if len(lanes) == 1 else self._lane()
        return lane.owner if lane is not None else ""

    @property
    def kind(self) -> str:
        """Kind of its lanes: compute, io or copy."""
        lanes = self.lanes
        lane = lanes[0] if len(lanes) == 1 else self._lane()
        return lane.kind if lane is not None else "compute"

    def _lane(self) -> Lane | None:
        """The lane it goes by: the first, but of a loop, which holds lanes of links as well, the first of a device."""
        return next((lane for lane in self.lanes if lane.kind != "copy"), self.lanes[0]) if self.lanes else None


class Steps(Sequence[Step]):
    """Steps in columns, made when somebody asks for one: most runs of a straight plan never do.

    spans: of the plan. launches: their numbers, those of each step side by side. first: CSR, step g has `launches[first[g]:first[g + 1]]`.
    start, seconds: of each step.
    """

    def __init__(
        self, spans: Sequence[Span], launches: NDArray[np.int64], first: NDArray[np.int64], start: NDArray[np.float64], seconds: NDArray[np.float64]
    ) -> None:
        self.spans, self.launches, self.first, self.start, self.seconds = spans, launches, first, start, seconds
        self._made: list[Step] | None = None

    def __len__(self) -> int:
        return len(self.start)

    @overload
    def __getitem__(self, at: int) -> Step: ...

    @overload
    def __getitem__(self, at: slice) -> list[Step]: ...

    def __getitem__(self, at: int | slice) -> Step | list[Step]:
        return self._all()[at]

    def __iter__(self) -> Iterator[Step]:
        return iter(self._all())

    def _all(self) -> list[Step]:
        if self._made is None:
            spans, launches, first = self.spans, self.launches.tolist(), self.first.tolist()
            rows = [tuple(launches[a:b]) for a, b in pairwise(first)]
            lanes = [spans[row[0]][0] for row in rows]
            self._made = [_new(Step, step) for step in zip(range(len(rows)), rows, lanes, self.start.tolist(), self.seconds.tolist(), strict=True)]
        return self._made

    def __repr__(self) -> str:
        return f"<Steps: {len(self)}>"


__all__ = ["Step", "Steps"]
