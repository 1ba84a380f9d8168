"""What a run that went well should still be doubted for: results that are not numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from hetsched.report.text import plural

MOST_NAMED = 3
REMEDY = "training has diverged, or the data hold such values; lower the learning rate, or look at the data"


def doubts(outputs: Iterable[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """A sentence for each output of floats (its source, its parts by name) that holds NaN or infinity.

    >>> doubts([("evaluate.metrics", {"loss": np.float32("nan")})])
    ['evaluate.metrics is not finite: loss (NaN); training has diverged, or the data hold such values; lower the learning rate, or look at the data']
    """
    out = []
    for source, parts in outputs:
        found = [f"{name} ({text})" for name, value in parts.items() if (text := _not_finite(value))]
        if found:
            more = f" and {plural(len(found) - MOST_NAMED, 'other part')}" if len(found) > MOST_NAMED else ""
            out.append(f"{source} is not finite: {', '.join(found[:MOST_NAMED])}{more}; {REMEDY}")
    return out


def _not_finite(value: Any) -> str:
    """What of an array is not finite, in words; "" where all is, and for what holds no floats."""
    if not isinstance(value, (np.ndarray, np.generic)) or value.dtype.kind != "f":
        return ""
    flat = np.asarray(value)
    count = flat.size - int(np.isfinite(flat).sum())
    if not count:
        return ""
    if flat.size == 1:
        return "NaN" if np.isnan(flat).all() else "infinite"
    return f"{count:,} of {flat.size:,} values"
