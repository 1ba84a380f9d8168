"""What cuBLAS is asked for, against one that counts by columns as the real one does; a card shows whether it can be captured."""

import ctypes
from types import SimpleNamespace

import fake_cupy
import numpy as np
import pytest

from hetsched.executors.backends._cuda_blas import Capturing, Doubting, Products, layout


class Blas:
    """cuBLAS of NumPy: op(A) op(B), all by columns, from pointers."""

    def __init__(self):
        self.asked = []

    def cublasCreate_v2(self, handle):
        handle._obj.value = 7
        return 0

    def cublasDestroy_v2(self, handle):
        self.asked.append("destroyed")
        return 0

    def cublasSetStream_v2(self, handle, stream):
        self.asked.append(("stream", stream.value))
        return 0

    def cublasSetWorkspace_v2(self, handle, pointer, nbytes):
        self.asked.append(("workspace", nbytes.value))
        return 0

    def _columns(self, kind, pointer, rows, columns, step):
        assert step >= rows, "cuBLAS refuses it"
        if not rows or not columns:
            return np.empty((rows, columns), kind)
        flat = np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(np.ctypeslib.as_ctypes_type(kind))), (step * (columns - 1) + rows,))
        return np.lib.stride_tricks.as_strided(flat, (rows, columns), (flat.itemsize, step * flat.itemsize))

    def gemm(self, kind, handle, op_a, op_b, m, n, k, alpha, a, step_a, b, step_b, beta, c, step_c):
        assert (handle.value, alpha._obj.value, beta._obj.value) == (7, 1, 0)
        left = self._columns(kind, a, *((k, m) if op_a else (m, k)), step_a)
        right = self._columns(kind, b, *((n, k) if op_b else (k, n)), step_b)
        self._columns(kind, c, m, n, step_c)[...] = (left.T if op_a else left) @ (right.T if op_b else right)
        self.asked.append("gemm")
        return 0

    def cublasSgemm_v2(self, *given):
        return self.gemm(np.float32, *given)

    def cublasDgemm_v2(self, *given):
        return self.gemm(np.float64, *given)


@pytest.fixture
def products():
    def matmul(a, b, out):
        blas.asked.append("left")
        return np.matmul(a, b, out=out)

    blas = Blas()
    xp = SimpleNamespace(matmul=matmul, add=np.add, cuda=SimpleNamespace(Memory=lambda nbytes: SimpleNamespace(ptr=64)))
    made = Products(xp, SimpleNamespace(ptr=5), blas)
    assert blas.asked == [("stream", 5), ("workspace", 32 << 20)]
    blas.asked.clear()
    return made, blas, xp


def numbers(kind, *shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(kind).view(fake_cupy.FakeArray)


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize(("m", "k", "n"), [(3, 4, 5), (1, 4, 5), (3, 1, 5), (3, 4, 1), (1, 1, 1), (1, 4, 1)])
def test_products_of_matrices_as_they_lie(products, kind, m, k, n):
    made, blas, _ = products
    for a in (numbers(kind, m, k), numbers(kind, k, m).T, numbers(kind, m, k + 2)[:, :k], numbers(kind, k, m + 3)[:, :m].T):
        for b in (numbers(kind, k, n), numbers(kind, n, k).T, numbers(kind, k + 2, n)[1 : k + 1]):
            out = np.full((m, n), np.nan, kind).view(fake_cupy.FakeArray)
            made.matmul(a, b, out=out)
            np.testing.assert_allclose(out, np.asarray(a) @ np.asarray(b), rtol=1e-5, atol=1e-6)
    assert blas.asked == ["gemm"] * 12


def test_stacks_are_multiplied_matrix_by_matrix_and_the_rest_is_left_to_cupy(products):
    made, blas, _ = products
    a, b = numbers("float32", 2, 3, 4), numbers("float32", 2, 5, 4).transpose(0, 2, 1)
    out = np.empty((2, 3, 5), np.float32).view(fake_cupy.FakeArray)
    made.matmul(a, b, out=out)
    np.testing.assert_allclose(out, np.asarray(a) @ np.asarray(b), rtol=1e-5)
    assert blas.asked == ["gemm", "gemm"]
    for a, b, out in (
        (numbers("float32", 3, 8)[:, ::2], numbers("float32", 4, 5), numbers("float32", 3, 5)),
        (numbers("float32", 3, 4), numbers("float32", 4, 5), numbers("float32", 3, 10)[:, ::2]),
        (np.ones((3, 4), np.int32), np.ones((4, 5), np.int32), np.empty((3, 5), np.int32)),
        (numbers("float32", 3, 0), numbers("float32", 0, 5), numbers("float32", 3, 5)),
        (numbers("float32", 2, 3, 4), numbers("float32", 4, 5), numbers("float32", 2, 3, 5)),
    ):
        blas.asked.clear()
        made.matmul(a, b, out=out)
        np.testing.assert_allclose(out, np.asarray(a) @ np.asarray(b), rtol=1e-5)
        assert blas.asked == ["left"]
    made.close()
    assert blas.asked[-1] == "destroyed"
    assert made._workspace is None


def test_a_refusal_has_its_number(products):
    made, blas, _ = products
    blas.cublasSgemm_v2 = lambda *given: 13
    with pytest.raises(RuntimeError, match="cublasSgemm_v2 gave cuBLAS status 13"):
        made.matmul(numbers("float32", 2, 2), numbers("float32", 2, 2), out=numbers("float32", 2, 2))


def test_what_stands_for_cupy_is_found_where_cupy_is(products):
    made, _, _ = products
    library = Capturing(SimpleNamespace, made)
    assert library.matmul == made.matmul
    assert library == SimpleNamespace
    assert {(SimpleNamespace, 0): "kept"}[library, 0] == "kept"
    assert library.plain is Doubting(library, None).plain is SimpleNamespace


def test_layouts():
    assert layout((3, 4), (16, 4), 4) == (0, 4)
    assert layout((3, 4), (32, 4), 4) == (0, 8)
    assert layout((4, 3), (4, 16), 4) == (1, 4)
    assert layout((3, 4), (0, 4), 4) is None
    assert layout((3, 4), (-16, 4), 4) is None
