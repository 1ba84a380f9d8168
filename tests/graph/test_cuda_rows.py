"""Kernels of rows, windows and sums in CUDA C++ (`_cuda_rows`, `_cuda_windows`), compiled for a processor: their values beside the NumPy kernels'."""

import numpy as np
import pytest

from hetsched.graph.ops import _cuda_rows, _cuda_windows, find
from hetsched.graph.spec import Spec
from tests.cuda_host import COMPILER
from tests.graph.test_cuda_small import Library, seen_by_cuda

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")


@pytest.fixture(scope="module")
def xp(tmp_path_factory):
    return Library(tmp_path_factory.mktemp("rows"))


def check(xp, name, inputs, kernels, /, tolerance=1e-5, workspace=True, **options):
    """The CUDA kernel of an op beside its NumPy kernel, with the workspace that its rule asks for; and which kernels it launched."""
    op = find(name)
    attributes = op.check_attributes(options)
    given = [Spec(x.shape, x.dtype) for x in inputs]
    specs = op.infer(given, attributes)
    wanted = [np.empty(s.bounds, s.dtype) for s in specs]
    nbytes = op.workspace(given, specs, attributes) if op.workspace else 0
    room = seen_by_cuda(np.full(nbytes, 255, np.uint8)) if nbytes and workspace else None
    op.kernels["array"](np, inputs, wanted, None, attributes)
    found = [seen_by_cuda(np.full(s.bounds, 99, s.dtype)) for s in specs]
    xp.launched.clear()
    op.kernels["cuda"](xp, [seen_by_cuda(x) for x in inputs], found, room, attributes)
    assert xp.launched == kernels
    for a, b in zip(found, wanted, strict=True):
        limit = tolerance * max(1.0, float(np.abs(b[np.isfinite(b)]).max(initial=0.0))) if b.dtype.kind == "f" else 0
        np.testing.assert_allclose(a, b, rtol=tolerance if b.dtype.kind == "f" else 0, atol=limit)


# A thread, part of a warp, a warp, a block and a large block for a row; words of one element and of more; in registers and not.
ROWS = [
    ((1, 1), "float64"), ((3, 7), "float32"), ((266, 36), "float32"), ((2, 1000), "float32"), ((2, 500), "float64"), ((2, 2052), "float32"),
    ((266, 67), "float64"),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "dtype"), ROWS)
def test_softmax(xp, dtype, shape):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=shape) * 20).astype(dtype)
    y, dy = rng.random(shape).astype(dtype), rng.normal(size=shape).astype(dtype)
    for name, inputs in (("nn.softmax", [x]), ("nn.log_softmax", [x]), ("nn.softmax_grad", [y, dy]), ("nn.log_softmax_grad", [-y, dy])):
        check(xp, name, inputs, ["softmax_grad" if "grad" in name else "softmax"])


def test_softmax_of_rows_too_long_for_registers_in_place(xp):
    x = np.random.default_rng(1).normal(size=(2, 33000)).astype(np.float32)
    assert _cuda_rows.share_of(2, 33000, 4, True, 1).kept == 0
    check(xp, "nn.softmax", [x], ["softmax"])
    y, given = np.empty_like(x), seen_by_cuda(x.copy())
    find("nn.log_softmax").kernels["array"](np, [x], [y], None, {"axis": 1})
    assert _cuda_rows.softmax(xp, given, given, 1, True)
    np.testing.assert_allclose(given, y, rtol=1e-5)


def test_softmax_of_what_is_not_finite(xp):
    x = np.asarray([[0, np.inf, 1], [-np.inf, 2, 2], [np.nan, 1, 2], [-np.inf] * 3], np.float32)
    with np.errstate(invalid="ignore"):
        check(xp, "nn.softmax", [x], ["softmax"])
        check(xp, "nn.log_softmax", [x], ["softmax"])


def test_other_axes_and_dtypes_are_left_to_the_array_library(xp):
    x = np.random.default_rng(2).normal(size=(4, 5, 3))
    for given, axis in ((x, 1), (x.astype(np.float16), -1), (x[:0], -1)):
        check(xp, "nn.softmax", [given], [], axis=axis, tolerance=1e-2)
    odd = seen_by_cuda(np.ones((3, 9), np.float32))[:, ::2]
    assert not _cuda_rows.softmax(xp, odd, odd, 1)


@pytest.mark.parametrize(("dtype", "label"), [("float32", "int64"), ("float64", "uint8")])
@pytest.mark.parametrize(("shape", "reduction"), [((1, 65), "sum"), ((266, 68), "mean"), ((2, 1000), "mean"), ((2050, 3), "sum")])
def test_cross_entropy_of_many_classes(xp, dtype, label, shape, reduction):
    rng = np.random.default_rng(3)
    rows, classes = shape
    logits, labels = (rng.normal(size=shape) * 20).astype(dtype), rng.integers(0, min(classes, 256), rows).astype(label)
    check(xp, "nn.cross_entropy", [logits, labels], ["row_losses", "reduced_rows"], reduction=reduction)
    check(xp, "nn.cross_entropy_grad", [logits, labels, np.asarray(0.5, dtype)], ["row_losses_grad"], reduction=reduction)


