"""Convolution in OpenCL C as matrix products (conv.py has the ops, _cl_conv.py chooses): patches are gathered while tiles are loaded, never stored.

The products are those of _cl_linear.py, one for processors and one for GPUs; only where a tile of b comes from differs, so no buffer of columns is
needed (the implicit GEMM of Chetlur et al., cuDNN: Efficient Primitives for Deep Learning, 2014). With images joined, and each group by itself:

- The convolution: y[o, position] = the sum over (tap, channel) of weight[o, tap, channel] * patch[(tap, channel), position].
- Its gradient for the images is the same product with dy for x. With a stride, the pixels of a phase (row % stride, column % stride) are columns of
  their own, which meet only the taps that reach them: nothing is multiplied with zeros that stand between the elements of dy.
- The gradient for the weights: dweight[o, channel, tap] = the sum over positions of dy[o, position] * patch[position, (tap, channel)], images shared
  among work-groups in parts, whose sums are added up in order.

Weights are packed so that the taps of a phase are neighbours, channels innermost: an address and its bounds are worked out once a tap, not once an
element. Where the outputs lie as their pixels do (stride 1, equal extents), a row of a tile is one load, masked at the border.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from hetsched.graph.op import OpenCL
from hetsched.graph.ops._cl_linear import BLOCK, DEPTH, MOST_ROWS, ROWS
from hetsched.graph.ops._cl_types import scalar_type, source, workspace_pieces
from hetsched.graph.ops._scratch import scratch_nbytes

# Along one axis output i reads input (i * mul - before + tap * step) / div, where that is whole. With i = phase + div * u it is so for every u or
# none: for the taps first, first + jump, ... below `taps`. Those of a phase are neighbours among the packed weights, which have the taps in the
# order of (tap % jump, tap / jump).
_PHASES = """
int first_tap(const int phase, const int mul, const int before, const int step, const int div, const int jump) {
    for (int tap = 0; tap < jump; tap++) if ((phase * mul - before + tap * step) % div == 0) return tap;
    return -1;
}
int taps_from(const int first, const int taps, const int jump) { return first < 0 || first >= taps ? 0 : (taps - first + jump - 1) / jump; }
int taps_before(const int first, const int taps, const int jump) { return first * (taps / jump) + min(first, taps % jump); }

#define PHASE \\
    const int row_phase = phase / column_div, column_phase = phase % column_div; \\
    const int uh = (oh - row_phase + row_div - 1) / row_div, uw = (ow - column_phase + column_div - 1) / column_div; \\
    if (uh <= 0 || uw <= 0) return; \\
    const int row_tap = first_tap(row_phase, row_mul, row_before, row_step, row_div, row_jump); \\
    const int column_tap = first_tap(column_phase, column_mul, column_before, column_step, column_div, column_jump); \\
    const int row_taps = taps_from(row_tap, kh, row_jump), column_taps = taps_from(column_tap, kw, column_jump); \\
    const int depth = row_taps * column_taps * channels; \\
    const long length = (long)kh * kw * channels, n = (long)images * uh * uw; \\
    const long behind = depth ? (long)(taps_before(row_tap, kh, row_jump) * kw + row_taps * taps_before(column_tap, kw, column_jump)) * channels : 0;
// The row and column of the input that tap number `at` of the phase reads at u = v = 0.
#define TAP(at) \\
    const int row_of = (row_phase * row_mul - row_before + (row_tap + (at) / column_taps * row_jump) * row_step) / row_div; \\
    const int column_of = (column_phase * column_mul - column_before + (column_tap + (at) % column_taps * column_jump) * column_step) / column_div;

