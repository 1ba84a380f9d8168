"""Element-wise launches that follow each other on a CUDA stream are one kernel, with the bits of the launches one by one.

On a CuPy of NumPy (fake_cupy.py), whose kernels in CUDA C++ a compiler for processors builds; at the end, on a device where there is one.
"""

import math

import fake_cupy
import numpy as np
import pytest

import hetsched as hs
from hetsched.errors import GraphError, TaskError
from hetsched.executors.backends import cuda
from hetsched.executors.backends._cuda_chains import LONGEST_CHAIN, chain_of, grouped
from hetsched.graph.graph import Graph, Loop
from hetsched.graph.ops import find, registry
from hetsched.graph.spec import Spec
from hetsched.testing.reference import interpret
from tests.cuda_host import COMPILER

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
N = 301  # more than a block
ELEMENTWISE = [op for op in registry().values() if getattr(op, "elementwise", False)]
ARITHMETIC = [op for op in ELEMENTWISE if op.name != "tensor.cast"]
DTYPES = ["float32", "float64", "int8", "uint8", "int32", "uint32", "int64", "uint64", "bool"]
NOT_ROUNDED_ALIKE = {"tensor.exp", "tensor.log", "nn.tanh", "nn.sigmoid"}  # NumPy's differ by a unit in the last place
REAL = cuda.find()


@pytest.fixture
def fake(monkeypatch):
    yield fake_cupy.install(monkeypatch)
    fake_cupy.Stream.failing = None


@pytest.fixture
def fusing(fake, monkeypatch, tmp_path):
    """With a compiler for kernels."""
    monkeypatch.setattr(fake_cupy.RawModule, "folder", tmp_path)
    for name in ("launched", "built"):
        monkeypatch.setattr(fake_cupy.RawModule, name, [])
    return fake


class Bench:
    """A device, and arrays on it one behind the other."""

    def __init__(self, backend, nbytes=1 << 20):
        self.live = backend.open(backend.find().devices[0], nbytes)
        self.stream = self.live.stream("compute")
        self.free = 0
        self.calls = []
        self.alone = []  # kernels that were called with arrays

    def array(self, shape=(N,), dtype="float32"):
        out = self.live.array(self.free, shape, dtype)
        self.free += -(-out.nbytes // 256) * 256
        return out

    def given(self, value):
        out = self.array(value.shape, value.dtype)
        self.stream.upload(value, out)
        return out

    def call(self, op, inputs, out=None, **attributes):
        """A call more; gives its output, where none is given a new one."""
        op = find(op) if isinstance(op, str) else op
        attributes = op.check_attributes(attributes)
        if out is None:
            (spec,) = op.infer([Spec(x.shape, x.dtype) for x in inputs], attributes)
            out = self.array(spec.shape, spec.dtype)
        self.calls.append((op.kernels["array"], tuple(inputs), (out,), None, attributes, len(self.calls)))
        return out

    def value(self, array):
        out = np.empty(array.shape, array.dtype)
        self.stream.download(array, out)
        self.stream.record().wait()
        return out

    def both(self):
        """All of memory after the calls one by one, and as a segment, from the same bytes."""
        whole = self.live.array(0, (self.free,), np.uint8)
        before = self.value(whole)
        assert not self.stream.segment(self.calls)
        for call in self.calls:
            self.stream.launch(*call[:5])
        alone = self.value(whole)
        self.stream.upload(before, whole)
        self.is_segment = self.stream.segment(self.calls)
        return alone, self.value(whole)

    def seen(self, memory, array):
        start = array.pointer - self.live.array(0, (1,), np.uint8).pointer
        return memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)


@pytest.fixture
def bench(fusing):
    out = Bench(fusing)
    yield out
    out.live.close()


