"""Pooling of images: `nn.max_pool2d`, `nn.avg_pool2d` and their gradients, as one pass over all windows for each of a window's elements.

No padded copy is made: for the element (i, j) of the windows only those windows take part in which it lies inside the image. The largest element
is that of the rows first, and of those then along the columns: kh + kw passes instead of kh * kw, and the second over what lies close together
(16 channels of 14x14, windows of 2x2, one core: 5 us instead of 10).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from hetsched.errors import GraphError
from hetsched.graph.op import Attribute, Attributes, Cotangent, Op, Operand, Work
from hetsched.graph.ops import _cl_pool, _cuda_windows
from hetsched.graph.ops._rules import elements, nbytes, with_direct
from hetsched.graph.ops._scratch import scratch, scratch_nbytes
from hetsched.graph.ops._windows import PADDING, extents, output_extent, paddings, pair, want_images
from hetsched.graph.spec import AnySpec, Spec

if TYPE_CHECKING:
    from hetsched.graph.graph import Builder, Value


class _Tap(NamedTuple):
    """One element of the windows: the windows in which it lies in the image, and where."""

    windows: tuple[Any, ...]  # index into y
    pixels: tuple[Any, ...]  # index into x, of the same shape


Axis: TypeAlias = tuple[tuple[slice, slice], ...]  # for each element of a window along an axis: the windows in which it lies in the image, and where


class _Geometry(NamedTuple):
    taps: tuple[_Tap, ...]  # row by row
    rows: Axis
    columns: Axis
    out: tuple[int, int]
    whole: bool  # every tap lies in every window: no padding
    apart: bool  # no pixel is in two windows
    covers: bool  # every pixel is in a window

    @property
    def two_passes(self) -> bool:
        """True where rows and columns are looked at one after the other."""
        return not (_is_one(self.rows, self.out[0]) or _is_one(self.columns, self.out[1]))


def _stride(a: Attributes) -> tuple[int, ...]:
    stride: tuple[int, ...] = a["size"] if a["stride"] is None else a["stride"]
    return stride


@lru_cache(maxsize=1024)
def _geometry(image: tuple[int, int], size: tuple[int, ...], stride: tuple[int, ...], padding: Any) -> _Geometry:
    window, steps = pair(size, "size"), pair(stride, "stride")
    axes: list[list[tuple[slice, slice]]] = []
    out: list[int] = []
    whole, apart, covers = True, True, True
    for extent, k, s, (low, high) in zip(image, window, steps, paddings(padding, window, steps), strict=True):
        n = output_extent(extent, k, s, 1, low + high)
        axis = []
        for i in range(k):
            first = max(0, -(-(low - i) // s))
            last = min(n - 1, (extent - 1 + low - i) // s)
            count = max(0, last - first + 1)
            begin = first * s + i - low
            axis.append((slice(first, first + count), slice(begin, begin + (count - 1) * s + 1, s) if count else slice(0, 0)))
            whole = whole and count == n
        axes.append(axis)
        apart = apart and s >= k
        covers = covers and s <= k and (n - 1) * s + k - low >= extent
        out.append(n)
    every = slice(None)
    taps = tuple(_Tap((every, every, r[0], c[0]), (every, every, r[1], c[1])) for r in axes[0] for c in axes[1])
    return _Geometry(taps, tuple(axes[0]), tuple(axes[1]), (out[0], out[1]), whole, apart, covers)


def windows_of(x: Any, a: Attributes) -> _Geometry:
    """Where the windows of attributes `a` lie in images shaped as those of x."""
    padding = a["padding"]
    return _geometry(tuple(x.shape[2:]), a["size"], _stride(a), tuple(padding) if isinstance(padding, list) else padding)


def _is_one(axis: Axis, n: int) -> bool:
    """True where windows have one element along an axis, which lies in the image for all of them."""
    return len(axis) == 1 and axis[0][0] == slice(0, n)


def _between(n: int, c: int, w: int, g: _Geometry) -> int:
    """Elements of what is kept between the two passes; 0 where one is enough."""
    return n * c * g.out[0] * w if g.two_passes else 0


# (a, b, out): out becomes the larger of a and b; where b is None, a; where a is None too, minus infinity
Larger: TypeAlias = tuple[Any, Any, Any]


def largest(g: _Geometry, x: Any, y: Any, between: Any) -> list[Larger]:
    """What gives y [n, c, oh, ow] from x [n, c, h, w]. between: `_between` elements or more, flat."""
    every = slice(None)
    if _is_one(g.columns, g.out[1]):
        return _along(g.rows, g.out[0], x[:, :, :, g.columns[0][1]], y, 2)
    if _is_one(g.rows, g.out[0]):
        return _along(g.columns, g.out[1], x[:, :, g.rows[0][1]], y, 3)
    n, c, _, w = x.shape
    t = between[: n * c * g.out[0] * w]
    found = _along(g.rows, g.out[0], x, t.reshape(n, c, g.out[0], w), 2)
    step = g.columns[0][1].step or 0
    if step * g.out[1] == w and all(a == slice(0, g.out[1]) and b.start < step for a, b in g.columns):
        # Windows that share nothing and leave nothing out: one run through all of them.
        t, y = t.reshape(n * c * g.out[0] * g.out[1], step), y.reshape(-1)
        return found + _along(tuple((every, b.start) for _, b in g.columns), 0, t, y, 1)
    return found + _along(g.columns, g.out[1], t.reshape(n, c, g.out[0], w), y, 3)


def _along(axis: Axis, n: int, src: Any, dst: Any, at: int) -> list[Larger]:
    """The same along axis number `at`, of n windows."""
    before = (slice(None),) * at
    whole = all(windows in (slice(0, n), slice(None)) for windows, _ in axis)
    taps = [(dst if whole else dst[(*before, windows)], src[(*before, pixels)]) for windows, pixels in axis]
    if not whole:
        return [(None, None, dst), *((target, pixels, target) for target, pixels in taps)]
    if len(taps) == 1:
        return [(taps[0][1], None, dst)]
    return [(taps[0][1], taps[1][1], dst), *((dst, pixels, dst) for _, pixels in taps[2:])]


def max_pool(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    """25 us for 32 x 16 images of 8x8, windows of 2x2, float32, one core."""
    x, y = inputs[0], outputs[0]
    if not y.size:
        return
    g = windows_of(x, a)
    count = _between(x.shape[0], x.shape[1], x.shape[3], g)
    between = scratch(xp, workspace, x.dtype, count)[0] if count else None
    for first, second, out in largest(g, x, y, between):
        if second is not None:
            xp.maximum(first, second, out=out)
        elif first is not None:
            xp.copyto(out, first)
        else:
            out.fill(-xp.inf)


def larger_calls(rows: Sequence[Larger]) -> list[tuple[Any, ...]]:
    """`largest` as calls of NumPy, for a `Direct` rule."""
    return [
        (None, np.maximum, a, b, out) if b is not None else (None, np.copyto, out, a) if a is not None else (None, out.fill, -np.inf)
        for a, b, out in rows
    ]


def _direct_max_pool(ins: Sequence[Any], outs: Sequence[Any], workspace: Any, a: Attributes) -> list[tuple[Any, ...]] | None:
    x, y = ins[0], outs[0]
    if isinstance(x, Operand) or isinstance(y, Operand) or not y.size:
        return None
    g = windows_of(x, a)
    count = _between(x.shape[0], x.shape[1], x.shape[3], g)
    if count and workspace is None:
        return None
    return larger_calls(largest(g, x, y, scratch(np, workspace, x.dtype, count)[0] if count else None))


with_direct(max_pool, _direct_max_pool)


def _max_pool_grad(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    """Tap by tap, what a pixel equal to the maximum takes is taken from what is left of dy: so the first of equals gets all of it."""
    x, y, dy = inputs
    dx = outputs[0]
    g = windows_of(x, a)
    if not (g.apart and g.covers):
        dx.fill(0)
    if not y.size:
        return
    left, share, flags = scratch(xp, workspace, dy.dtype, dy.size, dy.size, -(-dy.size // dy.dtype.itemsize))
    left, share = left.reshape(dy.shape), share.reshape(dy.shape)
    equal = flags.view(xp.bool_)[: dy.size].reshape(dy.shape)
    xp.copyto(left, dy)
    for i, tap in enumerate(g.taps):
        target, rest = dx[tap.pixels], left[tap.windows]
        if g.whole and i == len(g.taps) - 1:
            part = rest  # whatever no earlier tap took
        else:
            part, same = share[tap.windows], equal[tap.windows]
            xp.equal(x[tap.pixels], y[tap.windows], out=same)
            xp.multiply(rest, same, out=part)
            xp.subtract(rest, part, out=rest)
        if g.apart:
            xp.copyto(target, part)
        else:
            xp.add(target, part, out=target)


def _avg_pool(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    x, y = inputs[0], outputs[0]
    g = windows_of(x, a)
    y.fill(0)
    for tap in g.taps:
        target = y[tap.windows]
        xp.add(target, x[tap.pixels], out=target)
    xp.multiply(y, 1 / len(g.taps), out=y)


def _avg_pool_grad(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    dy, dx = inputs[0], outputs[0]
    g = windows_of(dx, a)
    if not (g.apart and g.covers):
        dx.fill(0)
    share = scratch(xp, workspace, dy.dtype, dy.size)[0].reshape(dy.shape)
    xp.multiply(dy, 1 / len(g.taps), out=share)
    for tap in g.taps:
        target = dx[tap.pixels]
        if g.apart:
            xp.copyto(target, share[tap.windows])
        else:
            xp.add(target, share[tap.windows], out=target)


# CUDA -----------------------------------------------------------------------------------------------------------------------------


def _cuda_windows_of(x: Any, a: Attributes) -> _cuda_windows.Windows:
    padding = a["padding"]
    return _on_cuda(tuple(x.shape[2:]), a["size"], _stride(a), tuple(padding) if isinstance(padding, list) else padding)


@lru_cache(maxsize=1024)
def _on_cuda(image: tuple[int, int], size: tuple[int, ...], stride: tuple[int, ...], padding: Any) -> _cuda_windows.Windows:
    window, steps = pair(size, "size"), pair(stride, "stride")
    pads = paddings(padding, window, steps)
    return _cuda_windows.Windows(window, steps, (pads[0][0], pads[1][0]), _geometry(image, size, stride, padding).whole)


def _cuda_max_pool(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    if not _cuda_windows.pool(xp, inputs[0], outputs[0], _cuda_windows_of(inputs[0], a), True):
        max_pool(xp, inputs, outputs, workspace, a)


def _cuda_max_pool_grad(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    x, y, dy = inputs
    if not _cuda_windows.max_pool_grad(xp, x, y, dy, outputs[0], _cuda_windows_of(x, a)):
        _max_pool_grad(xp, inputs, outputs, workspace, a)


def _cuda_avg_pool(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    if not _cuda_windows.pool(xp, inputs[0], outputs[0], _cuda_windows_of(inputs[0], a), False):
        _avg_pool(xp, inputs, outputs, workspace, a)


def _cuda_avg_pool_grad(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    if not _cuda_windows.avg_pool_grad(xp, inputs[0], outputs[0], _cuda_windows_of(outputs[0], a)):
        _avg_pool_grad(xp, inputs, outputs, workspace, a)


# Shape rules --------------------------------------------------------------------------------------------------------------------


def _output(x: Spec, a: Attributes, problems: list[str]) -> Spec | None:
    """The spec of y, or None and what is wrong in `problems`."""
    found = extents(x.bounds[2:], a["size"], {"stride": _stride(a), "padding": a["padding"]}, problems)
    if found is None:
        return None
    window, steps = pair(a["size"], "size"), pair(_stride(a), "stride")
    pads = paddings(a["padding"], window, steps)
    for axis, k, pad in zip(("rows", "columns"), window, pads, strict=True):
        if max(pad) >= k:
            problems.append(f"padding {max(pad)} of {axis} must be less than the window's {k}, or a window would lie beside the image")
    return Spec((*x.shape[:2], *found), x.dtype)


def _infer(specs: Sequence[AnySpec], a: Attributes) -> list[AnySpec]:
    problems: list[str] = []
    x, y = specs[0], None
    if want_images(x, "x", problems) and isinstance(x, Spec):
        y = _output(x, a, problems)
    if problems or y is None:
        raise GraphError(problems)
    return [y]


def _infer_max_grad(specs: Sequence[AnySpec], a: Attributes) -> list[AnySpec]:
    x, y, dy = specs
    wanted = _infer([x], a)[0]
    problems = [f"{name} must be {wanted!r}, as x {x!r} gives, got {spec!r}" for name, spec in (("y", y), ("dy", dy)) if spec != wanted]
    if problems:
        raise GraphError(problems)
    return [x]


def _infer_avg_grad(specs: Sequence[AnySpec], a: Attributes) -> list[AnySpec]:
    problems: list[str] = []
    dy, dx = specs[0], None
    if want_images(dy, "dy", problems) and isinstance(dy, Spec):
        dx = Spec((*dy.shape[:2], *pair(a["image"], "image")), dy.dtype)
        wanted = _output(dx, a, problems)
        if wanted is not None and wanted != dy:
            problems.append(f"dy must be {wanted!r} for images of {dx.bounds[2]} x {dx.bounds[3]}, got {dy!r}")
    if problems or dx is None:
        raise GraphError(problems)
    return [dx]


def _work(inputs: Sequence[AnySpec], outputs: Sequence[AnySpec], a: Attributes) -> Work:
    """One operation a window's element."""
    rows, columns = pair(a["size"], "size")
    return Work(float(rows * columns * min(elements(inputs[-1:]), elements(outputs))), nbytes(inputs), nbytes(outputs))


