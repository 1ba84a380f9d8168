"""Runs that are planned anew on their way: values are those of the plain loop, every task runs once, and each epoch does what its plan says."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import hetsched as hs
from hetsched.check import problems
from hetsched.executors import live, simulated
from hetsched.executors.backends.emulated import emulate
from hetsched.executors.epochs import Progress, Speeds
from hetsched.executors.result import Result
from hetsched.graph.graph import Graph, Loop
from hetsched.graph.rest import JOIN, Rest, can_split, rest_of, whole_turns
from hetsched.graph.sequence import Body, loop_over_batches
from hetsched.graph.spec import Sequence
from hetsched.machine import Machine
from hetsched.run import check_inputs
from hetsched.testing.graphs import random_graph, random_machine
from hetsched.testing.reference import interpret
from hetsched.testing.runs import done, planned, value_problems
from hetsched.timeline import Launch, Timeline


class AtSteps:
    """Plans anew after so many steps of an epoch, by any policy, until the numbers run out."""

    def __init__(self, machine: Machine, steps: list[int], policy: str = "auto") -> None:
        self.machine, self.steps, self.policy = machine, steps, policy

    def due(self, plan: Timeline, progress: Progress) -> bool:
        if not self.steps or progress.steps < self.steps[0]:
            return False
        self.steps.pop(0)
        return True

    def plan(self, rest: Rest, speeds: Speeds) -> Timeline:
        made = hs.plan(rest.graph, self.machine, policy=self.policy)
        assert problems(made) == []
        return made


def simulate(plan: Timeline, inputs: dict[str, object], replanner: AtSteps, seed: int) -> Result:
    return simulated.run_plan(plan, check_inputs(plan.graph, inputs), spread=0.5, seed=seed, replanner=replanner)


def for_real(plan: Timeline, inputs: dict[str, object], replanner: AtSteps, seed: int) -> Result:
    return live.run_plan(plan, check_inputs(plan.graph, inputs), replanner=replanner)


def epoch_problems(result: Result) -> list[str]:
    """Every epoch ran nothing but what its plan has, each task of the whole graph ran once, and loops made all their turns."""
    out = []
    for number, (plan, trace) in enumerate(zip(result.plans, result.traces, strict=True)):
        extra = done(trace) - planned(plan, 1)
        out += [f"epoch {number} ran what its plan has not: {key}" for key in extra if plan.graph.task_names]
    graph = result.plan.graph
    times = Counter(s.command.task for s in result.trace.spans if isinstance(s.command, Launch))
    out += [f"{graph.task_names[t]} ran {times[t]} times" for t in range(len(graph)) if times[t] != 1]
    for task, body in result.trace.loops.items():
        loop = graph.task_ops[task]
        if not isinstance(loop, Loop):
            continue
        if loop.stop is None and body.turns != loop.turns:
            out.append(f"loop {graph.task_names[task]} made {body.turns} of {loop.turns} turns")
        if loop.stop is None and done(body) != planned(result.plan.loops[task], loop.turns) and len(result.plans) == 1:
            out.append(f"the body of {graph.task_names[task]} did not do what it should")
        launches = Counter((s.command.task, s.command.turn) for s in body.spans if isinstance(s.command, Launch))
        wanted = {
            (t, i) for t, name in enumerate(loop.body.task_names) for i in range(body.turns) if i % loop.every.get(name, 1) == 0
        }  # fmt: skip
        if loop.stop is None and launches != Counter(wanted):
            out.append(f"the turns of {graph.task_names[task]} are not complete: {(Counter(wanted) - launches)} {launches - Counter(wanted)}")
    return out


@pytest.mark.parametrize("run", [simulate, for_real], ids=["simulated", "real"])
@pytest.mark.parametrize("block", range(4))
def test_random_graphs_planned_anew_at_random_agree_with_the_plain_loop(run: Callable[..., Result], block: int) -> None:
    """200 graphs, half of them in virtual time and half on threads and emulated devices; up to three new plans each."""
    anew = split = 0
    with threadpool_limits(1):
        for seed in range(block * 25, (block + 1) * 25):
            rng = random.Random(7000 + seed)
            graph, inputs = random_graph(rng)
            machine = emulate(random_machine(rng, memory_limits=False))
            plan = hs.plan(graph, machine, policy="round_robin" if seed % 2 else "auto")
            steps = [rng.randint(0, 12) for _ in range(rng.randint(1, 3))]
            result = run(plan, inputs, AtSteps(machine, steps, rng.choice(["auto", "round_robin", "heft"])), seed)
            assert value_problems(result, interpret(graph, inputs)) == [], seed
            assert epoch_problems(result) == [], seed
            anew += len(result.plans) - 1
            split += sum(op is JOIN or (isinstance(op, Loop) and op.turns < 2) for p in result.plans[1:] for op in p.graph.task_ops)
    assert anew > 10


def counting_loop(turns: int, every: int = 1) -> Graph:
    """Carried state, a sequence, the turn's number, something collected, and a task of every few turns."""
    body = Graph.build()
    x, s, t = body.input("x", (3,)), body.input("s", (3,)), body.input("t", (), np.int64)
    slow = body.op("tensor.scale", s, factor=0.5, name="slow")
    new = body.op("tensor.add", slow, x, name="new")
    body.output(new, "s_new")
    body.output(body.op("tensor.add", t, t, name="twice"), "twice")
    body.output(body.op("tensor.neg", new, name="neg"), "neg")
    loop = Loop(
        body.freeze(), turns, sequences=("x",), carried=(("s", "s_new"),), collected=("neg", "twice"), turn="t",
        every={"slow": every} if every > 1 else {},
    )  # fmt: skip
    b = Graph.build()
    last, negs, twices = b.loop(loop, b.input("x", (turns, 3)), b.input("s", (3,)), name="loop")
    b.output(last, "last")
    b.output(negs, "negs")
    b.output(twices, "twices")
    return b.freeze()


