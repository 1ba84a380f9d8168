"""What is kept of a plan between its runs: its programs, and frames that no run has, with their arenas.

Making a program and binding its launches takes 10-30 us a task, and the first touch of fresh memory 0.3-3.5 ms for 2 MiB on a virtual machine; a
plan that is run again pays neither. Programs are kept as long as their plan. Frames are kept as long as their plan too, and as long as all that are
kept take at most `most_bytes()` together: the oldest go first. They are given back before an arena is made beside which they would be more than
that, where memory cannot be had otherwise, and when their plan goes. A frame that a run has is in no list: runs of one plan may go on at once, and
each has its own.

What is kept refers to a twin of the plan (the same spans, graph and machine under another identity), never to the plan, which so can go. A finalizer
may run in any thread between any two instructions: here are single operations of the interpreter (`dict.pop`, `list.append`), which a free-threaded
one keeps whole too, and no lock.
"""

from __future__ import annotations

import copy
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol, TypeVar

from hetsched.errors import CommandLineError
from hetsched.executors import pages
from hetsched.executors.memory import when_short
from hetsched.executors.program import Program, compile_plan
from hetsched.machine import HOST
from hetsched.quiet import no_garbage_collection
from hetsched.timeline import Timeline

# Kept at most, in all, unless HETSCHED_KEEP_MIB says otherwise: bytes of arenas, and what is bound beside them.
MOST_BYTES = 256 << 20
MOST_FRAMES = 64
# One part in so many of it is for the memory of outputs that the caller has let go (`pages`).
OUTPUTS_SHARE = 4
# What is bound of a launch: cells, views, the call.
LAUNCH_BYTES = 1024


class Keepable(Protocol):
    """What can be kept between runs."""

    def close(self) -> None:
        """Give the memory back."""


T = TypeVar("T", bound=Keepable)


class _Row(NamedTuple):
    thing: Keepable
    nbytes: int


class _Ticket:
    """Stands for one thing on the shelf. An object, not a number: no two are the same, whoever makes one at the same time."""

    __slots__ = ()


_shelf: dict[_Ticket, _Row] = {}  # what no run has, the oldest first


class Kept:
    """What is kept of one plan. tickets: of what is on the shelf, by program."""

    def __init__(self, plan: Timeline) -> None:
        self.twin = copy.copy(plan)
        self.programs: dict[tuple[bool, bool], Program] = {}
        self.tickets: dict[int, list[_Ticket]] = {}

    def program(self, join: bool, whole: bool) -> Program:
        """See `compile_plan`."""
        found = self.programs.get((join, whole))
        if found is None:
            with no_garbage_collection():
                found = self.programs.setdefault((join, whole), compile_plan(self.twin, join=join, whole=whole))
        return found

    def give_back(self) -> None:
        """Close the frames that are kept: the plan goes, or nobody means to run it again."""
        for tickets in list(self.tickets.values()):
            while tickets:
                try:
                    _close(tickets.pop())
                except IndexError:
                    break


_kept: weakref.WeakKeyDictionary[Timeline, Kept] = weakref.WeakKeyDictionary()


def kept_of(plan: Timeline) -> Kept:
    """What is kept of a plan."""
    found = _kept.get(plan)
    if found is None:
        made = Kept(plan)
        found = _kept.setdefault(plan, made)
        if found is made:
            weakref.finalize(plan, made.give_back).atexit = False
    return found


def let_go(plan: Timeline) -> None:
    """Give back the frames that are kept of a plan: nobody means to run it again."""
    found = _kept.get(plan)
    if found is not None:
        found.give_back()


def program_of(plan: Timeline, join: bool = True, whole: bool = False) -> Program:
    """`compile_plan`, once for each plan. `Program.plan` is a twin of the plan."""
    return kept_of(plan).program(join, whole)


@contextmanager
def lent(plan: Timeline, program: Program, make: Callable[[], T], takes: Callable[[T], bool]) -> Iterator[T]:
    """For a run: what the plan's runs before have left for `program` and `takes` makes ready again, or what `make` makes. It is kept when the run has
    ended well.
    """
    kept = kept_of(plan)
    tickets = kept.tickets.setdefault(id(program), [])
    nbytes = plan.arenas.get(HOST, 0) + LAUNCH_BYTES * len(plan.spans)
    thing = _take(tickets, takes)
    if thing is None:
        limit = next((m.nbytes for m in plan.machine.memories if m.name == HOST), None)
        _trim(most_bytes() - nbytes if limit is None else min(most_bytes(), limit) - nbytes)
        with no_garbage_collection():
            thing = make()
    is_well = False
    try:
        yield thing
        is_well = True
    finally:
        if not is_well or nbytes > most_bytes():
            thing.close()
        else:
            ticket = _Ticket()
            _shelf[ticket] = _Row(thing, nbytes)
            tickets.append(ticket)
            _trim(most_bytes())


def _take(tickets: list[_Ticket], takes: Callable[[T], bool]) -> T | None:
    while tickets:
        try:
            row = _shelf.pop(tickets.pop())
        except (IndexError, KeyError):  # another run was quicker, or it has been given back
            continue
        thing: T = row.thing  # type: ignore[assignment]
        if takes(thing):
            return thing
        thing.close()
    return None


def _close(ticket: _Ticket) -> None:
    row = _shelf.pop(ticket, None)
    if row is not None:
        row.thing.close()


def _trim(most: int) -> None:
    """Give back what was kept first until the rest takes at most so many bytes."""
    rows = list(_shelf.items())
    total, left = sum([row.nbytes for _, row in rows]) + pages.held(), len(rows)
    for ticket, row in rows:
        if total <= most and left <= MOST_FRAMES:
            return
        _close(ticket)
        total, left = total - row.nbytes, left - 1


def give_back() -> bool:
    """Give everything back that no run has. True if there was something."""
    found = bool(_shelf)
    _trim(-1)
    return pages.give_back() or found


def held() -> int:
    """Bytes kept that no run has, as far as plans tell: arenas, and what is bound."""
    return sum([row.nbytes for row in list(_shelf.values())])


_most: tuple[str | None, int] = (None, MOST_BYTES)


def most_bytes() -> int:
    """What may be kept in all: `HETSCHED_KEEP_MIB`, or 256 MiB where it is not set. Raises `CommandLineError` for what is no number."""
    global _most
    text = os.environ.get("HETSCHED_KEEP_MIB")
    if text != _most[0]:
        if text is not None and not text.isdecimal():
            raise CommandLineError(f"HETSCHED_KEEP_MIB={text!r} is no whole number of MiB; 0 keeps nothing between runs")
        _most = (text, MOST_BYTES if text is None else int(text) << 20)
    return _most[1]


when_short(give_back)
pages.keep_at_most(lambda: most_bytes() // OUTPUTS_SHARE)