def test_a_label_that_is_no_class_gives_nan(xp):
    logits, one = seen_by_cuda(np.ones((3, 70), np.float32)), seen_by_cuda(np.ones((), np.float32))
    for wrong in (-1, 70):
        labels, loss, losses = seen_by_cuda(np.asarray([0, wrong, 3])), seen_by_cuda(np.zeros((), np.float32)), seen_by_cuda(np.zeros(3, np.float32))
        assert _cuda_rows.cross_entropy(xp, logits, labels, loss, losses, 3.0)
        given = seen_by_cuda(logits.copy())
        assert _cuda_rows.cross_entropy_grad(xp, given, labels, one, given, 3.0)
        assert np.isnan(loss)
        assert np.isnan(given).any(axis=1).tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", ["float32", "int64", "int8"])
@pytest.mark.parametrize("shape", [(7, 10), (270, 33), (3, 2, 600), (5,)])
def test_the_place_of_the_largest(xp, dtype, shape):
    x = np.random.default_rng(4).integers(0, 9, shape).astype(dtype)
    check(xp, "tensor.argmax", [x], ["place_of_most"])
    check(xp, "tensor.argmax", [x], ["place_of_most"], axis=len(shape) - 1, keepdims=True)
    if len(shape) == 2 and np.dtype(dtype).kind == "f":
        check(xp, "nn.correct", [x, (x.argmax(axis=1) + (np.arange(len(x)) % 3 == 1)) % shape[1]], ["place_of_most"])


@pytest.mark.parametrize("n", [6, 300])
def test_nan_is_the_largest(xp, n):
    x = np.zeros((4, n), np.float32)
    x[1, 3] = x[1, 5] = x[3, n - 1] = np.nan
    x[0, 2] = x[2] = -np.inf
    x[3, 2] = np.inf
    check(xp, "tensor.argmax", [x], ["place_of_most"])
    check(xp, "tensor.max", [x], ["reduced_rows"], axes=[1])
    check(xp, "tensor.max", [x], ["reduced_columns"], axes=[0])


@pytest.mark.parametrize(
    ("shape", "axes", "kernel"),
    [
        ((266, 33), [-1], "reduced_rows"), ((4, 5, 6), [1, 2], "reduced_rows"), ((4, 5, 6), None, "reduced_rows"),
        ((4, 70, 40), [1], "reduced_columns"), ((3, 2, 5), [0, 1], "reduced_columns"), ((5,), None, "reduced_rows"), ((4, 5, 6), [0, 2], None),
    ],
)  # fmt: skip
def test_sums_and_maxima(xp, shape, axes, kernel):
    rng = np.random.default_rng(5)
    for dtype in ("float32", "float64", "int32", "uint8", "int64") if axes == [1] else ("float32", "int64"):
        x = (rng.normal(size=shape) * 50).astype("int16" if dtype[0] == "u" else dtype).astype(dtype)
        for keepdims in (False, True) if dtype == "float32" else (False,):
            options = {"axes": axes, "keepdims": keepdims}
            check(xp, "tensor.max", [x], [kernel] if kernel else [], **options)
            check(xp, "tensor.sum", [x], [kernel] if kernel else [], **options)
            if x.dtype.kind == "f":
                check(xp, "tensor.mean", [x], [kernel] if kernel else [], **options)


@pytest.mark.parametrize(
    ("shape", "axes", "kernel"),
    [
        ((40013,), None, "reduced_rows"),
        ((2, 40000), [1], "reduced_rows"),
        ((4500, 9), [0], "reduced_columns"),
        ((2, 4500, 5), [-2], "reduced_columns"),
    ],
)  # fmt: skip
def test_few_long_sums_are_made_of_parts(xp, shape, axes, kernel):
    x = np.random.default_rng(6).normal(size=shape).astype(np.float32)
    again = "reduced_columns" if kernel == "reduced_columns" else "reduced_rows"
    for name in ("tensor.sum", "tensor.max", "tensor.mean"):
        check(xp, name, [x], [kernel, again], axes=axes)
        check(xp, name, [x], [kernel], axes=axes, workspace=False)
    x[(0,) * x.ndim] = np.nan
    check(xp, "tensor.max", [x], [kernel, again], axes=axes)