@pytest.mark.parametrize("every", [1, 3])
def test_a_loop_is_taken_up_at_the_end_of_a_turn(every: int) -> None:
    """Again and again: state, what is collected, the turn's number and tasks of every few turns go on as if nothing had been."""
    graph = counting_loop(30, every)
    machine = random_machine(5, accelerators=0)
    inputs = {"x": np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32), "s": np.ones(3, np.float32)}
    result = simulate(hs.plan(graph, machine), inputs, AtSteps(machine, [9, 9, 9]), 0)
    assert len(result.plans) == 4
    turns = [next(op.turns for op in p.graph.task_ops if isinstance(op, Loop)) for p in result.plans]
    assert turns[0] == 30
    assert turns == sorted(turns, reverse=True)
    assert len(set(turns)) == 4
    assert all((30 - n) % every == 0 for n in turns)
    assert value_problems(result, interpret(graph, inputs)) == []
    assert epoch_problems(result) == []


def test_rows_of_epochs_whose_last_batch_is_smaller_are_parted_where_they_are() -> None:
    """Two of three epochs of batches of 2, 2 and 1 rows: 10 rows are done, not 12."""

    def write(body: Body) -> None:
        body.collect("less", body.builder.op("tensor.neg", body.take(x)), rows=15)

    b = Graph.build()
    x = b.input("x", (5, 3))
    for name, value in loop_over_batches(b, write, rows=5, batch=2, epochs=3, name="train").items():
        b.output(b.op("data.whole", value), name)
    graph = b.freeze()
    t = next(t for t, op in enumerate(graph.task_ops) if isinstance(op, Loop))
    rest = rest_of(graph, set(), {t: 6}, lambda t: "cpu")
    loop = next(op for op in rest.graph.task_ops if isinstance(op, Loop))
    assert (loop.turns, dict(loop.rows)) == (3, {"less": 5})
    head = next(rest.graph.spec(rest.graph.inputs[name]) for name, source in rest.sources.items() if source.kind == "head")
    assert isinstance(head, Sequence)
    assert head.rows == 10
    assert rest.graph.spec(rest.graph.outputs["less"]) == graph.spec(graph.outputs["less"])


def test_what_is_left_of_a_graph() -> None:
    """The rest reads what is done as inputs, keeps names and outputs, and joins what a loop has collected."""
    graph = counting_loop(10)
    rest = rest_of(graph, set(), {0: 4}, lambda t: "cpu")
    loop = next(op for op in rest.graph.task_ops if isinstance(op, Loop))
    assert loop.turns == 6
    assert {s.kind for s in rest.sources.values()} == {"tail", "turns", "carried", "head"}
    assert list(rest.graph.outputs) == ["last", "negs", "twices"]
    assert rest.graph.spec(rest.graph.outputs["negs"]) == graph.spec(graph.outputs["negs"])
    assert [rest.graph.task_names[t] for t, whole in enumerate(rest.tasks) if whole >= 0] == ["loop"]
    assert whole_turns(loop) == 1
    assert can_split(loop)
