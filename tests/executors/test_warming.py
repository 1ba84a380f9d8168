"""What a process does once for each kernel is done before the clock of a run, on a CuPy of NumPy (see fake_cupy.py)."""

import signal
import sys
import threading
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace

import fake_cupy
import numpy as np
import pytest
from leftovers import running_threads
from test_devoted import CLASSES, KEPT, ROWS, WIDTH, same, training

import hetsched as hs
from hetsched.executors import warming
from hetsched.graph.graph import Graph
from hetsched.machine import HOST
from hetsched.placement.costs.lessons import lessons
from hetsched.testing.backend import _machine_of
from tests.cuda_host import COMPILER

ON_GPU = hs.Where(("cuda:0",))
X = np.linspace(1, 2, 64, dtype=np.float32)


class Card:
    """A fake device. log: what was done on it, by name, in its order; `exp` fails on zeros if `refuses`."""

    def __init__(self, monkeypatch):
        self.backend = fake_cupy.install(monkeypatch)
        self.log, self.refuses, self.at_exp = [], False, lambda: None
        cupy = sys.modules["cupy"]
        for name in ("negative", "exp"):
            setattr(cupy, name, self.logged(name))
        copy = cupy.cuda.runtime.memcpyAsync
        cupy.cuda.runtime.memcpyAsync = lambda *given: (self.log.append("copy"), copy(*given))[1]
        self.machine = self.speaking("array")

    def speaking(self, *languages):
        found = _machine_of(self.backend)
        return replace(found, devices=tuple(d if d.memory == HOST else replace(d, languages=languages) for d in found.devices))

    def logged(self, name):
        def call(x, out):
            zeros = not np.any(x)
            self.log.append(f"{name} of zeros" if zeros else name)
            if name == "exp":
                self.at_exp()
                if zeros and self.refuses:
                    raise ValueError("zeros")
            getattr(np, name)(x, out=out)

        return call

    @property
    def before(self):
        """What was done before the first copy."""
        return self.log[: self.log.index("copy")]


@pytest.fixture
def card(monkeypatch):
    yield Card(monkeypatch)
    fake_cupy.Stream.failing = None


def row():
    b = Graph.build()
    x = b.input("x", (64,))
    for op in ("tensor.neg", "tensor.neg", "tensor.exp", "tensor.neg"):
        x = b.op(op, x, where=ON_GPU)
    return b.output(x, "y").freeze()


def test_each_distinct_launch_is_done_once_on_zeros_before_anything_is_there(card):
    plan = hs.plan(row(), card.machine)
    result = hs.run(plan, {"x": X}, learn=False)
    assert card.before == ["negative of zeros", "exp of zeros"]
    assert [x for x in card.log if x != "copy"][2:] == ["negative", "negative", "exp", "negative"]
    np.testing.assert_allclose(result["y"], -np.exp(X), rtol=1e-6)
    assert not result.trace.cold
    assert result.wall_seconds > result.trace.makespan
    for again in (plan, hs.plan(row(), card.machine)):  # of the same plan, and of another one
        card.log.clear()
        hs.run(again, {"x": X}, learn=False)
        assert card.before == []


def test_a_device_that_cannot_be_made_a_threads_own_is_asked_for_all_the_same(card, monkeypatch):
    """The thread that drives it must not end: it is asked to warm launches, and nobody else answers."""

    def lost(self):
        raise RuntimeError("lost")

    plan = hs.plan(row(), card.machine)
    from hetsched.executors.backends import _cuda_live

    monkeypatch.setattr(_cuda_live.LiveDevice, "drive_here", lost)
    np.testing.assert_allclose(hs.run(plan, {"x": X}, learn=False)["y"], -np.exp(X), rtol=1e-6)


def test_a_session_warms_at_its_first_call(card):
    with hs.Session(card.machine) as session:
        f = session.compile(row())
        assert card.log == []
        np.testing.assert_allclose(f(X)["y"], -np.exp(X), rtol=1e-6)
        assert card.before == ["negative of zeros", "exp of zeros"]
        card.log.clear()
        f(X)
        assert card.before == []