// packed[group][m][tap, by phases][channel]: a work item has one tap of one m.
__kernel void pack(
    IN(S, w), OUT(T, packed), const int groups, const int channels, const int m_count, const int kh, const int kw, const int row_jump,
    const int column_jump, const long m_stride, const long channel_stride
) {
    LET_IN(S, w) LET_OUT(T, packed)
    const int tap = get_global_id(0), m = get_global_id(1), group = get_global_id(2);
    if (tap >= kh * kw || m >= m_count || group >= groups) return;
    const int a = tap / kw, b = tap % kw, first_a = a % row_jump, first_b = b % column_jump;
    const int behind = taps_before(first_a, kh, row_jump) * kw + taps_from(first_a, kh, row_jump) * taps_before(first_b, kw, column_jump);
    const int place = behind + a / row_jump * taps_from(first_b, kw, column_jump) + b / column_jump;
    const long from = (long)group * channels * m_count * kh * kw + m * m_stride + tap;
    const long to = (((long)group * m_count + m) * kh * kw + place) * channels;
    for (int channel = 0; channel < channels; channel++) packed[to + channel] = LOAD(w, from + channel * channel_stride);
}
"""

_PARAMETERS = """
    IN(T, packed), IN(S, x), IN(S, bias), OUT(S, y), const int has_bias, const int relu, const int images, const int groups, const int channels,
    const int m_count, const int h, const int w, const int oh, const int ow, const int kh, const int kw,
    const int row_mul, const int row_before, const int row_step, const int row_div, const int row_jump,
    const int column_mul, const int column_before, const int column_step, const int column_div, const int column_jump,
    const int rows_each, const long x_size
"""
_LETS = "LET_IN(T, packed) LET_IN(S, x) LET_IN(S, bias) LET_OUT(S, y)"

_CPU_CORRELATE = f"""{_PHASES}{BLOCK}
#define INSIDE(r, c) ((r) >= 0 & (r) < h & (c) >= 0 & (c) < w)

__kernel void correlate({_PARAMETERS}) {{
    {_LETS}
    const int phase = get_global_id(0) % (row_div * column_div), group = get_global_id(2);
    const long column = (long)(get_global_id(0) / (row_div * column_div)) * COLUMNS, first = (long)get_global_id(1) * rows_each;
    PHASE
    if (column >= n || first >= m_count) return;
    const int rows = min((long)rows_each, m_count - first), columns = min((long)COLUMNS, n - column), plane = h * w;
    __global const T *a = packed + ((long)group * m_count + first) * length + behind;

    // What every column reads for a tap at (0, 0), and where its sums belong. Consecutive elements for one tap are so for all.
    long at[COLUMNS], to[COLUMNS];
    int u[COLUMNS], v[COLUMNS], inside[COLUMNS];
    bool flat = true;
    for (int q = 0; q < COLUMNS; q++) {{
        const long p = column + min(q, columns - 1);
        const int image = p / (uh * uw), position = p % (uh * uw), i = position / uw, j = position % uw;
        u[q] = i * row_mul;
        v[q] = j * column_mul;
        at[q] = ((long)image * groups + group) * channels * plane + u[q] * w + v[q];
        to[q] = (((long)image * groups + group) * m_count + first) * oh * ow + (long)(row_phase + i * row_div) * ow + column_phase + j * column_div;
        flat = flat && at[q] == at[0] + q;
    }}
    const INTS u_low = VLOADW(0, u), u_high = VLOADW(1, u), v_low = VLOADW(0, v), v_high = VLOADW(1, v);

    T panel[DEPTH * COLUMNS], sums[(MOST_ROWS + ROWS) * COLUMNS];
    for (int r = 0; r < rows + ROWS; r++) {{
        const T sum = has_bias && r < rows ? LOAD(bias, group * m_count + first + r) : (T)0;
        for (int q = 0; q < COLUMNS; q++) sums[r * COLUMNS + q] = sum;
    }}
    for (int from = 0; from < depth; from += DEPTH) {{
        const int count = min(DEPTH, depth - from);
        for (int i = 0; i < count;) {{
            const int tap = (from + i) / channels, channel = (from + i) % channels, many = min(channels - channel, count - i);
            TAP(tap)
            const INTS low = INSIDE(u_low + row_of, v_low + column_of), high = INSIDE(u_high + row_of, v_high + column_of);
            const long here = (long)channel * plane + row_of * w + column_of, from_x = at[0] + here;
            T *out = panel + i * COLUMNS;
            if (!any(low | high)) {{
                for (int j = 0; j < many * COLUMNS; j++) out[j] = 0;
            }} else if (flat && from_x >= 0 && from_x + COLUMNS + (long)(many - 1) * plane <= x_size) {{
                const MASK low_mask = TO_MASK(low), high_mask = TO_MASK(high);
                for (int j = 0; j < many; j++) {{
                    const TW l = LOADW(x, from_x + (long)j * plane), g = LOADW(x, from_x + (long)j * plane + W);
                    VSTOREW(AS_TW(AS_MASK(l) & low_mask), 0, out + j * COLUMNS);
                    VSTOREW(AS_TW(AS_MASK(g) & high_mask), 1, out + j * COLUMNS);
                }}
            }} else {{
                VSTOREW(low, 0, inside);
                VSTOREW(high, 1, inside);
                for (int j = 0; j < many; j++) for (int q = 0; q < COLUMNS; q++)
                    out[j * COLUMNS + q] = inside[q] ? LOAD(x, at[q] + here + (long)j * plane) : (T)0;
            }}
            i += many;
        }}
        for (int r = 0; r < rows; r += ROWS) block(a + r * length + from, length, 1, rows - r, panel, count, sums + r * COLUMNS);
    }}
    for (int r = 0; r < rows; r++) for (int q = 0; q < columns; q++) {{
        const T sum = sums[r * COLUMNS + q];
        STORE(y, to[q] + (long)r * oh * ow, relu && sum < 0 ? (T)0 : sum);
    }}
}}
"""

_GPU_TILES = """
#define SIDE 64
#define STEP 16
#define MULTIPLY_TILES \\
    barrier(CLK_LOCAL_MEM_FENCE); \\
    for (int p = 0; p < STEP; p++) { \\
        T s[4], t[4]; \\
        UNROLL for (int i = 0; i < 4; i++) { s[i] = left[p][y_item + 16 * i]; t[i] = right[p][x_item + 16 * i]; } \\
        UNROLL for (int i = 0; i < 4; i++) UNROLL for (int j = 0; j < 4; j++) sums[i][j] += s[i] * t[j]; \\
    } \\
    barrier(CLK_LOCAL_MEM_FENCE);
