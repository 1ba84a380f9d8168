"""Fresh memory of the host whose pages are there before a run begins.

The system gives pages when they are first written, and a task that writes to fresh memory waits for them. Where the processor is shared by virtual
machines that is dear (measured: 1.1 ms for 2 MiB in pages of 4 KiB, 0.2 in a huge one; writing what is there takes 0.08). So arenas and outputs are
asked for in huge pages, which are there when a run begins: it is faster by what its tasks do not wait for, and takes what it is planned to take. A
thread sees to much of them beside what is bound meanwhile (`Touching`).

What devices copy from and to again and again is locked in memory, so that they copy it by themselves (`Lock`, which a backend gives): arrays of an
area that comes again, and rings of loops. It is unlocked before its pages are given back.

Arrays of one area (`arrays`) are each the caller's own for all that. An area whose arrays have all been let go is kept for the next run's, pages and
all, as long as such areas take no more than `keep_at_most` says; of one of which some are still held the others' bytes are given back when the next
one is asked for.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import threading
import weakref
from collections.abc import Callable, Collection, Sequence
from functools import cache
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

Bytes: TypeAlias = NDArray[np.uint8]
_Array = TypeVar("_Array", bound="NDArray[Any]")
PAGE = 4096
HUGE = 1 << 21
# Less than this is not worth a thought; beyond this touching waits for the first use, where several threads can share it.
LEAST_BYTES, MOST_BYTES = 1 << 16, 1 << 28
# So much is worth a thread, which takes 0.1 ms to start.
BESIDE_BYTES = 8 << 20

# Linux: madvise(2).
_DONTNEED, _POPULATE_WRITE = 4, 23


class Touching:
    """Pages for fresh memory: `add` what wants them, `begin`, do something else, `end`. They are there then, the first `MOST_BYTES` of them."""

    def __init__(self) -> None:
        self._left: list[Bytes] = []
        self._room = MOST_BYTES
        self._thread: threading.Thread | None = None

    def add(self, raw: Bytes) -> None:
        """Bytes that hold nothing yet. The same as by others may be touched before."""
        raw = raw[: self._room]
        self._room -= len(raw)
        self._left += [raw[i : i + HUGE] for i in range(0, len(raw), HUGE)]

    def begin(self) -> None:
        """Touch what was added: now, or where it is much by a thread, from now on."""
        self._left.reverse()
        if len(self._left) * HUGE >= BESIDE_BYTES and populates() is not None and _cores() > 1:
            self._thread = threading.Thread(target=self._touch, name="hetsched-pages", daemon=True)
            self._thread.start()
        else:
            self._touch()

    def end(self) -> None:
        """Wait until all is touched. Again: nothing."""
        if self._thread is not None:
            self._touch()
            self._thread.join()
            self._thread = None

    def _touch(self) -> None:
        populate = populates()
        while True:
            try:
                raw = self._left.pop()
            except IndexError:
                return
            if populate is None:
                touched(raw)
            else:  # where it fails they come when they are first used: something may have been written already
                populate(raw.__array_interface__["data"][0], len(raw))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def populates() -> Callable[[int, int], None] | None:
    """What has the system give the pages of (address, bytes), without holding the interpreter and without writing; None where it cannot."""
    try:
        advise = ctypes.CDLL(None).madvise
        advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        probe = _Area(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if advise(_address(probe), PAGE, _POPULATE_WRITE):
            return None
    except (OSError, AttributeError, TypeError, ValueError):
        return None

    def populate(address: int, nbytes: int) -> None:
        start = address & -PAGE
        advise(start, address + nbytes - start, _POPULATE_WRITE)

    return populate


class Locked:
    """Pages that are locked in memory, for as long as this lives. See `locked`."""

    def __init__(self, unlock: Callable[[], object]) -> None:
        self._unlock: Callable[[], object] | None = unlock
        self._process = os.getpid()

    def release(self) -> bool:
        """Unlock them; False where that failed, and they are still a device's. Again: nothing."""
        unlock, self._unlock = self._unlock, None
        if unlock is None or self._process != os.getpid():  # in a process that was forked off they are not locked
            return True
        try:
            unlock()
        except Exception:  # the device is lost, or the process ends
            return False
        return True

    def __del__(self) -> None:
        self.release()


# Locks pages from an address on, so many bytes; what unlocks them, or None where that cannot be.
Lock: TypeAlias = Callable[[int, int], Callable[[], object] | None]


def locked(lock: Lock, address: int, nbytes: int) -> Locked | None:
    """Lock pages with a backend's `lock`; None where that cannot be. They must be unlocked before they are given back."""
    unlock = lock(address, nbytes)
    return None if unlock is None else Locked(unlock)


