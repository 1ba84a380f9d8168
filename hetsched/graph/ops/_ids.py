"""The one rule of ids: row numbers, indices, labels. They count from 0; any other than 0 to n - 1 is an error, on every device.

A negative id does not count from the end: it is as wrong as one that is too large. On NumPy the extremes are looked at before the kernel begins.
A kernel in OpenCL C tells of the id that it meets (`OpenCL.fault`), and goes on with another one in range, so that it reads no memory but its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hetsched.graph.op import FAULT_SLOTS, OpenCL

# Before a source in OpenCL C whose parameters end with FAULTS, for which it is given what `watched` gives: TELL(value, position) of a bad id. The
# first to tell is heard. See `OpenCL.fault`.
FAULTS = """
#define FAULTS __global long *faults_, const long site_, const long number_
#define TELL(value, position) do { \\
    __global long *mine_ = faults_ + number_ % SLOTS * 4; \\
    if (!atomic_cmpxchg((volatile __global int *)mine_, 0, 1)) { mine_[1] = site_; mine_[2] = (long)(value); mine_[3] = (position); } \\
} while (0)
""".replace("SLOTS", str(FAULT_SLOTS))


# For the documentation of ops.
IDS_RULE = "Indices count from 0; one outside its range, a negative one too, is an error."


def bad_id(name: str, position: int, value: int, n: int) -> IndexError:
    """The error for the element at `position` (counted along all axes) of the ids `name`, which has to be one of `n`."""
    return IndexError(f"{name}[{position}] is {value}, outside 0 to {n - 1}; ids count from 0, never from the end")


def watched(cl: OpenCL, out: Any, ids: Any, n: int, name: str) -> Any:
    """The last argument of a kernel in OpenCL C that writes `out` and looks whether `ids` are from 0 to n - 1."""
    return cl.fault(out, explained(name, n, ids.dtype))


def explained(name: str, n: int, dtype: Any) -> Callable[[int, int], IndexError]:
    """What makes the error of (value, position) that a device has told."""

    def explain(value: int, position: int) -> IndexError:
        return bad_id(name, position, value % (1 << 64) if dtype.name == "uint64" else value, n)

    return explain


def check_ids(xp: Any, ids: Any, n: int, name: str, first: int = 0) -> None:
    """An error for the first id outside 0 to n - 1; on NumPy only, in one pass. first: the position of ids[0]."""
    if xp is not np or not ids.size:
        return
    # As unsigned numbers negative ones are large: one pass finds both mistakes, where the ids' own type does not reach n.
    if ids.dtype.kind == "u" or n - 1 <= _most(ids.dtype):
        is_bad = int(np.maximum.reduce(ids.view(f"u{ids.itemsize}"), axis=None)) >= n
    else:
        is_bad = int(np.minimum.reduce(ids, axis=None)) < 0
    if is_bad:
        flat = ids.reshape(-1)
        at = int(np.flatnonzero((flat < 0) | (flat >= n) if n - 1 <= _most(ids.dtype) else flat < 0)[0])
        raise bad_id(name, first + at, int(flat[at]), n)


def _most(dtype: Any) -> int:
    return int(np.iinfo(dtype).max)


__all__ = ["FAULTS", "IDS_RULE", "bad_id", "check_ids", "explained", "watched"]
