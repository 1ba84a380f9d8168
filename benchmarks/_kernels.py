"""What the benchmarks of single kernels share: an op bound to arrays of an opened device, and the same by NumPy."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from hetsched.graph.op import Op
from hetsched.graph.spec import Spec, array_form


def seconds(action: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = perf_counter()
    action()
    return perf_counter() - start


class Bound(NamedTuple):
    """An op on a device and on the host. device: launches it there, without wait; host: does it by NumPy; difference: of the two, the largest
    relative to the largest value; flops, nbytes: of a launch; arrays: the device's (inputs, outputs)."""

    device: Callable[[], None]
    host: Callable[[], None]
    difference: Callable[[], float]
    flops: float
    nbytes: float
    arrays: tuple[tuple[Any, ...], tuple[Any, ...]]


def bind(live: Any, stream: Any, languages: tuple[str, ...], op: Op, inputs: list[Any], attributes: dict[str, Any]) -> Bound:
    """`op` in the first of `languages` that it has, for arrays at the beginning of the arena of `live`: what was bound before is overwritten."""
    given = op.check_attributes(attributes)
    specs = [Spec(x.shape, x.dtype) for x in inputs]
    outs = [s for s in map(array_form, op.infer(specs, given)) if s is not None]
    scratch = op.workspace(specs, outs, given) if op.workspace else 0
    at, arrays = 0, []
    for spec in [*specs, *outs, Spec((scratch,), "uint8")]:
        arrays.append(live.array(at, spec.bounds, spec.dtype))
        at += -(-spec.nbytes // 256) * 256
    there, results, workspace = tuple(arrays[: len(specs)]), tuple(arrays[len(specs) : -1]), arrays[-1] if scratch else None
    for x, y in zip(inputs, there, strict=True):
        stream.upload(x, y)
    stream.record().wait()
    mine, own = [np.empty(s.bounds, s.dtype) for s in outs], np.empty(scratch, np.uint8) if scratch else None
    kernel = next(op.kernels[language] for language in languages if language in op.kernels)

    def device() -> None:
        stream.launch(kernel, there, results, workspace, given)

    def host() -> None:
        op.kernels["array"](np, inputs, mine, own, given)

    def difference() -> float:
        host()
        worst = 0.0
        for there_, here in zip(results, mine, strict=True):
            found = np.empty_like(here)
            stream.download(there_, found)
            stream.record().wait()
            worst = max(worst, float(np.abs(found - here).max() / max(np.abs(here).max(), 1e-30)))
        return worst

    work = op.work(specs, outs, given)
    return Bound(device, host, difference, work.flops, work.bytes_read + work.bytes_written, (there, results))
