"""The bytes of one memory node while a plan is written in the order of its launches: what lies where, and when bytes are free again.

Pure. An arena is a row of pieces; a piece is held, or was free from some moment on. `fit` says where new values would lie and what would have to
go for them, by a rule that ranks the stretches that are large enough; `lay` and `give_up` change the row.

What lies there is kept in the order in which the rule would have it go, and free pieces by their size, so that a place is found by looking at the
first few of them: not at all pieces, of which a graph of 10,000 tasks has thousands.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

ALIGNMENT = 64


def padded(nbytes: int) -> int:
    """`nbytes` rounded up to a multiple of 64."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


@dataclass(eq=False)
class Held:
    """What lies in a stretch of an arena: `values` share its bytes (views), none: scratch of a launch.

    free_at: when the last use booked so far ends. used: number of that launch. pinned: the launch being booked needs it here. kept: a result.
    key: by what the arena has it in order; None: not known.
    """

    node: int
    nbytes: int
    values: list[int]
    offset: int = 0
    free_at: float = 0.0
    used: int = -1
    pinned: bool = False
    kept: bool = False
    key: float | None = None


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
    """What goes first: of windows the least is taken by `full(window, when its bytes are wanted)`, of those few whose worst `key(held)` is least.

    A key may change only where `Arena.touch` is told of it.
    """

    key: Callable[[Held], float]
    full: Callable[[Window, float], Any]


# Windows in which something lies that are looked at closely.
FEW = 8
# With more free pieces than these one of just the right size is taken without a look at what lies free side by side.
MANY_FREE = 64


class _Row:
    """Pieces, ascending, without holes."""

    __slots__ = ("free", "lows", "pieces")

    def __init__(self, pieces: list[Piece], lows: list[int], free: list[tuple[float, int]]) -> None:
        self.pieces, self.lows, self.free = pieces, lows, free  # lows: where each piece begins; free: (free from, low) of the free ones, ascending

    def copy(self) -> _Row:
        return _Row(self.pieces.copy(), self.lows.copy(), self.free.copy())

    def at(self, low: int) -> int:
        """Number of the piece in which `low` lies."""
        return bisect_right(self.lows, low) - 1

    def replace(self, first: int, last: int, by: list[Piece]) -> None:
        """Put `by` where the pieces `first` to `last` are."""
        for piece in self.pieces[first : last + 1]:
            if piece.held is None:
                del self.free[bisect_left(self.free, (piece.free_at, piece.low))]
        for piece in by:
            if piece.held is None:
                insort(self.free, (piece.free_at, piece.low))
        self.pieces[first : last + 1] = by
        self.lows[first : last + 1] = [p.low for p in by]

    def release(self, held: Held) -> None:
        """The bytes of `held` are free from `held.free_at` on."""
        i = self.at(held.offset)
        piece = self.pieces[i]
        self.replace(i, i, [Piece(piece.low, piece.high, max(held.free_at, piece.free_at), None)])

    def cut(self, low: int, high: int, held: Held) -> tuple[list[Piece], list[Piece]]:
        """Let `held` have [low, high): (the pieces that were there, those that are)."""
        first = last = self.at(low)
        while self.pieces[last].high < high:
            last += 1
        old = self.pieces[first : last + 1]
        new = [Piece(low, high, 0.0, held)]
        if old[0].low < low:
            new.insert(0, old[0]._replace(high=low))
        if old[-1].high > high:
            new.append(old[-1]._replace(low=high))
        self.replace(first, last, new)
        return old, new