"""

_GPU_CORRELATE = f"""{_PHASES}{_GPU_TILES}
__kernel void correlate({_PARAMETERS}) {{
    {_LETS}
    __local T left[STEP][SIDE + 1], right[STEP][SIDE + 1];
    const int x_item = get_local_id(0), y_item = get_local_id(1), item = y_item * 16 + x_item;
    const int phase = get_group_id(0) % (row_div * column_div), group = get_global_id(2);
    const long column = (long)(get_group_id(0) / (row_div * column_div)) * SIDE, first = (long)get_group_id(1) * SIDE;
    PHASE
    if (column >= n) return;
    const int plane = h * w;
    __global const T *a = packed + ((long)group * m_count + first) * length + behind;

    // A work item loads one column of `right`: its image, row and column are worked out once.
    const long p_mine = min(column + item % SIDE, n - 1);
    const int u = p_mine % (uh * uw) / uw * row_mul, v = p_mine % uw * column_mul;
    const long start = ((long)(p_mine / (uh * uw)) * groups + group) * channels * plane;

    T sums[4][4];
    UNROLL for (int i = 0; i < 4; i++) {{
        const long r = first + y_item + 16 * i;
        UNROLL for (int j = 0; j < 4; j++) sums[i][j] = has_bias && r < m_count ? LOAD(bias, group * m_count + r) : (T)0;
    }}
    for (int from = 0; from < depth; from += STEP) {{
        for (int e = item; e < SIDE * STEP; e += 256) {{
            const int i = e / STEP, p = e % STEP, k = from + e / SIDE;
            left[p][i] = first + i < m_count && from + p < depth ? a[i * length + from + p] : (T)0;
            T pixel = 0;
            if (k < depth) {{
                TAP(k / channels)
                const int r = u + row_of, c = v + column_of;
                if (r >= 0 && r < h && c >= 0 && c < w) pixel = LOAD(x, start + (long)(k % channels) * plane + r * w + c);
            }}
            right[e / SIDE][e % SIDE] = pixel;
        }}
        MULTIPLY_TILES
    }}
    UNROLL for (int j = 0; j < 4; j++) {{
        const long p = column + x_item + 16 * j;
        if (p >= n) continue;
        const int at = p % (uh * uw);
        const long to = ((long)(p / (uh * uw)) * groups + group) * m_count * oh * ow
            + (long)(row_phase + at / uw * row_div) * ow + column_phase + at % uw * column_div;
        UNROLL for (int i = 0; i < 4; i++) {{
            const long r = first + y_item + 16 * i;
            if (r < m_count) STORE(y, to + r * oh * ow, relu && sums[i][j] < 0 ? (T)0 : sums[i][j]);
        }}
    }}
}}
"""

_GRAD_PARAMETERS = """
    OUT(T, sums_to), const int images, const int parts, const int groups, const int channels, const int m_count, const int padded, const int h,
    const int w, const int oh, const int ow, const int kh, const int kw, const int sh, const int sw, const int dh, const int dw, const int ph,
    const int pw, const int rows_each, const long part_size