def numbers(dtype, n=N, seed=0):
    """Numbers of all sizes that the dtype has; of floats also those that are none."""
    rng = np.random.default_rng(seed)
    if dtype == "bool":
        return rng.integers(0, 2, n).astype(bool)
    if np.dtype(dtype).kind == "f":
        out = rng.normal(size=n) * 10 ** rng.uniform(-3, 2, n)
        out[:8] = [0.0, -0.0, np.nan, np.inf, -np.inf, 1.0, 1e-40, -1e-310][:n]
        return out.astype(dtype)
    info = np.iinfo(dtype)
    out = rng.integers(info.min, info.max, n, dtype, endpoint=True)
    out[:4] = [info.min, info.max, 0, 1][:n]
    return out


def same(op, wanted, found):
    if op.name in NOT_ROUNDED_ALIKE:
        return np.allclose(wanted, found, rtol=1e-6 if wanted.dtype == np.float32 else 1e-14, atol=0, equal_nan=True)
    return np.array_equal(wanted, found, equal_nan=wanted.dtype.kind == "f")


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_element_wise_op_has_the_bits_of_its_own_launch(bench, dtype):
    x, y = bench.given(numbers(dtype)), bench.given(numbers(dtype, seed=1))
    mask, row = bench.given(numbers("bool", seed=2)), bench.given(numbers(dtype, 1, seed=3))
    made = []
    for op in ARITHMETIC:
        inputs = [mask, x, y] if op.name == "tensor.where" else [x, y][: len(op.inputs)]
        try:
            made.append((op, bench.call(op, inputs, **({"factor": 0.3} if op.name == "tensor.scale" else {}))))
        except GraphError:
            continue  # not of this dtype
        if len(inputs) > 1:
            made.append((op, bench.call(op, [*inputs[:-1], row] if not op.name.endswith("_grad") else inputs)))
    with np.errstate(all="ignore"):
        alone, chained = bench.both()
    assert bench.is_segment
    for op, out in made:
        assert same(op, bench.seen(alone, out), bench.seen(chained, out)), op.name
    assert len(made) >= (8 if dtype == "bool" else 15)
    assert len(fake_cupy.RawModule.launched) == -(-len(made) // LONGEST_CHAIN)


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "uint64", "bool"])
def test_casts_in_a_chain(bench, dtype):
    """Of numbers that every dtype has: what does not fit is left open, here as in C."""
    x = bench.given(np.random.default_rng(0).integers(0, 100, N).astype(dtype))
    outs = [bench.call("tensor.cast", (x,), dtype=to) for to in DTYPES]
    back = [bench.call("tensor.cast", (y,), dtype=dtype) for y in outs]
    alone, chained = bench.both()
    for out in (*outs, *back):
        assert np.array_equal(bench.seen(alone, out), bench.seen(chained, out)), out.dtype
    assert len(fake_cupy.RawModule.launched) == 2


@needs_compiler
@pytest.mark.parametrize(("dtype", "seed"), [("float32", 0), ("float32", 1), ("int8", 2), ("int32", 3)])
def test_random_chains_that_feed_each_other_and_write_in_place(bench, dtype, seed):
    """Also of other shapes of as many elements, of rows, columns and single elements that are repeated, and of bytes that are used again."""
    rng = np.random.default_rng(seed)
    shape = (7, 3, 11)
    kept = [bench.given(numbers(dtype, 231, seed=i).reshape(shape)) for i in range(2)]
    extents = [(11,), (3, 1), (3, 11), (7, 1, 1), (7, 1, 11), ()]
    repeated = [bench.given(numbers(dtype, math.prod(e), seed=9).reshape(e)) for e in extents]
    names = ["tensor.add", "tensor.mul", "tensor.sub", "tensor.maximum", "nn.relu", "tensor.neg"]
    if dtype == "float32":
        names += ["tensor.div", "nn.relu_grad", "nn.sigmoid_grad", "nn.tanh_grad", "tensor.scale", "tensor.sqrt"]
    pool = [bench.call("tensor.add", kept)]
    for _ in range(40):
        op = find(str(rng.choice(names)))
        inputs = [pool[rng.integers(len(pool))] for _ in op.inputs]
        if len(inputs) == 2 and not op.name.endswith("_grad") and rng.random() < 0.4:
            inputs[1] = repeated[rng.integers(len(repeated))]
        out = inputs[0] if rng.random() < 0.3 and (0, 0) in op.inplace else None
        pool.append(bench.call(op, inputs, out, **({"factor": 0.7} if op.name == "tensor.scale" else {})))
        if rng.random() < 0.2:
            flags = bench.call("tensor.less", [pool[-1], pool[0]])
            pool.append(bench.call("tensor.where", [flags, pool[-1], repeated[0]]))
    with np.errstate(all="ignore"):
        alone, chained = bench.both()
    for i, call in enumerate(bench.calls):
        out = call[2][0]
        assert np.array_equal(bench.seen(alone, out), bench.seen(chained, out), equal_nan=out.dtype.kind == "f"), i
    chained = [len(parts) for _, parts in grouped(bench.calls) if parts]
    assert len(fake_cupy.RawModule.launched) == len(fake_cupy.RawModule.built) == len(chained)
    assert sum(chained) >= len(bench.calls) - 1
    assert max(chained) == LONGEST_CHAIN


