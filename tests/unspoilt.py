"""What is read off a clock is tried again: a machine that stands still for a moment spoils one reading, code that is wrong spoils all of them."""

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def unspoilt(check: Callable[[], T], tries: int = 8) -> T:
    """The first answer of `check` that no assertion kept it from giving; the assertion of the last try where each of them failed."""
    for _ in range(tries - 1):
        try:
            return check()
        except AssertionError:
            continue
    return check()
