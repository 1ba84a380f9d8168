"""Convolution in OpenCL C (conv.py has the ops): which way, and direct kernels, a tile of pixels times a vector of output channels in registers.

Most convolutions are matrix products (`way_of`, _cl_conv_product.py); small ones are faster directly.

Nothing is gathered into columns: weights are packed so that the output channels of a tile lie side by side, and every pixel read is multiplied with
all of them. The convolution and its gradient for the images are one kernel: output pixel i reads pixel (i * mul - before + tap * step) / div, where
that is a whole number within the image. The gradient of the weights goes through dy packed the same way; images are shared among work items in parts,
whose sums are added up in order.

Tiles suit processors with 16 vector registers of 32 bytes or more; GPUs run them too, without local memory. Loops over a tile are unrolled by
command: PoCL leaves their arrays in memory otherwise (64 -> 64 channels of 28x28, 3x3, float32, a core: 19 GFLOP/s, 97 unrolled).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from hetsched.graph.op import Attributes, OpenCL
from hetsched.graph.ops import _cl_conv_product
from hetsched.graph.ops._cl_conv_product import Axis
from hetsched.graph.ops._cl_types import scalar_type, source, workspace_pieces
from hetsched.graph.ops._scratch import scratch_nbytes
from hetsched.graph.ops._windows import Pair, paddings, pair

_PACK = """
// packed[group][tap][k][m] = weight of sum channel k and output channel m; m is padded with zeros to `padded`.
__kernel void pack(IN(S, w), OUT(T, packed), const long size, const int taps, const int k_count, const int m_count, const int padded,
                   const long k_stride, const long m_stride) {
    LET_IN(S, w) LET_OUT(T, packed)
    const long id = get_global_id(0);
    if (id >= size) return;
    const int m = id % padded, k = id / padded % k_count, tap = id / padded / k_count % taps;
    const long group = id / padded / k_count / taps;
    packed[id] = m < m_count ? LOAD(w, group * k_count * m_count * taps + m * m_stride + k * k_stride + tap) : (T)0;
}
"""

_CORRELATE = f"""{_PACK}
#define TILE (VECTORS * W)

#if STRIDED
#define DIVIDED(i, div) ((i) / (div))
#define MULTIPLE(i, r, div) ((i) == (r) * (div))
#else
#define DIVIDED(i, div) (i)
#define MULTIPLE(i, r, div) true
#endif
#define ADD_CHANNELS(PIXEL) for (int k = 0; k < k_count; k++) {{ \\
    const long plane = in + (long)k * h * w; \\
    TW weight[VECTORS]; \\
    UNROLL for (int v = 0; v < VECTORS; v++) weight[v] = VLOADW(v, weights + (long)k * padded); \\
    UNROLL for (int q = 0; q < PIXELS; q++) {{ \\
        const T pixel = PIXEL; \\
        UNROLL for (int v = 0; v < VECTORS; v++) sums[q][v] += weight[v] * pixel; \\
    }} \\
}}

__kernel void correlate(
    IN(S, x), IN(T, packed), IN(S, bias), OUT(S, y), const int has_bias, const int relu, const int images, const int groups,
    const int k_count, const int m_count, const int padded, const int h, const int w, const int oh, const int ow, const int kh, const int kw,
    const int row_mul, const int row_before, const int row_step, const int row_div,
    const int column_mul, const int column_before, const int column_step, const int column_div
) {{
    LET_IN(S, x) LET_IN(T, packed) LET_IN(S, bias) LET_OUT(S, y)
    const int start = get_global_id(0) * PIXELS, blocks = padded / TILE, image = get_global_id(2);
    if (start >= oh * ow || get_global_id(1) >= blocks * groups || image >= images) return;
    const int group = get_global_id(1) / blocks, m = get_global_id(1) % blocks * TILE;
    const long in = ((long)image * groups + group) * k_count * h * w, out = ((long)image * groups + group) * m_count * oh * ow;
    const int count = min(PIXELS, oh * ow - start);

    TW sums[PIXELS][VECTORS];
    int row[PIXELS], column[PIXELS], at[PIXELS];
    T first[TILE];
    UNROLL for (int i = 0; i < TILE; i++) first[i] = has_bias && m + i < m_count ? LOAD(bias, group * m_count + m + i) : (T)0;
    UNROLL for (int q = 0; q < PIXELS; q++) {{
        const int p = start + min(q, count - 1);
        row[q] = p / ow * row_mul - row_before;
        column[q] = p % ow * column_mul - column_before;
        UNROLL for (int v = 0; v < VECTORS; v++) sums[q][v] = VLOADW(v, first);
    }}
    for (int a = 0; a < kh; a++) for (int b = 0; b < kw; b++) {{
        bool all = true, any = false;
        UNROLL for (int q = 0; q < PIXELS; q++) {{
            const int i = row[q] + a * row_step, j = column[q] + b * column_step, r = DIVIDED(i, row_div), c = DIVIDED(j, column_div);
            const bool inside = i >= 0 && j >= 0 && MULTIPLE(i, r, row_div) && MULTIPLE(j, c, column_div) && r < h && c < w;
            at[q] = inside ? r * w + c : -1;
            all = all && inside;
            any = any || inside;
        }}
        if (!any) continue;
        __global const T *weights = packed + ((long)group * kh * kw + a * kw + b) * k_count * padded + m;
        if (all) ADD_CHANNELS(LOAD(x, plane + at[q])) else ADD_CHANNELS(at[q] < 0 ? (T)0 : LOAD(x, plane + at[q]))
    }}
    T found[PIXELS][TILE];
    UNROLL for (int q = 0; q < PIXELS; q++) UNROLL for (int v = 0; v < VECTORS; v++) VSTOREW(sums[q][v], v, found[q]);
    for (int i = 0; i < min(TILE, m_count - m); i++) for (int q = 0; q < count; q++) {{
        const T sum = found[q][i];
        STORE(y, out + (long)(m + i) * oh * ow + start + q, relu && sum < 0 ? (T)0 : sum);
    }}
}}
"""

_GRAD_WEIGHT = """
#define TILE (VECTORS * W)

