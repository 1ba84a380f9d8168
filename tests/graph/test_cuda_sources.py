"""The CUDA C++ of ops, compiled by a compiler for processors with a few definitions in place of CUDA's: its arithmetic is the same, and its values
are compared with the NumPy kernels'. What only a device shows (launches, CuPy) is left to tests that need one."""

import ctypes
import re
from types import SimpleNamespace

import numpy as np
import pytest

import hetsched as hs
from hetsched.graph.ops import _cuda_random, _cuda_scatter, _cuda_small, find
from hetsched.graph.ops.optimizer import CUDA_KERNELS
from hetsched.graph.ops.random import _words
from tests.cuda_host import COMPILER, compiled, run

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")


class Library:
    """What the kernels ask of CuPy, with a library of a processor's code behind `RawModule`."""

    def __init__(self, folder):
        self.folder = folder
        self.empty, self.argsort = np.empty, lambda x: np.argsort(x, kind="stable")
        self.cuda = SimpleNamespace(Device=lambda: SimpleNamespace(id=id(self)))

    def __getattr__(self, name):
        return getattr(np, name)

    def RawModule(self, code, options):
        library = compiled(code, self.folder)

        def get_function(name):
            return lambda grid, block, arguments: run(library, name, grid, block, arguments)

        return SimpleNamespace(get_function=get_function)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if COMPILER is None:
        pytest.skip("no C++ compiler here")
    return Library(tmp_path_factory.mktemp("cuda"))


def both(library, name, inputs, extents, kind, /, **options):
    """What the NumPy kernel and the CUDA kernel give."""
    op = find(name)
    attributes = op.check_attributes({"seed": 7, "key": "x", **options})
    wanted, found = np.empty(extents, kind), np.full(extents, -1, kind)
    op.kernels["array"](np, inputs, [wanted], None, attributes)
    op.kernels["cuda"](library, inputs, [found], None, attributes)
    return wanted, found


@pytest.mark.parametrize("n", [0, 1, 7, 1000])
@pytest.mark.parametrize("turn", [None, 3])
def test_random_numbers_have_the_same_bits(library, monkeypatch, n, turn):
    inputs = [] if turn is None else [np.asarray(turn, np.int64)]
    for dtype in ("float32", "float64"):
        wanted, found = both(library, "random.uniform", inputs, (n,), dtype, shape=[n], dtype=dtype, low=-1.5, high=2.0)
        np.testing.assert_array_equal(found, wanted)
        wanted, found = both(library, "random.normal", inputs, (n,), dtype, shape=[n], dtype=dtype, mean=0.5, std=2.0)
        np.testing.assert_allclose(found, wanted, rtol=1e-6 if dtype == "float32" else 1e-13, atol=1e-14)
    for most in (_cuda_random._MOST_RANKED, 0):  # by comparing all, and by sorting
        monkeypatch.setattr(_cuda_random, "_MOST_RANKED", most)
        wanted, found = both(library, "random.permutation", inputs, (n,), np.int64, n=n)
        np.testing.assert_array_equal(found, wanted)


def test_equal_words_keep_their_order(library):
    words, found = np.asarray([3, 1, 3, 0, 1, 3], np.uint64), np.zeros(6, np.int64)
    _cuda_random._module(library, library.cuda.Device().id).get_function("ranked")((1,), (128,), (words, found, np.int64(6)))
    np.testing.assert_array_equal(found, np.argsort(words, kind="stable"))


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_dropout_drops_the_same(library, rate):
    x = np.random.default_rng(0).normal(size=(37, 5)).astype(np.float32)
    wanted, found = both(library, "nn.dropout", [x, np.asarray(2, np.int64)], x.shape, np.float32, rate=rate)
    np.testing.assert_array_equal(found != 0, wanted != 0)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("scheme", ["zeros", "ones", "he", "glorot", "uniform"])
def test_first_weights_are_the_same(library, scheme):
    wanted, found = both(library, "nn.init", [], (12, 5), np.float32, scheme=scheme, shape=[12, 5])
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)
    assert _words({"seed": -1, "key": ""})[0] == 2**64 - 1


def test_the_generator_is_numpys():
    assert "0xD2E7470EE14C6C93ULL" in _cuda_random.SOURCE


# Optimizers -----------------------------------------------------------------------------------------------------------------------------


class Elementwise:
    """CuPy's ElementwiseKernel, by a loop over the elements."""

    count = 0

    def __init__(self, inputs, outputs, body, name):
        self.names = [p.split() for p in (*inputs.split(", "), *outputs.split(", "))]
        self.outputs = len(outputs.split(", "))
        self.body, self.name = body, name

    def __call__(self, *given):
        arrays = [g for g in given if isinstance(g, np.ndarray)]
        kind = next(g.dtype for p, g in zip(self.names, given, strict=True) if p[-2] == "T" and isinstance(g, np.ndarray))
        types = {"T": {"float32": "float", "float64": "double"}[kind.name], "int64": "long long", "float64": "double", "bool": "bool"}
        parameters, let, arguments = [], [], []
        for p, g in zip(self.names, given, strict=True):
            c_type, name = types[p[-2]], p[-1]
            if p[0] == "raw":
                parameters.append(f"{c_type} *{name}")
            elif isinstance(g, np.ndarray):
                parameters.append(f"{c_type} *{name}_p")
                let.append(f"{c_type} &{name} = {name}_p[i];")
            else:
                parameters.append(f"const {c_type} {name}")
            number = {"float": ctypes.c_float, "double": ctypes.c_double, "long long": ctypes.c_int64, "bool": ctypes.c_bool}[c_type]
            arguments.append(ctypes.c_void_p(g.ctypes.data) if isinstance(g, np.ndarray) else number(g))
        head = f'extern "C" void {self.name}({", ".join(parameters)}, long long n)'
        source = f"typedef {types['T']} T;\n{head} {{ for (long long i = 0; i < n; i++) {{ {' '.join(let)} {self.body} }} }}"
        Elementwise.count += 1
        folder = self.folder / str(Elementwise.count)
        folder.mkdir()
        library = compiled("using std::expm1;\n" + re.sub(r"\bnan\b", "NAN", source), folder)
        getattr(library, self.name)(*arguments, ctypes.c_int64(arrays[0].size if self.name != "hetsched_adam_step" else 1))


