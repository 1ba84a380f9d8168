"""Philox4x64-10 in OpenCL C, and what random.py makes of its words; that module documents which word becomes which element.

One work item makes one block of four words: eight float32 uniforms, four float64 uniforms or normals. The turn is read on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from hetsched.errors import PlacementError
from hetsched.graph.op import OpenCL
from hetsched.graph.ops._cl_types import scalar_type, source, workspace_pieces
from hetsched.graph.ops._scratch import scratch_nbytes

_PHILOX = """
// Equal bits on every device: no product and sum may be fused.
#pragma OPENCL FP_CONTRACT OFF

ulong4 philox(ulong c0, ulong c1, ulong k0, ulong k1) {
    ulong c2 = 0, c3 = 0;
    for (int round = 0; round < 10; round++) {
        const ulong high0 = mul_hi(0xD2E7470EE14C6C93UL, c0), low0 = 0xD2E7470EE14C6C93UL * c0;
        const ulong high1 = mul_hi(0xCA5A826395121157UL, c2), low1 = 0xCA5A826395121157UL * c2;
        c0 = high1 ^ c1 ^ k0; c1 = low1; c2 = high0 ^ c3 ^ k1; c3 = low0;
        k0 += 0x9E3779B97F4A7C15UL; k1 += 0xBB67AE8584CAA73BUL;
    }
    return (ulong4)(c0, c1, c2, c3);
}

#define STREAM IN(long, turn), const int has_turn, const ulong k0, const ulong k1
#define LET_BLOCK(i, words) LET_IN(long, turn) ulong words[4]; vstore4(philox(i, has_turn ? (ulong)turn[0] : 0UL, k0, k1), 0, words);
#define UNIFORM32(words, j) ((float)((uint)(words[(j) / 2] >> ((j) % 2 * 32)) >> 8) * 0x1p-24f)
#define UNIFORM64(words, j) ((double)(words[j] >> 11) * 0x1p-53)
"""

_UNIFORM = f"""{_PHILOX}
__kernel void uniform(STREAM, OUT(S, out), const long n, const T low, const T range) {{
    LET_OUT(S, out)
    const long block = get_global_id(0), start = block * PER_BLOCK;
    if (start >= n) return;
    LET_BLOCK(block, words)
    for (int j = 0; j < PER_BLOCK && start + j < n; j++) {{
        const T u = UNIFORM(words, j);
        const T scaled = u * range;
        STORE(out, start + j, scaled + low);
    }}
}}
"""

_NORMAL = f"""{_PHILOX}
__kernel void normal(STREAM, OUT(S, out), const long n, const double mean, const double std) {{
    LET_OUT(S, out)
    const long block = get_global_id(0), start = block * 4;
    if (start >= n) return;
    LET_BLOCK(block, words)
    for (int j = 0; j < 4 && start + j < n; j += 2) {{
        const double p = UNIFORM64(words, j), q = UNIFORM64(words, j + 1);
        const double radius = sqrt(-2 * log(1 - p)), angle = q * 6.283185307179586;
        const double first = radius * cos(angle) * std, second = radius * sin(angle) * std;
        STORE(out, start + j, first + mean);
        if (start + j + 1 < n) STORE(out, start + j + 1, second + mean);
    }}
}}
"""

_DROPOUT = f"""{_PHILOX}
__kernel void dropout(STREAM, IN(S, x), OUT(S, y), const long n, const float rate, const T scale) {{
    LET_IN(S, x) LET_OUT(S, y)
    const long block = get_global_id(0), start = block * 8;
    if (start >= n) return;
    LET_BLOCK(block, words)
    for (int j = 0; j < 8 && start + j < n; j++) {{
        const T kept = LOAD(x, start + j) * scale;
        STORE(y, start + j, select((T)0, kept, (CHOICE)(UNIFORM32(words, j) >= rate)));  // a branch would be guessed wrong half the time
    }}
}}

__kernel void scaled(IN(S, x), OUT(S, y), const long n, const T scale) {{
    LET_IN(S, x) LET_OUT(S, y)
    const long i = get_global_id(0);
    if (i < n) STORE(y, i, scale == 0 ? (T)0 : LOAD(x, i) * scale);
}}
"""

# A stable merge sort of (word, index). First every work item sorts a run of 32; then every work item makes `share` elements of the merge of two
# neighbouring runs, and finds where they begin by bisection along a diagonal (Green, McColl & Bader 2012, "GPU merge path").
_RUN = 32
_PERMUTATION = f"""{_PHILOX}
__kernel void runs(STREAM, OUT(ulong, keys), OUT(long, order), const long n) {{
    LET_OUT(ulong, keys) LET_OUT(long, order)
    const long start = get_global_id(0) * {_RUN};
    if (start >= n) return;
    const int count = (int)min(n - start, {_RUN}L);
    ulong sorted[{_RUN}];
    int from[{_RUN}];
    for (int i = 0; i < count; i += 4) {{
        LET_BLOCK((start + i) / 4, words)
        for (int j = i; j < min(i + 4, count); j++) {{
            const ulong key = words[j - i];
            int at = j;
            for (; at > 0 && sorted[at - 1] > key; at--) {{ sorted[at] = sorted[at - 1]; from[at] = from[at - 1]; }}
            sorted[at] = key;
            from[at] = j;
        }}
    }}
    for (int i = 0; i < count; i++) {{ keys[start + i] = sorted[i]; order[start + i] = start + from[i]; }}
}}

