"""Events of CUDA streams on the host's clock, and what they hold until they are reached: arrays that copies use, and pinned memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from time import perf_counter
from typing import TYPE_CHECKING, Any

import cupy

from hetsched.executors.backends._common import Arrival, Landing
from hetsched.executors.backends._cuda_pins import address, pinned_bytes
from hetsched.executors.cores import yielding

if TYPE_CHECKING:
    from hetsched.executors.backends._cuda_live import Stream

NOT_READY = 600  # cudaErrorNotReady: an event that has not been reached
SPIN_SECONDS = 60e-6  # asking whether an event is done, before sleeping until it is: a sleep and its end take 20 and more
SCRATCH_NBYTES = 128 << 10


class Event:
    """The mark that everything handed to a stream before it has been done.

    landings: what it brings to the host. holding: what copies read and write until then; None once that is over. scratch: pinned memory for small
    copies that no later command uses. ends: the last mark that counts in its span, where that is not `last`.
    """

    __slots__ = ("__weakref__", "_anchor", "_ends", "_fault", "_first", "_is_landing", "holding", "landings", "last", "scratch", "slot", "stream")

    def __init__(
        self, stream: Stream, first: Any, last: Any, anchor: tuple[Any, float],
        landings: list[Landing | Arrival], holding: list[Any], scratch: list[Scratch], ends: Any = None,
    ) -> None:  # fmt: skip
        self.stream = stream
        self._ends = last if ends is None else ends
        self.last = last
        self.landings = landings
        self.holding: list[Any] | None = holding
        self.scratch = scratch
        self._first = first
        self.slot = -1  # of the record, where launches before it can tell of a mistake
        self._fault: Exception | None = None
        self._is_landing = False  # the watching thread is to put what it brings to where it belongs
        self._anchor = anchor  # reached before `first` and `last` were recorded: CUDA measures from an earlier event to a later one

    def wait(self) -> None:
        """Wait for it on the host; raises where the work failed, and what launches have found wrong."""
        self.reach(SPIN_SECONDS)
        live = self.stream.live
        if live.lost:
            raise live.gone("it was lost while the run used it")
        if self.slot >= 0:
            self._fault, self.slot = self.stream.found(self.slot), -1
        if self._fault is not None:
            raise self._fault

    def reach(self, spin_seconds: float = 0.0) -> None:
        """Wait, and put what it brings to the host to where it belongs. spin_seconds: ask so long before sleeping."""
        try:
            for landing in self.landings:
                if landing.parts:  # the first are put to where they belong while the last are on their way
                    landing.land()
            self.pass_by(spin_seconds)
        except Exception as error:
            raise self.stream.live.refusal("a command failed", error) from error
        if self.landings:
            for landing in self.landings:
                landing.land()
            self.stream.live.on_their_way.forget(self.landings)
        self.release()

    def pass_by(self, spin_seconds: float = 0.0) -> None:
        """Wait until everything before it has been done; what it brings may still lie in pinned memory."""
        if spin_seconds:
            query, mark, until = cupy.cuda.runtime.eventQuery, self.last.ptr, perf_counter() + spin_seconds
            while (status := query(mark)) == NOT_READY and perf_counter() < until:
                yielding()
            if not status:
                return
        self.last.synchronize()

    def release(self) -> None:
        """Hold nothing any more: it has been reached, and all has landed."""
        self.holding, self.landings = None, []
        if self.scratch:
            with suppress(IndexError):  # another thread may do the same
                while self.scratch:
                    self.stream.take_back(self.scratch.pop())

    def land_elsewhere(self) -> None:
        """Let the stream's watching thread put what it brings to where it belongs; it is not done before."""
        self._is_landing = True
        self.stream.watcher.watch(self.reach, self._landed)

    def _landed(self) -> None:
        self._is_landing = False

    def done(self) -> bool:
        """True if it has been reached and what it brings is there, or the work has failed."""
        if self._is_landing:
            return False
        try:
            # Not `last.done`, which is False for ever once the device is lost: it compares what CUDA answers with success alone.
            return bool(cupy.cuda.runtime.eventQuery(self.last.ptr) != NOT_READY)
        except Exception:
            return True

    def span(self) -> tuple[float, float]:
        """First start and last finish, `perf_counter` seconds, of what the stream did since its event before; waits for them.

        No finish is later than now: the anchor may be some microseconds off, and what is handed over from here on starts behind it.
        """
        self.wait()
        now = perf_counter()
        mark, at = self._anchor
        try:
            finish = min(at + cupy.cuda.get_elapsed_time(mark, self._ends) * 1e-3, now)
            start = finish if self._first is None else at + cupy.cuda.get_elapsed_time(mark, self._first) * 1e-3
        except Exception as error:
            raise self.stream.live.refusal("an event has no time", error) from error
        return start, max(start, finish)

    def is_over(self) -> bool:
        """True if nothing that it holds is needed any more; nobody may have waited for it."""
        if self._is_landing or cupy.cuda.runtime.eventQuery(self.last.ptr) == NOT_READY or not all(x.has_landed for x in self.landings):
            return False
        self.release()
        return True

    def on_done(self, callback: Callable[[], object]) -> None:
        """Call `callback()` once when it has been done or has failed: at once, or from another thread, which it must not hold up."""
        if self.done():
            with suppress(Exception):  # `span` tells
                self.reach()
            callback()
        else:
            self.stream.watcher.watch(self.reach, callback)

    def __del__(self) -> None:
        # Nobody waits for its CUDA events any more: they are recorded again. (One that is still to be reached is no obstacle: who waits for it on a
        # device waits for what it stood for when it was told to.)
        self.stream.live.marks += (self.last,) if self._first is None else (self.last, self._first)


class Scratch:
    """Pinned memory for small copies of one stream, filled from its begin. landings: what is still to be taken out of it."""

    __slots__ = ("landings", "place", "raw", "used")

    def __init__(self) -> None:
        self.raw = pinned_bytes(SCRATCH_NBYTES)
        self.place = address(self.raw)
        self.used = 0
        self.landings: list[Landing] = []
