"""Optimizers: one task a parameter and turn, written out with `out=` so that nothing is allocated.

Kernels go through large parameters in blocks: the dozen passes of Adam then find the block in the cache instead of reading memory a dozen times, and
the workspace stays small (2**23 weights, float32, one core: 12.5 ms, 17.0 in one piece; 2**20: 1.3 ms; 7840: 14 us; a bias of 10: 7 us).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from hetsched.errors import GraphError, did_you_mean
from hetsched.graph.op import Attribute, Attributes, Infer, Kernel, Op, OpenCL
from hetsched.graph.ops import _cuda_small
from hetsched.graph.ops._cl_types import Elementwise, scalar_type
from hetsched.graph.ops._rules import arrays, per_output, want_float
from hetsched.graph.ops._scratch import scratch, scratch_nbytes
from hetsched.graph.spec import AnySpec, Spec

_BLOCK = 1 << 16  # elements


@lru_cache(maxsize=256)
def _as_arrays(dtype: Any, values: tuple[float, ...]) -> tuple[Any, ...]:
    return tuple(np.asarray(value, dtype=dtype) for value in values)


def _scalars(xp: Any, dtype: Any, *values: float) -> tuple[Any, ...]:
    """Numbers to calculate with. NumPy converts a Python number anew at every use, 0.25 us each, so it gets scalar arrays."""
    return _as_arrays(dtype, values) if xp is np else values


def _blocks(arrays: Sequence[Any]) -> Iterator[list[Any]]:
    """Equal flat blocks of `arrays`, which all have one size."""
    flat = [a.reshape(-1) for a in arrays]
    size = flat[0].size
    if size <= _BLOCK:
        yield flat
        return
    for start in range(0, size, _BLOCK):
        yield [a[start : start + _BLOCK] for a in flat]


def _sgd(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    w, g = inputs
    (scaled,) = scratch(xp, workspace, w.dtype, min(w.size, _BLOCK))
    lr, keep = _scalars(xp, w.dtype, a["lr"], 1 - a["lr"] * a["weight_decay"])
    for w_in, g_in, w_out in _blocks((w, g, outputs[0])):
        s = scaled[: w_in.size]
        xp.multiply(g_in, lr, out=s)
        if a["weight_decay"]:
            xp.multiply(w_in, keep, out=w_out)
            w_in = w_out
        xp.subtract(w_in, s, out=w_out)


def _momentum(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    w, g, velocity = inputs
    block = min(w.size, _BLOCK)
    first, second = scratch(xp, workspace, w.dtype, block, block)
    lr, decay, momentum = _scalars(xp, w.dtype, a["lr"], a["weight_decay"], a["momentum"])
    for w_in, g_in, v_in, w_out, v_out in _blocks((w, g, velocity, *outputs)):
        s, t = first[: w_in.size], second[: w_in.size]
        if a["weight_decay"]:
            xp.multiply(w_in, decay, out=t)
            g_in = xp.add(t, g_in, out=t)
        xp.multiply(v_in, momentum, out=v_out)
        xp.add(v_out, g_in, out=v_out)
        if a["nesterov"]:
            xp.multiply(v_out, momentum, out=s)
            xp.add(s, g_in, out=s)
            xp.multiply(s, lr, out=s)
        else:
            xp.multiply(v_out, lr, out=s)
        xp.subtract(w_in, s, out=w_out)


def _adam(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes, decoupled: bool = False) -> None:
    """Algorithm 1 of Kingma & Ba 2015 (arXiv:1412.6980) in the order its section 2 ends with: the bias corrections go into step and epsilon.

    With t = turn + 1 and c = sqrt(1 - beta2 ** t): w -= lr * c / (1 - beta1 ** t) * m / (sqrt(v) + eps * c).
    """
    w, g, m, v, turn = inputs
    # Reading the turn would make a device wait for its host; there the two numbers stay arrays.
    t = int(turn) + 1 if xp is np else turn.astype(xp.float64) + 1
    correction = (1 - a["beta2"] ** t) ** 0.5
    step, eps = a["lr"] * correction / (1 - a["beta1"] ** t), a["eps"] * correction
    step, eps = xp.asarray(step, dtype=w.dtype), xp.asarray(eps, dtype=w.dtype)
    decay = a["weight_decay"]
    beta1, rest1, beta2, rest2, shrink = _scalars(
        xp, w.dtype, a["beta1"], 1 - a["beta1"], a["beta2"], 1 - a["beta2"], 1 - a["lr"] * decay if decoupled else decay
    )  # fmt: skip
    block = min(w.size, _BLOCK)
    first, second = scratch(xp, workspace, w.dtype, block, block)
    for w_in, g_in, m_in, v_in, w_out, m_out, v_out in _blocks((w, g, m, v, *outputs)):
        s = first[: w_in.size]
        if decay and not decoupled:
            decayed = second[: w_in.size]
            xp.multiply(w_in, shrink, out=decayed)
            g_in = xp.add(decayed, g_in, out=decayed)
        xp.multiply(g_in, rest1, out=s)
        xp.multiply(m_in, beta1, out=m_out)
        xp.add(m_out, s, out=m_out)
        xp.multiply(g_in, g_in, out=s)
        xp.multiply(s, rest2, out=s)
        xp.multiply(v_in, beta2, out=v_out)
        xp.add(v_out, s, out=v_out)
        xp.sqrt(v_out, out=s)
        xp.add(s, eps, out=s)
        xp.divide(m_out, s, out=s)
        xp.multiply(s, step, out=s)
        if decay and decoupled:
            w_in = xp.multiply(w_in, shrink, out=w_out)
        xp.subtract(w_in, s, out=w_out)


def _adamw(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    """Algorithm 2 of Loshchilov & Hutter 2019 (arXiv:1711.05101) with schedule multiplier 1 and decay lr * weight_decay."""
    _adam(xp, inputs, outputs, workspace, a, decoupled=True)


# In OpenCL C: one kernel a launch -------------------------------------------------------------------------------------------------

_CL_SGD = Elementwise(("w", "g"), ("w_new",), "const V w_new = w * keep - lr * g;", "const T lr, const T keep")

_CL_MOMENTUM = Elementwise(
    ("w", "g", "v"),
    ("w_new", "v_new"),
    "const V h = g + decay * w; const V v_new = momentum * v + h; const V w_new = w - lr * (nesterov ? h + momentum * v_new : v_new);",
    "const T lr, const T decay, const T momentum, const int nesterov",
)

# 1 - beta ** t as -expm1(t ln(beta)), with ln(beta) from float64 on the host: in float32, 1 - 0.999 alone would lose four digits.
_CL_ADAM = Elementwise(
    ("w", "g", "m", "v"),
    ("w_new", "m_new", "v_new"),
    """
        const V h = g + decay * w;
        const V m_new = beta1 * m + rest1 * h;
        const V v_new = beta2 * v + rest2 * (h * h);
        const V w_new = w * keep - step * m_new / (sqrt(v_new) + eps_now);
    """,
    """IN(long, turn), const T lr, const T beta1, const T rest1, const T ln_beta1, const T beta2, const T rest2, const T ln_beta2, const T eps,
    const T decay, const T keep""",
    """
    LET_IN(long, turn)
    const T t = (T)(turn[0] + 1);
    const T correction = sqrt(-expm1(t * ln_beta2));
    const T step = lr * correction / -expm1(t * ln_beta1);
    const T eps_now = eps * correction;
    """,
)


def _cl_sgd(cl: OpenCL, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    number: Any = scalar_type(inputs[0].dtype)
    _CL_SGD.run(cl, [*inputs, *outputs], number(a["lr"]), number(1 - a["lr"] * a["weight_decay"]))


def _cl_momentum(cl: OpenCL, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    number: Any = scalar_type(inputs[0].dtype)
    numbers = (number(a["lr"]), number(a["weight_decay"]), number(a["momentum"]), np.int32(a["nesterov"]))
    _CL_MOMENTUM.run(cl, [*inputs, *outputs], *numbers)


def _ln(x: float) -> float:
    return math.log(x) if x else -math.inf


def _cl_adam(cl: OpenCL, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes, decoupled: bool = False) -> None:
    """The formula of `_adam`; the turn is read on the device."""
    *arrays, turn = inputs
    number: Any = scalar_type(arrays[0].dtype)
    lr, beta1, beta2, decay = a["lr"], a["beta1"], a["beta2"], a["weight_decay"]
    numbers = (
        lr, beta1, 1 - beta1, _ln(beta1), beta2, 1 - beta2, _ln(beta2), a["eps"], 0.0 if decoupled else decay, 1 - lr * decay if decoupled else 1.0,
    )  # fmt: skip
    _CL_ADAM.run(cl, [*arrays, *outputs], turn, *map(number, numbers))


def _cl_adamw(cl: OpenCL, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    _cl_adam(cl, inputs, outputs, workspace, a, decoupled=True)


# On CUDA: one fused kernel a launch -----------------------------------------------------------------------------------------------

# name -> (inputs, outputs, body) of CuPy's ElementwiseKernel. All is read before anything is written, so an output may lie in an input's memory.
CUDA_KERNELS = {
    "sgd": ("T w, T g, T lr, T keep", "T w_new", "w_new = w * keep - lr * g;"),
    "momentum": (
        "T w, T g, T v, T lr, T decay, T momentum, bool nesterov",
        "T w_new, T v_new",
        "const T h = g + decay * w; const T b = momentum * v + h; w_new = w - lr * (nesterov ? h + momentum * b : b); v_new = b;",
    ),
    # 1 - beta ** t as -expm1(t ln(beta)), in float64 as on the host.
    "adam_step": (
        "int64 turn, float64 lr, float64 eps, float64 ln_beta1, float64 ln_beta2",
        "T step, T eps_now",
        """const double t = (double)(turn + 1), c = sqrt(-expm1(t * ln_beta2));
        step = (T)(lr * c / -expm1(t * ln_beta1)); eps_now = (T)(eps * c);""",
    ),
    "adam": (
        "T w, T g, T m, T v, raw T step, raw T eps_now, T beta1, T rest1, T beta2, T rest2, T decay, T keep",
        "T w_new, T m_new, T v_new",
        """const T h = g + decay * w; const T a = beta1 * m + rest1 * h; const T b = beta2 * v + rest2 * (h * h);
        w_new = w * keep - step[0] * a / (sqrt(b) + eps_now[0]); m_new = a; v_new = b;""",
    ),
}


@lru_cache(maxsize=64)
def _fused(xp: Any, name: str) -> Any:
    return xp.ElementwiseKernel(*CUDA_KERNELS[name], f"hetsched_{name}")


def _cuda_sgd(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    _fused(xp, "sgd")(*inputs, a["lr"], 1 - a["lr"] * a["weight_decay"], *outputs)


def _cuda_momentum(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    _fused(xp, "momentum")(*inputs, a["lr"], a["weight_decay"], a["momentum"], a["nesterov"], *outputs)


def _cuda_adam(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes, decoupled: bool = False) -> None:
    """The formula of `_adam`; the turn is read on the device."""
    *arrays, turn = inputs
    lr, beta1, beta2, decay = a["lr"], a["beta1"], a["beta2"], a["weight_decay"]
    numbers = (beta1, 1 - beta1, beta2, 1 - beta2, 0.0 if decoupled else decay, 1 - lr * decay if decoupled else 1.0)
    if _cuda_small.adam(xp, arrays, turn, outputs, (lr, a["eps"], _ln(beta1), _ln(beta2)), numbers):
        return
    step, eps_now = xp.empty(1, arrays[0].dtype), xp.empty(1, arrays[0].dtype)
    _fused(xp, "adam_step")(turn.reshape(1), lr, a["eps"], _ln(beta1), _ln(beta2), step, eps_now)
    _fused(xp, "adam")(*arrays, step, eps_now, *numbers, *outputs)


def _cuda_adamw(xp: Any, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, a: Attributes) -> None:
    _cuda_adam(xp, inputs, outputs, workspace, a, decoupled=True)


# Shape rules --------------------------------------------------------------------------------------------------------------------


def _like_parameter(*names: str, turn: bool = False) -> Infer:
    """All inputs called `names` are like the first, w; with `turn` an int64 scalar follows. Outputs are like w: w, then the state."""

    def infer(specs: Sequence[AnySpec], a: Attributes) -> list[AnySpec]:
        w, *others = arrays(specs[: len(names)], names)
        want_float(w, "w")
        problems = [f"{name} must be {w!r}, as w, got {spec!r}" for name, spec in zip(names[1:], others, strict=True) if spec != w]
        if w.is_bounded:
            problems.append(f"w needs a fixed shape, got {w!r}")
        if turn and specs[-1] != Spec((), np.int64):
            problems.append(f"turn must be {Spec((), np.int64)!r}, got {specs[-1]!r}")
        if problems:
            raise GraphError(problems)
        return [w] * (len(names) - 1)

    return infer


def _workspace(count: int) -> Any:
    def nbytes(inputs: Sequence[AnySpec], outputs: Sequence[AnySpec], a: Attributes) -> int:
        w = inputs[0]
        assert isinstance(w, Spec)
        return scratch_nbytes(w.dtype, *[min(w.size, _BLOCK)] * count)

    return nbytes


_LR = Attribute(float, 1e-3, "learning rate", low=0)
_BETAS = {
    "beta1": Attribute(float, 0.9, "how much of the first moment a turn keeps", low=0, high=1),
    "beta2": Attribute(float, 0.999, "how much of the second moment a turn keeps", low=0, high=1),
    "eps": Attribute(float, 1e-8, "added to the root of the second moment", low=0),
}


def _decay(default: float) -> Attribute:
    return Attribute(float, default, "weight decay", low=0)


def _adam_op(name: str, kernel: Kernel, cl_kernel: Kernel, cuda_kernel: Kernel, decay: float, doc: str) -> Op:
    return Op(
        name,
        ("w", "g", "m", "v", "turn"),
        ("w", "m", "v"),
        _like_parameter("w", "g", "m", "v", turn=True),
        per_output(14 / 3),
        kernels={"array": kernel, "opencl": cl_kernel, "cuda": cuda_kernel},
        attributes={"lr": _LR, **_BETAS, "weight_decay": _decay(decay)},
        inplace=((0, 0), (1, 2), (2, 3)),
        workspace=_workspace(2),
        doc=doc,
        calls=20,
    )


SGD = Op(
    "optim.sgd",
    ("w", "g"),
    ("w",),
    _like_parameter("w", "g"),
    per_output(3),
    kernels={"array": _sgd, "opencl": _cl_sgd, "cuda": _cuda_sgd},
    attributes={"lr": _LR, "weight_decay": _decay(0.0)},
    inplace=((0, 0),),
    workspace=_workspace(1),
    doc="w - lr * (g + weight_decay * w). w, g of one shape and floating dtype.",
    calls=8,
)

MOMENTUM = Op(
    "optim.momentum",
    ("w", "g", "velocity"),
    ("w", "velocity"),
    _like_parameter("w", "g", "velocity"),
    per_output(3),
    kernels={"array": _momentum, "opencl": _cl_momentum, "cuda": _cuda_momentum},
    attributes={
        "lr": _LR,
        "momentum": Attribute(float, 0.9, "how much of the velocity a turn keeps", low=0, high=1),
        "nesterov": Attribute(bool, False, "look one step ahead"),
        "weight_decay": _decay(0.0),
    },
    inplace=((0, 0), (1, 2)),
    workspace=_workspace(2),
    doc="""Gradient descent with momentum. With h = g + weight_decay * w: velocity' = momentum * velocity + h, and w' = w - lr * velocity',
    or w - lr * (h + momentum * velocity') with nesterov. velocity starts at 0.""",
    calls=11,
)