@needs_compiler
@pytest.mark.parametrize("graphs", ["0", "1"])
def test_a_chain_of_k_launches_is_one_that_takes_every_array_once(fusing, monkeypatch, graphs):
    monkeypatch.setenv("HETSCHED_CUDA_GRAPHS", graphs)
    bench = Bench(fusing)
    x, y = bench.given(np.linspace(-2, 2, N).astype(np.float32)), bench.given(np.ones(N, np.float32))
    a = bench.call("tensor.mul", (x, y))
    b = bench.call("nn.relu", (a,))
    c = bench.call("tensor.add", (b, x), b)
    d = bench.call("tensor.scale", (c,), factor=2.0)
    alone, chained = bench.both()
    assert np.array_equal(bench.seen(alone, d), bench.seen(chained, d))
    (arrays,) = fake_cupy.RawModule.launched
    assert len(arrays) == 5  # x, y, a, b (which c lies in), d
    (source,) = fake_cupy.RawModule.built
    assert [f"p{i}[j] = " in source for i in range(5)].count(True) == 3
    for turn in range(3):
        bench.stream.upload(np.full(N, turn, np.float32), x)
        assert bench.stream.segment(bench.calls)
        assert (bench.value(d) == 4 * turn).all()
        assert (bench.value(a) == turn).all()
    assert len(fake_cupy.RawModule.launched) == 4
    assert len(fake_cupy.RawModule.built) == 1
    bench.live.close()


@needs_compiler
def test_what_is_not_element_by_element_ends_a_chain(bench):
    m = bench.given(np.random.default_rng(1).normal(size=(16, 16)).astype(np.float32))
    row = bench.given(np.ones(16, np.float32))
    p = bench.call("tensor.add", (m, row))
    q = bench.call("tensor.neg", (p,))
    r = bench.call("tensor.matmul", (q, m))
    t = bench.call("tensor.neg", (r,))
    u = bench.call("tensor.mul", (row, row))  # of another size
    alone, chained = bench.both()
    for out in (p, q, r, t, u):
        assert np.array_equal(bench.seen(alone, out), bench.seen(chained, out))
    assert [len(calls) for calls, parts in grouped(bench.calls) if parts] == [2]
    assert len(fake_cupy.RawModule.launched) == 1


@needs_compiler
def test_bytes_that_meet_shifted_are_not_of_one_chain(bench):
    """The second writes where the first reads, elements later: one thread would read what another has written."""
    x = bench.given(np.linspace(0, 1, N, dtype=np.float32))
    a = bench.call("tensor.neg", (x,))
    shifted = bench.live.array(256, (N,), np.float32)
    bench.call("tensor.neg", (a,), shifted)
    bench.call("tensor.neg", (bench.live.array(256, (1,), np.float32),), bench.live.array(256, (1,), np.float32))
    bench.both()
    assert not bench.is_segment
    assert fake_cupy.RawModule.launched == []
    assert [len(calls) for calls, _ in grouped(bench.calls)] == [1, 1, 1]


