"""What is asked for: where checkpoints are kept, and how often they are made."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

from hetsched.errors import CommandLineError


@dataclass(frozen=True)
class Checkpoint:
    """`hetsched.run(..., checkpoint=Checkpoint(folder))`: the carried state of loops is kept there, and a run that finds some goes on from it.

    folder: of this run alone; empty when the run is done. seconds: about so often. turns: every so many turns of a loop instead. fresh: True
    begins anew, whatever is there. tell: called with a sentence (what is not kept and why, where the run goes on). clear: False leaves what is kept
    there when the run is done, for who has still to write its outputs. retries: how often in all a task that fails is tried again, from the last
    checkpoint; not where that would repeat an effect outside (`pure=False`).
    Raises `CommandLineError` for times, turns and retries that are none.
    """

    folder: str | os.PathLike[str]
    seconds: float = 30.0
    turns: int | None = None
    fresh: bool = False
    tell: Callable[[str], None] | None = None
    clear: bool = True
    retries: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.seconds, Real) or isinstance(self.seconds, bool) or not 0 < self.seconds < float("inf"):
            raise CommandLineError(f"a checkpoint is made every so many seconds, more than 0, got {self.seconds!r}")
        if self.turns is not None and (not isinstance(self.turns, int) or isinstance(self.turns, bool) or self.turns < 1):
            raise CommandLineError(f"a checkpoint is made every 1 turn or more, got {self.turns!r}")
        if not isinstance(self.retries, int) or isinstance(self.retries, bool) or self.retries < 0:
            raise CommandLineError(f"retries are a whole number, 0 or more, got {self.retries!r}")


__all__ = ["Checkpoint"]
