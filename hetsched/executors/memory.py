"""Memory as a frame sees it: arenas in which replicas lie at planned offsets, and how bytes get from one array to another.

The host's arena is a NumPy buffer. A device's arena is a handle that its backend gives; its arrays are handles too, with `shape`, `dtype`, `size`
and `part(first element, shape)`. A frame never looks inside.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from hetsched.executors.pages import Bytes, Lock, Touching, area, arrays
from hetsched.graph.op import Op
from hetsched.graph.ops.shape import view_offset
from hetsched.graph.spec import AnySpec, Spec, seen_spec

ALIGNMENT = 64


T = TypeVar("T")

_reliefs: list[Callable[[], bool]] = []


def when_short(relief: Callable[[], bool]) -> None:
    """`relief` is called where memory cannot be had; it tells whether it has given some back."""
    _reliefs.append(relief)


def fresh(
    kinds: Sequence[tuple[tuple[int, ...], Any]], touching: Touching | None = None, lock: Lock | None = None, copied: Collection[int] = (),
) -> list[Any]:  # fmt: skip
    """New, uninitialised arrays of the host, of (shape, dtype) (see `pages.arrays`). Raises `MemoryError` where there is no room, and nobody has

    given any back.
    """
    return had(lambda: arrays(kinds, touching, lock, copied))


def had(make: Callable[[], T]) -> T:
    """What `make` allocates; tried again where there was no room and somebody has given some back."""
    try:
        return make()
    except MemoryError:
        if not any(relief() for relief in _reliefs):
            raise
        return make()


class Memory(Protocol):
    """An arena in one memory node, or a part of one."""

    def array(self, offset: int, spec: Spec) -> Any:
        """The array of `spec` (bounded dimensions at their bounds) that begins `offset` bytes into the arena."""

    def inside(self, offset: int, nbytes: int) -> Memory:
        """The arena that begins `offset` bytes into this one."""


class Doer(Protocol):
    """What carries out the commands of a step: the thread itself, or a stream."""

    def launch(self, kernel: Any, inputs: Sequence[Any], outputs: Any, workspace: Any, attributes: Mapping[str, Any]) -> Any: ...

    def segment(self, calls: Sequence[Any]) -> bool:
        """Carry out launches that follow each other at once, where this can; else False."""

    def move(self, src: Any, dst: Any) -> None: ...


class HostMemory:
    """An arena of the host: NumPy arrays over one buffer."""

    def __init__(self, buffer: Bytes) -> None:
        self.buffer = buffer

    @staticmethod
    def of(nbytes: int, touching: Touching | None = None, lockable: bool = False) -> HostMemory:
        """A fresh, uninitialised arena whose address is a multiple of 64 (JAX then takes arrays in it without a copy). See `pages.area`."""
        raw: Bytes = had(lambda: area(nbytes + ALIGNMENT, touching, lockable))
        start = -raw.ctypes.data % ALIGNMENT
        return HostMemory(raw[start : start + nbytes])

    def array(self, offset: int, spec: Spec) -> Any:
        """See `Memory.array`."""
        return np.ndarray(spec.bounds, spec.dtype, self.buffer, offset)

    def inside(self, offset: int, nbytes: int) -> HostMemory:
        """See `Memory.inside`."""
        return HostMemory(self.buffer[offset : offset + nbytes])


class HostDoer:
    """The calling thread, with NumPy."""

    def launch(self, kernel: Any, inputs: Sequence[Any], outputs: Any, workspace: Any, attributes: Mapping[str, Any]) -> Any:
        """Run the kernel here and now."""
        return kernel(np, inputs, outputs, workspace, attributes)

    def segment(self, calls: Sequence[Any]) -> bool:
        """The host has code of its own for that."""
        return False

    def move(self, src: Any, dst: Any) -> None:
        """Copy between arrays of the host."""
        np.copyto(dst, src)


HERE = HostDoer()


def stride_of(nbytes: int) -> int:
    """Bytes from one ring slot to the next."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def shaped(array: Any, shape: tuple[int, ...]) -> Any:
    """The first elements of a contiguous array under another shape; nothing is copied."""
    if isinstance(array, np.ndarray):
        return array if array.shape == shape else array.reshape(-1)[: int(np.prod(shape, dtype=np.int64))].reshape(shape)
    return array if tuple(array.shape) == tuple(shape) else array.part(0, shape)


def alias(op: Op, base: Any, attributes: Mapping[str, Any], source_spec: AnySpec, spec: AnySpec) -> Any:
    """What a view op gives of a value of `source_spec`: `base`'s own bytes under another shape."""
    if not isinstance(spec, Spec):
        return base
    source = Spec(base.shape, base.dtype)
    if spec.is_bounded:
        (found,) = op.infer([seen_spec(base, source_spec)], attributes)
        assert isinstance(found, Spec)
        spec = found
    first = view_offset(op, source, attributes) // spec.dtype.itemsize
    if isinstance(base, np.ndarray):
        return base.reshape(-1)[first : first + spec.size].reshape(spec.bounds)
    return base.part(first, spec.bounds)
