"""Randomness: every random element is a function of (seed, key, turn, index), the same on every device and in every order of execution.

The generator is Philox4x64-10 of Salmon, Moraes, Dror & Shaw 2011 ("Parallel random numbers: as easy as 1, 2, 3", SC'11), counter-based:

    key      = (seed mod 2**64, the 8 bytes of BLAKE2b with digest size 8 of the UTF-8 text `key`, read as a little-endian number)
    word i   = word i % 4 of the block whose counter is (i // 4, turn mod 2**64, 0, 0); the first word of key and counter is the least significant
    half i   = the low (i even) or high (i odd) 32 bits of word i // 2

`key` is the name of the task unless it is given, so equal ops in one graph draw different numbers. `turn` is an optional input, an int64
scalar (a loop's turn), 0 where it is left out. Element i, counted in C order, of

    float32 uniform on [0, 1)   is (half i >> 8) * 2**-24
    float64 uniform on [0, 1)   is (word i >> 11) * 2**-53
    a standard normal           comes from words 2k and 2k + 1, k = i // 2, by Box & Muller 1958 in float64: with their float64 uniforms p and q, and
                                r = sqrt(-2 ln(1 - p)), it is r cos(2 pi q) for even i and r sin(2 pi q) for odd i
    a permutation of n          is the index of the i-th smallest of words 0..n-1, the lower index first where words are equal

Uniforms and permutations have equal bits everywhere. Normals are rounded from float64, whose ln, cos and sin libraries may round differently in the
last place: on devices without NumPy's they differ in a float32 about once in 2**28. Numbers are made by NumPy, and uploaded where `xp` is another
library; OpenCL and CUDA devices make them themselves (_cl_random.py, _cuda_random.py).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hetsched.errors import GraphError
from hetsched.graph.op import Attribute, Attributes, Cotangent, Op, OpenCL, Work
from hetsched.graph.ops import _cl_random, _cuda_random
from hetsched.graph.ops._rules import arrays, dtype_attribute, elements, nbytes, want_float
from hetsched.graph.ops._scratch import scratch, scratch_nbytes
from hetsched.graph.spec import AnySpec, Spec

if TYPE_CHECKING:
    from hetsched.graph.graph import Builder, Value

Floats: TypeAlias = NDArray[np.float64]

_MASK = (1 << 64) - 1
_FLOPS = 30.0  # integer operations of a Philox word, and what is made of it


@lru_cache(maxsize=4096)
def key_word(key: str) -> int:
    """The second word of the generator's key: BLAKE2b-64 of the UTF-8 text, little-endian."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def bits(seed: int, key: str, turn: int = 0) -> np.random.Philox:
    """NumPy's generator placed so that its next word is word 0 of (seed, key, turn)."""
    # NumPy counts up before it makes a block: it starts one below the counter of block 0.
    before = (((turn & _MASK) << 64) - 1) & ((1 << 256) - 1)
    counter = np.array([before & _MASK, before >> 64 & _MASK, before >> 128 & _MASK, before >> 192], np.uint64)
    return np.random.Philox(counter=counter, key=np.array([seed & _MASK, key_word(key)], np.uint64))


def _bits(inputs: Sequence[Any], a: Attributes) -> np.random.Philox:
    return bits(a["seed"], a["key"], int(inputs[0]) if inputs else 0)


def uniforms(generator: np.random.Philox, out: NDArray[Any]) -> None:
    """Fill a flat float32 or float64 array with the generator's next uniforms on [0, 1)."""
    np.random.Generator(generator).random(out=out, dtype=out.dtype.type)


