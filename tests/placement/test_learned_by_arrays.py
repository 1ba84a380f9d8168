"""What a run of threads alone teaches is worked out by arrays; the same as span by span."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import hetsched as hs
from hetsched.machine import HOST, Device, Machine, MemoryNode
from hetsched.placement.costs import lessons
from hetsched.placement.costs.handover import _gaps, _plain_gaps, handovers, way_of
from hetsched.testing.graphs import random_graph

CPU = Device(
    "cpu", "cpu", lanes=3, io_lanes=2, languages=("host", "array"), shares_lanes=True, bytes_per_second=10e9, flops_per_second={"float32": 1e7},
    fingerprint="cpu of a test",
)  # fmt: skip
MACHINE = Machine((CPU,), (), (MemoryNode(HOST),))


def shaken(plan: hs.Timeline, seed: int) -> hs.Timeline:
    """A trace that a plan may have had: launches as planned, later by what is between tasks, and not all in their order."""
    rng = np.random.default_rng(seed)
    spans = []
    for span in plan.launches:
        late, early = rng.exponential(2e-6), rng.exponential(1e-6) * (rng.random() < 0.1)
        spans.append(span._replace(start=max(span.start + late - early, 0.0), finish=span.finish + late + rng.exponential(1e-6)))
    rng.shuffle(spans)
    return replace(plan, spans=tuple(spans), after=(), measured=True)


@pytest.mark.parametrize("seed", range(20))
def test_a_trace_of_threads_teaches_the_same_by_arrays(seed, monkeypatch):
    graph, _ = random_graph(seed, tasks=24, loops=False)
    plan = hs.plan(graph, MACHINE, policy="heft", learn=False)
    trace = shaken(plan, seed)
    found = lessons.lessons(trace, plan)
    monkeypatch.setattr(lessons, "_teach_launches", lambda *args: False)
    wanted = lessons.lessons(trace, plan)
    assert found
    assert [x._replace(seconds=0.0, spread=0.0) for x in found] == [x._replace(seconds=0.0, spread=0.0) for x in wanted]
    np.testing.assert_allclose([(x.seconds, x.spread) for x in found], [(x.seconds, x.spread) for x in wanted], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("seed", range(20))
def test_what_lies_between_tasks_is_the_same_by_arrays(seed):
    graph, _ = random_graph(seed, tasks=24, loops=False)
    plan = hs.plan(graph, MACHINE, policy="heft", learn=False)
    trace = shaken(plan, seed)
    spans, way = list(trace.spans), way_of(MACHINE, trace.lane_sets, False)
    assert way.is_plain
    found = {kind: x for kind, x in _plain_gaps(trace, spans, plan, way).items() if len(x)}
    wanted = {kind: x for (_, kind), x in _gaps(trace, spans, [False] * len(spans), plan, way, {"cpu": "cpu"}).items()}
    assert found.keys() == wanted.keys()
    for kind, seconds in wanted.items():
        np.testing.assert_allclose(np.sort(found[kind]), np.sort(seconds), rtol=1e-9)
    assert {x.kind for x in handovers(trace, plan)} == wanted.keys()