@pytest.mark.parametrize(
    ("name", "states", "turn", "options"),
    [
        ("optim.sgd", 0, False, {"lr": 0.1, "weight_decay": 0.01}),
        ("optim.momentum", 1, False, {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.01}),
        ("optim.momentum", 1, False, {"lr": 0.1, "momentum": 0.8, "nesterov": True}),
        ("optim.adam", 2, True, {"lr": 0.1, "weight_decay": 0.01}),
        ("optim.adamw", 2, True, {"lr": 0.1, "weight_decay": 0.01}),
    ],
)
def test_optimizers_in_their_own_memory_and_in_place(tmp_path, monkeypatch, name, states, turn, options):
    rng = np.random.default_rng(1)
    monkeypatch.setattr(_cuda_small, "adam", lambda *given: False)  # of half precision, say
    arrays = [rng.normal(size=50).astype(np.float32) for _ in range(2)] + [rng.random(50).astype(np.float32) for _ in range(states)]
    inputs = [*arrays, np.asarray(4, np.int64)] if turn else arrays
    op = find(name)
    attributes = op.check_attributes(options)
    wanted = [np.empty(50, np.float32) for _ in range(1 + states)]
    op.kernels["array"](np, inputs, wanted, None, attributes)

    class Own(Elementwise):
        folder = tmp_path

    class Xp:
        ElementwiseKernel, empty = Own, staticmethod(np.empty)

    xp = Xp()
    found = [np.empty(50, np.float32) for _ in wanted]
    op.kernels["cuda"](xp, inputs, found, None, attributes)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)
    given = [x.copy() for x in inputs]
    op.kernels["cuda"](xp, given, [given[0], *given[2 : 2 + states]], None, attributes)
    for a, b in zip([given[0], *given[2 : 2 + states]], wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def test_every_fused_kernel_is_used():
    assert set(CUDA_KERNELS) == {"sgd", "momentum", "adam", "adam_step"}


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint16", "float32"])
def test_scatter_add_in_dtypes_that_cuda_does_not_add_up_atomically(dtype, monkeypatch):
    monkeypatch.setattr(_cuda_scatter, "scatter_add", lambda *given: False)  # of many rows, say
    op = find("tensor.scatter_add")
    indices = np.asarray([0, 2, 2, 1, 2])
    updates = np.asarray([1, 100, 100, -3 if dtype[0] != "u" else 3, 7]).astype(dtype)
    attributes = op.check_attributes({"size": 4})
    wanted, found = np.empty(4, dtype), np.full(4, 9, dtype)
    seen = []

    class Watching:
        def __getattr__(self, name):
            return SimpleNamespace(at=lambda out, *rest: (seen.append(out.dtype.name), np.add.at(out, *rest))) if name == "add" else getattr(np, name)

    op.kernels["array"](np, [indices, updates], [wanted], None, attributes)
    op.kernels["array"](Watching(), [indices, updates], [found], None, attributes)
    np.testing.assert_array_equal(found, wanted)
    assert seen == [{"int8": "int32", "uint16": "int32", "int64": "uint64"}.get(dtype, dtype)]


@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_in_one_large_block_give_what_small_ones_do(stride):
    """On CUDA the columns of many images are one product, from CuPy's pool."""
    from hetsched.graph.ops import conv
    from hetsched.testing.elsewhere import Elsewhere

    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(200, 8, 12, 12)), rng.normal(size=(16, 8, 3, 3))
    xp = Elsewhere(strict=True)
    assert conv._block(xp, None) > conv._BLOCK_NBYTES == conv._block(np, None) == conv._block(xp, x)
    op = find("nn.conv2d")
    options = op.check_attributes({"stride": [stride], "padding": 1})
    (spec,) = op.infer([hs.Spec(x.shape, x.dtype), hs.Spec(w.shape, w.dtype)], options)
    dy = rng.normal(size=spec.bounds)
    for name, inputs, shapes, more in (
        ("nn.conv2d", [x, w], [dy.shape], {}),
        ("nn.conv2d_grad_input", [w, dy], [x.shape], {"image": [12, 12]}),
        ("nn.conv2d_grad_weight", [x, dy], [w.shape, (16,)], {"kernel": [3, 3]}),
    ):
        op = find(name)
        attributes = op.check_attributes({"stride": [stride], "padding": 1, **more})
        wanted, found = ([np.empty(s) for s in shapes] for _ in range(2))
        op.kernels["array"](np, inputs, wanted, None, attributes)
        op.kernels["cuda"](xp, inputs, found, np.zeros(8, np.uint8), attributes)
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
