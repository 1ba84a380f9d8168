"""Convolution over images: `nn.conv2d` and its two gradients, as columns of patches and one matrix product a block of images.

With stride 1 the patches are never gathered one by one. A block of m images lies in a padded buffer of c rows, all images of a channel in
one row; image rows and images share their padding (the zeros right of one row are the zeros left of the next). Then the patch element (i, j)
of every position is the same row shifted by `i * pitch + j`: kh * kw long copies instead of one short copy an image row. The matrix product
also computes the positions that straddle the padding; they are skipped on the way out. (8 channels, 3x3, 32 images of 8x8, one core: columns
7 us this way and 62 by gathering; the product 61 and 50.) The gradient of the input adds the shifted rows back the same way.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hetsched.errors import GraphError
from hetsched.graph.op import Attribute, Attributes, Cotangent, Op, Operand, Work, WorkRule
from hetsched.graph.ops import _cl_conv, _cuda_windows, _cudnn
from hetsched.graph.ops._rules import nbytes, reshaped, with_direct, zero
from hetsched.graph.ops._scratch import scratch, scratch_nbytes
from hetsched.graph.ops._windows import DILATION, PADDING, STRIDE, Pair, extents, output_extent, paddings, pair, want_images
from hetsched.graph.ops.pool import larger_calls, largest, max_pool, windows_of
from hetsched.graph.spec import AnySpec, Dim, Spec, bound

if TYPE_CHECKING:
    from hetsched.graph.graph import Builder, Value

# Bytes of columns a block of images may take: they are written and read once, and should still be in the cache of a core when read.
_BLOCK_NBYTES = 1 << 20
# On a GPU a block is as large as its memory allows within reason: few large products. It comes from the library's pool, not from the workspace.
_GPU_BLOCK_NBYTES = 256 << 20


class Geometry(NamedTuple):
    """Where everything of one convolution lies. Extents in elements; `images` is the number of images in a block."""

    n: int
    c: int
    h: int
    w: int
    o: int
    groups: int
    kernel: Pair
    stride: Pair
    dilation: Pair
    before: Pair  # padding above and left
    out: Pair  # extents of the output
    padded: Pair  # extents of one image in the padded buffer
    grid: Pair  # positions computed per image: `padded` with stride 1, else `out`
    pitch: int  # elements of one channel in the padded buffer
    images: int

    @property
    def patch(self) -> int:
        """Elements of a patch of one group."""
        return self.c // self.groups * self.kernel[0] * self.kernel[1]

    @property
    def positions(self) -> int:
        """Positions computed per image."""
        return self.grid[0] * self.grid[1]

    @property
    def shifts(self) -> bool:
        """True if columns are shifted rows of the padded buffer."""
        return self.stride == (1, 1)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Elements of the padded buffer, of the columns, and of the products of a block."""
        block = self.images * self.positions
        return self.c * self.pitch, self.groups * self.patch * block, self.o * block


