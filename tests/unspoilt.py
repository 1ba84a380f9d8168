"""What is read off a clock is tried again: a machine that stands still for a moment spoils one reading, code that is wrong spoils all of them."""

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def unspoilt(run: Callable[[], T], check: Callable[[T], None], tries: int = 8) -> T:
    """What `run` gives, the first of which `check` holds; the assertion of the last try where none does. What `run` itself asserts, such as values

    and order, must hold in every try.
    """
    for _ in range(tries - 1):
        found = run()
        try:
            check(found)
        except AssertionError:
            continue
        return found
    found = run()
    check(found)
    return found