__kernel void merge(
    IN(ulong, keys), IN(long, order), OUT(ulong, keys_out), OUT(long, order_out), const long n, const long run, const long share
) {{
    LET_IN(ulong, keys) LET_IN(long, order) LET_OUT(ulong, keys_out) LET_OUT(long, order_out)
    const long start = get_global_id(0) * share;
    if (start >= n) return;
    const long left = start / (2 * run) * (2 * run), right = min(left + run, n), end = min(right + run, n);
    const long ahead = start - left;  // elements of the merge before this item's
    long low = max(0L, ahead - (end - right)), high = min(ahead, right - left);
    while (low < high) {{
        const long middle = (low + high) / 2;
        if (keys[left + middle] <= keys[right + ahead - 1 - middle]) low = middle + 1; else high = middle;
    }}
    long a = left + low, b = right + ahead - low;
    for (long i = start; i < min(start + share, n); i++) {{
        const bool first = b >= end || (a < right && keys[a] <= keys[b]);
        const long taken = first ? a++ : b++;
        keys_out[i] = keys[taken];
        order_out[i] = order[taken];
    }}
}}
"""

_LOCAL = (64,)
_SHARE_CPU, _SHARE_GPU = 1024, 16  # elements of a merge that a work item makes


class Stream(NamedTuple):
    """Where words come from: the key's two words, and the turn as an int64 scalar on the device, or None."""

    words: tuple[int, int]
    turn: Any

    def arguments(self, any_array: Any) -> list[Any]:
        """The arguments of the parameters `STREAM`; `any_array` stands where there is no turn, and is not read."""
        turn = any_array if self.turn is None else self.turn
        return [turn, np.int32(self.turn is not None), np.uint64(self.words[0]), np.uint64(self.words[1])]


def _want_fp64(cl: OpenCL, what: str) -> None:
    if not cl.has_fp64:
        raise PlacementError(f"this OpenCL device has no float64, but the task makes {what}; place it on another device")


def uniform(cl: OpenCL, stream: Stream, out: Any, low: float, high: float) -> None:
    """Enqueue: `out` becomes uniforms on [low, high)."""
    if not out.size:
        return
    wide = out.dtype == np.float64
    if wide:
        _want_fp64(cl, "float64 uniforms")
    per_block = 4 if wide else 8
    number: Any = scalar_type(out.dtype)
    text = source(cl, out.dtype, _UNIFORM, f"#define PER_BLOCK {per_block}\n#define UNIFORM UNIFORM{64 if wide else 32}\n")
    numbers = (np.int64(out.size), number(low), number(high - low))
    cl.run(text, "uniform", (-(-out.size // per_block),), *stream.arguments(out), out, *numbers, local_size=_LOCAL)


def normal(cl: OpenCL, stream: Stream, out: Any, mean: float, std: float) -> None:
    """Enqueue: `out` becomes normals, calculated in float64."""
    if not out.size:
        return
    _want_fp64(cl, "normals, which are calculated in float64")
    numbers = (np.int64(out.size), np.float64(mean), np.float64(std))
    cl.run(source(cl, out.dtype, _NORMAL), "normal", (-(-out.size // 4),), *stream.arguments(out), out, *numbers, local_size=_LOCAL)


def dropout(cl: OpenCL, stream: Stream, x: Any, y: Any, rate: float, training: bool) -> None:
    """Enqueue: y = x, each element dropped with probability `rate`; y may be x."""
    if not x.size:
        return
    choice = f"#define CHOICE {'long' if x.dtype == np.float64 else 'int'}\n"
    text, n, number = source(cl, x.dtype, _DROPOUT, choice), np.int64(x.size), scalar_type(x.dtype)
    scale: Any = number(0.0 if training and rate == 1 else 1 / (1 - rate) if training else 1.0)
    if training and 0 < rate < 1:
        cl.run(text, "dropout", (-(-x.size // 8),), *stream.arguments(x), x, y, n, np.float32(rate), scale, local_size=_LOCAL)
    else:
        cl.run(text, "scaled", (x.size,), x, y, n, scale, local_size=_LOCAL)


def permutation_nbytes(n: int) -> int:
    """Bytes of workspace of `permutation`: the words twice, the order once."""
    return 3 * scratch_nbytes(np.int64, n) if n > _RUN else scratch_nbytes(np.int64, n)


def permutation(cl: OpenCL, stream: Stream, out: Any, workspace: Any) -> None:
    """Enqueue: `out`, int64 [n], becomes the stable order of the first n words; log2(n / 32) + 1 launches."""
    n = out.size
    if not n:
        return
    text = source(cl, np.float32, _PERMUTATION)
    passes = max(0, (-(-n // _RUN) - 1).bit_length())
    keys = workspace_pieces(cl, workspace, np.uint64, *[n] * (2 if passes else 1))
    orders: Sequence[Any] = [out]
    if passes:
        scratch = workspace_pieces(cl, workspace, np.int64, n, n, n)[2]
        orders = [out, scratch] if passes % 2 == 0 else [scratch, out]
    cl.run(text, "runs", (-(-n // _RUN),), *stream.arguments(out), keys[0], orders[0], np.int64(n), local_size=(8,))
    run = _RUN
    for i in range(passes):
        share = min(2 * run, _SHARE_CPU if cl.is_cpu else _SHARE_GPU)
        a, b = i % 2, 1 - i % 2
        sizes = (np.int64(n), np.int64(run), np.int64(share))
        cl.run(text, "merge", (-(-n // share),), keys[a], orders[a], keys[b], orders[b], *sizes, local_size=None if cl.is_cpu else _LOCAL)
        run *= 2
