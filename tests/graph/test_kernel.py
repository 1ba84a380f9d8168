"""Users' own kernels in source: declarations, rules, launches on a real OpenCL device, the check against an op, errors at their places."""

import re
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import hetsched as hs
from hetsched.graph.kernel import KernelError, Source, UserKernel, complaints_of, parse_argument
from hetsched.testing import opencl

SAXPY = """\
__kernel void saxpy(__global const float *x, __global const float *y, __global float *out, const float a, const long n) {
    const long i = get_global_id(0);
    if (i < n) out[i] = a * x[i] + y[i];
}
"""
ARGUMENTS = {"x": "in float32[n]", "y": "in float32[n]", "out": "out float32[n]", "a": "option float32 = 2.0", "n": "value int64 = n"}
NO_DEVICE = "no OpenCL device works here"


def saxpy(**changes: Any) -> hs.Op:
    options: dict[str, Any] = {"opencl": SAXPY, "size": "n", "flops": "2 * n"}
    return hs.kernel("mine.saxpy", ARGUMENTS, **{**options, **changes})


def graph_of(op: hs.Op, *shapes: tuple[int, ...], dtype: Any = np.float32, **options: Any) -> hs.Graph:
    g = hs.Graph.build()
    made = g.op(op, *(g.input(name, shape, dtype) for name, shape in zip("abcd", shapes, strict=False)), name="own", **options)
    for i, y in enumerate(made if isinstance(made, tuple) else (made,)):
        g.output(y, f"y{i}")
    return g.freeze()


# Declarations -------------------------------------------------------------------------------------------------------------------------


def test_a_declaration_is_an_op_with_shapes_and_cost() -> None:
    op = saxpy()
    assert (op.inputs, op.outputs, list(op.attributes)) == (("x", "y"), ("out",), ["a"])
    specs = [hs.Spec((5,)), hs.Spec((5,))]
    assert op.infer(specs, {"a": 2.0}) == [hs.Spec((5,))]
    assert op.work(specs, [hs.Spec((5,))], {"a": 2.0}) == (10, 40, 20)
    assert saxpy(nbytes="16 * n").work(specs, [hs.Spec((5,))], {"a": 2.0}) == (10, 60, 20)
    assert list(saxpy(cuda="x").kernels) == ["cuda", "opencl"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("float32[n]", "is declared as 'float32\\[n\\]'; write `in float32\\[n\\]`"),
        ("in floot32[n]", "unknown dtype 'floot32'; did you mean 'float32'"),
        ("in float32[n **]", "is no expression"),
        ("out float32[...]", "an output needs a shape"),
        ("in float32 like x", "only an output can be `like`"),
        ("value int64", "a value needs an expression"),
        ("option float16", "a scalar is an integer, float32 or float64"),
        ("option int32 = one", "the default 'one' is no int32"),
    ],
)
def test_declarations_that_cannot_be(text: str, says: str) -> None:
    with pytest.raises(hs.GraphError, match=says):
        parse_argument("x", text)


def test_every_mistake_of_a_kernel_is_told_at_once() -> None:
    with pytest.raises(hs.GraphError) as caught:
        hs.kernel("k", {"x": "in float32[n]", "k": "value int64 = q"}, size=["n", "z"], group=[4], check="tensor.ad")
    text = str(caught.value)
    for part in ("there is no source", "there is no output", "group [4]", "uses 'z'", "uses 'q'", "unknown op 'tensor.ad'"):
        assert part in text


@pytest.mark.parametrize(
    ("shapes", "dtype", "says"),
    [
        (((4,), (5,)), np.float32, "has 5 where n is 4"),
        (((4, 1), (4,)), np.float32, "x must have 1 axes"),
        (((4,), (4,)), np.float64, "x must be float32, got float64\\[4\\]; convert it with tensor.cast"),
    ],
)
def test_inputs_that_do_not_fit(shapes: Any, dtype: Any, says: str) -> None:
    with pytest.raises(hs.GraphError, match=says):
        graph_of(saxpy(), *shapes, dtype=dtype)