def test_a_kernel_that_fails_on_zeros_does_not_fail_the_run_and_its_first_launch_is_known_to_be_one(card):
    card.refuses = True
    result = hs.run(hs.plan(row(), card.machine), {"x": X}, learn=False)
    np.testing.assert_allclose(result["y"], -np.exp(X), rtol=1e-6)
    assert card.before == ["negative of zeros", "exp of zeros"]
    cold = [result.trace.spans[i].command for i in result.trace.cold]
    assert [result.trace.graph.task_ops[c.task].name for c in cold] == ["tensor.exp"]
    assert {x.op: x.first for x in lessons(result.trace) if x.op.startswith("tensor")} == {"tensor.neg": False, "tensor.exp": True}
    again = hs.run(hs.plan(row(), card.machine), {"x": X}, learn=False)
    assert {x.op: x.first for x in lessons(again.trace) if x.op.startswith("tensor")} == {"tensor.neg": False, "tensor.exp": False}


def test_a_long_launch_is_not_done_twice(card, monkeypatch):
    """By what the device could do, not by the plan: what is known may be wrong, and would never be learned anew."""
    plan = hs.plan(row(), card.machine)
    slow = replace(plan, spans=tuple(s._replace(start=1e3 * s.start, finish=1e3 * s.finish) for s in plan.spans))
    hs.run(slow, {"x": X}, learn=False)
    assert card.before == ["negative of zeros", "exp of zeros"]
    sys.modules[fake_cupy.LIVE]._warm.clear()
    card.log.clear()
    monkeypatch.setattr(warming, "LONG_SECONDS", 0.0)
    result = hs.run(hs.plan(row(), card.machine), {"x": X}, learn=False)
    assert card.before == []
    assert {x.op: x.launches for x in lessons(result.trace) if x.op.startswith("tensor")} == {"tensor.neg": 3, "tensor.exp": 1}


def test_a_users_function_sees_no_values_but_its_own(card):
    seen = []

    @hs.array_op("mine.seen")
    def mine(xp, x):
        seen.append(np.array(x))
        return x + 1

    b = Graph.build()
    graph = b.output(b.op(mine, b.op("tensor.neg", b.input("x", (64,)), where=ON_GPU), where=ON_GPU), "y").freeze()
    result = hs.run(hs.plan(graph, card.machine), {"x": X}, learn=False)
    assert card.before == ["negative of zeros"]
    assert len(seen) == 1
    assert np.array_equal(seen[0], -X)
    assert [result.trace.spans[i].command.task for i in result.trace.cold] == [1]


def test_ctrl_c_while_launches_are_warmed_ends_the_run_before_it_begins(card):
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        pytest.skip("Ctrl-C is somebody else's here")
    struck = threading.Event()

    def strike():
        if not struck.is_set():
            struck.set()
            signal.raise_signal(signal.SIGINT)

    card.at_exp = strike
    before = running_threads()
    plan = hs.plan(row(), card.machine)
    with pytest.raises(KeyboardInterrupt):
        hs.run(plan, {"x": X}, learn=False)
    assert card.log == ["negative of zeros", "exp of zeros"]
    assert {t.name for t in running_threads() - before if t.name.startswith("hetsched")} == set()
    card.log.clear()
    np.testing.assert_allclose(hs.run(plan, {"x": X}, learn=False)["y"], -np.exp(X), rtol=1e-6)
    assert card.before == []  # both were warm by then


