"""What a graph knows of its values at once: equal specs, views, and what has no fixed shape."""

from __future__ import annotations

import numpy as np

from hetsched.graph.graph import Graph
from hetsched.graph.op import Op
from hetsched.graph.spec import Opaque, Spec, UpTo, array_form
from hetsched.graph.spec import Sequence as SequenceSpec
from hetsched.testing.graphs import random_graph


def test_random_graphs_tell_their_specs_and_views():
    views = loose = 0
    for seed in range(30):
        graph, _ = random_graph(seed, tasks=20)
        kinds, specs = graph.spec_kinds, graph.value_specs
        assert all((kinds[a] == kinds[b]) == (specs[a] == specs[b]) for a in range(len(specs)) for b in range(0, len(specs), 7))
        wanted = {v for v, spec in enumerate(specs) if (form := array_form(spec)) is None or form.is_bounded}
        assert graph.unfixed == wanted
        assert list(graph.views) == [t for t, op in enumerate(graph.task_ops) if isinstance(op, Op) and op.view]
        views += len(graph.views)
        loose += len(wanted)
    assert views > 10
    assert loose > 0


def test_objects_and_bounded_arrays_are_not_fixed_and_sequences_of_rows_are():
    b = Graph.build()
    b.input("a", (3,))
    b.input("b", Opaque("paths"))
    b.input("c", (UpTo(4), 2))
    b.input("d", SequenceSpec(Spec((2,), np.float32), 5))
    b.input("e", (3,))
    graph = b.freeze()
    assert graph.unfixed == {1, 2}
    assert graph.views == ()
    assert graph.spec_kinds.tolist() == [0, 1, 2, 3, 0]


def test_a_graph_of_nothing_has_nothing():
    graph = Graph.build().freeze()
    assert graph.unfixed == frozenset()
    assert graph.spec_kinds.tolist() == []
