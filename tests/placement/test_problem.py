import numpy as np
import pytest

from hetsched.errors import CommandLineError, PlacementError
from hetsched.graph.graph import Graph, Where
from hetsched.machine import HOST, Device, Link, Machine, MemoryNode, Resource
from hetsched.placement import plan_graph
from hetsched.placement.costs import RooflineCosts
from hetsched.placement.problem import ORDER_ONLY, limits_of, problem_of
from hetsched.testing.policy import flat, gpu_only, hold, mix, scratch, unpack

CPU = Device("cpu", "cpu", 4, io_lanes=1, languages=("array", "host"), flops_per_second={"float32": 1e9}, shares_lanes=True, widths=(1, 2, 4))
GPU = Device("cuda:0", "cuda", memory="cuda:0", hardware="gpu", languages=("accelerator", "array"), flops_per_second={"float32": 1e11})
LINKS = (Link(HOST, "cuda:0", 1e-5, 1e9), Link("cuda:0", HOST, 2e-5, 5e8))
MACHINE = Machine((CPU, GPU), LINKS, (MemoryNode(HOST), MemoryNode("cuda:0", 1 << 20)))


def chain(*steps, **where):
    b = Graph.build()
    value = b.input("x", (16, 4))
    for i, op in enumerate(steps):
        options = {} if op is flat else {"rows": 3} if op is unpack else {"flops": 1e6}
        value = b.op(op, value, name=f"t{i}", where=where.get(f"t{i}"), **options)
    return b.output(value).freeze()


def problem(graph, machine=MACHINE, **options):
    return problem_of(graph, machine, RooflineCosts(machine), **options)


def possible(p, task):
    return {(p.device_ids[c.device], p.pools[c.pool].kind, c.width) for c, s in zip(p.choices, p.durations[task]) if s < np.inf}


def test_each_task_is_offered_what_can_run_it():
    p = problem(chain(mix, flat, hold, unpack))
    cpu, wide, io, gpu = ("cpu", "compute", 1), ("cpu", "compute", 4), ("cpu", "io", 1), ("cuda:0", "compute", 1)
    assert possible(p, 0) == {cpu, wide, gpu}, "a launch takes one lane or all, never two of four"
    assert possible(p, 1) == {cpu, gpu}, "a view runs nowhere and everywhere"
    assert possible(p, 2) == {cpu}, "an object lives on the host"
    assert possible(p, 3) == {io}, "what waits is on an io lane where there is one"
    assert (p.durations[1][np.isfinite(p.durations[1])] == 0).all()


def test_what_waits_computes_where_there_is_no_io_lane():
    p = problem(chain(hold, unpack), Machine((Device("cpu", "cpu", languages=("host",)),)))
    assert possible(p, 1) == {("cpu", "compute", 1)}


def test_a_wide_launch_is_offered_only_where_it_is_faster():
    b = Graph.build()
    x = b.input("x", (1000, 1000))
    p = problem(b.output(b.op(mix, x, flops=10.0)).freeze())
    assert ("cpu", "compute", 4) not in possible(p, 0), "it is bound by memory"


def test_edges_carry_the_bytes_of_distinct_values_and_order_only_edges_none():
    b = Graph.build()
    x = b.input("x", (8,))
    a = b.op(mix, x, name="a")
    b.op(mix, a, a, name="b")
    c = b.op(mix, x, name="c", after=[a])
    p = problem(b.output(c).freeze())
    rows = [(int(p.pred_task[k]), float(p.pred_nbytes[k])) for t in range(3) for k in range(p.pred_start[t], p.pred_start[t + 1])]
    assert rows == [(0, 32.0), (0, ORDER_ONLY)]


def test_a_task_that_no_device_can_run_is_named_with_what_each_device_lacks():
    with pytest.raises(PlacementError, match=r"task 't0' \(test.gpu_only\): no device can run it: cpu speaks array, host, .* accelerator") as error:
        problem(chain(gpu_only), Machine((CPU,)))
    assert error.value.exit_code == 4
    with pytest.raises(PlacementError, match="cuda:0 cannot hold opaque list, which lives on the host"):
        problem(chain(hold), Machine((GPU,), LINKS, MACHINE.memories))


def test_a_device_that_takes_more_than_there_is_is_no_choice():
    hungry = Device("cpu", "cpu", 2, languages=("array",), uses={"cores": 3.0})
    with pytest.raises(PlacementError, match="a lane of cpu takes 3 of cores, the machine has 2"):
        problem(chain(mix), Machine((hungry,), resources=(Resource("cores", 2.0),)))


