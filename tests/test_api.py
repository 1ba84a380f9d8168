"""plan() and run() as an embedding program uses them."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

import hetsched as hs
from hetsched.errors import CommandLineError, GraphError, OutOfMemoryError
from hetsched.graph.spec import UpTo
from hetsched.placement.draft import Draft


def product() -> hs.Graph:
    g = hs.Graph.build()
    a, b = g.input("a", (64, 32)), g.input("b", (32, 16))
    c = g.op("tensor.matmul", a, b, name="c")
    g.output(c)
    g.output(g.op("nn.relu", c), "positive")
    g.output(g.op("tensor.reshape", c, shape=[1024]), "flat")
    g.output(a, "same")
    return g.freeze()


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {"a": rng.normal(size=(64, 32)).astype(np.float32), "b": rng.normal(size=(32, 16)).astype(np.float32)}


def test_a_graph_built_in_python_gives_numpys_values(arrays: dict[str, np.ndarray]) -> None:
    result = hs.run(product(), arrays)
    wanted = arrays["a"] @ arrays["b"]
    np.testing.assert_allclose(result["c"], wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(result["positive"], np.maximum(result["c"], 0))
    np.testing.assert_array_equal(result["flat"], result["c"].ravel())
    assert result.trace.makespan > 0
    assert result.plan.device_of(result.plan.graph.task_index["c"]) == "cpu"


def test_inputs_stay_as_they_were_and_results_are_the_callers_own(arrays: dict[str, np.ndarray]) -> None:
    before = {k: v.copy() for k, v in arrays.items()}
    plan = hs.plan(product())
    first, second = hs.run(plan, arrays), hs.run(plan, arrays)
    for name, x in arrays.items():
        np.testing.assert_array_equal(x, before[name])
        assert x.flags.writeable
    for name in first:
        assert first[name].flags.writeable
        assert first[name].flags.c_contiguous
        assert not np.may_share_memory(first[name], second[name])
        assert not any(np.may_share_memory(first[name], x) for x in arrays.values())
    assert not np.may_share_memory(first["c"], first["flat"])
    kept = second["c"].copy()
    first["c"][...] = 0
    np.testing.assert_array_equal(second["c"], kept)


def test_inputs_may_be_lists_strided_arrays_or_speak_dlpack(arrays: dict[str, np.ndarray]) -> None:
    graph = product()

    class Foreign:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        def __dlpack__(self, **options: object) -> object:
            return self.array.__dlpack__(**options)  # type: ignore[call-overload]

        def __dlpack_device__(self) -> object:
            return self.array.__dlpack_device__()

    wanted = hs.run(graph, arrays)["c"]
    strided = np.repeat(arrays["b"], 2, axis=1)[:, ::2]
    assert not strided.flags.c_contiguous
    np.testing.assert_array_equal(hs.run(graph, {"a": Foreign(arrays["a"]), "b": strided})["c"], wanted)
    np.testing.assert_array_equal(hs.run(graph, {"a": arrays["a"].tolist(), "b": arrays["b"]})["c"], wanted)


def test_a_bounded_dimension_carries_its_extent() -> None:
    g = hs.Graph.build()
    x = g.input("x", (UpTo(10), 3))
    g.output(g.op("tensor.sum", g.op("nn.relu", x), axes=[1]), "y")
    graph = g.freeze()
    for n in (0, 4, 10):
        array = np.arange(n * 3, dtype=np.float32).reshape(n, 3) - 2
        np.testing.assert_array_equal(hs.run(graph, {"x": array})["y"], np.maximum(array, 0).sum(axis=1))
    with pytest.raises(hs.GraphError, match=r"wants float32\[<=10, 3\], got float32\[11, 3\]"):
        hs.run(graph, {"x": np.zeros((11, 3), np.float32)})


def test_a_plan_that_does_not_fit_is_refused_before_anything_runs(arrays: dict[str, np.ndarray]) -> None:
    with pytest.raises(OutOfMemoryError, match="bytes"):
        hs.run(product(), arrays, memory={"host": 100})


def test_an_empty_graph_runs() -> None:
    assert dict(hs.run(hs.Graph.build().freeze())) == {}


def test_runs_can_be_awaited(arrays: dict[str, np.ndarray]) -> None:
    plan = hs.plan(product())

    async def several() -> list[hs.Result]:
        return await asyncio.gather(*(hs.run_async(plan, arrays) for _ in range(3)))

    results = asyncio.run(several())
    for result in results:
        np.testing.assert_array_equal(result["c"], results[0]["c"])


def test_unknown_names_are_answered_with_the_known_ones(arrays: dict[str, np.ndarray]) -> None:
    with pytest.raises(CommandLineError, match="heft"):
        hs.plan(product(), policy="hefty")
    with pytest.raises(KeyError, match="positive"):
        hs.run(product(), arrays)["positiv"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hs.plan(hs.Graph.build()), r"plan\(\) takes a graph, got Builder; finish a builder with freeze\(\)"),
        (lambda: hs.plan(product(), machine="workstation"), r"plan\(\) takes a Machine, got 'workstation'"),
        (lambda: hs.run(hs.Graph.build()), r"run\(\) takes a plan or a graph, got Builder"),
        (lambda: hs.check(product()), r"check\(\) takes a plan, got Graph"),
    ],
)
def test_wrong_arguments_are_told_by_their_type(call: Callable[[], object], message: str) -> None:
    with pytest.raises(CommandLineError, match=message):
        call()


def users_op(infer: Callable[..., object], work: Callable[..., object]) -> hs.Op:
    def double(xp, inputs, outputs, workspace, attributes):
        xp.multiply(inputs[0], 2, out=outputs[0])

    return hs.Op("my.double", ("x",), ("y",), infer, work, kernels={"array": double})


def test_rules_of_users_ops_that_fail_are_told_with_the_task() -> None:
    def fails(*_: object) -> object:
        raise KeyError("boo")

    def same(specs: Sequence[hs.Spec], _: object) -> Sequence[hs.Spec]:
        return specs

    g = hs.Graph.build()
    g.output(g.op(users_op(fails, fails), g.input("a", (4,)), name="b"))
    g.op("nn.relu")
    with pytest.raises(hs.GraphError) as caught:
        g.freeze()
    assert caught.value.problems[0].startswith("task 'b': the shape rule of op my.double raised KeyError('boo')")
    assert len(caught.value.problems) == 2
    assert isinstance(caught.value.__cause__, KeyError)
    for work, message in [
        (fails, r"task 'b': the work rule of op my.double raised KeyError\('boo'\)"),
        (lambda *_: (1.0, 2.0), "raised TypeError"),
        (lambda *_: (float("nan"), 1, 1), r"gave Work\(flops=nan, .*; flops and bytes are finite"),
        (lambda *_: (-1, 1, 1), "finite and at least 0"),
    ]:
        g = hs.Graph.build()
        g.output(g.op(users_op(same, work), g.input("a", (4,)), name="b"))
        with pytest.raises(hs.GraphError, match=message):
            hs.plan(g.freeze())


def test_a_policy_may_be_a_function_of_a_draft(arrays: dict[str, np.ndarray]) -> None:
    from hetsched.placement.policies import heft

    def backwards(draft: Draft) -> None:
        for task in draft.problem.order:
            draft.place(task, draft.earliest(task))

    plan = hs.plan(product(), policy=backwards)
    assert plan.policy == "backwards"
    np.testing.assert_array_equal(hs.run(plan, arrays)["positive"], hs.run(product(), arrays)["positive"])
    assert hs.plan(product(), policy=heft.policy).policy == "heft"


def test_none_and_masked_elements_are_no_numbers() -> None:
    """NumPy would make NaN of the one, and show what lies behind the other."""
    b = hs.Graph.build()
    b.output(b.op("tensor.neg", b.input("x", ())), "y")
    with pytest.raises(GraphError, match=r"input 'x' wants .*None is no number"):
        hs.run(b.freeze(), {"x": None})
    b = hs.Graph.build()
    b.output(b.op("tensor.neg", b.input("x", (3,))), "y")
    graph, x = b.freeze(), np.arange(3, dtype=np.float32)
    with pytest.raises(GraphError, match=r"1 of its elements are masked; give .filled\(VALUE\)"):
        hs.run(graph, {"x": np.ma.masked_equal(x, 1)})
    assert (hs.run(graph, {"x": np.ma.masked_equal(x, 7)})["y"] == -x).all()


def test_a_pipeline_file_is_loaded_run_and_published(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(
        "hetsched: 1\nparams: {n: 3}\ntasks:\n  a: {op: tensor.full, with: {shape: [$n], value: 2.0}}\noutputs: {y: {from: a, save: out/y.npy}}\n"
    )
    pipeline = hs.load(file, {"n": 5})
    result = hs.run(pipeline.graph, objective=pipeline.goal)
    assert hs.publish(pipeline, result, tmp_path) == {"y": str(tmp_path / "out" / "y.npy")}
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "y.npy"), np.full(5, 2, np.float32))
    for call in (hs.plan, hs.run):
        with pytest.raises(CommandLineError, match=r"got str 'p.yaml'; hetsched.load\(FILE\).graph is that of a pipeline"):
            call("p.yaml")  # type: ignore[operator]
        with pytest.raises(CommandLineError, match=r"got Pipeline; give its .graph"):
            call(pipeline)  # type: ignore[operator]