def test_ctrl_c_while_programs_are_built_begins_no_other_one(card, monkeypatch):
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        pytest.skip("Ctrl-C is somebody else's here")
    built = []

    def build(self, kernel, reads, writes, workspace, attributes):
        built.append(len(reads))
        if len(built) == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(import_module("hetsched.executors.backends._cuda_live").Stream, "prepare", build, raising=False)
    plan = hs.plan(row(), card.machine)
    with pytest.raises(KeyboardInterrupt):
        hs.run(plan, {"x": X}, learn=False)
    assert built == [1], "twenty programs take PoCL twenty seconds"
    assert "copy" not in card.log
    np.testing.assert_allclose(hs.run(plan, {"x": X}, learn=False)["y"], -np.exp(X), rtol=1e-6)
    assert built == [1, 1, 1], "the next run has them built after all"


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
@pytest.mark.parametrize("graphs", ["0", "1"])
def test_nothing_is_built_while_a_training_runs(card, monkeypatch, tmp_path, graphs):
    """Kernels of ops, of chains of them, and what counts turns: all of it is there when the first bytes go up."""
    monkeypatch.setenv("HETSCHED_CUDA_GRAPHS", graphs)
    monkeypatch.setattr(fake_cupy.RawModule, "folder", tmp_path)
    monkeypatch.setattr(fake_cupy.RawModule, "kept", KEPT)
    cupy = sys.modules["cupy"]
    made, taken, first = [], [], []
    real = cupy.RawModule
    cupy.RawModule = lambda code, options: (made.append(code), real(code, options))[1]
    copy = cupy.cuda.runtime.memcpyAsync
    cupy.cuda.runtime.memcpyAsync = lambda *given: (first or first.append(len(made)), copy(*given))[1]
    from hetsched.graph.ops import _cuda_small

    monkeypatch.setattr(_cuda_small, "_function", lambda xp, device, source, name: taken.append(name) or xp.RawModule(source, ()).get_function(name))
    rng = np.random.default_rng(0)
    given = {"x": rng.normal(size=(ROWS, WIDTH)).astype(np.float32), "y": rng.integers(0, CLASSES, ROWS)}
    graph = training(8)
    machine = card.speaking("cuda", "array")
    result = hs.run(hs.plan(graph, machine, only="cuda:0"), given, learn=False)
    same(result, hs.run(hs.plan(graph, machine, only="cpu"), given, learn=False))
    assert set(made[: first[0]]) == set(made)
    assert all(x.seconds > 0 for x in lessons(result.trace) if x.op.startswith("nn."))
    (body,) = result.trace.loops.values()
    assert body.attributed
    assert {"adam", "batch_rows"} <= set(taken)


def test_a_users_cuda_kernel_is_built_and_not_launched():
    arguments = {"x": "in float32[n]", "y": "out float32[n]"}
    kernel = hs.kernel("twice", arguments, size=["n"], cuda="__global__ void twice(const float *x, float *y) { }")
    done = []

    class Module:
        def __init__(self, code, options):
            done.append("module")

        def compile(self):
            done.append("built")

        def get_function(self, name):
            done.append(name)
            return lambda *given: done.append("launched")

    class Xp:
        cuda = SimpleNamespace(Device=lambda: SimpleNamespace(id=0))
        RawModule = Module

    xp = Xp()
    assert kernel.kernels["cuda"].__self__.load_cuda(xp)
    assert done == ["module", "built", "twice"]