class _Area(mmap.mmap):
    """Anonymous memory. start, first: its address, and the first byte in it at the begin of a huge page; nbytes: from there on.

    locks: pages of it that are locked, by (address, bytes); they go before it does. uses: how often arrays of it were a device's to copy.
    shares: weak references to the arrays that have it in shares; dead: those whose arrays are gone, and whose pages are still there; left: an item
    for each of them but one. has_holes: not all pages are there. is_kept: it may be, when no array is left.
    """

    start: int
    first: int
    nbytes: int
    locks: dict[tuple[int, int], Locked]
    uses: int
    shares: list[_Share]
    dead: list[_Share]
    left: list[None]
    has_holes: bool
    is_kept: bool


class _Share(weakref.ref["NDArray[Any]"]):
    """An array that has part of an area. (Views of it hold it, and it holds the area.)"""

    __slots__ = ("address", "area", "nbytes")
    address: int
    area: _Area
    nbytes: int


# Areas of which no array is left; those of which some array has gone since the last look.
_idle: list[_Area] = []
_partly: list[weakref.ref[_Area]] = []
# Held where pages are given back or an area is used again: not both at once. What a share does when its array goes, in any thread between any two
# instructions, are single operations of the interpreter (of lists, which a free-threaded one keeps whole too), and it takes no lock.
_lock = threading.Lock()
_most_kept: Callable[[], int] = int


def _forget() -> None:
    """In a process that was forked off: who held the lock does not go on here."""
    global _lock
    _lock = threading.Lock()
    _partly.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def keep_at_most(limit: Callable[[], int]) -> None:
    """`limit` says how many bytes of areas that nobody has may be kept."""
    global _most_kept
    _most_kept = limit


def held() -> int:
    """Bytes of areas that are kept and that nobody has."""
    return sum([area.nbytes for area in list(_idle)])


def give_back() -> bool:
    """Keep nothing of what nobody has. True if there was something."""
    with _lock:
        found = bool(_idle)
        _idle.clear()
    return found


@cache
def _gives() -> Callable[[int, int], int] | None:
    """Gives pages of (address, bytes) back to the system; None where that cannot be."""
    try:
        advise = ctypes.PyDLL(None).madvise  # it keeps the interpreter
    except (OSError, AttributeError, TypeError):
        return None
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return lambda address, nbytes: int(advise(address, nbytes, _DONTNEED))


def _let_go(share: _Share) -> None:
    """An array has gone."""
    if _idle is None or _gives is None:  # the interpreter ends
        return
    area = share.area
    if not area.is_kept:
        if (gives := _gives()) is not None and _unlock(share):
            gives(share.address, share.nbytes)
    else:
        area.dead.append(share)
        _partly.append(weakref.ref(area))  # behind it: who looks finds it, or the next look does
    try:
        area.left.pop()
    except IndexError:  # the last one
        area.shares, area.dead = [], []  # they hold the area
        if area.is_kept and held() + area.nbytes <= _most_kept():
            _idle.append(area)


def _unlock(share: _Share) -> bool:
    """False where the pages of a share stay locked: they are not to be given back."""
    held = share.area.locks.pop((share.address, share.nbytes), None)
    return held is None or held.release()


def _tidy() -> None:
    """Give back the pages of arrays that have gone, where others of their area are still held. Under the lock."""
    gives = _gives()
    while _partly:
        area = _partly.pop()()
        if area is None or gives is None or any(area is other for other in _idle):
            continue
        dead = area.dead
        while dead:
            share = dead.pop()
            if _unlock(share):
                gives(share.address, share.nbytes)
                area.has_holes = True


def _address(area: mmap.mmap) -> int:
    found: int = np.frombuffer(area, np.uint8).__array_interface__["data"][0]
    return found


