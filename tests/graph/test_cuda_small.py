"""The small kernels in CUDA C++ (`_cuda_small`), compiled for a processor: their values beside the NumPy kernels', and what they leave to others."""

from types import SimpleNamespace

import numpy as np
import pytest

from hetsched.graph.ops import _cuda_small, find
from hetsched.graph.ops._cuda_ids import NOBODY
from tests.cuda_host import COMPILER, compiled, run
from tests.executors.fake_cupy import FakeArray

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")


class Library:
    """What the kernels ask of CuPy, with a processor's code behind `RawModule`. launched: the kernels' names."""

    def __init__(self, folder):
        self.folder, self.built, self.launched = folder, 0, []
        self.cuda = SimpleNamespace(Device=lambda: SimpleNamespace(id=id(self)))

    def __getattr__(self, name):
        return getattr(np, name)

    def RawModule(self, code, options):
        place = self.folder / str(self.built)
        self.built += 1
        place.mkdir()
        library = compiled(code, place)

        def get_function(name):
            def launch(grid, block, arguments):
                self.launched.append(name)
                run(library, name, grid, block, arguments)

            return launch

        return SimpleNamespace(get_function=get_function)


@pytest.fixture(scope="module")
def xp(tmp_path_factory):
    return Library(tmp_path_factory.mktemp("small"))


def seen_by_cuda(x):
    return np.ascontiguousarray(x).reshape(np.shape(x)).view(FakeArray)


def check(xp, name, inputs, kernels, /, tolerance=1e-5, **options):
    """The CUDA kernel of an op beside its NumPy kernel, and which kernels it launched."""
    op = find(name)
    attributes = op.check_attributes(options)
    from hetsched.graph.spec import Spec

    specs = op.infer([Spec(x.shape, x.dtype) for x in inputs], attributes)
    wanted = [np.empty(s.bounds, s.dtype) for s in specs]
    found = [seen_by_cuda(np.full(s.bounds, 99, s.dtype)) for s in specs]
    op.kernels["array"](np, inputs, wanted, None, attributes)
    xp.launched.clear()
    op.kernels["cuda"](xp, [seen_by_cuda(x) for x in inputs], found, None, attributes)
    assert xp.launched == kernels
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1.0, float(np.abs(b).max(initial=0.0))))


@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8", "float16"])
@pytest.mark.parametrize("shape", [(), (3,), (8, 5)])
def test_rows_of_a_batch(xp, dtype, shape):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 100, (23, *shape)).astype(dtype)
    order = rng.permutation(23)
    for turn in (0, 4, 7, 9):
        count = 3 if turn % 5 == 4 else 5
        inputs = [x, np.asarray(turn, np.int64)]
        check(xp, "data.batch_rows", inputs, ["batch_rows"], batch=5, count=count, cycle=5)
        check(xp, "data.batch_rows", [*inputs, order], ["batch_rows"], batch=5, count=count, cycle=5)


@pytest.mark.parametrize(("dtype", "label"), [("float32", "int64"), ("float64", "uint8"), ("float32", "int32")])
@pytest.mark.parametrize(("rows", "classes"), [(1, 1), (7, 10), (300, 3), (130, 64)])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_cross_entropy(xp, dtype, label, rows, classes, reduction):
    rng = np.random.default_rng(1)
    logits, labels = (rng.normal(size=(rows, classes)) * 20).astype(dtype), rng.integers(0, classes, rows).astype(label)
    check(xp, "nn.cross_entropy", [logits, labels], ["cross_entropy"], reduction=reduction)
    check(xp, "nn.cross_entropy_grad", [logits, labels, np.asarray(0.5, dtype)], ["cross_entropy_grad"], reduction=reduction)