class Arena:
    """The pieces of one memory node. rank: the rule by which what lies there gives up its bytes; fixed: true for what cannot."""

    def __init__(self, nbytes: int, rank: Rank, fixed: Callable[[Held], bool]) -> None:
        self.nbytes = nbytes // ALIGNMENT * ALIGNMENT
        self._rank, self._fixed = rank, fixed
        self._row = _Row([], [], [])
        self._sizes: dict[int, list[tuple[int, float]]] = {}  # bytes -> (low, free from) of the free pieces of that size, ascending
        self._order: list[tuple[float, int, Held]] = []  # (key, offset, what lies there), ascending
        self._unsorted: set[Held] = set()  # what lies there and is not in `_order`
        if self.nbytes:
            self._row = _Row([Piece(0, self.nbytes, 0.0, None)], [0], [(0.0, 0)])
            self._note(self._row.pieces[0])

    @property
    def pieces(self) -> list[Piece]:
        return self._row.pieces

    def lay(self, held: Held, offset: int) -> float:
        """Put `held` at `offset`, where nothing is held; gives when the bytes are free."""
        held.offset = offset
        if not held.nbytes:
            return 0.0
        old, new = self._row.cut(offset, offset + padded(held.nbytes), held)
        for piece in old:
            self._drop(piece)
        for piece in new:
            if piece.held is None:
                self._note(piece)
        held.key = None
        self._unsorted.add(held)
        return max(piece.free_at for piece in old)

    def give_up(self, held: Held) -> None:
        """The bytes of `held` are free from `held.free_at` on."""
        if not held.nbytes:
            return
        self.touch(held)
        self._unsorted.discard(held)
        self._row.release(held)
        self._note(self._row.pieces[self._row.at(held.offset)])

    def touch(self, held: Held) -> None:
        """The key of `held`, which may lie here, has changed."""
        if held.key is not None:
            del self._order[bisect_left(self._order, (held.key, held.offset))]
            held.key = None
            self._unsorted.add(held)

    def _note(self, piece: Piece) -> None:
        insort(self._sizes.setdefault(piece.high - piece.low, []), (piece.low, piece.free_at))

    def _drop(self, piece: Piece) -> None:
        size = piece.high - piece.low
        rows = self._sizes[size]
        del rows[bisect_left(rows, (piece.low, piece.free_at))]
        if not rows:
            del self._sizes[size]

    def _sort(self) -> None:
        for held in self._unsorted:
            held.key = self._rank.key(held)
            insort(self._order, (held.key, held.offset, held))
        self._unsorted.clear()

    # Finding room ---------------------------------------------------------------------------------------------------------------

    def fit(self, wants: Sequence[Want]) -> tuple[list[int], list[Held]] | None:
        """(offset of each want, what has to go), the largest placed first; None where they do not fit beside what is fixed."""
        offsets = [0] * len(wants)
        gone: list[Held] = []
        order = [i for i, want in enumerate(wants) if want.nbytes]
        order.sort(key=lambda i: -wants[i].nbytes)
        row = self._row if len(order) < 2 else self._row.copy()
        for i in order:
            size, when = padded(wants[i].nbytes), wants[i].when
            found = self._exact(row, size, when) or _gap(row, size, when) or self._window(row, size, when)
            if found is None:
                return None
            offsets[i] = found.low
            gone += found.victims
            if i != order[-1]:
                for victim in found.victims:
                    row.release(victim)
                row.cut(found.low, found.low + size, _TAKEN)
        return offsets, gone

    def _exact(self, row: _Row, size: int, when: float) -> Window | None:
        """The first free piece of just that size that is free by then, where there are many."""
        if size not in self._sizes or len(row.free) <= MANY_FREE or row.free[0][0] > when:
            return None
        for low, free_at in self._sizes[size]:
            if free_at <= when:
                piece = row.pieces[row.at(low)]
                if piece.low == low and piece.held is None and piece.high == low + size:  # no other want has it
                    return Window(low, (), free_at, 0)
        return None

    def _window(self, row: _Row, size: int, when: float) -> Window | None:
        """The best stretch of `size` bytes that begins where a piece begins.

        What lies there is let go in the order of its keys, in thought, until stretches that are long enough are free."""
        self._sort()
        pieces, lows, n = row.pieces, row.lows, len(row.pieces)
        going: set[Held] = set()
        windows: list[Window] = []
        group: list[tuple[int, Window]] = []
        last = -inf
        for key, offset, held in self._order:
            if key != last:
                windows += [w for _, w in sorted(group, key=_first)]
                if len(windows) >= FEW:
                    break
                group, last = [], key
            if held.pinned or self._fixed(held):
                continue
            i = row.at(offset)
            if pieces[i].held is not held:  # it goes for another want
                continue
            going.add(held)
            begin = i
            while begin and lows[begin - 1] + size > offset and ((other := pieces[begin - 1].held) is None or other in going):
                begin -= 1
            end, most = i + 1, offset + size
            while end < n and lows[end] < most and ((other := pieces[end].held) is None or other in going):
                end += 1
            reach = pieces[end - 1].high
            while begin <= i and lows[begin] + size <= reach:
                group.append((begin, _stretch(pieces, begin, size)))
                begin += 1
        else:
            windows += [w for _, w in sorted(group, key=_first)]
        return min(windows[:FEW], key=lambda w: self._rank.full(w, when), default=None)


_TAKEN = Held(-1, 0, [], pinned=True)


def _first(row: tuple[int, Window]) -> int:
    return row[0]


def _stretch(pieces: Sequence[Piece], first: int, size: int) -> Window:
    """The window of `size` bytes that begins with piece `first`."""
    high, free_at, victims = pieces[first].low + size, 0.0, []
    for i in range(first, len(pieces)):
        piece = pieces[i]
        if piece.held is None:
            free_at = max(free_at, piece.free_at)
        else:
            victims.append(piece.held)
        if piece.high >= high:
            break
    return Window(pieces[first].low, tuple(victims), free_at, piece.high - high)


def _gap(row: _Row, size: int, when: float) -> Window | None:
    """The stretch of `size` bytes, in which nothing lies, that is free least late; of equals the one that leaves least behind it, then the first
    (where there are many, the first found).

    Free pieces are looked at in the order of time, so that what is free later than the first stretch that is long enough is not looked at.
    """
    best: tuple[int, int] | None = None
    pieces, lows, n = row.pieces, row.lows, len(row.pieces)
    level, many = -inf, len(row.free) > MANY_FREE
    for free_at, low in row.free:
        if best is not None and (free_at > level or (many and best[0] == 0)):
            break
        level = max(free_at, when)
        i = begin = row.at(low)
        while begin and lows[begin - 1] + size > low and (other := pieces[begin - 1]).held is None and other.free_at <= level:
            begin -= 1
        end, most = i + 1, low + size
        while end < n and lows[end] < most and (other := pieces[end]).held is None and other.free_at <= level:
            end += 1
        reach = pieces[end - 1].high
        while begin <= i and lows[begin] + size <= reach:
            high = lows[begin] + size
            key = pieces[bisect_left(lows, high, begin, end) - 1].high - high, lows[begin]
            if best is None or key < best:
                best = key
            begin += 1
    return Window(best[1], (), level, best[0]) if best is not None else None