def test_shapes_by_expression_by_likeness_and_of_any_kind() -> None:
    op = hs.kernel(
        "k", {"x": "in float32[n, m]", "y": "in int32[...]", "a": "out float32[m, n // 2 + 1]", "b": "out float64 like y"}, opencl="-",
        size=["x.shape[1]", "y.size"],
    )  # fmt: skip
    assert op.infer([hs.Spec((6, 4)), hs.Spec((2, 2, 2), np.int32)], {}) == [hs.Spec((4, 4)), hs.Spec((2, 2, 2), np.float64)]


def test_a_check_must_fit_the_kernel() -> None:
    with pytest.raises(hs.GraphError, match=r"check: tensor\.neg takes x and gives out; the kernel has 2 inputs and 1 outputs"):
        saxpy(check="tensor.neg")
    op = hs.kernel("k", {"x": "in float32[n]", "y": "out float32[2 * n]"}, opencl="-", size="n", check="tensor.neg")
    with pytest.raises(hs.GraphError, match=r"check: tensor.neg gives \[float32\[3\]\] of these inputs, the kernel \[float32\[6\]\]"):
        graph_of(op, (3,))


def test_without_a_device_for_it_a_task_has_no_place() -> None:
    cpu = hs.Machine((hs.Machine.here().device("cpu"),), memories=hs.Machine.here().memories, resources=hs.Machine.here().resources)
    with pytest.raises(hs.PlacementError, match="own"):
        hs.plan(graph_of(saxpy(), (4,), (4,)), cpu)


# CUDA, as far as it can be seen without a device ---------------------------------------------------------------------------------------


class FakeCupy:
    """Notes what is compiled and launched."""

    def __init__(self, error: str = "") -> None:
        self.compiled: list[str] = []
        self.launched: list[tuple[Any, ...]] = []
        self.error = error
        self.cuda = SimpleNamespace(Device=lambda: SimpleNamespace(id=id(self)))

    def RawModule(self, code: str, options: Any) -> Any:
        def compile() -> None:
            self.compiled.append(code)
            if self.error:
                raise type("CompileException", (Exception,), {})(self.error)

        return SimpleNamespace(compile=compile, get_function=lambda name: lambda *launch: self.launched.append((name, *launch)))


CUDA = "__global__ void saxpy(const float *x, const float *y, float *out, float a, long long n) {\n    wrong\n}\n"


def test_a_cuda_launch_has_the_grid_and_the_arguments_of_the_declaration() -> None:
    kernel, xp = saxpy(cuda=CUDA, group=128).kernels["cuda"], FakeCupy()
    x, y, out = (np.zeros(1000, np.float32) for _ in range(3))
    for _ in range(2):
        kernel(xp, [x, y], [out], None, {"a": 3.0})
    (name, grid, block, arguments), second = xp.launched
    assert (name, grid, block) == ("saxpy", (8,), (128,))
    assert arguments[0] is x
    assert arguments[2] is out
    assert arguments[3:] == (np.float32(3.0), np.int64(1000))
    assert [type(a) for a in arguments[3:]] == [np.float32, np.int64]
    assert second[1:3] == (grid, block)
    assert len(xp.compiled) == 1
    assert xp.compiled[0].startswith('extern "C" __global__ void saxpy')


def test_complaints_of_nvrtc_stand_at_their_places() -> None:
    source = Source(CUDA, "dir/p.yaml", 40, 6)
    kernel, xp = saxpy(cuda=source).kernels["cuda"], FakeCupy('/tmp/x/k.cubin.cu(2): error: identifier "wrong" is undefined\n\n1 error detected')
    with pytest.raises(KernelError) as caught:
        kernel(xp, [np.zeros(4, np.float32)] * 2, [np.zeros(4, np.float32)], None, {"a": 3.0})
    lines = str(caught.value).split("\n")
    assert lines[1] == 'dir/p.yaml:41:11: error: identifier "wrong" is undefined'
    assert lines[2].index("wrong") == lines[3].index("^")