def test_preferences_are_taken_in_order_and_passing_one_over_is_noted():
    p = problem(chain(mix, t0=Where(("gpu", "cpu"))))
    assert {d for d, _, _ in possible(p, 0)} == {"cuda:0"}
    assert p.notes == ()
    p = problem(chain(hold, t0=Where(("gpu", "cpu"))))
    assert {d for d, _, _ in possible(p, 0)} == {"cpu"}
    assert p.notes == ("task 't0' runs on cpu: its preference for gpu cannot be met",)


def test_exclusion_and_its_failure():
    p = problem(chain(mix, t0=Where(exclude=("cpu",))))
    assert {d for d, _, _ in possible(p, 0)} == {"cuda:0"}
    with pytest.raises(PlacementError, match=r"task 't0' .*no device satisfies `not: cpu`; it can run on cpu"):
        problem(chain(hold, t0=Where(exclude=("cpu",))))


def test_only_limits_the_tasks_that_can_follow_it():
    p = problem(chain(mix, hold), only="gpu")
    assert {d for d, _, _ in possible(p, 0)} == {"cuda:0"}
    assert {d for d, _, _ in possible(p, 1)} == {"cpu"}, "host-only ops stay on cpu"
    with pytest.raises(PlacementError, match="`device: cpu` and the limit to 'gpu'"):
        problem(chain(mix, t0=Where(("cpu",))), only="gpu")
    with pytest.raises(PlacementError, match="no device matches 'tpu'; there are cpu, cuda:0"):
        problem(chain(mix), only="tpu")


def test_same_as_ties_tasks_together_and_names_a_contradiction():
    p = problem(chain(gpu_only, mix, t1=Where(same_as="t0")))
    assert {d for d, _, _ in possible(p, 1)} == {"cuda:0"}
    assert p.groups == {0: (0, 1), 1: (0, 1)}
    with pytest.raises(PlacementError, match="same_as: no device suits all of these tasks: 't0' may use cuda:0; 't1' may use cpu"):
        problem(chain(gpu_only, mix, t1=Where(("cpu",), same_as="t0")))


def test_every_broken_constraint_is_told_at_once():
    graph = chain(hold, hold, hold, t0=Where(("gpu",)), t1=Where(("gpu",)), t2=Where(("cpu",)))
    b = Graph.build()
    x = b.input("x", (2,))
    for i in range(3):
        b.op(hold, x, name=f"t{i}", where=Where(("gpu",)) if i < 2 else None)
    with pytest.raises(PlacementError) as error:
        problem(b.freeze())
    assert [line.split(" (")[0] for line in str(error.value).splitlines()] == ["task 't0'", "task 't1'"]
    assert len(graph) == 3


def test_copies_cost_what_the_model_says_at_two_sizes():
    p = problem(chain(mix))
    link = LINKS[1]
    assert p.copy_seconds(1, 0, 12345) == pytest.approx(link.seconds(12345))
    assert p.copy_seconds(1, 1, 12345) == 0


def test_a_memory_limit_must_name_a_node():
    with pytest.raises(CommandLineError, match=r"names no memory node and no device: 'tpu'.*known: cpu, cuda:0, host"):
        plan_graph(chain(mix), MACHINE, memory={"tpu": 5})
    for wrong in (0, -1, True, 1.5):
        with pytest.raises(CommandLineError, match=r"memory limit of 'host' is .*; give a number of bytes above 0"):
            limits_of(MACHINE, {"host": wrong})


def test_a_memory_limit_names_a_node_or_devices():
    assert limits_of(MACHINE, None) == {}
    assert limits_of(MACHINE, 1000) == {"host": 1000}
    assert limits_of(MACHINE, {"cpu": 7, "cuda:0": 5}) == {"host": 7, "cuda:0": 5}
    assert limits_of(MACHINE, {"gpu": 9, "cuda:0": 5, "cuda": 8}) == {"cuda:0": 5}


def test_scratch_of_equal_tasks_is_asked_for_once_in_costs():
    asked = []

    class Counting(RooflineCosts):
        def launch(self, graph, task, device, width=1):
            asked.append((task, device.id, width))
            return super().launch(graph, task, device, width)

    b = Graph.build()
    x = b.input("x", (16, 4))
    for _ in range(5):
        b.op(scratch, x, flops=1e6)
    problem_of(b.freeze(), MACHINE, Counting(MACHINE))
    assert asked == [(0, "cpu", 1), (0, "cpu", 4), (0, "cuda:0", 1)]
