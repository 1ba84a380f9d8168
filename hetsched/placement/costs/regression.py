"""Seconds of shapes never seen, from those of the same op on the same device: seconds = a + b * flops + c * bytes, no part negative.

Fitted by least squares of the relative error, so that small launches count as much as large ones. Trusted only with enough spread: at least four
shapes, over at least a factor of four in work, the fit close to all of them, and the new shape not far outside of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from hetsched.placement.costs.history import Known

LEAST_SHAPES = 4
LEAST_RATIO = 4.0
# The new shape may have this many times more (or less) work than the largest (smallest) seen.
REACH = 2.0
WORST_FIT = 0.25


class Fit(NamedTuple):
    """`low`, `high`: flops + bytes of the smallest and largest shape seen. `error`: root mean square of the relative error."""

    constant: float
    per_flop: float
    per_byte: float
    error: float
    low: float
    high: float

    def seconds(self, flops: float, nbytes: float) -> float:
        """What the fit says, however far away."""
        return self.constant + self.per_flop * flops + self.per_byte * nbytes

    def covers(self, flops: float, nbytes: float) -> bool:
        """True if a shape is near enough to those seen."""
        return self.low / REACH <= flops + nbytes <= self.high * REACH


def fit(rows: Sequence[Known]) -> Fit | None:
    """The fit through what is known of one op on one device; None where it cannot be trusted."""
    rows = [r for r in rows if r.seconds > 0]
    work = [r.flops + r.nbytes for r in rows]
    if len({(r.flops, r.nbytes) for r in rows}) < LEAST_SHAPES or min(work) <= 0 or max(work) < LEAST_RATIO * min(work):
        return None
    seconds = np.array([r.seconds for r in rows])
    table = np.array([[1.0, r.flops, r.nbytes] for r in rows]) / seconds[:, None]
    scale = np.abs(table).max(axis=0)
    table = table / np.where(scale > 0, scale, 1.0)
    best: tuple[float, np.ndarray] | None = None
    # Three columns: the best of the seven sets of them whose solution has no negative part is the non-negative least squares solution.
    for size in (1, 2, 3):
        for columns in combinations(range(3), size):
            part = table[:, columns]
            if not np.all(np.abs(part).max(axis=0) > 0):
                continue
            found, *_ = np.linalg.lstsq(part, np.ones(len(rows)), rcond=None)
            if np.any(found < 0):
                continue
            error = float(np.sqrt(np.mean((part @ found - 1) ** 2)))
            if best is None or error < best[0] - 1e-12:
                whole = np.zeros(3)
                whole[list(columns)] = found / scale[list(columns)]
                best = error, whole
    if best is None or best[0] > WORST_FIT:
        return None
    a, b, c = best[1].tolist()
    return Fit(a, b, c, best[0], min(work), max(work))
