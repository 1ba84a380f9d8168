"""Requests that the calling thread hands to one stream itself: on the CuPy of NumPy, and on a real OpenCL device, whose streams do not ask for it."""

import threading
from dataclasses import replace

import fake_cupy
import numpy as np
import pytest

import hetsched as hs
from hetsched.executors import direct
from hetsched.executors.backends import opencl
from hetsched.machine import HOST
from hetsched.testing.backend import _machine_of
from hetsched.timeline import Copy
from tests.cuda_host import COMPILER
from tests.executors.test_cuda import box

RNG = np.random.default_rng(0)
W = [RNG.normal(size=shape).astype(np.float32) for shape in ((32, 16), (16,), (16, 4), (4,))]


@pytest.fixture(params=["cuda", "opencl"])
def where(request, monkeypatch):
    """(machine, device) whose streams are handed to by callers."""
    if request.param == "cuda":
        backend = fake_cupy.install(monkeypatch, devices=1)
        yield box(backend), "cuda:0"
        fake_cupy.Stream.failing = None
        return
    found = opencl.find()
    if not found.devices:
        pytest.skip("; ".join(found.notes))
    from hetsched.executors.backends import _opencl_live

    monkeypatch.setattr(_opencl_live.Stream, "is_direct", True, raising=False)
    yield _machine_of(opencl), found.devices[0].id


def network(rows=2):
    """relu(x @ w0 + b0) @ w1 + b1 with its weights as constants; and x + 1."""
    b = hs.Graph.build()
    x = b.input("x", (rows, 32))
    w0, b0, w1, b1 = (b.constant(w, f"w{i}") for i, w in enumerate(W))
    y = b.op("nn.relu", b.op("tensor.add", b.op("tensor.matmul", x, w0), b0))
    b.output(b.op("tensor.add", b.op("tensor.matmul", y, w1), b1), "y")
    return b.output(b.op("tensor.add", x, b.constant(np.ones(32, np.float32), "one")), "more").freeze()


def wanted(x):
    return np.maximum(x @ W[0] + W[1], 0) @ W[2] + W[3]


def seat_of(compiled):
    return compiled._replay._idle[0]


def copies_of(monkeypatch, stream):
    """The number of uploads and downloads of a stream from now on, as a list that grows."""
    seen = []
    for name in ("upload", "download"):
        real = getattr(type(stream), name)
        monkeypatch.setattr(type(stream), name, lambda self, a, b, real=real, name=name: (seen.append(name), real(self, a, b))[1])
    return seen


