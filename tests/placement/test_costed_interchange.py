import gzip
import json

import networkx as nx
import pytest

from hetsched.errors import FileError
from hetsched.placement.costed.dot import parse_dot
from hetsched.placement.costed.interchange import from_dot, from_networkx, from_wfcommons, machine_of
from hetsched.placement.costed.planning import costed_problem, plan_costed, read_costed

NEW = {
    "name": "small",
    "schemaVersion": "1.5",
    "workflow": {
        "specification": {
            "tasks": [
                {"name": "split", "id": "s1", "parents": [], "children": ["m1", "m2"], "outputFiles": ["a", "b"]},
                {"name": "map", "id": "m1", "parents": ["s1"], "children": [], "inputFiles": ["a"], "outputFiles": ["c"]},
                {"name": "map", "id": "m2", "parents": ["s1"], "children": [], "inputFiles": ["a", "b", "unlisted"]},
            ],
            "files": [{"id": "a", "sizeInBytes": 100}, {"id": "b", "sizeInBytes": 7}, {"id": "c", "sizeInBytes": 5}],
        },
        "execution": {
            "makespanInSeconds": 9,
            "executedAt": "2024-01-01T00:00:00Z",
            "tasks": [{"id": "m2", "runtimeInSeconds": 3.5}, {"id": "s1", "runtimeInSeconds": 1}, {"id": "m1", "runtimeInSeconds": 2}],
            "machines": [{"nodeName": "x", "cpu": {"coreCount": 4, "speedInMHz": 2000}}, {"nodeName": "y", "cpu": {"speedInMHz": 3000}}],
        },
    },
}
OLD = {
    "name": "old",
    "schemaVersion": "1.3",
    "workflow": {
        "tasks": [
            {"name": "a", "runtime": 2.0, "children": ["b"], "files": [{"link": "output", "name": "f", "size": 11}]},
            {"name": "b", "runtime": 3.0, "parents": ["a"], "files": [{"link": "input", "name": "f", "size": 11}]},
        ]
    },
}


def test_an_instance_of_wfcommons_with_its_files_and_machines():
    document = from_wfcommons(NEW)
    assert document["cost"] == [1.0, 2.0, 3.5]
    assert document["edges"] == [[0, 1, 100.0], [0, 2, 107.0]]
    assert [(d["lanes"], d["speed"]) for d in document["devices"]] == [(4, 1.0), (1, 1.5)]
    problem = costed_problem(document)
    assert problem.durations[1].tolist() == [2.0, pytest.approx(4 / 3)]
    assert problem.name(0) == "split"


def test_an_old_instance_names_parents_by_name_and_files_in_the_task():
    document = from_wfcommons(OLD, machine_of([1, 2]))
    assert document["cost"] == [2.0, 3.0]
    assert document["edges"] == [[0, 1, 11.0]]
    assert len(document["devices"]) == 2
    assert len(from_wfcommons(OLD)["devices"]) == 4


@pytest.mark.parametrize(
    ("instance", "message"),
    [
        ({"name": "x"}, "it has no `workflow`"),
        ({"workflow": {"specification": {"tasks": []}}}, "has no tasks"),
        ({"workflow": {"tasks": [{"name": "a"}]}}, "task 'a' has no runtimeInSeconds"),
        ({"workflow": {"tasks": [{"name": "a", "runtime": 1, "parents": ["z"]}]}}, "task 0 names 'z' as parent or child"),
    ],
)
def test_what_an_instance_lacks_is_named(instance, message):
    with pytest.raises(ValueError, match=message):
        from_wfcommons(instance)


DOT = """
// a comment
strict digraph "g" {
  rankdir = LR; node [cost=2]; edge [bytes="1e3"]
  a [cost=1.5, label="first \\"one\\""];
  a -> {b c} -> "last task" [bytes=8];   # two fans
  subgraph cluster_x { d; c -> d:n }
  /* and
     out */
}
"""


def test_dot_with_defaults_chains_subgraphs_and_comments():
    dot = parse_dot(DOT)
    assert list(dot.nodes) == ["a", "b", "c", "last task", "d"]
    assert dot.nodes["a"] == {"cost": "1.5", "label": 'first "one"'}
    assert [(u, v, x["bytes"]) for u, v, x in dot.edges] == [
        ("a", "b", "8"), ("a", "c", "8"), ("b", "last task", "8"), ("c", "last task", "8"), ("c", "d", "1e3"),
    ]  # fmt: skip
    document = from_dot(DOT)
    assert document["cost"] == [1.5, 2, 2, 2, 2]
    assert document["edges"][-1] == [2, 4, 1000.0]


