"""Ids out of range on CUDA: told to the host without its waiting, as OpenCL kernels do (see `hetsched.graph.op.OpenCL.fault`).

A stream says through `now.told` where its launches may tell of mistakes. What has no kernel of its own here is looked at by a launch beside it.
Where nobody listens (a kernel that is called by itself, a launch that only warms up), nothing is looked at.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from hetsched.graph.ops._cuda_small import _TYPES, TELL, _blocks, _run, _typedef
from hetsched.graph.ops._ids import explained


class Told(NamedTuple):
    """What a kernel takes to tell of a mistake: the address of the slots, that of the slot's number on the device, and which launch it is."""

    slots: np.uint64
    slot: np.uint64
    site: np.int64


class Listens(Protocol):
    def told(self, out: Any, explain: Callable[[int, int], Exception]) -> Told: ...


class _Now(threading.local):
    listener: Listens | None = None


now = _Now()

NOBODY = Told(np.uint64(0), np.uint64(0), np.int64(0))

_CHECK = """
extern "C" __global__ void check_ids(const B *ids, u32 n, i64 places, i64 *slots_, const i64 *slot_, i64 site_) {
    const u32 j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= n) return;
    const B id = ids[j];
    if (id < 0 || (u64)id >= (u64)places) TELL(id, j)
}
"""


def told(out: Any, ids: Any, n: int, name: str) -> Told:
    """The last arguments of a kernel that writes `out` and looks whether `ids` are from 0 to n - 1."""
    return NOBODY if now.listener is None else now.listener.told(out, explained(name, n, ids.dtype))


def check_ids(xp: Any, out: Any, ids: Any, n: int, name: str) -> None:
    """A launch that looks whether `ids` are from 0 to n - 1, for a task that writes `out`."""
    if now.listener is None or not ids.size or ids.dtype.name not in _TYPES:
        return
    ids = ids if ids.flags.c_contiguous else xp.ascontiguousarray(ids)
    _run(xp, "check_ids", TELL + _CHECK, _typedef(B=ids.dtype), _blocks(ids.size), ids, np.uint32(ids.size), np.int64(n), *told(out, ids, n, name))


__all__ = ["NOBODY", "Told", "check_ids", "now", "told"]
