"""Kinds of tasks: equal op, attributes and specs, and nothing else."""

import random

import numpy as np

import hetsched as hs
from hetsched.graph import alike as module
from hetsched.graph.alike import alike
from hetsched.testing.graphs import random_graph


def plain(graph):
    """The kinds by one dictionary."""
    known, out = {}, []
    for t in range(len(graph)):
        specs = [id(graph.spec(v)) for v in graph.reads(t)], [id(graph.spec(v)) for v in graph.writes(t)]
        key = id(graph.task_ops[t]), *map(tuple, specs), tuple((k, repr(v)) for k, v in graph.task_attributes[t].items() if k != "key")
        out.append(known.setdefault(key, len(known)))
    return out


def test_kinds_are_those_of_a_dictionary():
    for seed in range(30):
        graph, _ = random_graph(seed, tasks=30)
        kind, first = alike(graph)
        assert kind.tolist() == plain(graph)
        assert first.tolist() == [kind.tolist().index(k) for k in range(len(first))]
        assert alike(graph) is alike(graph)


def test_tasks_of_one_mark_that_differ_stand_apart(monkeypatch):
    monkeypatch.setattr(module, "_row_marks", lambda start, numbers: np.zeros(len(start) - 1, np.uint64))
    for seed in range(10):
        graph, _ = random_graph(random.Random(seed), tasks=30)
        kind = alike(graph).kind
        expected = plain(graph)
        pairs = {(a, b) for a, b in zip(kind.tolist(), expected, strict=True)}
        assert len({a for a, _ in pairs}) == len(pairs)  # none of them holds two kinds


def test_attributes_that_cannot_be_compared_make_a_kind_of_their_own():
    @hs.op(hs.Opaque("x"))
    def hold(*, what):
        return what

    b = hs.Graph.build()
    for given in ([1], [1], 2, 2):
        b.op(hold, what=given)
    kind = alike(b.freeze()).kind.tolist()
    assert kind == [0, 1, 2, 2]


def test_an_empty_graph_has_none():
    assert len(alike(hs.Graph.build().freeze()).kind) == 0
