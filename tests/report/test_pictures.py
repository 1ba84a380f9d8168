from __future__ import annotations

from report_samples import chain, looped, wide

from hetsched.report.pictures import dot, graph_text, mermaid


def test_text_tells_tasks_in_order_and_sets_bodies_in():
    lines = graph_text(looped().graph, "demo").splitlines()
    assert lines[0] == "demo: 1 task, 4 values"
    assert lines[3] == "  train: loop of 10 turns, 3 tasks a turn (xs, first) -> float32[1000], sequence of 10 x float32[1000]"
    assert lines[4] == "    a: test.same(x) -> float32[1000]"
    assert "and more: 40 tasks in all" in graph_text(chain(40), most=5)


def test_mermaid_and_dot_hold_every_task_and_edge():
    for text, arrow in ((mermaid(chain()), "-->"), (dot(chain()), "->")):
        for t in range(3):
            assert f"nt{t}" in text
        for a, b in (("ni0", "nt0"), ("nt0", "nt1"), ("nt1", "nt2"), ("nt2", "no0")):
            assert any(line.strip().startswith(f"{a} {arrow}") and b in line for line in text.splitlines())


def test_bodies_of_loops_are_subgraphs_and_every_subgraph_ends():
    text = mermaid(looped().graph)
    assert 'subgraph nt0["loop train: 10 turns"]' in text
    lines = [line.strip() for line in text.splitlines()]
    assert sum(line.startswith("subgraph") for line in lines) == lines.count("end") == 1
    assert dot(looped().graph).count("{") == dot(looped().graph).count("}")


def test_a_large_graph_is_drawn_by_groups():
    text = mermaid(wide(8), most=4)
    assert 'ng0["g0<br/>2 tasks"]' in text
    assert "nt0" not in text
    assert mermaid(wide(8)).count("subgraph") == 4


def test_names_cannot_break_out_of_their_labels():
    from report_samples import same

    from hetsched.graph.graph import Graph

    b = Graph.build()
    value = b.op(same, b.input("x", (1,)), name='a"]; <b>\\')
    graph = b.output(value, "y").freeze()
    assert '"a#quot;]; #lt;b#gt;\\<br/>test.same"' in mermaid(graph)
    assert '[label="a\\"]; <b>\\\\\\ntest.same"]' in dot(graph)