def normals(generator: np.random.Philox, n: int, work: Floats) -> Floats:
    """The next n standard normals. `work` is float64 scratch of at least twice n rounded up to even; the result lies in it."""
    even = n + n % 2
    drawn, made = work[:even], work[even : 2 * even]
    uniforms(generator, drawn)
    radius, angle = drawn[0::2], drawn[1::2]
    np.subtract(1, radius, out=radius)
    np.log(radius, out=radius)
    np.multiply(radius, -2, out=radius)
    np.sqrt(radius, out=radius)
    np.multiply(angle, 2 * math.pi, out=angle)
    np.cos(angle, out=made[0::2])
    np.sin(angle, out=made[1::2])
    np.multiply(made[0::2], radius, out=made[0::2])
    np.multiply(made[1::2], radius, out=made[1::2])
    return made[:n]


def _host(xp: Any, out: Any) -> NDArray[Any]:
    """Where to make the numbers: `out` itself, flat, or a host array that `_upload` then copies there."""
    flat: NDArray[Any] = out.reshape(-1) if xp is np else np.empty(out.size, np.dtype(str(out.dtype)))
    return flat


def _upload(xp: Any, out: Any, made: NDArray[Any]) -> None:
    if xp is not np:
        out[...] = xp.asarray(made).reshape(out.shape)


def _host_scratch(xp: Any, workspace: Any, dtype: Any, *counts: int) -> list[Any]:
    return scratch(np, workspace if xp is np else None, dtype, *counts)


# Kernels ------------------------------------------------------------------------------------------------------------------------


def _fill_uniform(xp: Any, out: Any, generator: np.random.Philox, low: float, high: float) -> None:
    made = _host(xp, out)
    uniforms(generator, made)
    if (low, high) != (0.0, 1.0):
        np.multiply(made, high - low, out=made)
        np.add(made, low, out=made)
    _upload(xp, out, made)


def _fill_normal(xp: Any, out: Any, generator: np.random.Philox, mean: float, std: float, workspace: Any) -> None:
    size = _drawn_at_once(out.size)
    (work,) = _host_scratch(xp, workspace, np.float64, 2 * size)
    target = _host(xp, out)
    for at in range(0, out.size, max(size, 1)):
        made = normals(generator, min(size, out.size - at), work)
        np.multiply(made, std, out=made)
        np.add(made, mean, out=made)
        np.copyto(target[at : at + size], made, casting="same_kind")
    _upload(xp, out, target)


def _drawn_at_once(n: int) -> int:
    """How many of n normals are made at a time, an even number: their scratch stays in the cache."""
    return min(n + n % 2, 1 << 14)


