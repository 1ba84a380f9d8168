"""Tensor ops in OpenCL C: the cases of the array kernels once more, on a device, and those that only these kernels have.

Cases run as the device asks for it in both floating dtypes, and in float32 as a GPU would, with work-groups and local memory. To build a program
takes PoCL a second: families whose kernels differ by their expression alone are run as a GPU for one of them.
"""

import os
from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace

import numpy as np
import pytest
import test_conv
import test_data
import test_elementwise
import test_linear
import test_loss
import test_optimizer
import test_pool
import test_random
import test_reduce
import test_shape

pytest.importorskip("pyopencl", reason="PyOpenCL is not installed")
from hetsched.testing import opencl

if not opencl.available():
    pytest.skip("no OpenCL device works here", allow_module_level=True)

from hetsched.graph.op import Op
from hetsched.graph.ops import find, registry
from hetsched.graph.ops._cl_conv import way_of
from hetsched.graph.ops._cl_layout import broadcast_strides, contiguous, joined
from hetsched.graph.ops._cl_reduce import parts_of, reduction_shape, workspace_nbytes
from hetsched.graph.spec import Spec, UpTo
from hetsched.testing.ops import Case, check_op


class _As:
    """A queue that says something else of its device."""

    def __init__(self, queue, **says):
        self._queue = queue
        vars(self).update(says)

    def __getattr__(self, name):
        return getattr(self._queue, name)


def runner_as(**says):
    run = opencl.runner()
    return lambda kernel, *rest: run(lambda cl, *given: kernel(_As(cl, **says), *given), *rest)


@cache
def runners():
    return {"opencl": opencl.runner(), "opencl:gpu": runner_as(is_cpu=False)}


ALIKE = ("elementwise", "loss", "optimizer", "random")
SHOWN = {"tensor.sub", "tensor.where", "tensor.cast", "tensor.less", "nn.softmax", "nn.cross_entropy", "nn.cross_entropy_grad"}


CHECKED = set()


def checked(op, cases, *, dtypes=None, runners=None, gradient=False, **rest):
    """`check_op` on the device, in the dtypes it has; gradients are of no language."""
    mine = globals()["runners"]()
    family = op.infer.__module__.rpartition(".")[2]
    if family in ALIKE and op.name not in SHOWN:
        mine = {"opencl": mine["opencl"]}
    alone = family == "elementwise" and op.name not in SHOWN  # one expression more, in the same loop
    kept = tuple(d for d in dtypes or (("float32",) if alone else ("float64", "float32")) if d != "float64" or "float64" in opencl.dtypes())
    assert "opencl" in op.kernels, f"{op.name} has no kernel in OpenCL C"
    CHECKED.add(op.name)
    for dtype in kept:
        here = mine if dtype == "float32" or len(kept) == 1 else {"opencl": mine["opencl"]}
        count = check_op(op, cases, dtypes=(dtype,), runners=here, gradient=False, **rest)
    return count


@pytest.fixture(autouse=True)
def on_the_device(monkeypatch):
    for module in (test_conv, test_data, test_elementwise, test_linear, test_loss, test_optimizer, test_pool, test_random, test_reduce, test_shape):
        monkeypatch.setattr(module, "check_op", checked)


# The cases of the array kernels -------------------------------------------------------------------------------------------------

test_arithmetic = test_elementwise.test_arithmetic
test_division = test_elementwise.test_division
test_integers = test_elementwise.test_integers
test_functions = test_elementwise.test_functions
test_scale = test_elementwise.test_scale
test_gradients_of_activations = test_elementwise.test_gradients_of_activations
test_comparisons = test_elementwise.test_comparisons
test_logic = test_elementwise.test_logic
test_where = test_elementwise.test_where
test_cast = test_elementwise.test_cast
test_fills = test_elementwise.test_fills
test_half_precision_of_functions = test_elementwise.test_half_precision

test_matmul = test_linear.test_matmul
test_matmul_of_integers = test_linear.test_matmul_of_integers
test_dense = test_linear.test_dense
test_half_precision_of_dense = test_linear.test_half_precision

