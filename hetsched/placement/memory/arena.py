"""The bytes of one memory node while a plan is written in the order of its launches: what lies where, and when bytes are free again.

Pure. An arena is a row of pieces; a piece is held, or was free from some moment on. `fit` says where new values would lie and what would have to
go for them, by a rule that ranks the stretches that are large enough; `lay` and `give_up` change the row.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from typing import Any, NamedTuple

ALIGNMENT = 64


def padded(nbytes: int) -> int:
    """`nbytes` rounded up to a multiple of 64."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


@dataclass(eq=False)
class Held:
    """What lies in a stretch of an arena: `values` share its bytes (views), none: scratch of a launch.

    free_at: when the last use booked so far ends. used: number of that launch. pinned: the launch being booked needs it here. kept: a result.
    """

    node: int
    nbytes: int
    values: list[int]
    offset: int = 0
    free_at: float = 0.0
    used: int = -1
    pinned: bool = False
    kept: bool = False


class Piece(NamedTuple):
    """Bytes [low, high): of `held`, or free from `free_at` seconds on."""

    low: int
    high: int
    free_at: float
    held: Held | None


class Want(NamedTuple):
    """Bytes wanted; they would be used from `when` seconds on, were they free."""

    nbytes: int
    when: float


class Window(NamedTuple):
    """A stretch that is large enough: what would have to go, when its free pieces are free, bytes left over behind it."""

    low: int
    victims: tuple[Held, ...]
    free_at: float
    left: int


class Rank(NamedTuple):
    """Of windows the least is taken: `full(window, when its bytes are wanted)` of those few whose `first(window)` is least."""

    first: Callable[[Window], float]
    full: Callable[[Window, float], Any]


# Windows in which something lies that are looked at closely.
FEW = 8


class Arena:
    """The pieces of one memory node, ascending, without holes."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes // ALIGNMENT * ALIGNMENT
        self.pieces: list[Piece] = [Piece(0, self.nbytes, 0.0, None)] if self.nbytes else []

    def lay(self, held: Held, offset: int) -> float:
        """Put `held` at `offset`, where nothing is held; gives when the bytes are free."""
        held.offset = offset
        return _cut(self.pieces, offset, offset + padded(held.nbytes), held) if held.nbytes else 0.0

    def give_up(self, held: Held) -> None:
        """The bytes of `held` are free from `held.free_at` on."""
        if not held.nbytes:
            return
        i = bisect_right(self.pieces, held.offset, key=_low) - 1
        self.pieces[i] = self.pieces[i]._replace(held=None, free_at=held.free_at)

    def fit(self, wants: Sequence[Want], rank: Rank, fixed: Callable[[Held], bool]) -> tuple[list[int], list[Held]] | None:
        """(offset of each want, what has to go), the largest placed first; None where they do not fit beside what is `fixed`."""
        pieces, offsets, gone = list(self.pieces), [0] * len(wants), []
        for i in sorted(range(len(wants)), key=lambda k: -wants[k].nbytes):
            size = padded(wants[i].nbytes)
            if not size:
                continue
            found = _gap(pieces, size, wants[i].when, rank) or _window(pieces, size, wants[i].when, rank, fixed)
            if found is None:
                return None
            for victim in found.victims:
                gone.append(victim)
                at = bisect_right(pieces, victim.offset, key=_low) - 1
                pieces[at] = pieces[at]._replace(held=None, free_at=max(victim.free_at, pieces[at].free_at))
            offsets[i] = found.low
            _cut(pieces, found.low, found.low + size, _TAKEN)
        return offsets, gone


_TAKEN = Held(-1, 0, [], pinned=True)


def _low(piece: Piece) -> int:
    return piece.low


def _cut(pieces: list[Piece], low: int, high: int, held: Held) -> float:
    """Let `held` have [low, high); gives when all of it is free."""
    first = bisect_right(pieces, low, key=_low) - 1
    last = first
    free_at = pieces[first].free_at
    while pieces[last].high < high:
        last += 1
        free_at = max(free_at, pieces[last].free_at)
    left, right = pieces[first], pieces[last]
    middle = [Piece(low, high, 0.0, held)]
    if left.low < low:
        middle.insert(0, left._replace(high=low))
    if right.high > high:
        middle.append(right._replace(low=high))
    pieces[first : last + 1] = middle
    return free_at


def _gap(pieces: Sequence[Piece], size: int, when: float, rank: Rank) -> Window | None:
    """The best stretch of `size` bytes in which nothing lies."""
    best: Window | None = None
    least: Any = None
    i, n = 0, len(pieces)
    while i < n:
        if pieces[i].held is not None:
            i += 1
            continue
        j, high, free_at = i, pieces[i].low + size, 0.0
        while j < n and pieces[j].held is None:
            free_at = max(free_at, pieces[j].free_at)
            if pieces[j].high >= high:
                window = Window(pieces[i].low, (), free_at, pieces[j].high - high)
                if free_at <= when and not window.left:
                    return window  # none is better
                key = rank.full(window, when)
                if least is None or key < least:
                    best, least = window, key
                break
            j += 1
        i = i + 1 if j < n and pieces[j].held is None else j + 1
    return best


def _window(pieces: Sequence[Piece], size: int, when: float, rank: Rank, fixed: Callable[[Held], bool]) -> Window | None:
    """The best stretch of `size` bytes that begins where a piece begins."""
    windows: list[Window] = []
    n = len(pieces)
    for i, first in enumerate(pieces):
        high = first.low + size
        free_at, victims, j = 0.0, [], i
        while j < n:
            piece = pieces[j]
            if piece.held is None:
                free_at = max(free_at, piece.free_at)
            elif piece.held.pinned or fixed(piece.held):
                break
            else:
                victims.append(piece.held)
            if piece.high >= high:
                windows.append(Window(first.low, tuple(victims), free_at, piece.high - high))
                break
            j += 1
        else:
            break  # it runs over the end, and so do those that begin later
    few = nsmallest(FEW, windows, key=rank.first) if len(windows) > FEW else windows
    return min(few, key=lambda w: rank.full(w, when), default=None)