def test_dot_with_durations_and_a_machine_of_its_own():
    machine = machine_of([1, 1], [2, 1], latency=0.5)
    quoted = " ".join(f'{key}="{json.dumps(value)}"'.replace('"', '\\"').replace('=\\"', '="', 1)[:-2] + '"' for key, value in machine.items())
    document = from_dot(f'digraph {{ graph [{quoted}] a [durations="1, null"] b [durations="[2.5, 3]"] a -> b }}')
    assert document["durations"] == [[1.0, None], [2.5, 3.0]]
    problem = costed_problem(document)
    assert problem.pools[0].lanes == 2
    assert problem.latency[0, 1] == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("graph { a -- b }", "line 1: 'graph' stands where `digraph`"),
        ("digraph {\n a -- b }", "line 2: '--' stands where `->`"),
        ("digraph { a -> }", "line 1: '}' stands where a name"),
        ("digraph { a", "the file ends where `}` should stand"),
        ("digraph { a [cost=<b>] }", "is not DOT"),
        ("digraph { a } digraph {}", "stands where the end"),
        ("digraph { a }", "node 'a' has no cost: give it cost, runtime, weight or durations"),
        ("digraph { a [cost=much] }", "cost='much', which is not a number"),
        ('digraph { a [durations="1,x"] }', "wanted numbers and nulls"),
        ('digraph { a [durations="1"] b [cost=1] }', "node 'a' has durations, node 'b' has none"),
        ('digraph { devices="[" a [cost=1] }', "'mem_nodes' is not JSON"),
    ],
)
def test_what_is_wrong_with_a_dot_file_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        from_dot(text)


def test_a_cycle_is_told_by_the_names_of_its_tasks():
    with pytest.raises(ValueError, match=r"have a cycle: (a -> b -> a|b -> a -> b)"):
        costed_problem(from_dot("digraph { a [cost=1] b [cost=1] a -> b; b -> a }"))


def test_networkx_graphs_and_their_parallel_edges():
    graph = nx.MultiDiGraph(name="n")
    graph.add_node("a", runtime=1)
    graph.add_node("b", runtime=2)
    graph.add_edge("a", "b", size=3)
    graph.add_edge("a", "b", size=4)
    document = from_networkx(graph)
    assert document["name"] == "n"
    assert document["edges"] == [[0, 1, 7.0]]
    graph.graph.update(machine_of([5.0]))
    assert costed_problem(from_networkx(graph)).durations.tolist() == [[0.2], [0.4]]
    with pytest.raises(ValueError, match="have a direction"):
        from_networkx(nx.Graph())


def test_networkx_durations_make_a_device_each():
    graph = nx.DiGraph()
    graph.add_node(1, durations=[1.0, None])
    graph.add_node(2, durations=[4.0, 2.0])
    graph.add_edge(1, 2, bytes=1.25e8)
    problem = costed_problem(from_networkx(graph))
    assert problem.device_ids == ("d0", "d1")
    assert problem.copy_seconds(0, 1, 1.25e8) == pytest.approx(1.0001)


def test_files_are_told_apart_by_what_they_hold(tmp_path):
    (tmp_path / "g.dot").write_text(DOT)
    (tmp_path / "w.json").write_text(json.dumps(NEW))
    (tmp_path / "z.gv.gz").write_bytes(gzip.compress(DOT.encode()))
    assert len(read_costed(tmp_path / "g.dot")) == len(read_costed(tmp_path / "z.gv.gz")) == 5
    assert plan_costed(tmp_path / "w.json")["makespan"] >= 3.5 / 1.5
    (tmp_path / "bad.dot").write_text("digraph {")
    with pytest.raises(FileError, match=r"bad.dot: not DOT: the file ends"):
        read_costed(tmp_path / "bad.dot")
    (tmp_path / "cycle.dot").write_text("digraph { node [cost=1] a -> b -> a }")
    with pytest.raises(FileError, match="have a cycle"):
        read_costed(tmp_path / "cycle.dot")