test_sum = test_reduce.test_sum
test_mean_and_max = test_reduce.test_mean_and_max
test_integers_and_bools_are_summed_in_int64 = test_reduce.test_integers_and_bools_are_summed_in_int64
test_the_gradient_of_max_is_shared_by_equal_elements = test_reduce.test_the_gradient_of_max_is_shared_by_equal_elements
test_argmax = test_reduce.test_argmax
test_sum_to = test_reduce.test_sum_to

test_reshape = test_shape.test_reshape
test_rows = test_shape.test_rows
test_transpose = test_shape.test_transpose
test_broadcast_to = test_shape.test_broadcast_to
test_concat = test_shape.test_concat
test_slice_and_pad = test_shape.test_slice_and_pad
test_gather_and_scatter_add = test_shape.test_gather_and_scatter_add
test_one_hot = test_shape.test_one_hot


test_conv2d = test_conv.test_conv2d_agrees_with_the_loop
test_gradient_of_the_weights = test_conv.test_gradient_of_the_weights_agrees_with_the_loop
test_gradient_of_the_images = test_conv.test_gradient_of_the_images_agrees_with_the_loop
test_pooling = test_pool.test_pooling_agrees_with_the_loop
test_gradient_of_the_maximum = test_pool.test_gradient_of_the_maximum_agrees_with_the_loop_and_ties_go_to_the_first
test_gradient_of_the_mean = test_pool.test_gradient_of_the_mean_agrees_with_the_loop

test_softmax = test_loss.test_softmax
test_log_softmax = test_loss.test_log_softmax
test_cross_entropy = test_loss.test_cross_entropy
test_mse = test_loss.test_mse
test_correct = test_loss.test_correct_counts_rows_and_ties_go_to_the_first
test_sgd = test_optimizer.test_sgd
test_momentum = test_optimizer.test_momentum
test_adam = test_optimizer.test_adam
test_draws = test_random.test_shapes_and_workspaces
test_dropout = test_random.test_dropout_agrees_with_its_reference_and_its_gradient_draws_the_same
test_data_ops = test_data.test_primitive_ops_hold_what_ops_promise

HOST_ONLY = {
    "data.npy",
    "data.read_csv",
    "data.read_npz",
    "data.read_rows",
    "data.stratified",
    "model.read",
    "model.write",
}  # files, and Python objects


def test_every_op_has_a_kernel_on_the_device():
    ops = [op for op in registry().values() if isinstance(op, Op) and not op.view]
    assert len(ops) > 70
    assert {op.name for op in ops if "opencl" not in op.kernels} == HOST_ONLY


# Element by element -------------------------------------------------------------------------------------------------------------


def test_broadcasting_over_many_axes_long_rows_and_blocks():
    pairs = [
        ((2, 3, 2, 3, 2, 9), (2, 1, 2, 1, 2, 1)), ((2, 1, 2, 1, 2, 9), (1, 3, 1, 3, 1, 9)), ((2, 2, 2, 2, 2, 2, 2, 3), (2, 1, 2, 1, 2, 1, 2, 1)),
        ((70, 3, 50), (3, 1)), ((700, 33), (33,)), ((700, 33), (700, 1)), ((3, 9001), (3, 1)), ((300_001,), (300_001,)), ((300_001,), ()),
    ]  # fmt: skip

    def cases(rng):
        for a, b in pairs:
            yield Case((rng.normal(size=a), rng.normal(size=b)))

    checked(find("tensor.sub"), cases, dtypes=("float32",))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@np.errstate(all="ignore")
