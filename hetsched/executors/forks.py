"""What has threads or locks of its own forgets them in a process that was forked off: they are those of the parent."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forgetful(Protocol):
    """Something that cannot take what it has into a child."""

    def forget(self) -> None:
        """Be as if the threads had never been. Called in the child, before anything else runs there."""


_all: weakref.WeakSet[Forgetful] = weakref.WeakSet()


def forgets(thing: Forgetful) -> None:
    """From now on `thing.forget()` is called in every process that is forked off, as long as somebody has it."""
    _all.add(thing)


def _forget() -> None:
    for thing in list(_all):
        thing.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