"""

# The bias: a row of dy and a part of the images each. The last kernel adds up the parts.
_GRAD_SUMS = """
__kernel void grad_bias(
    IN(S, dy), OUT(T, sums_to), const int images, const int parts, const int outputs, const int positions, const long part_size, const long behind
) {
    LET_IN(S, dy) LET_OUT(T, sums_to)
    const int o = get_global_id(0), part = get_global_id(1), each = (images + parts - 1) / parts;
    if (o >= outputs || part >= parts) return;
    TW total = (TW)(0);
    T rest = 0;
    for (int image = part * each; image < min(images, (part + 1) * each); image++) {
        const long row = ((long)image * outputs + o) * positions;
        int i = 0;
        for (; i + W <= positions; i += W) total += LOADW(dy, row + i);
        for (; i < positions; i++) rest += LOAD(dy, row + i);
    }
    T found[W];
    VSTOREW(total, 0, found);
    for (int i = 0; i < W; i++) rest += found[i];
    sums_to[part * part_size + behind + o] = rest;
}

__kernel void add_parts(IN(T, sums), OUT(S, dweight), OUT(S, dbias), const int parts, const long part_size, const long behind) {
    LET_IN(T, sums) LET_OUT(S, dweight) LET_OUT(S, dbias)
    const long id = get_global_id(0);
    if (id >= part_size) return;
    T sum = 0;
    for (int part = 0; part < parts; part++) sum += sums[part * part_size + id];
    if (id < behind) STORE(dweight, id, sum); else STORE(dbias, id - behind, sum);
}
"""

_CPU_GRAD_WEIGHT = f"""
#define A_TYPE S
#define LOAD_A(p, i) LOAD(p, i)
{BLOCK}{_GRAD_SUMS}
// packed[image][pixel][group][channel] = x; channels are padded with zeros to `padded`.
__kernel void pack_x(IN(S, x), OUT(T, packed), const int images, const int groups, const int channels, const int padded, const int pixels) {{
    LET_IN(S, x) LET_OUT(T, packed)
    const int pixel = get_global_id(0), vectors = padded / W, image = get_global_id(2);
    if (pixel >= pixels || get_global_id(1) >= vectors * groups || image >= images) return;
    const int group = get_global_id(1) / vectors, channel = get_global_id(1) % vectors * W;
    const long in = ((long)image * groups + group) * channels;
    T values[W];
    UNROLL for (int i = 0; i < W; i++) values[i] = channel + i < channels ? LOAD(x, (in + channel + i) * pixels + pixel) : (T)0;
    VSTOREW(VLOADW(0, values), 0, packed + (((long)image * pixels + pixel) * groups + group) * padded + channel);
}}

