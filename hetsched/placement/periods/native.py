"""The longest waits of a periodic order by machine code (`native/costed.c`): what `relax` does, with the same answers."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from itertools import accumulate, chain

from hetsched.placement import native

# Ops times orders solved from which building machine code (about 0.5 s) pays for a body.
BUILD_FROM = 150_000


def for_body(work: int) -> Circles | None:
    """Machine code for a body that needs so much work, where there is some that pays."""
    if work < BUILD_FROM and not native.is_built():
        return None
    found = native.library()
    return Circles(found.code) if found is not None else None


class Flat:
    """Arcs as arrays: those from op u are starts[u] to starts[u + 1]; `work` is given where it is not that of the op it starts from."""

    def __init__(self, out: Sequence[Sequence[tuple[int, int]]], seconds: Sequence[int] = (), *, weighed: bool = False) -> None:
        self.count = len(out)
        self.starts = array("q", (0, *accumulate(map(len, out))))
        arcs = list(chain.from_iterable(out))
        self.to = array("q", [v for v, _ in arcs])
        self.turns = array("q", [k for _, k in arcs])
        self.seconds = array("q", seconds)
        self.work = array("q", bytes(8 * len(self.to))) if weighed else None


class Circles:
    """The function `hs_circle` of one process."""

    def __init__(self, code: ctypes.CDLL) -> None:
        self._find = code.hs_circle
        self._find.restype = ctypes.c_int64
        whole, place = ctypes.c_int64, ctypes.c_void_p
        self._find.argtypes = [whole, *[place] * 8, whole, *[place] * 4]

    def find(
        self, flat: Flat, period: int, start: array[int], order: array[int] | None = None, follow: tuple[array[int], array[int]] | None = None
    ) -> tuple[list[int], list[int], list[int]] | None:
        """(ops, arcs, turns) of a cycle that takes longer than `period` a turn, None where there is none; then `start` holds the least starts.

        follow: (op that follows or -1, turns later) of each op: one more arc.
        """
        count = flat.count
        found = array("q", bytes(24 * count))
        at = found.buffer_info()[0]
        after, later = follow or (None, None)
        given = (order, flat.seconds, flat.starts, flat.to, flat.turns, flat.work, after, later)
        length = self._find(count, *map(_place, given), period, _place(start), at, at + 8 * count, at + 16 * count)
        if length < 0:
            raise MemoryError("no memory for the ops of a loop's body")
        if not length:
            return None
        return found[:length].tolist(), found[count : count + length].tolist(), found[2 * count : 2 * count + length].tolist()


def _place(values: array[int] | None) -> int | None:
    return values.buffer_info()[0] if values else None


__all__ = ["Circles", "Flat", "for_body"]
