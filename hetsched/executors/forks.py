"""What a process that was forked off does with what it inherits.

What has threads or locks of its own forgets them: they are those of the parent. What belongs to a driver that does not survive a fork (memory and
streams of CUDA, queues and programs of OpenCL) is neither used nor given back: the destructors of such objects would ask the driver, which answers
with errors or ends the process (NVIDIA's). So they stay to the end of the child, and are not taken down even then.
"""

from __future__ import annotations

import ctypes
import gc
import os
import weakref
from contextlib import suppress
from typing import Protocol


class Forgetful(Protocol):
    """Something that cannot take what it has into a child."""

    def forget(self) -> None:
        """Be as if the threads had never been. Called in the child, before anything else runs there."""


_all: weakref.WeakSet[Forgetful] = weakref.WeakSet()
_prefixes: tuple[str, ...] = ()
_held: list[object] = []


def forgets(thing: Forgetful) -> None:
    """From now on `thing.forget()` is called in every process that is forked off, as long as somebody has it."""
    _all.add(thing)


def leaves_alone(*modules: str) -> None:
    """From now on no process that is forked off takes down objects of classes whose module's name begins so, nor what they hold."""
    global _prefixes
    _prefixes = tuple(dict.fromkeys((*_prefixes, *modules)))


def _hold() -> None:
    """In the parent, before: in the child the interpreter lets go of what its lost threads had before anybody is asked."""
    if _prefixes:
        theirs: dict[type, bool] = {}
        for thing in gc.get_objects():
            kind = type(thing)
            if kind not in theirs:
                theirs[kind] = str(getattr(kind, "__module__", "")).startswith(_prefixes)
            if theirs[kind]:
                _held.append(thing)


def _in_child() -> None:
    global _held
    if _held:
        with suppress(AttributeError):  # another interpreter than CPython
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(_held))  # nobody ever takes that back
        _held = []
    for thing in list(_all):
        thing.forget()


def _in_parent() -> None:
    _held.clear()  # not the list that a parent has been forked off with: that is held for ever


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hold, after_in_parent=_in_parent, after_in_child=_in_child)