// packed[image][position][group][m] = dy; m is padded with zeros to `padded`.
__kernel void pack_dy(IN(S, dy), OUT(T, packed), const int images, const int groups, const int m_count, const int padded, const int positions) {
    LET_IN(S, dy) LET_OUT(T, packed)
    const int position = get_global_id(0), vectors = padded / W, image = get_global_id(2);
    if (position >= positions || get_global_id(1) >= vectors * groups || image >= images) return;
    const int group = get_global_id(1) / vectors, m = get_global_id(1) % vectors * W;
    const long in = ((long)image * groups + group) * m_count;
    T values[W];
    UNROLL for (int i = 0; i < W; i++) values[i] = m + i < m_count ? LOAD(dy, (in + m + i) * positions + position) : (T)0;
    VSTOREW(VLOADW(0, values), 0, packed + (((long)image * positions + position) * groups + group) * padded + m);
}

// sums[part][o][k][tap], for the images of a part: a work item has one tap, CHANNELS of k and TILE of o.
__kernel void grad_weight(
    IN(S, x), IN(T, packed), OUT(T, sums), const int images, const int parts, const int groups, const int k_count, const int m_count,
    const int padded, const int h, const int w, const int oh, const int ow, const int kh, const int kw, const int sh, const int sw,
    const int dh, const int dw, const int ph, const int pw, const long part_size
) {
    LET_IN(S, x) LET_IN(T, packed) LET_OUT(T, sums)
    const int k_blocks = (k_count + CHANNELS - 1) / CHANNELS, blocks = padded / TILE, part = get_global_id(2);
    if (get_global_id(0) >= k_blocks * kh * kw || get_global_id(1) >= blocks * groups || part >= parts) return;
    const int tap = get_global_id(0) % (kh * kw), k = get_global_id(0) / (kh * kw) * CHANNELS, a = tap / kw, b = tap % kw;
    const int group = get_global_id(1) / blocks, m = get_global_id(1) % blocks * TILE, step = groups * padded;
    const int each = (images + parts - 1) / parts;
    // The positions of a row whose pixel lies in the image: from `low` to `high` - 1.
    const int shift = b * dw - pw, low = shift < 0 ? (-shift + sw - 1) / sw : 0, high = w > shift ? min(ow, (w - 1 - shift) / sw + 1) : 0;

    TW total[CHANNELS][VECTORS];
    long plane[CHANNELS];
    UNROLL for (int q = 0; q < CHANNELS; q++) UNROLL for (int v = 0; v < VECTORS; v++) total[q][v] = (TW)(0);
    for (int image = part * each; image < min(images, (part + 1) * each); image++) {
        UNROLL for (int q = 0; q < CHANNELS; q++) plane[q] = (((long)image * groups + group) * k_count + min(k + q, k_count - 1)) * h * w;
        for (int r = 0; r < oh; r++) {
            const int row = r * sh - ph + a * dh;
            if (row < 0 || row >= h) continue;
            __global const T *from = packed + ((long)image * oh + r) * ow * step + group * padded + m;
            for (int s = low; s < high; s++) {
                TW d[VECTORS];
                UNROLL for (int v = 0; v < VECTORS; v++) d[v] = VLOADW(v, from + (long)s * step);
                UNROLL for (int q = 0; q < CHANNELS; q++) {
                    const T pixel = LOAD(x, plane[q] + row * w + s * sw + shift);
                    UNROLL for (int v = 0; v < VECTORS; v++) total[q][v] += d[v] * pixel;
                }
            }
        }
    }
    T found[CHANNELS][TILE];
    UNROLL for (int q = 0; q < CHANNELS; q++) UNROLL for (int v = 0; v < VECTORS; v++) VSTOREW(total[q][v], v, found[q]);
    for (int i = 0; i < min(TILE, m_count - m); i++) for (int q = 0; q < min(CHANNELS, k_count - k); q++)
        sums[part * part_size + (((long)group * m_count + m + i) * k_count + k + q) * (kh * kw) + tap] = found[q][i];
}