def test_errors_that_are_no_compilers_stay_what_they_are() -> None:
    assert complaints_of(ValueError("x(1): y")) is None
    assert complaints_of(RuntimeError("k(3:7): error: no")) == [(3, 7, "no")]


# On a device --------------------------------------------------------------------------------------------------------------------------

on_device = pytest.mark.skipif(not opencl.available(), reason=NO_DEVICE)


@on_device
@pytest.mark.parametrize("n", [1, 63, 1000])
def test_values_on_opencl(n: int) -> None:
    a, b = np.random.default_rng(n).normal(size=(2, n)).astype(np.float32)
    for options, factor in (({}, 2.0), ({"a": -0.5}, -0.5)):
        for group in (None, 64):
            result = hs.run(graph_of(saxpy(group=group), (n,), (n,), **options), {"a": a, "b": b})
            np.testing.assert_allclose(result["y0"], factor * a + b, rtol=1e-5, atol=1e-6)
    assert result.plan.device_of(0) == "opencl:0"


@on_device
def test_local_memory_and_barriers_in_a_kernel() -> None:
    source = """
    __kernel void turn(__global const int *x, __global int *y) {
        __local int part[8];
        const int i = get_local_id(0);
        part[i] = x[get_global_id(0)];
        barrier(CLK_LOCAL_MEM_FENCE);
        y[get_global_id(0)] = part[7 - i];
    }
    """
    op = hs.kernel("mine.turn", {"x": "in int32[n]", "y": "out int32[n]"}, opencl=source, size="n", group=8)
    x = np.arange(32, dtype=np.int32)
    result = hs.run(graph_of(op, (32,), dtype=np.int32), {"a": x})
    np.testing.assert_array_equal(result["y0"], x.reshape(4, 8)[:, ::-1].ravel())


@on_device
def test_a_kernel_beside_the_op_it_is_checked_against() -> None:
    right = hs.kernel("mine.add", ARGUMENTS, opencl=SAXPY, function="saxpy", size="n", check="tensor.add")
    x = np.ones(100, np.float32)
    assert (hs.run(graph_of(right, (100,), (100,), a=1.0), {"a": x, "b": x})["y0"] == 2).all()
    wrong = hs.kernel("mine.add", ARGUMENTS, opencl=SAXPY, function="saxpy", size="n", check="tensor.add")
    says = r"does not compute what tensor.add does: out\[0\] is 3.0, tensor.add gives 2.0 \(100 of 100 elements differ\)"
    for _ in range(2):  # a kernel that was found out is looked at again
        with pytest.raises(hs.TaskError, match=says):
            hs.run(graph_of(wrong, (100,), (100,)), {"a": x, "b": x})


@on_device
def test_an_element_that_is_left_out_is_found_by_the_check() -> None:
    lazy = SAXPY.replace("if (i < n)", "if (i < n - 1)")
    op = hs.kernel("mine.add", ARGUMENTS, opencl=lazy, function="saxpy", size="n", check="tensor.add")
    x = np.full(100, 1234.5, np.float32)  # no other test has left their sum in memory
    with pytest.raises(hs.TaskError, match=r"out\[99\] is .*\(1 of 100 elements differ\)"):
        hs.run(graph_of(op, (100,), (100,), a=1.0), {"a": x, "b": x})


@on_device
def test_complaints_of_the_compiler_stand_at_their_places() -> None:
    op = saxpy(opencl=Source(SAXPY.replace("a * x[i]", "a * z[i]"), "dir/k.cl", 10, 4))
    with pytest.raises(hs.TaskError) as caught:
        hs.run(graph_of(op, (4,), (4,)), {"a": np.ones(4, np.float32), "b": np.ones(4, np.float32)})
    lines = str(caught.value).split("\n")
    assert lines[0] == "task 'own' failed: KernelError: kernel 'mine.saxpy' does not build for opencl"
    assert lines[1] == "dir/k.cl:12:33: error: use of undeclared identifier 'z'"
    assert lines[2].index("z[i]") == lines[3].index("^")