@lru_cache(maxsize=4096)
def _geometry(n: int, c: int, h: int, w: int, o: int, kernel: Pair, itemsize: int, options: tuple[Any, ...], block: int = 0) -> Geometry:
    stride, dilation, padding, groups = options
    out, padded, before = [], [], []
    shifts = stride == (1, 1)
    pads = paddings(padding, kernel, stride, dilation)
    for extent, k, s, d, (low, high) in zip((h, w), kernel, stride, dilation, pads, strict=True):
        fits = output_extent(extent, k, s, d, low + high)
        out.append(fits)
        before.append(low)
        # Shared padding with stride 1, each image its own otherwise; never less than the positions that are computed.
        padded.append(max(extent + max(low, high), fits) if shifts else max(low + extent, (k - 1) * d + (fits - 1) * s + 1))
    grid = padded if shifts else out
    patch = c // groups * kernel[0] * kernel[1]
    per_image = max(1, groups * patch * grid[0] * grid[1] * itemsize)
    images = max(1, min(n, (block or _BLOCK_NBYTES) // per_image))
    slack = (kernel[0] - 1) * dilation[0] * padded[1] + (kernel[1] - 1) * dilation[1] if shifts else 0
    pitch = images * padded[0] * padded[1] + slack
    return Geometry(
        n, c, h, w, o, groups, kernel, stride, dilation,
        (before[0], before[1]), (out[0], out[1]), (padded[0], padded[1]), (grid[0], grid[1]), pitch, images,
    )  # fmt: skip


def _options(a: Attributes) -> tuple[Any, ...]:
    padding = a["padding"]
    return (
        pair(a["stride"], "stride"), pair(a["dilation"], "dilation"),
        tuple(padding) if isinstance(padding, list) else padding, a["groups"],
    )  # fmt: skip


def _block(xp: Any, workspace: Any) -> int:
    """Bytes of columns of a block of images: small ones where the plan has set a workspace aside, which is as large as they need."""
    return _BLOCK_NBYTES if workspace is not None or xp is np else _GPU_BLOCK_NBYTES


class _Block(NamedTuple):
    """Views of the buffers of one block of images."""

    images: slice
    inside: Any  # the images themselves in the padded buffer, [m, c, h, w]
    source: Any  # the padded buffer seen as columns, [c, kh, kw, ...]
    columns: Any  # the columns, shaped as `source`
    matrix: Any  # the columns as matrices, [groups, patch, m * positions]
    product: Any  # the products as matrices, [groups, o / groups, m * positions]
    valid: Any  # what of them is an output, [m, o, oh, ow]


def _blocks(xp: Any, g: Geometry, padded: Any, columns: Any, products: Any) -> list[_Block]:
    """The blocks of one launch; all use the same buffers, the last may use less of them."""
    found: list[_Block] = []
    item = padded.itemsize
    (kh, kw), (dh, dw), (sh, sw), (hp, wp), (gh, gw) = g.kernel, g.dilation, g.stride, g.padded, g.grid
    rows = padded.reshape(g.c, g.pitch)
    for start in range(0, g.n, g.images):
        m = min(g.images, g.n - start)
        if found and m == g.images:
            found.append(found[0]._replace(images=slice(start, start + m)))
            continue
        size = m * g.positions
        picture = rows[:, : m * hp * wp].reshape(g.c, m, hp, wp).transpose(1, 0, 2, 3)
        inside = picture[:, :, g.before[0] : g.before[0] + g.h, g.before[1] : g.before[1] + g.w]
        shape, strides = ((size,), (item,)) if g.shifts else ((m, *g.out), (hp * wp * item, sh * wp * item, sw * item))
        source = xp.lib.stride_tricks.as_strided(
            rows, shape=(g.c, kh, kw, *shape), strides=(g.pitch * item, dh * wp * item, dw * item, *strides)
        )  # fmt: skip
        matrix = columns[: g.groups * g.patch * size].reshape(g.groups, g.patch, size)
        product = products[: g.o * size].reshape(g.groups, g.o // g.groups, size)
        valid = product.reshape(g.o, m, gh, gw).transpose(1, 0, 2, 3)[:, :, : g.out[0], : g.out[1]]
        found.append(_Block(slice(start, start + m), inside, source, matrix.reshape(source.shape), matrix, product, valid))
    return found


def _multiply(xp: Any, a: Any, b: Any, out: Any) -> None:
    """out = a b, stacks of a matrix a group.

    CuPy copies a stack of transposed matrices, which may be all columns, and hands a matrix by itself to cuBLAS as it is.
    """
    if xp is not np and len(a) == 1:
        a, b, out = a[0], b[0], out[0]
    xp.matmul(a, b, out=out)


def _forward(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    """0.13 ms for 32 images of 8x8, 8 -> 16 channels, 3x3, float32, one core (the product alone 0.06)."""
    x, w, y = inputs[0], inputs[1], outputs[0]
    if not y.size:
        return
    g = _geometry(*x.shape, w.shape[0], w.shape[2:], x.itemsize, _options(a), _block(xp, workspace))
    padded, columns, products = scratch(xp, workspace, x.dtype, *g.counts)
    padded.fill(0)
    weights = w.reshape(g.groups, g.o // g.groups, g.patch)
    bias = inputs[2].reshape(-1, 1, 1) if len(inputs) > 2 else None
    for block in _blocks(xp, g, padded, columns, products):
        target = y[block.images]
        xp.copyto(block.inside, x[block.images])
        xp.copyto(block.columns, block.source)
        _multiply(xp, weights, block.matrix, block.product)
        if bias is not None:
            xp.add(block.valid, bias, out=target)
            if a["activation"] == "relu":
                xp.maximum(target, 0, out=target)
        elif a["activation"] == "relu":
            xp.maximum(block.valid, 0, out=target)
        else:
            xp.copyto(target, block.valid)


# Straight-line code (`hetsched.graph.op.Direct`) ----------------------------------------------------------------------------------


def _images(x: Any, images: slice, n: int, calls: list[tuple[Any, ...]]) -> Any:
    """`x[images]`, of n images."""
    if images == slice(0, n):
        return x
    if not isinstance(x, Operand):
        return x[images]
    out = Operand((images.stop - images.start, *x.shape[1:]), x.dtype)
    calls.append((out, operator.getitem, x, images))
    return out


def _direct_products(ins: Sequence[Any], y: Any, workspace: Any, a: Attributes) -> tuple[Geometry, Iterator[tuple[_Block, list[tuple[Any, ...]]]]]:
    """The geometry, and for each block of images the calls after which its products, bias added, are in `block.valid`."""
    x, w = ins[0], ins[1]
    g = _geometry(*x.shape, w.shape[0], tuple(w.shape[2:]), x.dtype.itemsize, _options(a), _block(np, workspace))
    padded, columns, products = scratch(np, workspace, x.dtype, *g.counts)

    def each() -> Iterator[tuple[_Block, list[tuple[Any, ...]]]]:
        calls: list[tuple[Any, ...]] = [(None, padded.fill, 0)]
        if g.groups == 1 and x.dtype.char in "fd":
            weights = reshaped(w, (g.o, g.patch), calls)
        else:
            weights = reshaped(w, (g.groups, g.o // g.groups, g.patch), calls)
        bias = reshaped(ins[2], (g.o, 1), calls) if len(ins) > 2 else None
        for block in _blocks(np, g, padded, columns, products):
            calls.append((None, np.copyto, block.inside, _images(x, block.images, g.n, calls)))
            calls.append((None, np.copyto, block.columns, block.source))
            if len(weights.shape) == 2:
                calls.append((None, np.dot, weights, block.matrix[0], block.product[0]))
            else:
                calls.append((None, np.matmul, weights, block.matrix, block.product))
            if bias is not None:  # where the padding's products lie in between there is nothing to skip
                every = block.product.reshape(g.o, -1)
                calls.append((None, np.add, every, bias, every))
            yield block, calls
            calls = []

    return g, each()


def _direct_forward(ins: Sequence[Any], outs: Sequence[Any], workspace: Any, a: Attributes) -> list[tuple[Any, ...]] | None:
    y = outs[0]
    if workspace is None or not math.prod(y.shape):
        return None
    found: list[tuple[Any, ...]] = []
    g, blocks = _direct_products(ins, y, workspace, a)
    for block, calls in blocks:
        target = _images(y, block.images, g.n, calls)
        last = (np.maximum, block.valid, zero(y.dtype), target) if a["activation"] == "relu" else (np.copyto, target, block.valid)
        found += [*calls, (None, *last)]
    return found


def _direct_then_max_pool(
    ins: Sequence[Any], between: Any, y: Any, workspace: Any, a: Attributes, pool_attributes: Attributes
) -> list[tuple[Any, ...]] | None:
    """Convolution and the pooling of what it gives, `between`, which nobody else reads: the largest of each window first, the activation then, on

    fewer elements; it keeps the order of numbers. `y` may lie where the inputs and the workspace of the convolution were: it is written when those
    have been read.
    """
    if workspace is None or isinstance(between, Operand) or isinstance(y, Operand) or not y.size or not between.size:
        return None
    g, blocks = _direct_products(ins, between, workspace, a)
    windows = windows_of(between, pool_attributes)
    if g.images < g.n or not windows.two_passes:
        return None
    ((block, calls),) = blocks
    calls += larger_calls(largest(windows, block.valid, y, between.reshape(-1)))
    if a["activation"] == "relu":
        calls.append((None, np.maximum, y, zero(y.dtype), y))
    return calls


with_direct(_forward, _direct_forward, {max_pool: _direct_then_max_pool})


def _grad_weight(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    x, dy = inputs
    dw, db = outputs
    if not x.size or not dy.size:
        dw.fill(0)
        if dy.size:
            xp.sum(dy, axis=(0, 2, 3), out=db)
        else:
            db.fill(0)
        return
    g = _geometry(*x.shape, dy.shape[1], dw.shape[2:], x.itemsize, _options(a), _block(xp, workspace))
    padded, columns, products, part, bias_part = scratch(xp, workspace, x.dtype, *g.counts, g.o * g.patch, g.o)
    padded.fill(0)
    if g.grid != g.out:
        products.fill(0)
    total, part = dw.reshape(g.groups, g.o // g.groups, g.patch), part.reshape(g.groups, g.o // g.groups, g.patch)
    for i, block in enumerate(_blocks(xp, g, padded, columns, products)):
        if i and block.product.size != products.size and g.grid != g.out:
            products.fill(0)  # a smaller last block lies otherwise in the buffer
        xp.copyto(block.inside, x[block.images])
        xp.copyto(block.columns, block.source)
        xp.copyto(block.valid, dy[block.images])
        _multiply(xp, block.product, block.matrix.transpose(0, 2, 1), part if i else total)
        xp.sum(block.product.reshape(g.o, -1), axis=1, out=bias_part if i else db)
        if i:
            xp.add(total, part, out=total)
            xp.add(db, bias_part, out=db)


def _grad_input(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    w, dy = inputs
    dx = outputs[0]
    if not dx.size or not dy.size or not w.size:
        dx.fill(0)
        return
    g = _geometry(*dx.shape, dy.shape[1], w.shape[2:], dx.itemsize, _options(a), _block(xp, workspace))
    padded, columns, products = scratch(xp, workspace, dx.dtype, *g.counts)
    rows = padded.reshape(g.c, g.pitch)
    (kh, kw), (dh, dw), (sh, sw), (oh, ow), wp = g.kernel, g.dilation, g.stride, g.out, g.padded[1]
    weights = w.reshape(g.groups, g.o // g.groups, g.patch).transpose(0, 2, 1)
    if g.grid != g.out:
        products.fill(0)
    for i, block in enumerate(_blocks(xp, g, padded, columns, products)):
        if i and block.product.size != products.size and g.grid != g.out:
            products.fill(0)
        xp.copyto(block.valid, dy[block.images])
        _multiply(xp, weights, block.product, block.matrix)
        padded.fill(0)
        size = block.matrix.shape[2]
        pictures = None if g.shifts else rows.reshape(g.c, g.images, *g.padded)[:, : block.columns.shape[3]]
        for row in range(kh):
            for column in range(kw):
                if pictures is None:
                    shift = row * dh * wp + column * dw
                    target = rows[:, shift : shift + size]
                else:
                    top, left = row * dh, column * dw
                    target = pictures[:, :, top : top + (oh - 1) * sh + 1 : sh, left : left + (ow - 1) * sw + 1 : sw]
                xp.add(target, block.columns[:, row, column], out=target)
        xp.copyto(dx[block.images], block.inside)


# CUDA: cuDNN where it is installed, else the same in large blocks, whose buffers come from the library's pool --------------------------


def _cuda_geometry(kernel: Pair, a: Attributes) -> _cudnn.Geometry:
    padding = a["padding"]
    return _on_cuda(kernel, a["stride"], a["dilation"], tuple(padding) if isinstance(padding, list) else padding, a["groups"])


@lru_cache(maxsize=1024)
def _on_cuda(kernel: Pair, stride: Sequence[int], dilation: Sequence[int], padding: Any, groups: int) -> _cudnn.Geometry:
    steps, gaps = pair(stride, "stride"), pair(dilation, "dilation")
    return _cudnn.Geometry(paddings(padding, kernel, steps, gaps), steps, gaps, groups)


def _cuda_forward(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    (x, w), y = inputs[:2], outputs[0]
    if not _cudnn.convolve(xp, "Forward", x, w, y, _cuda_geometry(w.shape[2:], a), workspace):
        _forward(xp, inputs, outputs, None, a)
        return
    b, relu = inputs[2] if len(inputs) > 2 else None, a["activation"] == "relu"
    if (b is not None or relu) and not _cuda_windows.channel_bias(xp, y, b, relu):
        if b is not None:
            xp.add(y, b.reshape(-1, 1, 1), out=y)
        if relu:
            xp.maximum(y, 0, out=y)


def _cuda_grad_input(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    w, dy = inputs
    if not _cudnn.convolve(xp, "BackwardData", outputs[0], w, dy, _cuda_geometry(w.shape[2:], a), workspace):
        _grad_input(xp, inputs, outputs, None, a)


def _cuda_grad_weight(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    (x, dy), (dw, db) = inputs, outputs
    if not _cudnn.convolve(xp, "BackwardFilter", x, dw, dy, _cuda_geometry(dw.shape[2:], a), workspace):
        _grad_weight(xp, inputs, outputs, None, a)
        return
    (parts,) = scratch(xp, workspace, dy.dtype, dy.shape[0] * dy.shape[1])  # what cuDNN had of it is done with by then
    if not _cuda_windows.channel_sums(xp, dy, db, parts):
        xp.sum(dy, axis=(0, 2, 3), out=db)


# Shape rules --------------------------------------------------------------------------------------------------------------------


def _infer(specs: Sequence[AnySpec], a: Attributes) -> list[AnySpec]:
    problems: list[str] = []
    x, w = specs[0], specs[1]
    images = want_images(x, "x", problems)
    if not isinstance(w, Spec) or w.ndim != 4 or w.is_bounded:
        problems.append(f"weight must have 4 known axes (outputs, channels / groups, rows, columns), got {w!r}")
    elif images and isinstance(x, Spec):
        groups, c, o = a["groups"], bound(x.shape[1]), w.bounds[0]
        if c % groups or o % groups:
            problems.append(f"groups = {groups} must divide the {c} channels of x and the {o} outputs of weight")
        elif w.bounds[1] * groups != c:
            problems.append(f"weight {w!r} with {groups} group(s) wants {w.bounds[1] * groups} channels, x {x!r} has {c}")
        if w.dtype != x.dtype:
            problems.append(f"weight must have the dtype of x, {x.dtype.name}, got {w!r}")
        if len(specs) > 2 and specs[2] != Spec((o,), x.dtype):
            problems.append(f"bias must be {Spec((o,), x.dtype)!r}, got {specs[2]!r}")
        found = extents(x.bounds[2:], w.bounds[2:], a, problems, "kernel")
        if found is not None and not problems:
            return [Spec((x.shape[0], o, *found), x.dtype)]
    raise GraphError(problems)


def _check_dy(dy: Spec, wanted: tuple[Dim, int], size: Sequence[int], kernel: Sequence[int], a: Attributes, problems: list[str]) -> None:
    """`wanted`: the images and channels that dy must have."""
    found = extents(size, kernel, a, problems, "kernel")
    if found is not None and dy.shape != (*wanted, *found):
        problems.append(f"dy must be {Spec((*wanted, *found), dy.dtype)!r} for images of {size[0]} x {size[1]}, got {dy!r}")


def _infer_grad_weight(specs: Sequence[AnySpec], a: Attributes) -> list[AnySpec]:
    problems: list[str] = []
    x, dy = specs
    if all([want_images(x, "x", problems), want_images(dy, "dy", problems)]) and isinstance(x, Spec) and isinstance(dy, Spec):
        kernel, groups, o, c = pair(a["kernel"], "kernel"), a["groups"], bound(dy.shape[1]), bound(x.shape[1])
        if c % groups or o % groups:
            problems.append(f"groups = {groups} must divide the {c} channels of x and the {o} of dy")
        if dy.dtype != x.dtype:
            problems.append(f"dy must have the dtype of x, {x.dtype.name}, got {dy!r}")
        _check_dy(dy, (x.shape[0], o), x.bounds[2:], kernel, a, problems)
        if not problems:
            return [Spec((o, c // groups, *kernel), x.dtype), Spec((o,), x.dtype)]
    raise GraphError(problems)


def _infer_grad_input(specs: Sequence[AnySpec], a: Attributes) -> list[AnySpec]:
    problems: list[str] = []
    w, dy = specs
    if not isinstance(w, Spec) or w.ndim != 4 or w.is_bounded:
        problems.append(f"weight must have 4 known axes (outputs, channels / groups, rows, columns), got {w!r}")
    elif want_images(dy, "dy", problems) and isinstance(dy, Spec):
        size = pair(a["image"], "image")
        c = w.bounds[1] * a["groups"]
        if w.bounds[0] % a["groups"]:
            problems.append(f"groups = {a['groups']} must divide the {w.bounds[0]} outputs of weight")
        if dy.dtype != w.dtype:
            problems.append(f"dy must have the dtype of weight, {w.dtype.name}, got {dy!r}")
        _check_dy(dy, (dy.shape[0], w.bounds[0]), size, w.bounds[2:], a, problems)
        if not problems:
            return [Spec((dy.shape[0], c, *size), dy.dtype)]
    raise GraphError(problems)


# Work, workspace, gradient ------------------------------------------------------------------------------------------------------


def _spec(spec: AnySpec) -> Spec:
    assert isinstance(spec, Spec)
    return spec


def _rule(flops_of: int, kernel: int, among_outputs: bool = False) -> WorkRule:
    """2 flops a weight and output position: `flops_of` is the input (or, below 0, the output) that is y or dy, `kernel` the weights."""

    def work(inputs: Sequence[AnySpec], outputs: Sequence[AnySpec], a: Attributes) -> Work:
        weights = _spec((outputs if among_outputs else inputs)[kernel])
        patch = weights.size // max(1, weights.bounds[0])
        positions = _spec(outputs[0] if flops_of < 0 else inputs[flops_of]).size
        return Work(2.0 * positions * patch, nbytes(inputs), nbytes(outputs))

    return work


def _workspace(x: Spec, w: Spec, a: Attributes, *more: int) -> int:
    g = _geometry(*x.bounds, w.bounds[0], w.bounds[2:], x.dtype.itemsize, _options(a))
    return scratch_nbytes(x.dtype, *g.counts, *more)


# What either language needs: where the launch will run is not known here.
def _workspace_forward(inputs: Sequence[AnySpec], outputs: Sequence[AnySpec], a: Attributes) -> int:
    x, w = _spec(inputs[0]), _spec(inputs[1])
    return max(_workspace(x, w, a), _cl_conv.correlate_nbytes(w.bounds, a["groups"], x.dtype))


def _workspace_grad_weight(inputs: Sequence[AnySpec], outputs: Sequence[AnySpec], a: Attributes, way: _cl_conv.Way | None = None) -> int:
    x, dy, dw = _spec(inputs[0]), _spec(inputs[1]), _spec(outputs[0])
    elsewhere = _cl_conv.grad_weight_nbytes(x.bounds, dy.bounds, dw.bounds, a["groups"], x.dtype, way)
    sums = scratch_nbytes(x.dtype, dy.bounds[0] * dy.bounds[1])
    return max(_workspace(x, dw, a, dw.size, dw.bounds[0]), elsewhere, sums)


def _workspace_grad_input(inputs: Sequence[AnySpec], outputs: Sequence[AnySpec], a: Attributes) -> int:
    w = _spec(inputs[0])
    return max(_workspace(_spec(outputs[0]), w, a), _cl_conv.correlate_nbytes(w.bounds, a["groups"], w.dtype, True))


def _gradient(b: Builder, inputs: Sequence[Value], outputs: Sequence[Value], grads: Sequence[Value | None], a: Attributes) -> Sequence[Cotangent]:
    """Gradients of x, weight and bias; those of weight and bias come from one task."""
    x, w = inputs[0], inputs[1]
    dy = grads[0]
    if dy is None:
        return [None] * len(inputs)
    geometry = {name: a[name] for name in ("stride", "padding", "dilation", "groups")}
    made: dict[str, Any] = {}

    def dz() -> Value:
        """The gradient before the activation, made once."""
        if "dz" not in made:
            made["dz"] = b.op("nn.relu_grad", outputs[0], dy) if a["activation"] == "relu" else dy
        value: Value = made["dz"]
        return value

    def parameters() -> tuple[Value, Value]:
        if "parameters" not in made:
            made["parameters"] = b.op(CONV2D_GRAD_WEIGHT, x, dz(), kernel=w.array_spec.bounds[2:], **geometry)
        pair: tuple[Value, Value] = made["parameters"]
        return pair

    def dx() -> Value:
        value: Value = b.op(CONV2D_GRAD_INPUT, w, dz(), image=x.array_spec.bounds[2:], **geometry)
        return value

    return [dx, lambda: parameters()[0], lambda: parameters()[1]][: len(inputs)]


_GEOMETRY = {
    "stride": STRIDE,
    "padding": PADDING,
    "dilation": DILATION,
    "groups": Attribute(int, 1, "groups of channels that do not see each other", low=1),
}

CONV2D = Op(
    "nn.conv2d",
    ("x", "weight", "bias?"),
    ("y",),
    _infer,
    _rule(-1, 1),
    kernels={"array": _forward, "opencl": _cl_conv.forward, "cuda": _cuda_forward},
    gradient=_gradient,
    attributes={**_GEOMETRY, "activation": Attribute(("none", "relu"), "none", "applied to the sum")},
    workspace=_workspace_forward,
    doc="""Cross-correlation of images, y[n, o, r, s] = bias[o] + the sum over c, i, j of
    weight[o, c, i, j] * x[n, c, r * stride + i * dilation - padding, s * stride + j * dilation - padding].

    x [n, c, h, w], weight [o, c / groups, kh, kw], bias [o], y [n, o, oh, ow] with oh = (h + 2 padding - dilation (kh - 1) - 1) // stride + 1;
    one floating dtype. Output o reads the channels of its group.""",
    calls=32,
    cuda_calls=2,
)

CONV2D_GRAD_INPUT = Op(
    "nn.conv2d_grad_input",
    ("weight", "dy"),
    ("dx",),
    _infer_grad_input,
    _rule(1, 0),
    kernels={"array": _grad_input, "opencl": _cl_conv.grad_input, "cuda": _cuda_grad_input},
    attributes={"image": Attribute("ints", doc="rows and columns of x", low=0), **_GEOMETRY},
    workspace=_workspace_grad_input,
    doc="The gradient of `nn.conv2d` (without activation) with respect to x, [n, c, h, w]: the transposed convolution of dy.",
    calls=54,
)

CONV2D_GRAD_WEIGHT = Op(
    "nn.conv2d_grad_weight",
    ("x", "dy"),
    ("dweight", "dbias"),
    _infer_grad_weight,
    _rule(1, 0, among_outputs=True),
    kernels={"array": _grad_weight, "opencl": _cl_conv.grad_weight, "cuda": _cuda_grad_weight},
    attributes={"kernel": Attribute("ints", doc="rows and columns of a window", low=1), **_GEOMETRY},
    workspace=_workspace_grad_weight,
    doc="The gradients of `nn.conv2d` (without activation) with respect to weight, [o, c / groups, kh, kw], and bias, [o].",
    calls=41,
    cuda_calls=2,
)