def _uniform(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    _fill_uniform(xp, outputs[0], _bits(inputs, a), a["low"], a["high"])


def _normal(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    _fill_normal(xp, outputs[0], _bits(inputs, a), a["mean"], a["std"], workspace)


def _permutation(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    made = _host(xp, outputs[0])
    np.copyto(made, np.argsort(_bits(inputs, a).random_raw(a["n"]), kind="stable"))
    _upload(xp, outputs[0], made)


def _dropout(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    x, y, rate = inputs[0], outputs[0], a["rate"]
    if not a["training"] or rate == 0:
        xp.copyto(y, x)
        return
    if rate == 1:
        y.fill(0)
        return
    drawn, flags = _host_scratch(xp, workspace, np.float32, x.size, -(-x.size // 4))
    uniforms(_bits(inputs[1:], a), drawn)
    keep = np.greater_equal(drawn, np.float32(rate), out=flags.view(np.bool_)[: x.size]).reshape(x.shape)
    xp.multiply(x, 1 / (1 - rate), out=y)
    xp.multiply(y, keep if xp is np else xp.asarray(keep), out=y)


def _init(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    out, scheme = outputs[0], a["scheme"]
    if scheme in ("zeros", "ones"):
        out.fill(scheme == "ones")
        return
    fan_in, fan_out = _fans(a)
    if scheme in _NORMAL:
        _fill_normal(xp, out, _bits(inputs, a), 0.0, deviation(scheme, fan_in, fan_out), workspace)
    else:
        limit = deviation(scheme, fan_in, fan_out) * math.sqrt(3)
        _fill_uniform(xp, out, _bits(inputs, a), -limit, limit)


# In CUDA C++ ----------------------------------------------------------------------------------------------------------------------


def _words(a: Attributes) -> tuple[int, int]:
    return a["seed"] & _MASK, key_word(a["key"])


def _cuda_uniform(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    _cuda_random.uniform(xp, _words(a), inputs[0] if inputs else None, outputs[0], a["low"], a["high"])


def _cuda_normal(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    _cuda_random.normal(xp, _words(a), inputs[0] if inputs else None, outputs[0], a["mean"], a["std"])


def _cuda_permutation(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    _cuda_random.permutation(xp, _words(a), inputs[0] if inputs else None, outputs[0])


def _cuda_dropout(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    x, rate = inputs[0], a["rate"]
    if a["training"] and 0 < rate < 1 and _cuda_random.is_drawn([x.dtype]):
        _cuda_random.dropout(xp, _words(a), inputs[1] if len(inputs) > 1 else None, x, outputs[0], rate)
    else:
        _dropout(xp, inputs, outputs, None, a)


def _cuda_init(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    out, scheme = outputs[0], a["scheme"]
    if scheme in ("zeros", "ones"):
        out.fill(scheme == "ones")
        return
    std = deviation(scheme, *_fans(a))
    if scheme in _NORMAL:
        _cuda_random.normal(xp, _words(a), None, out, 0.0, std)
    else:
        limit = std * math.sqrt(3)
        _cuda_random.uniform(xp, _words(a), None, out, -limit, limit)


# In OpenCL C --------------------------------------------------------------------------------------------------------------------


def _stream(a: Attributes, turn: Sequence[Any] = ()) -> _cl_random.Stream:
    return _cl_random.Stream((a["seed"] & _MASK, key_word(a["key"])), turn[0] if turn else None)


def _cl_uniform(cl: OpenCL, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    _cl_random.uniform(cl, _stream(a, inputs), outputs[0], a["low"], a["high"])


def _cl_normal(cl: OpenCL, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    _cl_random.normal(cl, _stream(a, inputs), outputs[0], a["mean"], a["std"])


def _cl_permutation(cl: OpenCL, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    _cl_random.permutation(cl, _stream(a, inputs), outputs[0], workspace)


def _cl_dropout(cl: OpenCL, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    _cl_random.dropout(cl, _stream(a, inputs[1:]), inputs[0], outputs[0], a["rate"], a["training"])


def _cl_init(cl: OpenCL, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    out, scheme = outputs[0], a["scheme"]
    if scheme in ("zeros", "ones"):
        if out.size:
            cl.fill(out, scheme == "ones")
        return
    std = deviation(scheme, *_fans(a))
    if scheme in _NORMAL:
        _cl_random.normal(cl, _stream(a), out, 0.0, std)
    else:
        limit = std * math.sqrt(3)
        _cl_random.uniform(cl, _stream(a), out, -limit, limit)


# Initial weights ------------------------------------------------------------------------------------------------------------------

_NORMAL = ("he", "he_normal", "glorot_normal")
SCHEMES = ("zeros", "ones", "uniform", "he", "he_normal", "he_uniform", "glorot", "glorot_normal", "glorot_uniform")


def deviation(scheme: str, fan_in: int, fan_out: int) -> float:
    """The standard deviation of a scheme.

    he: sqrt(2 / fan_in), He et al. 2015 (arXiv:1502.01852), equation 10. glorot: sqrt(2 / (fan_in + fan_out)), Glorot & Bengio 2010, equation 12.
    uniform: sqrt(1 / (3 fan_in)), that is limits of 1 / sqrt(fan_in), LeCun et al. 1998.
    """
    if scheme == "uniform":
        return math.sqrt(1 / (3 * max(1, fan_in)))
    if scheme.startswith("he"):
        return math.sqrt(2 / max(1, fan_in))
    return math.sqrt(2 / max(1, fan_in + fan_out))


def _fans(a: Attributes) -> tuple[int, int]:
    """(fan_in, fan_out): as given, or of weights [inputs, outputs] or [outputs, inputs, rows, columns ...]."""
    fan, shape = a["fan"], a["shape"]
    if fan is not None:
        return fan[0], fan[-1]
    if len(shape) < 2:
        return math.prod(shape), math.prod(shape)
    if len(shape) == 2:
        return shape[0], shape[1]
    window = math.prod(shape[2:])
    return shape[1] * window, shape[0] * window


# Shape rules ----------------------------------------------------------------------------------------------------------------------


def _check_turn(specs: Sequence[AnySpec], problems: list[str]) -> None:
    if specs and specs[0] != Spec((), np.int64):
        problems.append(f"turn must be {Spec((), np.int64)!r}, got {specs[0]!r}")


def _infer_uniform(specs: Sequence[AnySpec], a: Attributes) -> list[AnySpec]:
    problems: list[str] = []
    _check_turn(specs, problems)
    if not (math.isfinite(a["low"]) and math.isfinite(a["high"]) and a["low"] <= a["high"]):
        problems.append(f"low and high must be finite and in this order, got {a['low']:g} and {a['high']:g}")
    if problems:
        raise GraphError(problems)
    return [Spec(a["shape"], a["dtype"])]


def _infer_normal(specs: Sequence[AnySpec], a: Attributes) -> list[AnySpec]:
    problems: list[str] = []
    _check_turn(specs, problems)
    if problems:
        raise GraphError(problems)
    return [Spec(a["shape"], a["dtype"])]


def _infer_permutation(specs: Sequence[AnySpec], a: Attributes) -> list[AnySpec]:
    problems: list[str] = []
    _check_turn(specs, problems)
    if problems:
        raise GraphError(problems)
    return [Spec((a["n"],), np.int64)]


def _infer_dropout(specs: Sequence[AnySpec], a: Attributes) -> list[AnySpec]:
    problems: list[str] = []
    x = arrays(specs[:1], ("x",))[0]
    want_float(x, "x")
    _check_turn(specs[1:], problems)
    if problems:
        raise GraphError(problems)
    return [x]


def _infer_init(specs: Sequence[AnySpec], a: Attributes) -> list[AnySpec]:
    if a["fan"] is not None and len(a["fan"]) not in (1, 2):
        raise GraphError(f"fan wants one number or two (inputs, outputs), got {a['fan']}")
    return [Spec(a["shape"], a["dtype"])]


def _work(inputs: Sequence[AnySpec], outputs: Sequence[AnySpec], a: Attributes) -> Work:
    return Work(_FLOPS * elements(outputs), nbytes(inputs), nbytes(outputs))


def _work_permutation(inputs: Sequence[AnySpec], outputs: Sequence[AnySpec], a: Attributes) -> Work:
    """The words and n log2(n) comparisons."""
    n = a["n"]
    return Work(n * (_FLOPS + math.log2(max(n, 1))), nbytes(inputs), nbytes(outputs))


def _workspace_normal(inputs: Sequence[AnySpec], outputs: Sequence[AnySpec], a: Attributes) -> int:
    return scratch_nbytes(np.float64, 2 * _drawn_at_once(elements(outputs)))


def _workspace_init(inputs: Sequence[AnySpec], outputs: Sequence[AnySpec], a: Attributes) -> int:
    return _workspace_normal(inputs, outputs, a) if a["scheme"] in _NORMAL else 0


def _workspace_dropout(inputs: Sequence[AnySpec], outputs: Sequence[AnySpec], a: Attributes) -> int:
    return scratch_nbytes(np.float32, elements(outputs), -(-elements(outputs) // 4)) if a["training"] and 0 < a["rate"] < 1 else 0


def _dropout_gradient(
    b: Builder, inputs: Sequence[Value], outputs: Sequence[Value], grads: Sequence[Value | None], a: Attributes
) -> Sequence[Cotangent]:
    """The same op with the same key on dy: what was dropped is drawn again, not stored."""
    dy = grads[0]
    if dy is None:
        return [None] * len(inputs)
    return [lambda: b.op(DROPOUT, dy, *inputs[1:], **a), *[None] * len(inputs[1:])]


_SEED = {
    "seed": Attribute(int, 0, "the seed of the run"),
    "key": Attribute(str, "", "what tells equal ops apart; the task's name where it is left out"),
}
_ARRAY = {"shape": Attribute("ints", doc="the shape of the output", low=0), "dtype": dtype_attribute(words=("float32", "float64"))}

UNIFORM = Op(
    "random.uniform",
    ("turn?",),
    ("out",),
    _infer_uniform,
    _work,
    kernels={"array": _uniform, "opencl": _cl_uniform, "cuda": _cuda_uniform},
    attributes={
        **_ARRAY,
        "low": Attribute(float, 0.0, "the smallest number"),
        "high": Attribute(float, 1.0, "the numbers are below, but for rounding"),
        **_SEED,
    },
    random=True,
    doc="Numbers equally likely on [low, high): low + u * (high - low), rounded after each operation.",
    calls=23,
)

NORMAL = Op(
    "random.normal",
    ("turn?",),
    ("out",),
    _infer_normal,
    _work,
    kernels={"array": _normal, "opencl": _cl_normal, "cuda": _cuda_normal},
    attributes={**_ARRAY, "mean": Attribute(float, 0.0, "the mean"), "std": Attribute(float, 1.0, "the standard deviation", low=0), **_SEED},
    random=True,
    workspace=_workspace_normal,
    doc="Normally distributed numbers, calculated in float64 and rounded to dtype.",
    calls=44,
)

PERMUTATION = Op(
    "random.permutation",
    ("turn?",),
    ("order",),
    _infer_permutation,
    _work_permutation,
    kernels={"array": _permutation, "opencl": _cl_permutation, "cuda": _cuda_permutation},
    attributes={"n": Attribute(int, doc="how many", low=0), **_SEED},
    random=True,
    workspace=lambda inputs, outputs, a: _cl_random.permutation_nbytes(a["n"]),
    doc="The numbers 0..n-1 in random order, int64 [n]; every order is equally likely.",
    calls=26,
)

DROPOUT = Op(
    "nn.dropout",
    ("x", "turn?"),
    ("y",),
    _infer_dropout,
    _work,
    kernels={"array": _dropout, "opencl": _cl_dropout, "cuda": _cuda_dropout},
    gradient=_dropout_gradient,
    attributes={
        "rate": Attribute(float, 0.5, "the share of elements that becomes 0", low=0, high=1),
        "training": Attribute(bool, True, "false: y is x"),
        **_SEED,
    },
    inplace=((0, 0),),
    random=True,
    workspace=_workspace_dropout,
    doc="Element i becomes 0 where its float32 uniform is below rate, else x / (1 - rate) (Srivastava et al. 2014). Give `turn` in a loop.",
    calls=33,
)

INIT = Op(
    "nn.init",
    (),
    ("out",),
    _infer_init,
    _work,
    kernels={"array": _init, "opencl": _cl_init, "cuda": _cuda_init},
    attributes={
        **_ARRAY,
        "scheme": Attribute(SCHEMES, "he", "the distribution; he is he_normal, glorot is glorot_uniform"),
        "fan": Attribute("ints", None, "inputs and outputs of a unit; left out, taken from the shape", low=0, optional=True),
        **_SEED,
    },
    random=True,
    workspace=_workspace_init,
    doc="""First weights: zeros, ones, or random with the deviation of the scheme: he sqrt(2 / fan_in), glorot sqrt(2 / (fan_in + fan_out)),
    uniform on +-1 / sqrt(fan_in). Without `fan` a shape of 2 axes is [inputs, outputs], one of more [outputs, inputs, rows, columns].""",
    calls=45,
)