// sums[part][behind the weights][o], for the images of a part.
__kernel void grad_bias(
    IN(T, packed), OUT(T, sums), const int images, const int parts, const int groups, const int m_count, const int padded, const int positions,
    const long part_size, const long behind
) {
    LET_IN(T, packed) LET_OUT(T, sums)
    const int vectors = padded / W, part = get_global_id(1);
    if (get_global_id(0) >= vectors * groups || part >= parts) return;
    const int group = get_global_id(0) / vectors, m = get_global_id(0) % vectors * W, each = (images + parts - 1) / parts;
    const long end = (long)min(images, (part + 1) * each) * positions;
    TW total = (TW)(0);
    for (long i = (long)part * each * positions; i < end; i++) total += VLOADW(0, packed + (i * groups + group) * padded + m);
    T found[W];
    VSTOREW(total, 0, found);
    for (int i = 0; i < min(W, m_count - m); i++) sums[part * part_size + behind + group * m_count + m + i] = found[i];
}

__kernel void add_parts(IN(T, sums), OUT(S, dw), OUT(S, db), const int parts, const long part_size, const long behind) {
    LET_IN(T, sums) LET_OUT(S, dw) LET_OUT(S, db)
    const long id = get_global_id(0);
    if (id >= part_size) return;
    T sum = 0;
    for (int part = 0; part < parts; part++) sum += sums[part * part_size + id];
    if (id < behind) STORE(dw, id, sum); else STORE(db, id - behind, sum);
}
"""

# Work items that a gradient of weights should have at least; where weights give fewer, the images are shared among parts.
_ITEMS = 256


class _Tiles(NamedTuple):
    """How `count` output channels of a group lie in registers: vectors of `width` elements, and rows (pixels or channels) times vectors."""

    width: int
    vectors: int
    rows: int
    padded: int  # `count`, rounded up to whole tiles

    @property
    def defines(self) -> str:
        return f"#define VECTORS {self.vectors}\n#define VLOADW(i, p) vload{self.width}(i, p)\n#define VSTOREW(x, i, p) vstore{self.width}(x, i, p)\n"


def _tiles(count: int, dtype: Any) -> _Tiles:
    """One vector where that holds all channels, else two; eight sums in registers are enough to hide what an addition takes."""
    width = 4 if np.dtype(dtype) == np.float64 else 8
    vectors = 1 if count <= width else 2
    return _Tiles(width, vectors, 8 // vectors, -(-count // (vectors * width)) * vectors * width)


class _Window(NamedTuple):
    kernel: Pair
    stride: Pair
    dilation: Pair
    before: Pair


def _window(kernel: Sequence[int], a: Attributes) -> _Window:
    size, stride, dilation = (kernel[0], kernel[1]), pair(a["stride"], "stride"), pair(a["dilation"], "dilation")
    (up, _), (left, _) = paddings(a["padding"], size, stride, dilation)
    return _Window(size, stride, dilation, (up, left))


Way: TypeAlias = Literal["product", "direct"]


# From so many outputs, channels and positions on a product is faster (PoCL 3.0, two cores; benchmarks/opencl_kernels.py shows both ways). What the
# product gains by reading a panel of patches once for 96 outputs it loses where these are few, or where few channels share the bounds of a tap.
_FEWEST_OUTPUTS, _FEWEST_CHANNELS, _FEWEST_POSITIONS = 12, 12, 49
# Below, tiles of 64 x 64 on a GPU would mostly multiply zeros. Not measured.
_FEWEST_OUTPUTS_GPU, _FEWEST_TERMS_GPU = 16, 16


def way_of(is_cpu: bool, outputs: int, channels: int, taps: int, positions: int, phases: int = 1) -> Way:
    """How a convolution is calculated: `outputs` and `channels` of a group, `taps` of the window, `positions` of an output image.

    Of its gradient for the images, outputs are those of x, and `phases` the pixels of a stride: there the direct way multiplies with the zeros in
    between. Of its gradient for the weights, they are as those of the convolution.
    """
    if not is_cpu:
        return "product" if outputs >= _FEWEST_OUTPUTS_GPU and channels * taps >= _FEWEST_TERMS_GPU else "direct"
    if positions < _FEWEST_POSITIONS or channels < _FEWEST_CHANNELS:
        return "direct"
    return "product" if outputs >= _FEWEST_OUTPUTS or phases > 1 else "direct"


# The convolution and its gradient for the images ---------------------------------------------------------------------------------


def _packed_size(weight: Sequence[int], groups: int, dtype: Any, transposed: bool) -> int:
    o, per_group, kh, kw = weight
    k, m = (o // groups, per_group) if transposed else (per_group, o // groups)
    return max(1, groups * kh * kw * k * _tiles(m, dtype).padded)


def correlate_nbytes(weight: Sequence[int], groups: int, dtype: Any, transposed: bool = False) -> int:
    """Bytes of workspace of `forward`, or (`transposed`) of `grad_input`, either way: the packed weights, [o, c / groups, kh, kw]."""
    direct = scratch_nbytes(scalar_type(dtype), _packed_size(weight, groups, dtype, transposed))
    return max(direct, _cl_conv_product.correlate_nbytes(weight, dtype))


def _correlate(
    cl: OpenCL, x: Any, weight: Any, bias: Any, y: Any, workspace: Any, groups: int, transposed: bool, relu: bool, axes: Sequence[Axis]
) -> None:
    """`axes`: for rows and columns (mul, before, step, div)."""
    o, per_group, kh, kw = weight.shape
    taps = kh * kw
    k, m = (o // groups, per_group) if transposed else (per_group, o // groups)
    tiles = _tiles(m, x.dtype)
    strided = any(div != 1 for *_, div in axes)
    text = source(cl, x.dtype, _CORRELATE, f"{tiles.defines}#define PIXELS {tiles.rows}\n#define STRIDED {int(strided)}\n")
    size = _packed_size(weight.shape, groups, x.dtype, transposed)
    (packed,) = workspace_pieces(cl, workspace, scalar_type(x.dtype), size)
    if weight.size:
        strides = (np.int64(m * taps), np.int64(taps)) if transposed else (np.int64(taps), np.int64(k * taps))
        cl.run(text, "pack", (size,), weight, packed, np.int64(size), *map(np.int32, (taps, k, m, tiles.padded)), *strides, local_size=(64,))
    n, _, oh, ow = y.shape
    grid = (-(-oh * ow // tiles.rows), groups * tiles.padded // (tiles.vectors * tiles.width), n)
    flags = (bias is not None, relu, n, groups, k, m, tiles.padded, *x.shape[2:], oh, ow, kh, kw, *axes[0], *axes[1])
    # An array that is not read stands for one that is missing or empty.
    arrays = (x if x.size else y, packed, y if bias is None else bias, y)
    cl.run(text, "correlate", grid, *arrays, *map(np.int32, flags), local_size=(8 if grid[0] > 4 else 4, 1, 1))


def _through(
    cl: OpenCL,
    way: Way | None,
    x: Any,
    weight: Any,
    bias: Any,
    y: Any,
    workspace: Any,
    groups: int,
    transposed: bool,
    relu: bool,
    axes: Sequence[Axis],
) -> None:
    """y from x by the product or directly; `axes`: rows and columns."""
    o, per_group, kh, kw = weight.shape
    k, m = (o // groups, per_group) if transposed else (per_group, o // groups)
    chosen = way or way_of(cl.is_cpu, m, k, kh * kw, y.shape[2] * y.shape[3], axes[0].div * axes[1].div)
    if chosen == "product" and x.size and weight.size:
        _cl_conv_product.correlate(cl, x, weight, bias, y, workspace, groups, transposed, relu, axes)
    else:
        _correlate(cl, x, weight, bias, y, workspace, groups, transposed, relu, axes)


def forward(cl: OpenCL, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes, way: Way | None = None) -> None:
    """The kernel of nn.conv2d; `way`: other than the rule says."""
    x, weight, y = inputs[0], inputs[1], outputs[0]
    if not y.size:
        return
    g = _window(weight.shape[2:], a)
    axes = [Axis(g.stride[i], g.before[i], g.dilation[i], 1) for i in range(2)]
    bias = inputs[2] if len(inputs) > 2 else None
    _through(cl, way, x, weight, bias, y, workspace, a["groups"], False, a["activation"] == "relu", axes)


def grad_input(cl: OpenCL, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes, way: Way | None = None) -> None:
    """The kernel of nn.conv2d_grad_input; `way`: other than the rule says."""
    (weight, dy), dx = inputs, outputs[0]
    if not dx.size:
        return
    if not dy.size or not weight.size:
        cl.fill(dx, 0)
        return
    g = _window(weight.shape[2:], a)
    axes = [Axis(1, -g.before[i], -g.dilation[i], g.stride[i]) for i in range(2)]
    _through(cl, way, dy, weight, None, dx, workspace, a["groups"], True, False, axes)


# The gradient for the weights ----------------------------------------------------------------------------------------------------


def _parts(n: int, weight: Sequence[int], groups: int, tiles: _Tiles) -> int:
    per_group, kh, kw = weight[1:]
    items = groups * (tiles.padded // (tiles.vectors * tiles.width)) * -(-per_group // tiles.rows) * kh * kw
    return min(n, -(-_ITEMS // max(1, items)))


def grad_weight_nbytes(x: Sequence[int], dy: Sequence[int], weight: Sequence[int], groups: int, dtype: Any) -> int:
    """Bytes of workspace of `grad_weight`, either way, for x [n, c, h, w], dy [n, o, oh, ow] and weights [o, c / groups, kh, kw].

    It holds dy or x packed, and the sums of every part."""
    n, o, oh, ow = dy
    tiles = _tiles(o // groups, dtype)
    part_size = weight[0] * weight[1] * weight[2] * weight[3] + o
    direct = scratch_nbytes(scalar_type(dtype), n * oh * ow * groups * tiles.padded, _parts(n, weight, groups, tiles) * part_size)
    return max(direct, _cl_conv_product.grad_weight_nbytes(x, weight, groups, dtype))


def grad_weight(cl: OpenCL, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes, way: Way | None = None) -> None:
    """The kernel of nn.conv2d_grad_weight; `way`: other than the rule says."""
    (x, dy), (dw, db) = inputs, outputs
    if not dy.size:
        for out in outputs:
            if out.size:
                cl.fill(out, 0)
        return
    chosen = way or way_of(cl.is_cpu, dy.shape[1] // a["groups"], dw.shape[1], dw.shape[2] * dw.shape[3], dy.shape[2] * dy.shape[3])
    if chosen == "product" and x.size and dw.size:
        g = _window(dw.shape[2:], a)
        _cl_conv_product.grad_weight(cl, x, dy, dw, db, workspace, a["groups"], g.stride, g.dilation, g.before)
        return
    groups, (n, o, oh, ow) = a["groups"], dy.shape
    k, m = dw.shape[1], o // groups
    g, tiles = _window(dw.shape[2:], a), _tiles(m, x.dtype)
    parts, padded = _parts(n, dw.shape, groups, tiles), tiles.padded
    channels = 1 if k == 1 else min(tiles.rows, 4) if k <= 4 else tiles.rows
    text = source(cl, x.dtype, _GRAD_WEIGHT, f"{tiles.defines}#define CHANNELS {channels}\n")
    part_size, behind, positions = np.int64(dw.size + o), np.int64(dw.size), oh * ow
    packed, sums = workspace_pieces(cl, workspace, scalar_type(x.dtype), n * positions * groups * padded, parts * int(part_size))
    sizes = map(np.int32, (n, groups, m, padded, positions))
    cl.run(text, "pack_dy", (positions, groups * padded // tiles.width, n), dy, packed, *sizes, local_size=(16, 1, 1))
    if x.size:
        grid = (-(-k // channels) * g.kernel[0] * g.kernel[1], groups * padded // (tiles.vectors * tiles.width), parts)
        sizes = map(np.int32, (n, parts, groups, k, m, padded, *x.shape[2:], oh, ow, *g.kernel, *g.stride, *g.dilation, *g.before))
        cl.run(text, "grad_weight", grid, x, packed, sums, *sizes, part_size)
    else:
        cl.fill(sums, 0)
    sizes = map(np.int32, (n, parts, groups, m, padded, positions))
    cl.run(text, "grad_bias", (groups * padded // tiles.width, parts), packed, sums, *sizes, part_size, behind)
    cl.run(text, "add_parts", (int(part_size),), sums, dw if dw.size else db, db, np.int32(parts), part_size, behind, local_size=(16,))
