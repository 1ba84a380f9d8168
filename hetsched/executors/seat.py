"""Which thread has the chain of a loop: the steps of which each turn needs those of the turn before.

A thread that has done a step of the chain goes on with the next one, so one thread, and mostly one core, does the whole chain. Cores are not equally
fast: some are so by design, one shares a physical core with somebody else's work (6 % between two cores of one virtual machine, for seconds at a
time), one is interrupted by threads for io. Two threads whose work is of one length then wait for the chain on the slower core, once they are as
many turns ahead as there are ring slots, and the faster core has nothing to do.

So the chain changes hands where a thread that computes has found nothing to do, though a step of the chain followed the one before at once. Its speed
is measured first; it goes to another thread whose speed nobody knows (any more), or which was faster. Whoever has it on a fast core gets it without
a wait until what lies in the rings is used up: some hundred turns, for a wait of one step.
"""

from __future__ import annotations

from collections.abc import Collection
from statistics import median

# It changes hands where others have had nothing to do for so many times as long as a step of it takes: it then waits for what another thread is at.
WORTH = 2.0
# So many steps are measured of a thread before that.
SAMPLES = 4
# What was measured of a thread is believed for so many times the turns in flight.
KNOWN = 32
# Another thread is faster if it took this share of the time.
FASTER = 0.98
# A step of the chain that takes less is not worth the wait; one that is planned to take a tenth of it, not worth a look.
LEAST_SECONDS = 2e-4
SHORT_SECONDS = LEAST_SECONDS / 10


class Seat:
    """What is known of the threads that have had the chain. Only the thread that has it calls."""

    def __init__(self, window: int) -> None:
        self._known = KNOWN * window
        self._found: dict[int, tuple[float, int]] = {}  # lane -> seconds of a step, and the turn when that was measured

    def is_left(self, lane: int, turn: int, took: Collection[float]) -> bool:
        """Called by the thread of `lane` behind a step of the chain, where others have had nothing to do for long. True: give it away.

        took: seconds of its last steps of the chain.
        """
        mine = median(took)
        if mine < LEAST_SECONDS:
            return False
        self._found[lane] = (mine, turn)
        others = [found for other, (found, when) in self._found.items() if other != lane and turn - when < self._known]
        return not others or min(others) < FASTER * mine