@pytest.mark.parametrize("graphs", ["0", "1"])
def test_products_have_a_handle_of_the_stream_which_the_next_device_takes_over(card, monkeypatch, graphs):
    """Where launches are captured; else the driving thread makes one of CuPy's before the clock."""
    monkeypatch.setenv("HETSCHED_CUDA_GRAPHS", graphs)
    made, used, handles = [], [], []

    class Products:
        def __init__(self, xp, stream, blas):
            made.append(stream)

        def matmul(self, a, b, out):
            used.append(out.shape)
            return np.matmul(a, b, out=out)

        def close(self):
            made.clear()

    card.backend.open(card.machine.device("cuda:0"), 64).close()
    module = sys.modules[fake_cupy.LIVE]
    monkeypatch.setattr(module, "library", lambda xp: None)
    monkeypatch.setattr(module, "Products", Products)
    thread = threading.current_thread
    monkeypatch.setattr(sys.modules["cupy"].cuda, "device", SimpleNamespace(get_cublas_handle=lambda: handles.append(thread().name)), raising=False)
    b = Graph.build()
    x, s = b.input("x", (32, 32)), b.input("s", (5, 32, 32))
    b.output(b.op("tensor.matmul", x, x, where=ON_GPU), "y")
    b.output(b.op("tensor.matmul", s, s, where=ON_GPU), "t")
    graph = b.freeze()
    given = {"x": np.eye(32, dtype=np.float32) * 2, "s": np.stack([np.eye(32, dtype=np.float32)] * 5)}
    for _ in range(2):
        result = hs.run(hs.plan(graph, card.machine), given, learn=False)
        assert np.array_equal(result["y"], given["x"] * 2)
        assert np.array_equal(result["t"], given["s"])
    assert len(made) == (graphs == "1")
    assert used == [(32, 32)] * 3 * (graphs == "1")  # warmed once, and in two runs; a stack of five is CuPy's
    assert handles == ["hetsched-cuda:0"] * 2 * (graphs == "0")


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
@pytest.mark.parametrize("sign", ["-", "+"])
def test_what_a_users_kernel_makes_is_checked_behind_the_launches_and_is_no_part_of_its_span(card, monkeypatch, tmp_path, sign):
    monkeypatch.setattr(fake_cupy.RawModule, "folder", tmp_path)
    monkeypatch.setattr(fake_cupy.RawModule, "kept", {})
    source = f"""__global__ void minus(const float *x, float *y, long long n) {{
        const long long i = blockIdx.x * blockDim.x + threadIdx.x;
        if (i < n) y[i] = {sign}x[i];
    }}"""
    arguments = {"x": "in float32[n]", "y": "out float32[n]", "n": "value int64 = n"}
    minus = hs.kernel("minus", arguments, size=["n"], cuda=source, check="tensor.neg")
    user = minus.kernels["cuda"].__self__
    differ = user._differ
    monkeypatch.setattr(user, "_differ", lambda *given: (card.log.append(f"checked by {threading.current_thread().name}"), differ(*given))[1])
    b = Graph.build()
    x = b.input("x", (64,))
    graph = b.output(b.op("tensor.neg", b.op(minus, x, where=ON_GPU), where=ON_GPU), "y").freeze()
    plan = hs.plan(graph, card.speaking("cuda", "array"))
    if sign == "+":
        with pytest.raises(hs.TaskError, match=r"does not compute what tensor.neg does: y\[0\] is 1"):
            hs.run(plan, {"x": X}, learn=False)
        return
    assert np.array_equal(hs.run(plan, {"x": X}, learn=False)["y"], X)
    assert card.log[-1] == "checked by hetsched-cuda:0"  # behind all launches and copies
    assert card.log.count("negative") == 1
    card.log.clear()
    assert np.array_equal(hs.run(plan, {"x": X}, learn=False)["y"], X)
    assert [x for x in card.log if x.startswith("checked")] == []


def test_what_is_brought_to_be_looked_at_is_no_part_of_a_span(card):
    device = card.backend.open(card.machine.device("cuda:0"), 1 << 12)
    stream, x = device.stream("compute"), device.array(0, (16,), np.float32)
    stream.doubts, seen = [], []

    class Kernel:
        def run(self, xp, inputs, outputs, workspace, attributes):
            outputs[0].fill(3)
            assert xp.negative is sys.modules["cupy"].negative
            xp.doubt(outputs, seen.append)

    stream.launch(Kernel().run, [], [x], None, {})
    event = stream.record()
    ((found, check),) = stream.doubts
    assert event._ends is not event.last
    event.wait()
    check(found)
    assert (seen[0][0] == 3).all()
    stream.launch(Kernel().run, [], [x], None, {})
    stream.launch(lambda xp, inputs, outputs, workspace, attributes: outputs[0].fill(4), [], [x], None, {})
    event = stream.record()
    assert event._ends is event.last
    event.wait()
    assert (stream.doubts[1][0][0] == 3).all()
    stream.doubts = None
    stream.launch(Kernel().run, [], [x], None, {})
    assert len(seen) == 2
    device.close()