def test_not_a_number_and_infinity(dtype):
    special = np.array([np.nan, 1, -np.inf, np.inf, 0, -1])
    a, b = np.repeat(special, 6), np.tile(special, 6)
    for name in ("add", "maximum", "minimum", "less", "less_equal", "equal", "not_equal"):
        checked(find(f"tensor.{name}"), [Case((a, b))], dtypes=(dtype,))
    checked(find("nn.relu_grad"), [Case((a, b))], dtypes=(dtype,))
    for name in ("nn.relu", "nn.sigmoid", "nn.tanh", "tensor.exp", "tensor.log", "tensor.sqrt"):
        checked(find(name), [Case((np.concatenate([a, np.linspace(-1e4, 1e4, 21)]).astype(dtype),))], dtypes=(dtype,))


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int32", "int64", "uint64"])
@np.errstate(all="ignore")
def test_integers_wrap_around_and_convert_as_in_numpy(dtype):
    limits = np.iinfo(dtype)
    edges = np.array([limits.min, limits.max, 1, 0, 3, limits.max // 2], dtype)
    for name in ("sub", "mul", "minimum", "less"):
        checked(find(f"tensor.{name}"), [Case((np.repeat(edges, 6), np.tile(edges, 6)))], dtypes=("float32",))
    for target in ("bool", "int8", "uint32", "int64", "float16", *opencl.dtypes()[:1]):
        checked(find("tensor.cast"), [Case((edges,), {"dtype": target})])


@pytest.mark.parametrize("is_cpu", [False, True])
@np.errstate(all="ignore")
def test_float64_is_written_by_its_bits_where_the_device_has_none(is_cpu):
    rng = np.random.default_rng(0)
    floats = np.frombuffer(rng.bytes(40_000), np.float32)
    floats = np.concatenate([floats, np.float32([0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 1.1e-38])])
    wholes = np.array([2**53 + 1, 2**63 - 1, -(2**63), 2**54 + 3, 2**54 + 2, 0, -1])
    run = runner_as(is_cpu=is_cpu, has_fp64=False)
    for x in (
        floats, floats.view(np.float16), wholes, rng.integers(-(2**63), 2**63 - 1, 999), rng.integers(0, 2**64 - 1, 999, dtype=np.uint64),
        np.arange(256, dtype=np.uint8), np.arange(-128, 128, dtype=np.int8), np.array([True, False]),
    ):  # fmt: skip
        (got,) = run(find("tensor.cast").kernels["opencl"], [x], [Spec(x.shape, "float64")], 0, {"dtype": "float64"})
        wanted = x.astype(np.float64)
        numbers = ~np.isnan(wanted)
        assert np.array_equal(got[numbers].view(np.uint64), wanted[numbers].view(np.uint64)), x.dtype
        assert np.isnan(got[~numbers]).all()


def test_ops_that_only_move_bits_need_no_float64():
    run = runner_as(has_fp64=False)
    x = np.random.default_rng(0).normal(size=(5, 4, 3))
    for name, inputs, attributes, wanted in [
        ("tensor.transpose", (x,), {"axes": (2, 0, 1)}, x.transpose(2, 0, 1)),
        ("tensor.gather", (x, np.array([3, 1])), {"axis": 1}, x[:, [3, 1]]),
        ("tensor.where", (x > 0, x, -x), {}, abs(x)),
        ("tensor.concat", (x, x), {"axis": 2}, np.concatenate([x, x], 2)),
        ("tensor.one_hot", (np.array([1, 0]),), {"classes": 2, "dtype": "float64"}, np.array([[0.0, 1], [1, 0]])),
        ("tensor.full", (), {"shape": (3,), "value": 1.5, "dtype": "float64"}, np.full(3, 1.5)),
    ]:
        (got,) = run(find(name).kernels["opencl"], list(inputs), [Spec(wanted.shape, wanted.dtype)], 0, attributes)
        assert np.array_equal(got, wanted), name


def test_ops_are_offered_where_the_device_has_their_dtype():
    full = SimpleNamespace(languages=("opencl",), flops_per_second={"float32": 1e12, "float64": 1e11})
    single = SimpleNamespace(languages=("opencl",), flops_per_second={"float32": 1e12})
    unknown = SimpleNamespace(languages=("opencl",), flops_per_second={})
    arrays = SimpleNamespace(languages=("array",), flops_per_second={"float32": 1e12})
    wide, narrow = Spec((3, 3), "float64"), Spec((3, 3), "float32")
    add, transpose = find("tensor.add"), find("tensor.transpose")
    assert add.kernel_for(full, [wide, wide]) is add.kernel_for(unknown, [wide, wide]) is add.kernels["opencl"]
    assert add.kernel_for(single, [narrow, narrow]) is add.kernels["opencl"]
    assert add.kernel_for(single, [wide, wide]) is None
    assert add.kernel_for(arrays, [wide, wide]) is add.kernels["array"]
    assert transpose.kernel_for(single, [wide]) is transpose.kernels["opencl"]


def test_a_kernel_in_place_gives_the_same_bits():
    """What the plan does with pairs of `Op.inplace`: here by hand, for the runner gives every array memory of its own."""
    rng = np.random.default_rng(0)
    given = [rng.normal(size=1003).astype(np.float32) for _ in range(2)]
    outside = []

    def into_first(kernel, cl, inputs, outputs, workspace, attributes):
        cl.copy(inputs[0], outputs[0])
        kernel(cl, [outputs[0], *inputs[1:]], outputs, workspace, attributes)

    for name in ("tensor.add", "tensor.maximum", "nn.relu_grad", "nn.relu", "nn.sigmoid", "tensor.exp", "tensor.neg"):
        op = find(name)
        inputs = given[: len(op.inputs)]
        kernel = op.kernels["opencl"]
        apart, together = (opencl.runner()(k, inputs, [Spec((1003,), "float32")], 0, {}) for k in (kernel, partial(into_first, kernel)))
        assert np.array_equal(apart[0], together[0], equal_nan=True), name
        outside.append(apart)
    assert len(outside) == 7


# Reductions ---------------------------------------------------------------------------------------------------------------------

LARGE = [
    ((300,), (0,)), ((40_000,), (0,)), ((7, 40_001), (1,)), ((40_001, 7), (0,)), ((3, 5000, 40), (1,)), ((3, 500, 40), (0, 2)),
    ((300, 50, 40), (0, 2)),
    ((2, 3, 4, 5, 6, 7), (0, 2, 4)), ((2, 3, 4, 5, 6, 7), (1, 3, 5)), ((50, 333), (1,)), ((333, 50), (0,)), ((1, 1), (0,)), ((5, 1), (1,)),
]  # fmt: skip


@pytest.mark.parametrize("name", ["sum", "mean", "max"])
def test_large_reductions(name):
    cases = lambda rng: [Case((rng.normal(size=s),), {"axes": axes, "keepdims": bool(rng.integers(2))}) for s, axes in LARGE]  # noqa: E731
    checked(find(f"tensor.{name}"), cases)


def test_large_gradients_of_max():
    def cases(rng):
        for shape, axes in LARGE:
            x = np.round(rng.normal(size=shape), 1)
            y = x.max(axes)
            yield Case((x, y, rng.normal(size=y.shape)), {"axes": axes})

    checked(find("tensor.max_grad"), cases, dtypes=("float32",))


def test_argmax_of_many_with_ties_and_not_a_number():
    def cases(rng):
        for shape in [(300,), (5, 1), (40, 700), (3, 500, 7)]:
            for axis in range(len(shape)):
                x = rng.integers(0, 50, shape)
                yield Case((x.astype(np.int32),), {"axis": axis})
                x = x.astype(float)
                x.reshape(-1)[rng.integers(0, x.size, 5)] = np.nan
                yield Case((x,), {"axis": axis})

    checked(find("tensor.argmax"), cases)


def test_max_of_not_a_number_and_infinity():
    x = np.full((40, 50), -np.inf)
    x[3, 4], x[5, 6] = np.nan, 2
    checked(find("tensor.max"), [Case((x,), {"axes": axes}) for axes in ((1,), (0,), (0, 1))])


@pytest.mark.parametrize("dtype", ["int8", "uint32", "int64"])
def test_reductions_of_integers(dtype):
    x = np.random.default_rng(0).integers(np.iinfo(dtype).min, np.iinfo(dtype).max, (40, 50), dtype=dtype)
    for axes in ((0,), (1,)):
        checked(find("tensor.sum"), [Case((x,), {"axes": axes})])
        checked(find("tensor.max"), [Case((x,), {"axes": axes})])
    checked(find("tensor.sum_to"), [Case((x,), {"shape": s}) for s in ((1, 50), (40, 1), (50,), ())])


def test_only_long_reductions_into_few_outputs_take_workspace():
    def nbytes(shape, axes):
        return workspace_nbytes([Spec(shape)], axes)

    assert nbytes((30_000,), (0,)) == nbytes((128, 1000), (0,)) == nbytes((1000, 100_000), (1,)) == 0
    assert 0 < nbytes((1_000_000,), (0,)) <= 64 * 8
    assert nbytes((UpTo(1000), 1000), (0, 1)) >= nbytes((700, 1000), (0, 1)) > 0
    op = find("tensor.sum")
    whole = op.check_attributes({"axes": (0,)})
    assert op.workspace([Spec((1_000_000,))], [Spec(())], whole) >= nbytes((1_000_000,), (0,))
    x = reduction_shape((3, 5000, 40), (1,))
    parts, axis, extent = parts_of(x)
    assert (x.dims, x.reduced, axis) == ((3, 5000, 40), (False, True, False), 1) or parts == 1
    assert parts_of(reduction_shape((1_000_000,), (0,))) == (64, 0, 15_632)
    assert (parts - 1) * extent < 5000 <= parts * extent or parts == 1


# Shapes and indices -------------------------------------------------------------------------------------------------------------


def test_axes_are_joined_where_memory_lets_them():
    assert joined((2, 3, 4), contiguous((2, 3, 4))) == ((24,), ((1,),))
    assert joined((2, 1, 3), contiguous((2, 1, 3)), broadcast_strides((1, 3), (2, 1, 3))) == ((2, 3), ((3, 1), (0, 1)))
    assert joined((1, 1), (7, 7)) == ((1,), ((0,),))
    assert joined((), ()) == ((1,), ((0,),))


@pytest.mark.parametrize("dtype", ["float64", "int16", "bool"])
def test_large_transposes_and_margins(dtype):
    orders = [
        ((70, 45), (1, 0)), ((3, 70, 45), (0, 2, 1)), ((3, 70, 45), (2, 1, 0)), ((3, 70, 45), (1, 0, 2)), ((3, 20, 15, 8), (0, 2, 3, 1)),
        ((3, 20, 15, 8), (0, 3, 1, 2)), ((9, 8, 7, 6, 5, 4), (5, 3, 1, 0, 2, 4)), ((33, 1, 65), (2, 1, 0)),
    ]  # fmt: skip

    def draw(rng, shape):
        return (10 * rng.normal(size=shape)).astype(dtype)

    checked(find("tensor.transpose"), lambda rng: [Case((draw(rng, s),), {"axes": a}) for s, a in orders])
    margins = [(5, 1), (3, 1, 4, 1), (40, 50), (1,)]
    checked(find("tensor.pad"), lambda rng: [Case((draw(rng, s),), {"low": [2] * len(s), "high": [1] * len(s), "value": 1.0}) for s in margins])


def test_many_indices():
    def gathers(rng):
        for shape, axis in [((50,), 0), ((50, 33), 0), ((50, 33), 1), ((4, 50, 33), 1)]:
            yield Case((rng.normal(size=shape), rng.integers(0, shape[axis], 400)), {"axis": axis})

    def scatters(rng):
        for n, size, before, after in [(400, 50, (), (33,)), (400, 50, (3,), ()), (400, 500, (3,), (20,)), (4000, 50, (), ())]:
            indices, shape = rng.integers(0, size, n), (*before, n, *after)
            yield Case((indices, rng.normal(size=shape)), {"size": size, "axis": len(before)})
            yield Case((indices.astype(np.uint32), rng.integers(0, 99, size=shape).astype(np.uint8)), {"size": size, "axis": len(before)})

    checked(find("tensor.gather"), gathers)
    checked(find("tensor.scatter_add"), scatters)


@pytest.mark.parametrize("who", ["opencl", "opencl:gpu"])
def test_an_index_out_of_range_touches_no_other_memory(who):
    """The runner sees to the memory around, and then tells of it."""
    indices = np.array([-5, 0, 2, 99])
    run = runners()[who]
    with pytest.raises(IndexError, match=r"indices\[[03]\] is (-5|99), outside 0 to 2"):
        run(find("tensor.gather").kernels["opencl"], [np.arange(3.0), indices], [Spec((4,), "float64")], 0, {"axis": 0})
    with pytest.raises(IndexError, match=r"indices\[[03]\] is (-5|99), outside 0 to 2"):
        run(find("tensor.scatter_add").kernels["opencl"], [indices, np.ones(4)], [Spec((3,), "float64")], 0, {"axis": 0, "size": 3})
    with pytest.raises(IndexError, match=r"indices\[[03]\] is (-5|99), outside 0 to 2"):
        run(find("tensor.one_hot").kernels["opencl"], [indices], [Spec((4, 3))], 0, {"classes": 3, "dtype": "float32"})


# Products -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
def test_products_larger_than_a_block(transpose_a, transpose_b):
    def cases(rng):
        for m, n, k in [(100, 70, 300), (97, 16, 129), (6, 32, 128), (192, 33, 1), (7, 200, 257)]:
            a = rng.normal(size=(k, m) if transpose_a else (m, k))
            yield Case((a, rng.normal(size=(n, k) if transpose_b else (k, n))), {"transpose_a": transpose_a, "transpose_b": transpose_b})

    checked(find("tensor.matmul"), cases, reference=test_linear.product)
    checked(find("tensor.matmul"), cases, reference=test_linear.product, dtypes=("float16",), tolerance={"float16": 2e-3})


def test_batches_and_integers_of_products():
    def cases(rng):
        yield Case((rng.normal(size=(3, 1, 2, 20, 30)), rng.normal(size=(1, 4, 2, 30, 20))))
        for low, high, dtype in [(-(2**62), 2**62, "int64"), (0, 256, "uint8"), (-9, 9, "int32"), (-999, 999, "int16")]:
            yield Case((rng.integers(low, high, (20, 30)).astype(dtype), rng.integers(low, high, (30, 20)).astype(dtype)))

    checked(find("tensor.matmul"), cases)


PRODUCTS = [  # images, outputs, window, options: phases of strides, groups, several tiles and blocks of depth, channels that fill no vector
    ((2, 20, 9, 9), 18, (3, 3), {"padding": 1}),
    ((3, 5, 9, 8), 20, (3, 3), {"padding": 1, "stride": 2}),
    ((2, 17, 7, 7), 70, (1, 1), {}),
    ((2, 40, 6, 6), 9, (3, 3), {"padding": 1, "dilation": 2, "stride": (2, 3)}),
    ((2, 32, 5, 6), 8, (3, 3), {"padding": 1, "groups": 4}),
    ((1, 70, 18, 18), 5, (3, 3), {"padding": "same", "dilation": (1, 4)}),
    ((2, 3, 4, 9), 4, (1, 2), {"stride": 4, "dilation": (1, 2)}),
]


def test_convolutions_as_products():
    """Whatever the rule says, as the device asks for it and as a GPU would, beside the array kernels in float64. The direct way has had its cases
    above: all are small."""

    def cases(rng, gradient=None):
        for i, (shape, outputs, window, options) in enumerate([*test_conv.SHAPES, *PRODUCTS]):
            x, w, b = test_conv.drawn(rng, shape, outputs, window, options)
            (y,) = test_conv.CONV2D.infer([Spec(x.shape), Spec(w.shape)], test_conv.CONV2D.check_attributes(options))
            dy = rng.normal(size=y.bounds)
            if gradient is None:
                yield Case((x, w, b) if i % 2 else (x, w), {**options, "activation": "relu" if i % 3 else "none"})
            else:
                yield Case((x, dy) if gradient == "kernel" else (w, dy), {**options, gradient: window if gradient == "kernel" else shape[2:]})

    for op, gradient in ((test_conv.CONV2D, None), (test_conv.CONV2D_GRAD_WEIGHT, "kernel"), (test_conv.CONV2D_GRAD_INPUT, "image")):
        forced = replace(op, kernels={**op.kernels, "opencl": partial(op.kernels["opencl"], way="product")})
        if gradient == "kernel":
            forced = replace(forced, workspace=partial(op.workspace, way="product"))
        checked(forced, partial(cases, gradient=gradient))


def test_the_way_of_a_convolution():
    """By the shapes and the type of device; the functions that are enqueued show it."""
    assert way_of(True, 64, 64, 9, 784) == way_of(True, 12, 12, 9, 784) == "product"
    assert way_of(True, 8, 64, 9, 784) == way_of(True, 64, 3, 49, 784) == way_of(True, 64, 64, 9, 16) == "direct"
    assert way_of(True, 3, 32, 49, 3136, phases=4) == "product"
    assert way_of(False, 64, 3, 9, 16) == "product"
    assert way_of(False, 1, 1, 9, 784) == "direct"

    def sources(shape, outputs, options, is_cpu):
        found = set()

        def noted(cl, *given):
            run = cl._queue.run
            cl.run = lambda source, *rest, **more: (found.add(source), run(source, *rest, **more))
            test_conv.CONV2D.kernels["opencl"](cl, *given)

        rng = np.random.default_rng(0)
        x, w = rng.normal(size=shape).astype("f"), rng.normal(size=(outputs, shape[1], 3, 3)).astype("f")
        full = test_conv.CONV2D.check_attributes(options)
        (spec,) = test_conv.CONV2D.infer([Spec(x.shape), Spec(w.shape)], full)
        nbytes = test_conv.CONV2D.workspace([Spec(x.shape), Spec(w.shape)], [spec], full)
        runner_as(is_cpu=is_cpu)(noted, [x, w], [spec], nbytes, full)
        (source,) = found
        return "panel" if "T panel" in source else "tiles" if "__local" in source else "direct"

    assert sources((2, 16, 9, 9), 16, {"padding": 1}, True) == "panel"
    assert sources((2, 16, 9, 9), 16, {"padding": 1}, False) == "tiles"
    assert sources((2, 3, 9, 9), 16, {"padding": 1}, True) == "direct"
    assert sources((2, 3, 9, 9), 4, {"padding": 1}, False) == "direct"


def test_the_workspace_of_a_gradient_of_weights_is_that_of_its_way():
    """x packed for a product, dy packed directly; the other's is not asked for."""

    def nbytes(x, outputs, window, **options):
        attributes = test_conv.CONV2D_GRAD_WEIGHT.check_attributes({"kernel": window, **options})
        (y,) = test_conv.CONV2D.infer([Spec(x), Spec((outputs, x[1], *window))], test_conv.CONV2D.check_attributes(options))
        specs = [Spec(x), Spec(y.bounds)]
        return test_conv.CONV2D_GRAD_WEIGHT.workspace(specs, test_conv.CONV2D_GRAD_WEIGHT.infer(specs, attributes), attributes)

    pixels = 16 * 64 * 64  # of the images; as many positions
    product = nbytes((16, 16, 64, 64), 128, (3, 3), padding=1)
    assert 4 * pixels * 16 <= product < 4 * pixels * 128
    assert nbytes((16, 4, 64, 64), 32, (3, 3), padding=1) >= 4 * pixels * 32


def test_pixels_that_are_not_numbers_stay_in_their_windows_either_way():
    x = np.ones((1, 16, 9, 9), np.float32)
    x[0, 3, 0, 8], x[0, 5, 8, 0] = np.nan, np.inf
    w = np.ones((16, 16, 3, 3), np.float32)
    touched = np.zeros((9, 9), bool)
    touched[:2, 7:] = touched[7:, :2] = True
    op, attributes = test_conv.CONV2D, test_conv.CONV2D.check_attributes({"padding": 1})
    specs = [Spec(x.shape), Spec(w.shape)]
    for way in ("product", "direct"):
        kernel = partial(op.kernels["opencl"], way=way)
        nbytes = op.workspace(specs, [Spec(x.shape)], attributes)
        for run in runners().values():
            (y,) = run(kernel, [x, w], [Spec(x.shape)], nbytes, attributes)
            np.testing.assert_array_equal(np.isfinite(y[0, 0]), ~touched)


def test_every_kernel_was_checked(request):
    """Stands last: what this file has proved by then."""
    if request.config.option.keyword or any("::" in a for a in request.config.args):
        pytest.skip("some tests of this file were left out")
    if "PYTEST_XDIST_WORKER" in os.environ:
        pytest.skip("other processes run some tests of this file")
    assert {op.name for op in registry().values() if isinstance(op, Op) and "opencl" in op.kernels and not op.view} - CHECKED == set()
