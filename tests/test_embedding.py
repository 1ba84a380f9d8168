"""hetsched inside other programs: what they hand over, send to other processes, and fork."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pytest

import hetsched as hs
from hetsched.errors import CommandLineError, DeviceGoneError, GraphError, PlacementError, PlanError, TaskError
from hetsched.graph.graph import Loop
from hetsched.graph.spec import Spec
from hetsched.machine.named import find
from hetsched.placement.memory import PlanTooLargeError

HERE = find("laptop")


def work(inputs: Any, outputs: Any, attributes: Any) -> hs.Work:
    return hs.Work(1.0, 4.0, 4.0)


def infer(specs: Any, attributes: Any) -> Any:
    return [specs[0]]


def kernel(xp: Any, inputs: Any, outputs: Any, workspace: Any, attributes: Any) -> None:
    xp.multiply(inputs[0], attributes["by"], out=outputs[0])


SCALED = hs.Op("mine.scaled", ("x",), ("y",), infer, work, {"array": kernel}, attributes={"by": hs.Attribute(float)})


def graph_of() -> hs.Graph:
    body = hs.Graph.build()
    state = body.input("s", (4, 4))
    body.output(body.op("tensor.matmul", state, state), "next")
    b = hs.Graph.build()
    x = b.op(SCALED, b.input("x", (4, 4)), by=0.1, name="scaled")
    (last,) = b.loop(Loop(body.freeze(), turns=3, carried=(("s", "next"),)), x, name="powers")
    return b.output(b.op("nn.relu", last), "y").freeze()


X = {"x": np.arange(16, dtype=np.float32).reshape(4, 4)}


def test_graphs_plans_and_results_go_to_other_processes() -> None:
    graph = graph_of()
    plan = hs.plan(graph, HERE, policy="heft")
    expected = hs.run(plan, X, executor="simulated")
    for way in (lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy):
        again = way(plan)
        assert again.makespan == plan.makespan
        assert [str(s) for s in again.spans] == [str(s) for s in plan.spans]
        assert again.graph.task_ops[-1] is graph.task_ops[-1], "an op of the registry is itself"
        hs.check(again)
        np.testing.assert_array_equal(hs.run(again, X, executor="simulated")["y"], expected["y"])
        np.testing.assert_array_equal(hs.run(way(graph), X, machine=HERE, executor="simulated")["y"], expected["y"])
        np.testing.assert_array_equal(way(expected)["y"], expected["y"])


def test_errors_go_to_other_processes_whole() -> None:
    errors = [
        TaskError("t", "failed"),
        DeviceGoneError("cuda:0", "gone"),
        GraphError(["a", "b"]),
        PlacementError("p", [("s", ("t",))]),
        PlanError(["x"]),
        PlanTooLargeError(64, "does not fit", "t"),
    ]
    for error in errors:
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)


@pytest.mark.parametrize(("given", "told"), [("words", "of which no array can be made"), ([[1, 2], [3]], "of which no array can be made")])
def test_what_is_no_array_is_told_with_the_input(given: Any, told: str) -> None:
    b = hs.Graph.build()
    graph = b.output(b.op("nn.relu", b.input("x", (2, 2))), "y").freeze()
    with pytest.raises(GraphError, match=rf"input 'x' wants float32\[2, 2\], got .*{told}"):
        hs.run(graph, {"x": given}, machine=HERE, executor="simulated")


def test_arrays_of_the_other_byte_order_are_taken() -> None:
    x = np.arange(16, dtype=np.float32).reshape(4, 4)
    other = x.astype(x.dtype.newbyteorder())
    graph = graph_of()
    same = [hs.run(graph, {"x": a}, machine=HERE, executor="simulated")["y"] for a in (x, other)]
    np.testing.assert_array_equal(*same)
    assert Spec((1,), other.dtype) == Spec((1,), np.float32)


def test_a_dtype_that_is_none_is_a_mistake_of_the_graph() -> None:
    with pytest.raises(GraphError, match="'float33' is no dtype that NumPy knows"):
        hs.Graph.build().input("x", (1,), "float33")


FORK = """
    import json, os, sys
    import numpy as np
    import hetsched as hs
    from hetsched.executors.backends import opencl

    b = hs.Graph.build()
    graph = b.output(b.op("nn.relu", b.input("x", (8,))), "y").freeze()
    x = {"x": np.arange(8, dtype="f4") - 4}
    before = hs.run(graph, x)["y"].tolist()
    there = len(opencl.find().devices)
    if there:
        hs.run(graph, x, only="opencl")
    sys.stdout.flush()
    child = os.fork()
    if not child:
        found = opencl.find()
        print(json.dumps([hs.run(graph, x)["y"].tolist() == before, len(found.devices), list(found.notes)]), flush=True)
        sys.exit(0)  # as a program ends, exit handlers and all
    assert os.waitpid(child, 0)[1] == 0
    print(json.dumps([there, len(opencl.find().devices)]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_process_forked_off_one_that_has_run_runs_without_the_devices_that_do_not_survive_it(tmp_path: Any) -> None:
    own = {"HETSCHED_LEARN": "1", "XDG_CACHE_HOME": str(tmp_path)}  # what it measures and learns is not for other tests
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(FORK)], env={**os.environ, **own},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (fits, devices, notes), (there, left) = (json.loads(line) for line in done.stdout.strip().splitlines()[-2:])
    assert fits
    assert devices == 0
    assert there == left, "the parent keeps its devices"
    if there:
        assert "forked" in notes[0]
        assert "spawn" in notes[0]


@hs.op(lambda x: x)
def plus(x: Any, *, by: float = 1.0) -> Any:
    return x + by


@hs.array_op("mine.half")
def half(xp: Any, x: Any) -> Any:
    return x / 2


THIRD = hs.kernel(
    "mine.third", {"x": "in float32[n]", "y": "out float32[n]", "n": "value int64 = n"}, size="n", group=64,
    opencl="__kernel void third(__global const float *x, __global float *y, const long n) { long i = get_global_id(0); if (i < n) y[i] = x[i] / 3; }",
)  # fmt: skip


def test_decorated_functions_and_kernels_go_to_other_processes() -> None:
    b = hs.Graph.build()
    graph = b.output(b.op(half, b.op(plus, b.input("x", (4, 4)), by=3.0)), "y").freeze()
    plan = hs.plan(graph, HERE, policy="heft")
    again = pickle.loads(pickle.dumps(plan))
    assert [op is mine for op, mine in zip(again.graph.task_ops, (plus, half), strict=True)] == [True, True]
    np.testing.assert_array_equal(hs.run(again, X, executor="simulated")["y"], (X["x"] + 3) / 2)
    kernel = pickle.loads(pickle.dumps(THIRD))
    assert (kernel.name, kernel.inputs, kernel.outputs, set(kernel.kernels)) == ("mine.third", ("x",), ("y",), {"opencl"})
    assert kernel.infer([Spec((5,), np.float32)], {}) == [Spec((5,), np.float32)]


def test_an_op_of_a_function_that_no_name_leads_to_says_so() -> None:
    @hs.op(lambda x: x)
    def local(x: Any) -> Any:
        return x

    with pytest.raises(pickle.PicklingError, match=r"op local is not found as test_embedding.*\.local; define its function at the top"):
        pickle.dumps(local)
    assert copy.deepcopy(local) is local


def test_inputs_without_names_and_policies_that_are_none_are_told() -> None:
    graph = graph_of()
    for given in ([X["x"]], X["x"]):
        with pytest.raises(GraphError, match=r"inputs are given by name, \{'x': \.\.\.\}, not as (list|ndarray)"):
            hs.run(graph, given, machine=HERE, executor="simulated")  # type: ignore[arg-type]
    with pytest.raises(CommandLineError, match="a policy is a name or a function of a draft, not int; known: auto, "):
        hs.plan(graph, HERE, policy=7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"memory": "1GiB"}, "the memory limit of 'host' is '1GiB'; give a number of bytes above 0"),
        ({"memory": 1e6}, "the memory limit of 'host' is 1000000.0; give a number of bytes above 0"),
        ({"timeout": "5s"}, r"timeout must be more than 0 seconds \(None: no limit\), got '5s'"),
        ({"plan_seconds": "1s"}, "plan_seconds is a number of seconds, got '1s'"),
    ],
)
def test_limits_as_the_command_has_them_are_told_in_python(options: dict[str, Any], told: str) -> None:
    with pytest.raises(CommandLineError, match=told):
        hs.run(graph_of(), X, machine=HERE, executor="simulated", **options)


def test_a_shape_of_broken_numbers_is_told() -> None:
    with pytest.raises(GraphError, match=r"a shape has whole numbers as extents, got \(2\.5, 3\)"):
        hs.Graph.build().input("x", (2.5, 3))  # type: ignore[arg-type]