@on_device
def test_a_function_with_other_parameters_is_told_as_such() -> None:
    op = hs.kernel("mine.saxpy", {k: v for k, v in ARGUMENTS.items() if k != "a"}, opencl=Source(SAXPY, "k.cl"), size="n")
    with pytest.raises(
        hs.TaskError, match=r"k.cl:1:1: error: its arguments are not those of the function 'saxpy' \(x: in float32, .*too few arguments"
    ):
        hs.run(graph_of(op, (4,), (4,)), {"a": np.ones(4, np.float32), "b": np.ones(4, np.float32)})


def checked(source: str = SAXPY, mark: str = "") -> hs.Op:
    """A kernel that is to add; `mark` makes a source of its own of it."""
    return hs.kernel("mine.add", ARGUMENTS, opencl=f"{source} // {mark}", function="saxpy", size="n", check="tensor.add")


@on_device
def test_what_a_kernel_has_made_is_looked_at_while_others_go_on_and_before_the_run_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check waits for a task that reads what is checked: inside the launch it would wait for ever."""
    read, log = threading.Event(), []
    look = UserKernel._differ

    def patient(self: UserKernel, *args: Any) -> None:
        log.append(read.wait(60))
        look(self, *args)

    @hs.op(out=lambda x: x)
    def reader(x: Any) -> Any:
        read.set()
        return x

    monkeypatch.setattr(UserKernel, "_differ", patient)
    b = hs.Graph.build()
    x = b.input("x", (100,))
    b.output(b.op(reader, b.op(checked(), x, x, a=1.0), name="last"), "y")
    graph, ones = b.freeze(), np.ones(100, np.float32)
    assert (hs.run(graph, {"x": ones}, learn=False)["y"] == 2).all()
    assert log == [True]


@on_device
@pytest.mark.parametrize("way", ["run", "keep_going", "session"])
def test_a_kernel_that_is_found_out_fails_its_task_however_it_is_run(way: str) -> None:
    op, ones = checked(), np.ones(100, np.float32)
    b = hs.Graph.build()
    x = b.input("x", (100,))
    b.output(b.op("tensor.neg", b.op(op, x, x, name="own"), name="behind"), "y")
    b.output(b.op("tensor.neg", x, name="beside"), "z")
    graph = b.freeze()
    says = r"task 'own' failed: KernelError: kernel 'mine.add' \(opencl\) does not compute what tensor.add does"
    if way == "keep_going":
        result = hs.run(graph, {"x": ones}, keep_going=True, learn=False)
        assert re.match(says, str(result.failed["own"]))
        assert "y" not in result
        assert (result["z"] == -1).all()
        return
    with hs.Session() as session:
        f = session.compile(graph) if way == "session" else lambda **given: hs.run(graph, given, learn=False)
        for _ in range(2):
            with pytest.raises(hs.TaskError, match=says):
                f(x=ones)


@on_device
def test_programs_and_kernel_objects_are_there_before_the_clock_of_a_run_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    from hetsched.executors.backends._opencl_live import Stream

    made = []
    make = Stream._new_kernel

    def seen(self: Stream, *args: Any) -> Any:
        made.append(self._is_preparing)
        return make(self, *args)

    monkeypatch.setattr(Stream, "_new_kernel", seen)
    b = hs.Graph.build()
    x = b.input("x", (100,))
    own = b.op(checked(mark="seen for the first time"), x, x, a=1.0)
    b.output(b.op("tensor.sum", b.op("nn.relu", own)), "y")
    plan = hs.plan(b.freeze(), only="opencl", learn=False)
    for _ in range(2):
        assert hs.run(plan, {"x": np.ones(100, np.float32)}, learn=False)["y"] == 200
    assert made
    assert all(made)
