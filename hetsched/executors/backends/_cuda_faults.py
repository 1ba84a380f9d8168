"""Mistakes that kernels find in their inputs (ids out of range), on CUDA: see _opencl_faults.py, which does the same.

The slots are page-locked memory of the host, which the device writes to by itself, where there is a mistake. Which slot, it reads on the device: the
number is put there behind each record, in the stream's order, so that captured graphs, whose arguments are fixed, tell of the record they belong to.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hetsched.executors.backends._cuda_pins import address, pinned_bytes
from hetsched.executors.backends._sites import Explain, Sites
from hetsched.graph.op import FAULT_SLOTS
from hetsched.graph.ops._cuda_ids import Told

_WORDS = 4


class Board:
    """The slots of one stream."""

    def __init__(self, stream: Any) -> None:
        self.slots = pinned_bytes(FAULT_SLOTS * _WORDS * 8).view(np.int64).reshape(FAULT_SLOTS, _WORDS)
        self.slots.fill(0)
        self._numbers = pinned_bytes(FAULT_SLOTS * 8).view(np.int64)
        self._numbers[:] = np.arange(FAULT_SLOTS)
        self._counter: int = stream.live.counter()
        self.is_used = False  # since the last record
        self._number = 0
        self._sites = Sites()
        self._places = np.uint64(address(self.slots)), np.uint64(self._counter)
        stream.begin_numbers(self._counter)

    def told(self, out: Any, explain: Explain, stays: bool) -> Told:
        """The arguments of a launch that writes `out`. stays: it is captured."""
        self.is_used = True
        return Told(*self._places, np.int64(self._sites.add(out, explain, stays)))

    def recorded(self, stream: Any) -> int:
        """The slot of a record, or -1 where nothing before it could tell of a mistake. To be asked behind the record."""
        if not self.is_used:
            return -1
        slot, self.is_used = self._number, False
        self._number = (slot + 1) % FAULT_SLOTS
        stream.put_number(self._counter, address(self._numbers) + 8 * self._number)
        return slot

    def found(self, slot: int) -> Exception | None:
        """The mistake in a slot whose record is done."""
        row = self.slots[slot]
        if not row[0]:
            return None
        _, site, value, position = row.tolist()
        row[:] = 0
        return self._sites.error(site, value, position)

    def any_found(self) -> Exception | None:
        """A mistake that nobody asked for, when all is done."""
        slots = np.flatnonzero(self.slots[:, 0])
        return self.found(int(slots[0])) if len(slots) else None

    def forget(self) -> None:
        """Before another run: what one that failed has told, and nobody heard."""
        self.slots.fill(0)
