"""Which ways to fit a graph into a memory are tried, and when one is given up."""

import pytest

from hetsched.check import check
from hetsched.graph.graph import Graph
from hetsched.machine import HOST, Device, Link, Machine, MemoryNode
from hetsched.placement import plan_graph
from hetsched.placement.costs import RooflineCosts
from hetsched.placement.draft import GraphDraft, HopelessError
from hetsched.placement.memory import fitting
from hetsched.placement.memory.evicting import BESIDE, FARTHEST, LEAST_RECENT, EvictingDraft, evicted
from hetsched.placement.policies import find
from hetsched.placement.problem import problem_of

CPU = Device("cpu", "cpu", 1, languages=("array", "host"), flops_per_second={"float32": 1e9}, bytes_per_second=1e8, shares_lanes=True)
GPU = Device("gpu", "gpu", memory="gpu", languages=("array",), flops_per_second={"float32": 1e10}, bytes_per_second=1e10)
TILE = 4 * 16 * 16


def machine(latency, bytes_per_second):
    links = (Link(HOST, "gpu", latency, bytes_per_second), Link("gpu", HOST, latency, bytes_per_second))
    return Machine((CPU, GPU), links, (MemoryNode(HOST), MemoryNode("gpu")))


def sweeps(tiles=12, rounds=3):
    """A chain that reads the same tiles over and over."""
    b = Graph.build()
    acc, given = b.input("acc", (16, 16)), [b.input(f"t{i}", (16, 16)) for i in range(tiles)]
    for _ in range(rounds):
        for tile in given:
            acc = b.op("tensor.matmul", acc, tile)
    return b.output(acc, "y").freeze()


@pytest.fixture
def booked(monkeypatch):
    """(rule, tasks booked) of each way that was tried."""
    rows = []
    plain = EvictingDraft.__init__

    def init(self, problem, sequence, rule, host):
        plain(self, problem, sequence, rule, host)
        rows.append((rule.name, self))

    monkeypatch.setattr(EvictingDraft, "__init__", init)
    return rows


def plan(where, tiles):
    return plan_graph(sweeps(), where, RooflineCosts(where), only="gpu", memory={"gpu": tiles * TILE})


def test_nothing_more_is_tried_behind_a_plan_as_short_as_without_a_limit(booked):
    where = machine(0.0, 1e20)
    found = plan(where, 6)
    check(found)
    free = plan_graph(sweeps(), where, RooflineCosts(where), only="gpu")
    assert free.peak["gpu"] > 6 * TILE
    assert found.makespan == pytest.approx(free.makespan)
    assert len(booked) == 1


def test_a_way_is_given_up_when_its_plan_is_certain_to_be_no_shorter(booked):
    where = machine(1e-6, 1e9)
    found = plan(where, 6)
    check(found)
    # Its own order and the frugal one are the same for a chain, which each rule books once.
    assert [name for name, _ in booked[:3]] == [BESIDE.name, FARTHEST.name, LEAST_RECENT.name]
    assert len(booked[0][1].booked) == 36
    assert len(booked[2][1].booked) < 36, "a cache reads the same tiles anew in each round"


def test_a_shorter_plan_is_asked_for():
    where = machine(1e-6, 1e9)
    problem = problem_of(sweeps(), where, RooflineCosts(where), only="gpu", memory={"gpu": 6 * TILE})
    draft = GraphDraft(problem)
    find("heft")(draft)
    sequence = fitting.sequence_of(draft)
    first = evicted(problem, sequence, BESIDE, host=False)
    again = evicted(problem, sequence, BESIDE, host=False, shorter_than=first.makespan * 1.001)
    assert again.spans == first.spans
    with pytest.raises(HopelessError):
        evicted(problem, sequence, BESIDE, host=False, shorter_than=first.makespan)