def _mapped(nbytes: int) -> _Area | None:
    """Memory for so many bytes, none of it touched; None where huge pages are not known, or there is no memory (NumPy says so better)."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        area = _Area(-1, nbytes + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        area.madvise(mmap.MADV_HUGEPAGE)
    except (OSError, ValueError):
        return None
    area.start = _address(area)
    area.first, area.nbytes, area.has_holes = -area.start % HUGE, nbytes, True
    area.locks, area.uses = {}, 0
    return area


def _for_arrays(nbytes: int, wants_locks: bool) -> _Area | None:
    """An area that nobody has: one that was kept, with all its pages or not, or a new one. wants_locks: rather one that devices have copied to."""
    with _lock:
        _tidy()
        fitting = [(number, area) for number, area in enumerate(list(_idle)) if nbytes <= area.nbytes <= 2 * nbytes]
        if fitting:
            number, chosen = next((row for row in fitting if bool(row[1].uses) == wants_locks), fitting[0])
            del _idle[number]  # others only append
            return chosen
    return _mapped(nbytes)


def _lock_shares(area: _Area, wanted: Sequence[tuple[int, int]], lock: Lock) -> None:
    """Lock what a device copies, by (address, bytes), in an area that comes again: it pays from the second time on (docs/cuda.md)."""
    area.uses += 1
    for place in [place for place in area.locks if place not in wanted]:
        if not area.locks.pop(place).release():
            return
    if area.uses > 1 and area.is_kept:
        for place in wanted:
            if place not in area.locks and (held := locked(lock, *place)) is not None:
                area.locks[place] = held


def area(nbytes: int, touching: Touching | None = None, lockable: bool = False) -> Bytes:
    """Uninitialised bytes, whatever their address is a multiple of, in pages that are there when `touching` ends (None: when this returns).

    lockable: `lock_in` shall be able to lock pages of it.
    """
    mapped = _mapped(nbytes) if nbytes >= (LEAST_BYTES if lockable else HUGE) else None
    if mapped is None:
        return touched(np.empty(nbytes, np.uint8))
    raw = np.frombuffer(mapped, np.uint8)[mapped.first : mapped.first + nbytes]
    _touch(raw, touching)
    return raw


def arrays(
    kinds: Sequence[tuple[tuple[int, ...], np.dtype[Any]]], touching: Touching | None = None, lock: Lock | None = None, copied: Collection[int] = (),
) -> list[NDArray[Any]]:  # fmt: skip
    """Uninitialised arrays of (shape, dtype), each with a life of its own, in pages that are there when `touching` ends (None: when this returns).

    Those of `LEAST_BYTES` and more lie side by side in one area, where they make up a huge page. Raises `MemoryError`.
    copied: the numbers of those that a device copies from or to; from the second use of their area on their pages are locked by `lock`.
    """
    sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in kinds]
    together = [-(-size // PAGE) * PAGE if size >= LEAST_BYTES and not dtype.hasobject else 0 for size, (_, dtype) in zip(sizes, kinds, strict=True)]
    total = sum(together)
    area = _for_arrays(total, lock is not None) if total >= HUGE and _gives() is not None else None
    if area is None:
        return [touched(np.empty(shape, dtype)) for shape, dtype in kinds]
    at = area.first
    if area.has_holes:
        _touch(np.frombuffer(area, np.uint8)[at : at + total], touching)
    out: list[NDArray[Any]] = []
    shares: list[_Share] = []
    wanted: list[tuple[int, int]] = []
    for number, ((shape, dtype), nbytes) in enumerate(zip(kinds, together, strict=True)):
        if not nbytes:
            out.append(np.empty(shape, dtype))
            continue
        made: NDArray[Any] = np.ndarray(shape, dtype, area, at)
        share = _Share(made, _let_go)
        share.address, share.area, share.nbytes = area.start + at, area, nbytes
        shares.append(share)
        if number in copied:
            wanted.append((share.address, nbytes))
        out.append(made)
        at += nbytes
    area.shares, area.dead, area.left = shares, [], [None] * (len(shares) - 1)
    area.has_holes, area.is_kept = total < area.nbytes and area.has_holes, area.nbytes <= _most_kept()
    if lock is not None:
        _lock_shares(area, wanted, lock)
    return out


def lock_in(raw: Bytes, ranges: Sequence[tuple[int, int]], lock: Lock) -> None:
    """Lock the pages of ranges (first byte, bytes) of `raw`, which is of an `area`, for as long as that lives; nothing where it is not lockable."""
    base: Any = raw
    while isinstance(base, np.ndarray):
        base = base.base
    owner = base.obj if isinstance(base, memoryview) else base
    if not isinstance(owner, _Area):
        return
    start = raw.__array_interface__["data"][0]
    wanted: list[list[int]] = []  # pages, from and to; those of neighbours are one
    for first, nbytes in sorted(ranges):
        low, high = (start + first) & -PAGE, -(-(start + first + nbytes) // PAGE) * PAGE
        if wanted and low <= wanted[-1][1]:
            wanted[-1][1] = max(wanted[-1][1], high)
        else:
            wanted.append([low, high])
    for low, high in wanted:
        if not any(low < a + n and a < high for a, n in owner.locks) and (held := locked(lock, low, high - low)) is not None:
            owner.locks[low, high - low] = held


def _touch(raw: Bytes, touching: Touching | None) -> None:
    now = touching or Touching()
    now.add(raw)
    if touching is None:
        now.begin()
        now.end()


def touched(array: _Array) -> _Array:
    """A contiguous array that holds nothing yet, its first `MOST_BYTES` in pages that are there."""
    if array.nbytes >= LEAST_BYTES:
        array.reshape(-1).view(np.uint8)[:MOST_BYTES:PAGE] = 0
    return array
