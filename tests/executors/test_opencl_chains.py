"""Element-wise launches that follow each other on an OpenCL stream are one kernel, with the bits of the launches one by one."""

import numpy as np
import pytest

pytest.importorskip("pyopencl", reason="PyOpenCL is not installed")
import hetsched as hs
from hetsched.executors.backends import opencl

if not opencl.find().devices:
    pytest.skip("no OpenCL device works here", allow_module_level=True)

from hetsched.executors.backends._opencl_live import Stream
from hetsched.graph.graph import Graph, Loop
from hetsched.graph.ops import find
from hetsched.graph.ops._cl_elementwise import enqueue_chain
from hetsched.machine import Device
from hetsched.testing.reference import interpret
from hetsched.testing.runs import run_problems

N = 1003  # no multiple of a vector


@pytest.fixture
def live():
    device = opencl.open(Device("opencl:0", "opencl"), 1 << 16)
    yield device
    device.close()


@pytest.fixture
def chains(monkeypatch):
    """How many launches each kernel of a chain stands for."""
    seen = []

    def counted(cl, parts):
        seen.append(len(parts))
        enqueue_chain(cl, parts)

    monkeypatch.setattr("hetsched.executors.backends._opencl_live.enqueue_chain", counted)
    return seen


def slots(live, count, dtype=np.float32, n=N):
    step = -(-n * np.dtype(dtype).itemsize // 64) * 64
    return [live.array(i * step, (n,), dtype) for i in range(count)]


def call(name, inputs, output, **attributes):
    op = find(name)
    return (op.kernels["opencl"], tuple(inputs), (output,), None, op.check_attributes(attributes), 0)


def done(stream, calls, given, results):
    """What `calls` make of `given`: one by one, and from the second time as a segment."""
    out = []
    for turn in range(3):
        for array, value in given:
            stream.upload(value, array)
        if not stream.segment(calls):
            assert turn == 0
            for kernel, inputs, outputs, workspace, attributes, _ in calls:
                stream.launch(kernel, list(inputs), outputs, workspace, attributes)
        found = [np.empty(r.shape, r.dtype) for r in results]
        for r, f in zip(results, found, strict=True):
            stream.download(r, f)
        stream.record().wait()
        out.append(found)
    return out


@pytest.mark.parametrize("dtype", ["float32", "int32", "int64"])
def test_a_chain_has_the_bits_of_its_launches(live, chains, dtype):
    stream = live.stream("compute")
    x, y, one, a, b, c, d = slots(live, 7, dtype)
    one = live.array(one.offset, (1,), dtype)
    rng = np.random.default_rng(0)
    given = [(v, (1000 * rng.normal(size=v.shape)).astype(dtype)) for v in (x, y, one)]
    calls = [
        call("tensor.mul", (x, y), a), call("tensor.add", (a, x), b), call("tensor.sub", (b, one), c), call("tensor.maximum", (c, a), d),
        call("tensor.mul", (d, d), d),
    ]  # fmt: skip
    alone, first, again = done(stream, calls, given, [a, b, c, d])
    for i in range(4):
        assert np.array_equal(alone[i], first[i])
        assert np.array_equal(alone[i], again[i])
    assert chains
    assert sum(chains) >= 4 if dtype == "float32" else chains


def test_a_launch_is_taped_for_its_arrays_workspace_and_attributes(live):
    """The same tuples with another factor or another workspace are another launch."""
    stream = live.stream("compute")
    x, y = slots(live, 2)
    op = find("tensor.scale")
    seen = []

    def kernel(cl, inputs, outputs, workspace, attributes):
        seen.append(workspace)
        op.kernels["opencl"](cl, inputs, outputs, workspace, attributes)

    inputs, outputs, found = (x,), (y,), np.empty(N, np.float32)
    stream.upload(np.ones(N, np.float32), x)
    two, three = ({"factor": f} for f in (2.0, 3.0))
    first, second = live.array(16384, (64,), np.uint8), live.array(16448, (64,), np.uint8)
    for workspace, attributes, calls in [(first, two, 1), (first, two, 2), (first, two, 2), (second, two, 3), (second, three, 4), (second, three, 5)]:
        stream.launch(kernel, inputs, outputs, workspace, attributes)
        stream.download(y, found)
        stream.record().wait()
        assert (found == attributes["factor"]).all()
        assert len(seen) == calls


def test_functions_scales_and_choices_in_a_chain(live, chains):
    stream = live.stream("compute")
    x, a, b, c, d, e = slots(live, 6)
    mask = live.array(6 * 4096, (N,), np.bool_)
    given = [(x, np.linspace(-3, 3, N, dtype=np.float32))]
    calls = [
        call("tensor.scale", (x,), a, factor=0.3), call("nn.tanh", (a,), b), call("tensor.scale", (b,), c, factor=-2.5),
        call("nn.sigmoid", (c,), d), call("tensor.less", (d, b), mask), call("tensor.where", (mask, d, x), e),
    ]  # fmt: skip
    alone, first, again = done(stream, calls, given, [a, b, c, d, mask, e])
    for i in range(6):
        assert np.allclose(alone[i], first[i], rtol=2e-6, atol=1e-7)
        assert np.array_equal(first[i], again[i])
    assert max(chains) >= 4


def test_bytes_that_meet_shifted_end_a_chain(live, chains):
    """The second writes where the first reads, elements later: one after the other, or the first reads what the second has written."""
    stream = live.stream("compute")
    x = live.array(0, (N,), np.float32)
    a = live.array(8192, (N,), np.float32)
    b = live.array(256, (N,), np.float32)
    given = [(live.array(0, (2048,), np.float32), np.arange(2048, dtype=np.float32)), (x, np.linspace(0, 1, N, dtype=np.float32))]
    alone, first, again = done(stream, [call("tensor.neg", (x,), a), call("tensor.exp", (a,), b)], given, [b])
    assert np.array_equal(alone[0], first[0])
    assert np.array_equal(alone[0], again[0])
    assert chains == []


def test_what_is_not_element_by_element_ends_a_chain(live, chains):
    stream = live.stream("compute")
    m, row, p, q, r = (live.array(i * 4096, shape, np.float32) for i, shape in enumerate([(16, 16), (16,), (16, 16), (16, 16), (16, 16)]))
    rng = np.random.default_rng(1)
    given = [(m, rng.normal(size=(16, 16)).astype(np.float32)), (row, rng.normal(size=16).astype(np.float32))]
    product = (find("tensor.matmul").kernels["opencl"], (q, m), (r,), None, {"transpose_a": False, "transpose_b": False}, 0)
    calls = [call("tensor.add", (m, row), p), call("tensor.neg", (p,), q), call("tensor.exp", (q,), q), product, call("tensor.neg", (r,), r)]
    alone, first, again = done(stream, calls, given, [p, q, r])
    for i in range(3):
        assert np.array_equal(alone[i], first[i])
        assert np.array_equal(alone[i], again[i])
    assert chains == [2]


def test_a_loop_of_element_wise_tasks_runs_as_chains_and_its_trace_is_the_plans(chains, monkeypatch):
    segments = []
    segment = Stream.segment
    monkeypatch.setattr(Stream, "segment", lambda self, calls: segments.append(len(calls)) or segment(self, calls))
    body = Graph.build()
    x, w = body.input("x", (64, 8)), body.input("w", (64, 8))
    on = hs.Where(("opencl:0",))
    y = body.op("tensor.add", body.op("tensor.mul", x, w, where=on), x, where=on)
    body.output(body.op("nn.tanh", body.op("tensor.sub", y, w, where=on), where=on), "y")
    body.output(body.op("tensor.scale", w, factor=0.99, where=on), "w")
    b = Graph.build()
    loop = Loop(body.freeze(), 40, carried=(("w", "w"),), sequences=("x",), collected=("y",))
    last, ys = b.loop(loop, b.input("x", (40, 64, 8)), b.input("w", (64, 8)))
    graph = b.output(ys, "ys").output(last, "w").freeze()
    rng = np.random.default_rng(2)
    inputs = {"x": rng.normal(size=(40, 64, 8)).astype(np.float32), "w": rng.normal(size=(64, 8)).astype(np.float32)}
    plan = hs.plan(graph)
    result = hs.run(plan, inputs)
    wanted = interpret(graph, inputs)
    assert np.allclose(result["ys"], wanted["ys"], rtol=1e-5, atol=1e-6)
    assert np.allclose(result["w"], wanted["w"], rtol=1e-5, atol=1e-6)
    assert run_problems(plan, result.trace, skew_seconds=1e-3) == []
    # How many of a turn's five launches go together depends on the costs that were found.
    assert max(segments) >= 2
    assert max(chains) >= 2