// sums_to[part][o][channel][tap]: a work item has one tap, COLUMNS channels and some o.
__kernel void grad_weight(IN(S, dy), IN(T, packed), {_GRAD_PARAMETERS}) {{
    LET_IN(S, dy) LET_IN(T, packed) LET_OUT(T, sums_to)
    const int taps = kh * kw, tap = get_global_id(0) % taps, group = get_global_id(2) % groups, part = get_global_id(2) / groups;
    const int channel = get_global_id(0) / taps * COLUMNS, positions = oh * ow, each = (images + parts - 1) / parts, step = groups * padded;
    const long first = (long)get_global_id(1) * rows_each;
    if (channel >= channels || first >= m_count || part >= parts) return;
    const int rows = min((long)rows_each, m_count - first), row_of = tap / kw * dh - ph, column_of = tap % kw * dw - pw;

    T panel[DEPTH * COLUMNS], sums[(MOST_ROWS + ROWS) * COLUMNS];
    for (int i = 0; i < (rows + ROWS) * COLUMNS; i++) sums[i] = 0;
    for (int image = part * each; image < min(images, (part + 1) * each); image++) {{
        __global const T *pixels = packed + (long)image * h * w * step + group * padded + channel;
        __global const S *from_dy = dy + (((long)image * groups + group) * m_count + first) * positions;
        for (int from = 0; from < positions; from += DEPTH) {{
            const int count = min(DEPTH, positions - from);
            int i = from / ow, j = from % ow;
            for (int p = 0; p < count; p++) {{
                const int r = i * sh + row_of, c = j * sw + column_of;
                TW low = (TW)(0), high = (TW)(0);
                if (r >= 0 && r < h && c >= 0 && c < w) {{
                    __global const T *pixel = pixels + (long)(r * w + c) * step;
                    low = VLOADW(0, pixel);
                    high = VLOADW(1, pixel);
                }}
                VSTOREW(low, 0, panel + p * COLUMNS);
                VSTOREW(high, 1, panel + p * COLUMNS);
                if (++j == ow) {{ j = 0; i++; }}
            }}
            for (int r = 0; r < rows; r += ROWS)
                block(from_dy + (long)r * positions + from, positions, 1, rows - r, panel, count, sums + r * COLUMNS);
        }}
    }}
    for (int r = 0; r < rows; r++) for (int q = 0; q < min(COLUMNS, channels - channel); q++)
        sums_to[part * part_size + (((long)group * m_count + first + r) * channels + channel + q) * taps + tap] = sums[r * COLUMNS + q];
}}
"""

_GPU_GRAD_WEIGHT = f"""{_GPU_TILES}{_GRAD_SUMS}
__kernel void grad_weight(IN(S, dy), IN(S, x), {_GRAD_PARAMETERS}) {{
    LET_IN(S, dy) LET_IN(S, x) LET_OUT(T, sums_to)
    __local T left[STEP][SIDE + 1], right[STEP][SIDE + 1];
    const int x_item = get_local_id(0), y_item = get_local_id(1), item = y_item * 16 + x_item;
    const int taps = kh * kw, n = channels * taps, positions = oh * ow, each = (images + parts - 1) / parts, plane = h * w;
    const int group = get_global_id(2) % groups, part = get_global_id(2) / groups, column = get_group_id(0) * SIDE;
    const long first = (long)get_group_id(1) * SIDE, begin = (long)part * each * positions;
    const long end = (long)min(images, (part + 1) * each) * positions;

    T sums[4][4];
    UNROLL for (int i = 0; i < 4; i++) UNROLL for (int j = 0; j < 4; j++) sums[i][j] = 0;
    for (long from = begin; from < end; from += STEP) {{
        // Neighbouring work items read neighbouring positions.
        const long p = from + item % STEP;
        const int image = p / positions, at = p % positions, r_of = at / ow * sh - ph, c_of = at % ow * sw - pw;
        const long from_dy = ((long)image * groups + group) * m_count * positions + at, from_x = ((long)image * groups + group) * channels * plane;
        for (int e = item; e < SIDE * STEP; e += 256) {{
            const int i = e / STEP, k = column + e / STEP, tap = k % taps;
            const int r = r_of + tap / kw * dh, c = c_of + tap % kw * dw;
            left[e % STEP][i] = p < end && first + i < m_count ? LOAD(dy, from_dy + (first + i) * positions) : (T)0;
            const bool in = p < end && k < n && r >= 0 && r < h && c >= 0 && c < w;
            right[e % STEP][i] = in ? LOAD(x, from_x + (long)(k / taps) * plane + r * w + c) : (T)0;
        }}
        MULTIPLY_TILES
    }}
    UNROLL for (int i = 0; i < 4; i++) UNROLL for (int j = 0; j < 4; j++) {{
        const long r = first + y_item + 16 * i, k = column + x_item + 16 * j;
        if (r < m_count && k < n) sums_to[part * part_size + ((long)group * m_count + r) * n + k] = sums[i][j];
    }}
}}
"""

# Work items (work-groups of a GPU) that a product is shared among at least, where it is large enough.
_ITEMS = 64


class Axis(NamedTuple):
    """Along one axis output i reads input (i * mul - before + tap * step) / div, where that is a whole number."""

    mul: int
    before: int
    step: int
    div: int

    @property
    def jump(self) -> int:
        """From one tap that an output reads to the next."""
        return self.div // math.gcd(self.step, self.div)


def _width(dtype: Any) -> int:
    return 4 if np.dtype(dtype) == np.float64 else 8


def _defines(cl: OpenCL, dtype: Any) -> str:
    width = _width(dtype)
    mask, value = ("long", "double") if width == 4 else ("int", "float")
    if not cl.is_cpu:
        return f"#define VSTOREW(x, i, p) vstore{width}(x, i, p)\n"
    return (
        f"#define VLOADW(i, p) vload{width}(i, p)\n#define VSTOREW(x, i, p) vstore{width}(x, i, p)\n#define INTS int{width}\n"
        f"#define MASK {mask}{width}\n#define TO_MASK(v) convert_{mask}{width}(v)\n"
        f"#define AS_MASK(v) as_{mask}{width}(v)\n#define AS_TW(v) as_{value}{width}(v)\n"
        f"#define ROWS {ROWS}\n#define MOST_ROWS {MOST_ROWS}\n#define DEPTH {DEPTH}\n"
    )


def _rows_each(m: int, others: int) -> int:
    """Rows of a work item: as many as share a panel, fewer where that leaves too few items."""
    rows = MOST_ROWS
    while rows > 2 * ROWS and -(-m // rows) * others < _ITEMS:
        rows //= 2
    return rows


def correlate_nbytes(weight: Sequence[int], dtype: Any) -> int:
    """Bytes of workspace of `correlate`: the packed weights."""
    return scratch_nbytes(scalar_type(dtype), max(1, math.prod(weight)))


def correlate(
    cl: OpenCL, x: Any, weight: Any, bias: Any, y: Any, workspace: Any, groups: int, transposed: bool, relu: bool, axes: Sequence[Axis]
) -> None:
    """y from x (both with elements) through `axes`, rows and columns. `transposed`: outputs and channels of the weights change places."""
    o, per_group, kh, kw = weight.shape
    channels, m = (o // groups, per_group) if transposed else (per_group, o // groups)
    text = source(cl, x.dtype, _CPU_CORRELATE if cl.is_cpu else _GPU_CORRELATE, _defines(cl, x.dtype))
    rows, columns = axes
    taps = kh * kw
    (packed,) = workspace_pieces(cl, workspace, scalar_type(x.dtype), max(1, weight.size))
    strides = (np.int64(taps), np.int64(m * taps)) if transposed else (np.int64(channels * taps), np.int64(taps))
    sizes = (groups, channels, m, kh, kw, rows.jump, columns.jump)
    cl.run(text, "pack", (taps, m, groups), weight, packed, *map(np.int32, sizes), *strides, local_size=(1, 4 if cl.is_cpu else 64, 1))
    n, _, oh, ow = y.shape
    phases, most = rows.div * columns.div, n * -(-oh // rows.div) * -(-ow // columns.div)
    if cl.is_cpu:
        panels = phases * -(-most // (2 * _width(x.dtype)))
        each = _rows_each(m, panels * groups)
        grid, local = (panels, -(-m // each), groups), (1, 1, 1)
    else:
        each, grid, local = 0, (phases * -(-most // 64) * 16, -(-m // 64) * 16, groups), (16, 16, 1)
    flags = (bias is not None, relu, n, groups, channels, m, *x.shape[2:], oh, ow, kh, kw, *rows, rows.jump, *columns, columns.jump, each)
    arrays = (packed, x, y if bias is None else bias, y)
    cl.run(text, "correlate", grid, *arrays, *map(np.int32, flags), np.int64(x.size), local_size=local)


def _padded(channels: int, dtype: Any) -> int:
    columns = 2 * _width(dtype)
    return -(-channels // columns) * columns


def _parts(n: int, weight: Sequence[int], groups: int, dtype: Any) -> int:
    """Parts that the images are shared in: so that there is work for many, whatever the device, since sums depend on it."""
    o, channels, kh, kw = weight
    items = groups * -(-channels // (2 * _width(dtype))) * kh * kw * -(-(o // groups) // MOST_ROWS)
    return max(1, min(n, -(-_ITEMS // max(1, items))))


def grad_weight_nbytes(x: Sequence[int], weight: Sequence[int], groups: int, dtype: Any) -> int:
    """Bytes of workspace of `grad_weight` for x [n, c, h, w] and weights [o, c / groups, kh, kw]: x packed, and the sums of every part."""
    n, _, h, w = x
    part_size = math.prod(weight) + weight[0]
    return scratch_nbytes(scalar_type(dtype), n * h * w * groups * _padded(weight[1], dtype), _parts(n, weight, groups, dtype) * part_size)


def grad_weight(cl: OpenCL, x: Any, dy: Any, dweight: Any, dbias: Any, workspace: Any, groups: int, stride: Any, dilation: Any, before: Any) -> None:
    """The gradients of weights and bias; no array is empty."""
    n, _, h, w = x.shape
    o, channels, kh, kw = dweight.shape
    oh, ow = dy.shape[2:]
    m, parts, padded = o // groups, _parts(n, dweight.shape, groups, x.dtype), _padded(channels, x.dtype)
    part_size, behind = np.int64(dweight.size + o), np.int64(dweight.size)
    packed, sums = workspace_pieces(cl, workspace, scalar_type(x.dtype), n * h * w * groups * padded, parts * int(part_size))
    text = source(cl, x.dtype, _CPU_GRAD_WEIGHT if cl.is_cpu else _GPU_GRAD_WEIGHT, _defines(cl, x.dtype))
    taps = kh * kw
    if cl.is_cpu:
        sizes = map(np.int32, (n, groups, channels, padded, h * w))
        cl.run(text, "pack_x", (h * w, groups * padded // _width(x.dtype), n), x, packed, *sizes, local_size=(16, 1, 1))
        panels = padded // (2 * _width(x.dtype)) * taps
        each = _rows_each(m, panels * parts * groups)
        grid, local, there = (panels, -(-m // each), parts * groups), (1, 1, 1), packed
    else:
        each, grid, local, there = 0, (-(-channels * taps // 64) * 16, -(-m // 64) * 16, parts * groups), (16, 16, 1), x
    sizes = map(np.int32, (n, parts, groups, channels, m, padded, h, w, oh, ow, kh, kw, *stride, *dilation, *before, each))
    cl.run(text, "grad_weight", grid, dy, there, sums, *sizes, part_size, local_size=local)
    cl.run(text, "grad_bias", (o, parts), dy, sums, *map(np.int32, (n, parts, o, oh * ow)), part_size, behind)
    cl.run(text, "add_parts", (int(part_size),), sums, dweight, dbias, np.int32(parts), part_size, behind, local_size=(16,))
