"""Segments: what has become code gives the values of a plain loop, and its errors name the task."""

import random
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import hetsched as hs
from hetsched.errors import TaskError
from hetsched.executors import binding
from hetsched.graph.graph import Graph, Loop
from hetsched.graph.op import Op, Work
from hetsched.testing.graphs import random_graph
from hetsched.testing.plans import plain_plan
from hetsched.testing.reference import interpret
from hetsched.testing.runs import run_problems, value_problems


@pytest.mark.parametrize("block", range(4))
def test_values_of_random_graphs_whose_steps_become_code_at_once(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding, "HOT_RUNS", 1)
    here = hs.Machine.here()
    with threadpool_limits(1):
        for seed in range(block * 40, (block + 1) * 40):
            graph, inputs = random_graph(random.Random(seed))
            wanted = interpret(graph, inputs)
            for plan in (hs.plan(graph, here), plain_plan(graph, here, seed=seed, slots=2 + seed % 3)):
                result = hs.run(plan, inputs)
                assert value_problems(result, wanted) == [], seed
                assert run_problems(plan, result.trace) == [], seed


def test_a_failure_in_code_names_the_task_and_the_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding, "HOT_RUNS", 2)

    def kernel(xp: Any, ins: Any, outs: Any, workspace: Any, attributes: Any) -> None:
        if int(ins[0]) == 6:
            raise ValueError("enough")
        outs[0][...] = ins[1]

    op = Op("test.op", ("turn", "s"), ("out",), lambda s, a: [s[1]], lambda i, o, a: Work(1, 4, 4), kernels={"array": kernel})
    body = Graph.build()
    turn, state = body.input("turn", (), np.int64), body.input("s", ())
    body.output(body.op("tensor.exp", body.op(op, turn, body.op("tensor.neg", state, name="before"), name="step"), name="behind"), "s2")
    b = Graph.build()
    (last,) = b.loop(Loop(body.freeze(), turns=9, carried=(("s", "s2"),), turn="turn"), b.input("s", ()))
    b.output(last, "last")
    with pytest.raises(TaskError, match=r"task 'step' failed in turn 6: ValueError: enough") as caught:
        hs.run(b.freeze(), {"s": 0})
    assert caught.value.task == "step"