def test_values_of_many_calls_and_constants_that_stay_on_the_device(where, monkeypatch):
    machine, device = where
    with hs.Session(machine) as session:
        f = session.compile(hs.plan(network(), machine, only=device))
        results = []
        for _ in range(5):
            x = RNG.normal(size=(2, 32)).astype(np.float32)
            given = x.copy()
            results.append((x, f(x=given)))
            given[:] = np.nan  # a caller's input is the caller's own again
            assert seat_of(f)._direct is not None
        for x, result in results:  # and what a call has given is not written by another
            np.testing.assert_allclose(result["y"], wanted(x), rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(result["more"], x + 1)
        seen = copies_of(monkeypatch, seat_of(f)._direct.stream)
        f(x=np.ones((2, 32), np.float32))
        constants = [s for s in f.plan.spans if isinstance(s.command, Copy) and s.command.value in f.plan.graph.constants]
        at_home = direct.resident(f.plan, f.plan.machine.device(device).memory)
        assert seen.count("upload") == 1 + sum(s.command.value not in at_home for s in constants)
        assert seen.count("download") == 2


def test_constants_in_whose_bytes_something_else_lies_do_not_stay(where):
    machine, device = where
    plan = hs.plan(network(), machine, only=device)
    node = machine.device(device).memory
    places = {r.value: (o, o + int(plan.graph.value_nbytes[r.value])) for r, o in plan.offsets.items() if r.node == node}
    stay = direct.resident(plan, node)
    assert stay <= set(plan.graph.constants)
    for value in plan.graph.constants:
        first, last = places[value]
        meets = [v for v, (a, b) in places.items() if v != value and a < last and first < b]
        assert (value in stay) == (not meets), (value, meets)


def test_callers_at_once_have_buffer_sets_of_their_own(where):
    machine, device = where
    wrong = []
    with hs.Session(machine) as session:
        f = session.compile(hs.plan(network(), machine, only=device), buffers=2)

        def call(seed):
            rng = np.random.default_rng(seed)
            for _ in range(20):
                x = rng.normal(size=(2, 32)).astype(np.float32)
                if not np.allclose(f(x=x)["y"], wanted(x), rtol=1e-4, atol=1e-5):
                    wrong.append(seed)

        threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_plans_that_need_the_host_or_a_trace_go_to_the_driving_thread(where):
    machine, device = where
    b = hs.Graph.build()
    x = b.op("tensor.add", b.input("x", (8,)), b.input("x2", (8,)), where=hs.Where(("cpu",)))
    mixed = b.output(b.op("tensor.neg", x, where=hs.Where((device,))), "y").freeze()
    with hs.Session(machine) as session:
        f = session.compile(hs.plan(mixed, machine))
        for _ in range(3):
            assert (f(x=np.ones(8, np.float32), x2=np.ones(8, np.float32))["y"] == -2).all()
        assert seat_of(f)._direct is None
        traced = session.compile(hs.plan(network(), machine, only=device), trace=True)
        for _ in range(2):
            result = traced(x=np.ones((2, 32), np.float32))
        assert seat_of(traced)._direct is None
        assert {s.command.src.node for s in result.trace.copies} >= {HOST}


def test_a_call_that_fails_is_told_with_its_task_and_the_next_one_is_right(where, monkeypatch):
    machine, device = where
    with hs.Session(machine) as session:
        f = session.compile(hs.plan(network(), machine, only=device))
        x = np.ones((2, 32), np.float32)
        for _ in range(2):
            f(x=x)
        stream = seat_of(f)._direct.stream
        real = type(stream).launch

        def failing(self, *given):
            raise RuntimeError("the device has no mind to")

        monkeypatch.setattr(type(stream), "segment", lambda self, *given: False)
        monkeypatch.setattr(type(stream), "launch", failing)
        with pytest.raises(hs.TaskError, match="no mind to"):
            f(x=x)
        monkeypatch.setattr(type(stream), "launch", real)
        np.testing.assert_allclose(f(x=x)["y"], wanted(x), rtol=1e-4, atol=1e-5)


def test_calls_go_to_the_driving_thread_by_request(monkeypatch):
    monkeypatch.setenv("HETSCHED_CUDA_DIRECT", "0")
    backend = fake_cupy.install(monkeypatch, devices=1)
    machine = box(backend)
    with hs.Session(machine) as session:
        f = session.compile(hs.plan(network(), machine, only="cuda:0"))
        for _ in range(2):
            np.testing.assert_allclose(f(x=np.ones((2, 32), np.float32))["y"], wanted(np.ones((2, 32), np.float32)), rtol=1e-4, atol=1e-5)
        assert seat_of(f)._direct is None


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
def test_launches_of_a_request_are_one_graph(monkeypatch, tmp_path):
    backend = fake_cupy.install(monkeypatch, devices=1)
    monkeypatch.setenv("HETSCHED_CUDA_GRAPHS", "")
    monkeypatch.setattr(fake_cupy.RawModule, "folder", tmp_path)
    monkeypatch.setattr(fake_cupy.Graph, "launched", 0)
    found = _machine_of(backend)
    machine = replace(found, devices=tuple(d if d.memory == HOST else replace(d, languages=("cuda", "array")) for d in found.devices))
    b = hs.Graph.build()
    y, w = b.input("x", (2, 32)), [b.constant(x, f"w{i}") for i, x in enumerate(W)]
    y = b.op("nn.dense", b.op("nn.dense", y, w[0], w[1], activation="relu"), w[2], w[3])
    with hs.Session(machine) as session:
        f = session.compile(hs.plan(b.output(y, "y").freeze(), machine, only="cuda:0"))
        for i in range(6):
            x = RNG.normal(size=(2, 32)).astype(np.float32)
            np.testing.assert_allclose(f(x=x)["y"], wanted(x), rtol=1e-4, atol=1e-5)
            # The driving thread does the first call, the second brings the constants, the third has its launches for the first time.
            assert fake_cupy.Graph.launched == max(0, i - 2)