def _workspace_max(inputs: Sequence[AnySpec], outputs: Sequence[AnySpec], a: Attributes) -> int:
    x = inputs[0]
    assert isinstance(x, Spec)
    n, c, _, w = x.bounds
    count = _between(n, c, w, windows_of(x, a))
    return scratch_nbytes(x.dtype, count) if count else 0


def _workspace_max_grad(inputs: Sequence[AnySpec], outputs: Sequence[AnySpec], a: Attributes) -> int:
    dy = inputs[2]
    assert isinstance(dy, Spec)
    return scratch_nbytes(dy.dtype, dy.size, dy.size, -(-dy.size // dy.dtype.itemsize))


def _workspace_avg_grad(inputs: Sequence[AnySpec], outputs: Sequence[AnySpec], a: Attributes) -> int:
    dy = inputs[0]
    assert isinstance(dy, Spec)
    return scratch_nbytes(dy.dtype, dy.size)


def _geometry_of(a: Attributes) -> dict[str, Any]:
    return {name: a[name] for name in ("size", "stride", "padding")}


def _max_gradient(b: Builder, inputs: Sequence[Value], outputs: Sequence[Value], grads: Sequence[Value | None], a: Attributes) -> Sequence[Cotangent]:
    dy = grads[0]
    if dy is None:
        return [None]
    return [lambda: b.op(MAX_POOL2D_GRAD, inputs[0], outputs[0], dy, **_geometry_of(a))]


def _avg_gradient(b: Builder, inputs: Sequence[Value], outputs: Sequence[Value], grads: Sequence[Value | None], a: Attributes) -> Sequence[Cotangent]:
    dy = grads[0]
    if dy is None:
        return [None]
    return [lambda: b.op(AVG_POOL2D_GRAD, dy, image=inputs[0].array_spec.bounds[2:], **_geometry_of(a))]


_WINDOWS = {
    "size": Attribute("ints", doc="extents of the window: one number, or rows and columns", low=1),
    "stride": Attribute("ints", None, "steps of the window; left out, its extents", low=1, optional=True),
    "padding": PADDING,
}

MAX_POOL2D = Op(
    "nn.max_pool2d",
    ("x",),
    ("y",),
    _infer,
    _work,
    kernels={"array": max_pool, "opencl": _cl_pool.max_pool, "cuda": _cuda_max_pool},
    gradient=_max_gradient,
    attributes=_WINDOWS,
    workspace=_workspace_max,
    doc="The largest element of each window: x [n, c, h, w] -> y [n, c, oh, ow], oh = (h + 2 padding - size) // stride + 1. Padding never wins.",
    calls=12,
)

MAX_POOL2D_GRAD = Op(
    "nn.max_pool2d_grad",
    ("x", "y", "dy"),
    ("dx",),
    _infer_max_grad,
    _work,
    kernels={"array": _max_pool_grad, "opencl": _cl_pool.max_pool_grad, "cuda": _cuda_max_pool_grad},
    attributes=_WINDOWS,
    workspace=_workspace_max_grad,
    doc="The gradient of `nn.max_pool2d`: dy goes to the largest element of its window, to the first (row by row) of equal ones.",
    calls=40,
)

AVG_POOL2D = Op(
    "nn.avg_pool2d",
    ("x",),
    ("y",),
    _infer,
    _work,
    kernels={"array": _avg_pool, "opencl": _cl_pool.avg_pool, "cuda": _cuda_avg_pool},
    gradient=_avg_gradient,
    attributes=_WINDOWS,
    doc="The mean of each window, zeros of the padding counted: x [n, c, h, w] -> y [n, c, oh, ow], oh = (h + 2 padding - size) // stride + 1.",
    calls=17,
)

AVG_POOL2D_GRAD = Op(
    "nn.avg_pool2d_grad",
    ("dy",),
    ("dx",),
    _infer_avg_grad,
    _work,
    kernels={"array": _avg_pool_grad, "opencl": _cl_pool.avg_pool_grad, "cuda": _cuda_avg_pool_grad},
    attributes={"image": Attribute("ints", doc="rows and columns of x", low=0), **_WINDOWS},
    workspace=_workspace_avg_grad,
    doc="The gradient of `nn.avg_pool2d`: every element of a window gets its share of dy.",
    calls=20,
)
