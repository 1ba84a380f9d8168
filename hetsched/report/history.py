"""What was measured in the course of a training, as a table: a line for each look at the rows that are held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hetsched.report.text import table

MOST_LOOKS = 12


def history_of(parts: Mapping[str, Any]) -> dict[str, list[float]]:
    """The metrics of a bundle that have one number a look, by name: one-dimensional arrays."""
    return {name: [float(x) for x in value] for name, value in parts.items() if getattr(value, "ndim", 0) == 1 and value.dtype.kind in "biuf"}


def history_lines(parts: Mapping[str, Any], most: int = MOST_LOOKS) -> list[str]:
    """A table of `history_of`; of more than `most` looks the first, the best and the last ones. [] where there is none.

    >>> import numpy as np
    >>> parts = {"val_loss": np.array([2.0, 1.0, 1.5]), "epochs": np.int64(6), "best_epoch": np.int64(4)}
    >>> print("\\n".join(history_lines(parts)))
    epoch  val_loss
        2         2
        4         1  best
        6       1.5
    """
    columns = history_of(parts)
    looks = max(map(len, columns.values()), default=0)
    if not looks:
        return []
    every = int(parts["epochs"]) // looks if "epochs" in parts else 1
    best = int(parts["best_epoch"]) // every - 1 if "best_epoch" in parts else -1
    rows: list[Sequence[str]] = []
    last = -1
    for i in _shown(looks, best, most):
        if i != last + 1:
            rows.append(["...", *("" for _ in columns), ""])
        rows.append([str((i + 1) * every), *(f"{v[i]:.6g}" if i < len(v) else "" for v in columns.values()), "best" if i == best else ""])
        last = i
    return table(["epoch", *columns, ""], rows, right=range(len(columns) + 1))


def _shown(looks: int, best: int, most: int) -> list[int]:
    if looks <= most:
        return list(range(looks))
    return sorted({0, *([best] if best >= 0 else []), *range(looks - most + 2, looks)})


__all__ = ["history_lines", "history_of"]