@needs_compiler
def test_what_is_repeated_is_not_written_in_the_same_chain(bench):
    """Every thread reads the single element; in a chain one of them may have written it."""
    one, m = bench.given(np.ones(1, np.float32)), bench.given(np.ones((1, 1), np.float32))
    x = bench.given(np.ones(8, np.float32))
    first = bench.live.array(x.pointer - bench.live.array(0, (1,), np.uint8).pointer, (1,), np.float32)
    bench.call("tensor.add", (x, first), x)
    bench.call("tensor.add", (one, m))
    assert [len(parts) for _, parts in grouped(bench.calls)] == [0, 0]


@needs_compiler
def test_an_op_of_several_launches_is_one_by_itself(bench):
    x = bench.given(numbers("float32"))
    y = bench.call("nn.sigmoid", (x,))
    z = bench.call("tensor.sum", (y,))
    bench.call("tensor.neg", (z,))
    with np.errstate(all="ignore"):
        alone, chained = bench.both()
    assert np.allclose(bench.seen(alone, y), bench.seen(chained, y), rtol=1e-6, atol=0, equal_nan=True)
    assert len(fake_cupy.RawModule.launched) == 1


def test_half_precision_and_empty_arrays_are_launched_by_themselves(fake):
    bench = Bench(fake)
    x = bench.given(np.ones(5, np.float16))
    y = bench.call("tensor.add", (x, x))
    bench.call("tensor.cast", (y,), dtype="float32")
    none = bench.array((0,))
    bench.call("tensor.add", (none, none))
    assert [parts for _, parts in grouped(bench.calls)] == [[], [], []]
    bench.live.close()


def test_what_does_not_build_is_launched_one_by_one(fake):
    """No compiler here."""
    bench = Bench(fake)
    x = bench.given(np.ones(N, np.float32))
    y = bench.call("tensor.neg", (bench.call("tensor.add", (x, x)),))
    for _ in range(3):
        if not bench.stream.segment(bench.calls):
            for call in bench.calls:
                bench.stream.launch(*call[:5])
        assert (bench.value(y) == -2).all()
    bench.live.close()


@needs_compiler
def test_chains_can_be_left_out(fusing, monkeypatch):
    monkeypatch.setenv("HETSCHED_CUDA_CHAINS", "0")
    bench = Bench(fusing)
    x = bench.given(np.ones(N, np.float32))
    bench.call("tensor.neg", (bench.call("tensor.add", (x, x)),))
    bench.both()
    assert not bench.is_segment
    assert not bench.stream.segment(bench.calls)
    assert fake_cupy.RawModule.built == []
    bench.live.close()


