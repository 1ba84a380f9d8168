"""The host's memory as CUDA sees it: page-locked, and so a device's to copy by itself, or not."""

from __future__ import annotations

import os
import platform
import re
import sys
import weakref
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import cupy
import numpy as np

_MOST_PARTS = 4096
_PORTABLE = 1  # cudaHostRegisterPortable: page-locked for every device
_PIN = "HETSCHED_CUDA_PIN"
_locked: dict[int, int] = {}  # what `lock_pages` has locked: address -> bytes
_changes = object()  # another one whenever that changes (a number that two threads count up at once may miss one)


class _Known(NamedTuple):
    """What CUDA has said about the memory of an array: whether all of it is page-locked, and which parts are."""

    owner: weakref.ref[Any]
    is_whole: bool
    parts: dict[tuple[int, int], bool]


class Pins:
    """Which arrays of the host are page-locked. CUDA, which takes 1 us, is asked once for the array whose memory it is, or for the part.

    It is asked again when pages have been locked or unlocked here (rings of a session are, after some runs). Where others do that, copies are slower
    than they could be, and not wrong: CUDA stages then by itself.
    """

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}
        self._changes = _changes

    def has(self, array: Any) -> bool:
        """True if a device can copy a contiguous array of the host by itself."""
        if self._changes is not (now := _changes):
            self._changes = now
            self._known.clear()
        owner = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        key = id(owner)
        known = self._known.get(key)
        if known is None or known.owner() is not owner:
            is_whole = owner.flags.c_contiguous and is_locked(address(owner), owner.nbytes)
            known = self._known[key] = _Known(weakref.ref(owner, lambda _: self._known.pop(key, None)), is_whole, {})
        if known.is_whole or owner is array:
            return known.is_whole
        part = address(array), array.nbytes
        answer = known.parts.get(part)
        if answer is None:
            if len(known.parts) >= _MOST_PARTS:
                known.parts.clear()
            answer = known.parts[part] = is_locked(*part)
        return answer

    def clear(self) -> None:
        """Forget all."""
        self._known.clear()


def is_locked(place: int, nbytes: int) -> bool:
    """True if the host's memory is page-locked at both ends, and in one piece: an array between two that `lock_pages` has locked may begin and end in

    pages of theirs, and CUDA takes no copy that begins in one piece and ends in another.
    """
    runtime, end = cupy.cuda.runtime, place + nbytes
    if nbytes <= 0 or not all(runtime.pointerGetAttributes(x).type == runtime.memoryTypeHost for x in (place, end - 1)):
        return False
    met = [(first, first + n) for first, n in list(_locked.items()) if first < end and place < first + n]
    return not met or any(first <= place and end <= last for first, last in met)


def may_lock() -> bool:
    """False where memory that hetsched makes is not to be locked: by request, or where a fork would take pages away that a device copies to.

    On Linux before 5.12 a process that writes to its memory after a fork is given another page, and the device goes on with the old one; since then
    the child is given the copy.
    """
    asked = os.environ.get(_PIN, "").strip().lower()
    return asked in ("1", "true", "yes", "on") or (asked not in ("0", "false", "no", "off") and _forks_well())


@cache
def _forks_well() -> bool:
    numbers = re.match(r"(\d+)\.(\d+)", platform.release())
    return not sys.platform.startswith("linux") or (numbers is not None and tuple(map(int, numbers.groups())) >= (5, 12))


def lock_pages(start: int, nbytes: int) -> Callable[[], object] | None:
    """Lock pages of the host in memory, so that copies from and to there need no staging; what unlocks them, or None where CUDA refuses."""
    if not may_lock():
        return None
    try:
        cupy.cuda.runtime.hostRegister(start, nbytes, _PORTABLE)
    except Exception:  # too much, or the system does not allow it
        return None
    _note(start, nbytes)
    return partial(_unlock_pages, start)


def _unlock_pages(start: int) -> None:
    cupy.cuda.runtime.hostUnregister(start)
    _note(start, 0)


def _note(start: int, nbytes: int) -> None:
    """Pages are locked from `start` on, or no more (0 bytes)."""
    global _changes
    if nbytes:
        _locked[start] = nbytes
    else:
        _locked.pop(start, None)
    _changes = object()


def pinned_bytes(nbytes: int) -> Any:
    """Page-locked bytes from CuPy's pool as a NumPy array, which keeps them."""
    return np.frombuffer(cupy.cuda.alloc_pinned_memory(max(nbytes, 1)), np.uint8, nbytes)


def address(array: Any) -> int:
    """The address of a NumPy array's first byte."""
    return int(array.__array_interface__["data"][0])