ADAM = _adam_op(
    "optim.adam", _adam, _cl_adam, _cuda_adam, 0.0,
    """Adam (Kingma & Ba 2015), t = turn + 1. With h = g + weight_decay * w: m' = beta1 m + (1 - beta1) h, v' = beta2 v + (1 - beta2) h ** 2,
    w' = w - lr * (m' / (1 - beta1 ** t)) / (sqrt(v' / (1 - beta2 ** t)) + eps). m and v start at 0;
    turn, an int64 scalar, counts the updates before.""",
)  # fmt: skip

ADAMW = _adam_op(
    "optim.adamw", _adamw, _cl_adamw, _cuda_adamw, 1e-2,
    "AdamW (Loshchilov & Hutter 2019): Adam of the plain gradient on weights that shrink by lr * weight_decay a turn; see `optim.adam`.",
)  # fmt: skip


# What training needs to know ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Optimizer:
    """How `nn.train` uses an optimizer: op(w, g, *slots, turn where `turn`) -> (w, *slots). Every slot is shaped like w and starts at zeros."""

    op: Op
    slots: tuple[str, ...] = ()
    turn: bool = False

    @property
    def attributes(self) -> Mapping[str, Attribute]:
        """The options, as the op declares them."""
        return self.op.attributes


OPTIMIZERS: Mapping[str, Optimizer] = {
    "sgd": Optimizer(SGD),
    "momentum": Optimizer(MOMENTUM, ("velocity",)),
    "adam": Optimizer(ADAM, ("m", "v"), turn=True),
    "adamw": Optimizer(ADAMW, ("m", "v"), turn=True),
}


def optimizer(name: str, options: Mapping[str, Any]) -> tuple[Optimizer, dict[str, Any]]:
    """The optimizer called `name` and its checked attributes; `GraphError` with every mistake. `sgd` with `momentum` or `nesterov` is `momentum`."""
    if name == "sgd" and ("momentum" in options or "nesterov" in options):
        name = "momentum"
    found = OPTIMIZERS.get(name)
    if found is None:
        raise GraphError(f"unknown optimizer {name!r}{did_you_mean(name, OPTIMIZERS)}")
    return found, found.op.check_attributes(options)