def loop_of(behind=None, turns=40):
    """Turns of tanh(x * w + bias - w), with an op behind the bias; w shrinks, bias changes its sign. The graph, and its inputs."""
    body = Graph.build()
    x, w, bias = body.input("x", (8, 5)), body.input("w", (8, 5)), body.input("bias", (5,))
    on = hs.Where(("cuda:0",))
    y = body.op("tensor.add", body.op("tensor.mul", x, w, where=on), bias, where=on)
    y = y if behind is None else body.op(behind, y, name="behind", where=on)
    body.output(body.op("nn.tanh", body.op("tensor.sub", y, w, where=on), where=on), "y")
    body.output(body.op("tensor.scale", w, factor=0.99, where=on), "w")
    body.output(body.op("tensor.neg", bias, where=on), "bias")
    b = Graph.build()
    loop = Loop(body.freeze(), turns, carried=(("w", "w"), ("bias", "bias")), sequences=("x",), collected=("y",))
    last, _, ys = b.loop(loop, b.input("x", (turns, 8, 5)), b.input("w", (8, 5)), b.input("bias", (5,)))
    graph = b.output(ys, "ys").output(last, "w").freeze()
    rng = np.random.default_rng(2)
    shapes = {"x": (turns, 8, 5), "w": (8, 5), "bias": (5,)}
    return graph, {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@needs_compiler
def test_a_loop_runs_as_chains(fusing):
    from test_cuda import box

    graph, inputs = loop_of()
    result = hs.run(hs.plan(graph, box(fusing)), inputs)
    wanted = interpret(graph, inputs)
    assert np.allclose(result["ys"], wanted["ys"], rtol=1e-5, atol=1e-6)
    assert np.allclose(result["w"], wanted["w"], rtol=1e-5, atol=1e-6)
    assert len(fake_cupy.RawModule.launched) >= 6
    assert max(len(arrays) for arrays in fake_cupy.RawModule.launched) >= 5


@needs_compiler
def test_a_launch_that_fails_behind_a_chain_is_named(fusing):
    from test_cuda import box

    turns = []

    @hs.array_op("mine.behind")
    def behind(xp, x):
        turns.append(1)
        if len(fake_cupy.RawModule.launched) > 15:  # every step has become chains
            raise ValueError("enough")
        return x

    graph, inputs = loop_of(behind)
    with pytest.raises(TaskError, match=r"task 'behind.*' failed in turn \d+ of loop '.+': ValueError: enough"):
        hs.run(hs.plan(graph, box(fusing)), inputs)
    assert len(turns) > 1


@needs_compiler
def test_the_task_of_a_launch_that_fails_in_a_segment(bench):
    def fails(xp, inputs, outputs, workspace, attributes):
        raise ValueError("no")

    x = bench.given(np.ones(N, np.float32))
    bench.call("tensor.neg", (bench.call("tensor.add", (x, x)),))
    bench.calls.append((fails, (x,), (x,), None, {}, 7))
    assert not bench.stream.segment(bench.calls)
    with pytest.raises(ValueError, match="no") as caught:
        bench.stream.segment(bench.calls)
    assert caught.value.failed_task == 7


def test_functions_of_float_are_those_of_float_and_sources_do_not_depend_on_extents(fake):
    bench = Bench(fake)
    for extents in ((4, 5), (6, 7)):
        for dtype in ("float32", "float64"):
            x, row = bench.array(extents, dtype), bench.array(extents[1:], dtype)
            for op in ("tensor.exp", "tensor.log", "tensor.sqrt", "nn.tanh"):
                bench.call(op, (x,))
            bench.call("tensor.add", (x, row))
            bench.call("tensor.cast", (bench.call("tensor.cast", (x,), dtype="uint64"),), dtype="int8")
    first, second = (chain_of(parts).source for _, parts in grouped(bench.calls))
    assert first == second
    for name in ("exp", "log", "sqrt", "tanh"):
        assert [first.count(f" = ({kind})({function}(a))") for kind, function in (("float", f"{name}f"), ("double", name))] == [1, 1]
    bench.live.close()


@pytest.mark.skipif(not REAL.devices, reason="; ".join(REAL.notes) or "no CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
def test_chains_on_a_device_have_the_bits_of_their_launches(dtype):
    """CuPy's own element-wise kernels beside ours. CuPy has all of them built with `-ftz=true`, and which calls then flush a subnormal number to 0 is
    left to the compiler."""
    bench = Bench(cuda)
    x, y, row = (bench.given(numbers(dtype, n, seed=i)) for i, n in enumerate((N, N, 1)))
    mask = bench.given(numbers("bool", seed=3))
    made = []
    for op in ARITHMETIC:
        if op.name == "tensor.where":
            with_row = [mask, x, row]
        else:
            with_row = [x, row] if len(op.inputs) == 2 and not op.name.endswith("_grad") else [x, y][: len(op.inputs)]
        try:
            made.append(bench.call(op, with_row, **({"factor": 0.3} if op.name == "tensor.scale" else {})))
        except GraphError:
            continue
    alone, chained = bench.both()
    assert bench.is_segment
    for out in made:
        wanted, found = bench.seen(alone, out), bench.seen(chained, out)
        if out.dtype.kind == "f":
            assert np.allclose(wanted, found, rtol=1e-6, atol=np.finfo(out.dtype).tiny, equal_nan=True)
        else:
            assert np.array_equal(wanted, found)
    bench.live.close()