def test_sums_back_to_what_was_broadcast(xp):
    x = np.random.default_rng(12).normal(size=(6, 4, 5)).astype(np.float32)
    for shape, kernels in (
        ([5], ["reduced_columns"]),
        ([6, 1, 5], ["reduced_columns"]),
        ([6, 4, 1], ["reduced_rows"]),
        ([4, 1], []),
        ([6, 4, 5], []),
    ):
        check(xp, "tensor.sum_to", [x], kernels, shape=shape)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("shape", [(), (7, 3), (5000,), (3, 4000)])
def test_squares(xp, shape, reduction):
    rng = np.random.default_rng(10)
    for dtype in ("float32", "float64"):
        x, y = (np.asarray(rng.normal(size=shape), dtype) for _ in range(2))
        check(xp, "nn.mse", [x, y], ["squares"] if x.size <= 4096 else ["squares", "reduced_rows"], reduction=reduction)
        check(xp, "nn.mse_grad", [x, y, np.asarray(0.5, dtype)], ["squares_grad"], reduction=reduction)
    check(xp, "nn.mse", [x[..., None][..., :0]] * 2, [], reduction=reduction)


@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8"])
@pytest.mark.parametrize(("shape", "indices", "axis"), [((5, 3), (5,), 0), ((2, 30, 200), (30,), 1), ((1500, 2), (1500,), 0), ((2, 4, 3), (2, 4), 0)])
def test_rows_are_added_up_in_their_order(xp, dtype, shape, indices, axis):
    rng = np.random.default_rng(11)
    updates = (rng.normal(size=shape) * 100).astype("int64" if dtype == "uint8" else dtype).astype(dtype)
    at = rng.integers(0, 7, indices).astype(np.int32)
    check(xp, "tensor.scatter_add", [at, updates], ["scatter_add"], tolerance=0, axis=axis, size=9)


# Windows ----------------------------------------------------------------------------------------------------------------------


POOLS = [
    {"size": [2]}, {"size": [3], "stride": [2], "padding": 1}, {"size": [3, 2], "stride": [1, 2]}, {"size": [2], "stride": [3]},
    {"size": [4, 3], "stride": [1], "padding": "same"},
]  # fmt: skip


@pytest.mark.parametrize(("options", "dtype"), [*((options, "float32") for options in POOLS), (POOLS[1], "float64")])
def test_pooling_and_its_gradients(xp, options, dtype):
    rng = np.random.default_rng(7)
    x = rng.integers(-3, 3, (2, 3, 7, 8)).astype(dtype)  # with equal ones
    check(xp, "nn.max_pool2d", [x], ["pool"], **options)
    check(xp, "nn.avg_pool2d", [x], ["pool"], **options)
    op = find("nn.max_pool2d")
    attributes = op.check_attributes(options)
    (spec,) = op.infer([Spec(x.shape, x.dtype)], attributes)
    y, dy = np.empty(spec.bounds, dtype), rng.normal(size=spec.bounds).astype(dtype)
    op.kernels["array"](np, [x], [y], None, attributes)
    check(xp, "nn.max_pool2d_grad", [x, y, dy], ["max_pool_grad"], tolerance=0 if dtype == "float64" else 1e-6, **options)
    check(xp, "nn.avg_pool2d_grad", [dy], ["avg_pool_grad"], image=[7, 8], **options)


@pytest.mark.parametrize("options", POOLS)
def test_pooling_of_nan(xp, options):
    x = np.random.default_rng(8).integers(-3, 3, (1, 2, 7, 8)).astype(np.float32)
    x[0, 0, 2, 3] = x[0, 1, 6, 7] = np.nan
    x[0, 1, :2, :2] = -np.inf
    check(xp, "nn.max_pool2d", [x], ["pool"], **options)
    op = find("nn.max_pool2d")
    attributes = op.check_attributes(options)
    y = np.empty(op.infer([Spec(x.shape, x.dtype)], attributes)[0].bounds, np.float32)
    op.kernels["array"](np, [x], [y], None, attributes)
    check(xp, "nn.max_pool2d_grad", [x, y, np.ones_like(y)], ["max_pool_grad"], **options)


def test_bias_and_sums_of_channels(xp):
    rng = np.random.default_rng(9)
    for relu in (False, True):
        y, b = rng.normal(size=(3, 4, 5, 6)).astype(np.float32), rng.normal(size=4).astype(np.float32)
        y[0, 0, 0, 0] = np.nan
        wanted = y + b.reshape(-1, 1, 1)
        found = seen_by_cuda(y)
        assert _cuda_windows.channel_bias(xp, found, seen_by_cuda(b), relu)
        np.testing.assert_array_equal(found, np.maximum(wanted, 0) if relu else wanted)
    x, out = seen_by_cuda(rng.normal(size=(3, 4, 5, 6))), seen_by_cuda(np.zeros(4))
    assert _cuda_windows.channel_sums(xp, x, out, seen_by_cuda(np.zeros(12)))
    np.testing.assert_allclose(out, np.sum(x, axis=(0, 2, 3)))
