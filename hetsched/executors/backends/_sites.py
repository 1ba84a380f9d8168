"""Which launch has told of a mistake: a number for each that can."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Explain = Callable[[int, int], Exception]

# Launches that come once get the numbers of those long before; more than that are never under way.
MOST_PASSING = 1 << 14


class Sites:
    """Launches by number: those that come again and again, -1, -2, ..., and those that pass, from 0 on."""

    def __init__(self) -> None:
        self._staying: list[tuple[Any, Explain]] = []
        self._passing: dict[int, tuple[Any, Explain]] = {}
        self._passed = 0

    def add(self, out: Any, explain: Explain, stays: bool) -> int:
        """The number of a launch that writes `out`."""
        if stays:
            self._staying.append((out, explain))
            return -len(self._staying)
        site = self._passed % MOST_PASSING
        self._passing[site] = (out, explain)
        self._passed += 1
        return site

    def error(self, site: int, value: int, position: int) -> Exception:
        """What a launch has told; `written` of the error is its output."""
        out, explain = self._staying[-1 - site] if site < 0 else self._passing[site]
        error: Any = explain(value, position)
        error.written = out
        assert isinstance(error, Exception)
        return error


def task_of(error: Exception, calls: Any) -> int | None:
    """The task among bound calls whose launch writes what `error.written` says; None where there is none."""
    out = getattr(error, "written", None)
    if out is not None:
        for _, _, outputs, _, _, task in calls:
            if isinstance(outputs, (list, tuple)) and any(x is out or getattr(x, "array", None) is out for x in outputs):
                return int(task)
    return None