def test_a_label_that_is_no_class_gives_nan(xp):
    logits, one = seen_by_cuda(np.ones((3, 4), np.float32)), seen_by_cuda(np.ones((), np.float32))
    for wrong in (-1, 4):
        labels, loss, grad = (
            seen_by_cuda(np.asarray([0, wrong, 3])),
            seen_by_cuda(np.zeros((), np.float32)),
            seen_by_cuda(np.zeros((3, 4), np.float32)),
        )
        assert _cuda_small.cross_entropy(xp, logits, labels, loss, 3.0, NOBODY)
        assert _cuda_small.cross_entropy_grad(xp, logits, labels, one, grad, 3.0, NOBODY)
        assert np.isnan(loss)
        assert np.isnan(grad).any(axis=1).tolist() == [False, True, False]


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize(("shape", "kernels"), [((5, 300, 10), ["dense"]), ((33, 7, 16), ["dense"]), ((3, 2, 1), ["dense"]), ((4, 9, 17), ["bias"])])
def test_dense(xp, activation, shape, kernels):
    rng = np.random.default_rng(2)
    n, k, m = shape
    for dtype in ("float32", "float64"):
        x, w, b = rng.normal(size=(n, k)).astype(dtype), rng.normal(size=(k, m)).astype(dtype), rng.normal(size=m).astype(dtype)
        check(xp, "nn.dense", [x, w, b], kernels, activation=activation)
        check(xp, "nn.dense", [x, w], kernels if activation == "relu" or kernels == ["dense"] else [], activation=activation)
    check(xp, "nn.dense", [x.reshape(1, n, k), w, b], kernels, activation=activation)


def test_a_dense_layer_of_no_inputs_is_its_bias(xp):
    op = find("nn.dense")
    for lead in ((5,), (0,), (2, 3), ()):
        out = seen_by_cuda(np.full((*lead, 2), 9, np.float32))
        inputs = [np.empty((*lead, 0), np.float32), np.empty((0, 2), np.float32), np.asarray([1, -2], np.float32)]
        op.kernels["cuda"](xp, [seen_by_cuda(x) for x in inputs], [out], None, op.check_attributes({}))
        assert (out == [1, -2]).all()


def test_relu_keeps_nan(xp):
    x, w = np.asarray([[np.nan, 1], [-1, 1]], np.float32), np.asarray([[1.0], [0.5]], np.float32)
    out = seen_by_cuda(np.zeros((2, 1), np.float32))
    assert _cuda_small.dense(xp, seen_by_cuda(x), seen_by_cuda(w), None, out, True)
    assert np.isnan(out[0, 0])
    assert out[1, 0] == 0


@pytest.mark.parametrize("rows", [1, 64, 300])
def test_sums_of_columns(xp, rows):
    x = np.random.default_rng(3).normal(size=(rows, 5)).astype(np.float32)
    check(xp, "tensor.sum", [x], ["columns"], axes=[0])
    check(xp, "tensor.sum", [x], ["reduced_rows"], axes=[1])


def test_concatenation(xp):
    rng = np.random.default_rng(4)
    parts = [rng.normal(size=n).astype(np.float32) for n in (7, 1, 0, 300)]
    check(xp, "tensor.concat", parts, ["concatenated"], axis=0)
    check(xp, "tensor.concat", [rng.normal(size=(n, 3)) for n in (2, 5)], ["concatenated"], axis=0)
    check(xp, "tensor.concat", [rng.integers(0, 9, (2, n)) for n in (2, 5)], [], axis=1)


@pytest.mark.parametrize("name", ["optim.adam", "optim.adamw"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_adam_in_its_own_memory_and_in_place(xp, name, dtype):
    rng = np.random.default_rng(5)
    inputs = [rng.normal(size=300).astype(dtype) for _ in range(3)] + [rng.random(300).astype(dtype), np.asarray(6, np.int64)]
    check(xp, name, inputs, ["adam"], tolerance=2e-5, lr=0.1, weight_decay=0.01)
    op = find(name)
    attributes = op.check_attributes({"lr": 0.1, "weight_decay": 0.01})
    wanted = [np.empty(300, dtype) for _ in range(3)]
    op.kernels["array"](np, inputs, wanted, None, attributes)
    given = [seen_by_cuda(x) for x in inputs]
    op.kernels["cuda"](xp, given, [given[0], given[2], given[3]], None, attributes)
    for a, b in zip([given[0], given[2], given[3]], wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)
