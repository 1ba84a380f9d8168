"""Which of the host's bytes a device copies from and to, and how many in a run: what copies touch often is locked in memory (`pages.Lock`)."""

from __future__ import annotations

from collections.abc import Iterable

from hetsched.graph.graph import If, Loop, Nested
from hetsched.graph.spec import array_form
from hetsched.machine import HOST
from hetsched.timeline import Copy, Span, Timeline

# Locking takes about as long as staging the same bytes a few times: what is touched less often in a run is not locked for it.
LEAST_TIMES = 4


def moved(plan: Timeline) -> dict[int, int]:
    """Value -> bytes that copies move between where it lies on the host and devices, in one run of the plan, those of its loops included.

    What is a view counts for the value whose bytes it shows.
    """
    graph, out = plan.graph, dict[int, int]()

    def add(value: int, nbytes: int) -> None:
        base = graph.base(value)
        out[base] = out.get(base, 0) + nbytes

    def count(spans: Iterable[Span], turns: int) -> None:
        for span in spans:
            command = span.command
            if isinstance(command, Copy) and HOST in (command.src.node, command.dst.node):
                form = array_form(graph.spec(command.value))
                if form is not None:
                    add(command.value, form.nbytes * turns)

    turns = plan.loop.turns if plan.loop is not None else 1
    count(plan.spans, turns)
    count((*plan.prologue, *plan.epilogue), 1)
    for task, body in plan.nested:
        op, inner = graph.task_ops[task], moved(body)
        assert isinstance(op, Nested)
        outputs = [*(name for _, name in op.carried), *op.collected] if isinstance(op, Loop) else op.outputs
        names, reads = (op.captured, graph.reads(task)[1:]) if isinstance(op, If) else (op.inputs, graph.reads(task))
        ends = [(body.graph.inputs[name], v) for name, v in zip(names, reads, strict=True) if name in body.graph.inputs]
        ends += zip([body.graph.outputs[name] for name in outputs], graph.writes(task), strict=True)
        for value, outer in ends:
            nbytes = inner.get(body.graph.base(value), 0)
            if nbytes:
                add(outer, nbytes * turns)
    return out
