"""Mistakes that kernels find in their inputs (ids out of range): told to the host without its waiting (see `hetsched.graph.op.OpenCL.fault`).

A stream numbers what it records. A launch that finds a mistake writes to the slot of the number that the next record will have, and whoever waits for
that record's event looks there: so the step that fails is the one that made the mistake, however far ahead the device is. On a processor the slots
are memory of the host, and looking is a look. Elsewhere a record brings its slot to the host, 32 bytes more to copy behind launches that can tell.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyopencl as cl

from hetsched.executors.backends._sites import Explain, Sites
from hetsched.executors.memory import had
from hetsched.executors.pages import area
from hetsched.graph.op import FAULT_SLOTS

_WORDS = 4
_NBYTES = FAULT_SLOTS * _WORDS * 8


class Fault(NamedTuple):
    """What `OpenCL.fault` gives: an argument that stands for the slots, the launch's number among all, and that of the record to come."""

    board: Board
    site: int


class Board:
    """The slots of one stream. is_shared: the device uses the host's memory (a processor)."""

    def __init__(self, context: Any, is_shared: bool) -> None:
        self.is_shared = is_shared
        self.slots = had(lambda: area(_NBYTES)).view(np.int64).reshape(FAULT_SLOTS, _WORDS)
        self.slots.fill(0)
        how = cl.mem_flags.USE_HOST_PTR if is_shared else cl.mem_flags.COPY_HOST_PTR
        self.buffer = cl.Buffer(context, cl.mem_flags.READ_WRITE | how, hostbuf=self.slots)
        # The number of the next record, and whether a launch before it can tell of a mistake.
        self.number = np.int64(0)
        self.is_used = False
        self.told: Any = None  # the command that brought the last slot to the host
        self._sites = Sites()

    def site(self, out: Any, explain: Explain, is_taped: bool) -> Fault:
        """The argument of a launch that writes `out`; one that is taped comes again and again."""
        return Fault(self, self._sites.add(out, explain, is_taped))

    def recorded(self, queue: Any) -> int:
        """The number of a record, or -1 where nothing before it could tell of a mistake."""
        if not self.is_used:
            return -1
        number = int(self.number)
        if not self.is_shared:
            row = self.slots[number % FAULT_SLOTS]
            self.told = cl.enqueue_copy(queue, row, self.buffer, src_offset=number % FAULT_SLOTS * row.nbytes, is_blocking=False)
        self.number, self.is_used = np.int64(number + 1), False
        return number

    def found(self, number: int, queue: Any) -> Exception | None:
        """The mistake that launches before record `number`, which is done, have told of. `written` of the error: the output of the launch."""
        row = self.slots[number % FAULT_SLOTS]
        if not row[0]:
            return None
        _, site, value, position = row.tolist()
        self._clear(row, number % FAULT_SLOTS, queue)
        return self._sites.error(site, value, position)

    def forget(self, queue: Any) -> None:
        """Before another run: what one that failed has told, and nobody heard."""
        self.slots.fill(0)
        if not self.is_shared:
            cl.enqueue_copy(queue, self.buffer, self.slots)

    def _clear(self, row: Any, slot: int, queue: Any) -> None:
        row[:] = 0
        if not self.is_shared:
            cl.enqueue_copy(queue, self.buffer, np.zeros(_WORDS, np.int64), dst_offset=slot * row.nbytes)
