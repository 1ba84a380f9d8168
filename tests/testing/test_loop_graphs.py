"""Random graphs of loops: equal by seed, computable, and with all that makes loops hard."""

from collections import Counter
from itertools import pairwise

import numpy as np
from test_graphs import described

from hetsched.graph.graph import Graph, Loop
from hetsched.testing.loops import random_loops
from hetsched.testing.reference import interpret

SEEDS = range(60)


def test_equal_seeds_give_equal_graphs_and_inputs() -> None:
    for seed in range(5):
        (one, x), (two, y) = random_loops(seed), random_loops(seed)
        assert described(one) == described(two)
        assert all(np.array_equal(x[name], y[name]) for name in {**x, **y})
    assert described(random_loops(0)[0]) != described(random_loops(1)[0])


def test_among_many_graphs_is_all_that_makes_loops_hard() -> None:
    seen: Counter[str] = Counter()

    def look(graph: Graph, depth: int) -> None:
        loops = [(t, op) for t, op in enumerate(graph.task_ops) if isinstance(op, Loop)]
        firsts = [v for t, op in loops for v in graph.reads(t)[len(op.inputs) - len(op.carried) :]]
        seen["loops beside each other"] += any(not set(graph.writes(a)) & set(graph.reads(b)) for (a, _), (b, _) in pairwise(loops))
        seen["loops one after another"] += any(set(graph.writes(a)) & set(graph.reads(b)) for (a, _), (b, _) in pairwise(loops))
        seen["first value of two states"] += len(set(firsts)) < len(firsts)
        seen["first value that a task makes"] += any(int(graph.value_task[v]) >= 0 for v in firsts)
        seen["first value that is an output"] += bool(set(firsts) & set(graph.outputs.values()))
        for _, op in loops:
            cycle = op.cycle or op.turns
            results = [op.body.outputs[name] for name in op.collected]
            states = [op.body.inputs[a] for a, _ in op.carried]
            seen["several epochs with a smaller last batch"] += op.remainder is not None and op.turns > cycle
            seen["collected rows"] += bool(op.rows)
            seen["value that is collected twice"] += len(set(results)) < len(results)
            seen["state that is collected as it was"] += bool(set(results) & set(states))
            seen["state that is collected as it becomes"] += bool(set(results) & {op.body.outputs[b] for _, b in op.carried})
            seen["states that change places"] += any(f"{a}.next" != b and a.startswith("state") for a, b in op.carried)
            seen["view of a state"] += any(getattr(o, "view", False) and op.body.reads(t)[0] in states for t, o in enumerate(op.body.task_ops))
            seen["every"] += bool(op.seldom)
            seen["loop that runs every k turns"] += any(isinstance(op.body.task_ops[t], Loop) for t in op.seldom)
            seen["stop"] += op.stop is not None
            seen["stop, with a smaller batch"] += op.stop is not None and op.remainder is not None
            seen["loop in a loop"] += depth > 0
            seen.update({o.name for o in op.body.task_ops})
            look(op.body, depth + 1)

    for seed in SEEDS:
        graph, inputs = random_loops(seed)
        look(graph, 0)
        for name, value in interpret(graph, inputs).items():
            assert np.all(np.abs(value) < 10), (seed, name)
    wanted = (
        "loops beside each other", "loops one after another", "first value of two states", "first value that a task makes",
        "first value that is an output", "several epochs with a smaller last batch", "collected rows", "value that is collected twice",
        "state that is collected as it was", "state that is collected as it becomes", "states that change places", "view of a state", "every",
        "loop that runs every k turns", "stop", "stop, with a smaller batch", "loop in a loop", "random.permutation", "tensor.gather",
        "optim.sgd", "optim.momentum", "nn.dropout", "nn.cross_entropy", "data.whole",
    )  # fmt: skip
    assert [what for what in wanted if not seen[what]] == [], dict(seen)


def test_jumping_ops_and_stops_can_be_left_out() -> None:
    for seed in range(20):
        graph, _ = random_loops(seed, discrete=False, stops=False, nested=False)
        bodies = [op.body for op in graph.task_ops if isinstance(op, Loop)]
        assert all(op.stop is None for op in graph.task_ops if isinstance(op, Loop))
        assert not any(isinstance(op, Loop) for body in bodies for op in body.task_ops)
        assert not {op.name for body in bodies for op in body.task_ops} & {"tensor.argmax", "tensor.greater"}
