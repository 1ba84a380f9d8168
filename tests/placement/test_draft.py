import random
from dataclasses import replace

import pytest

from hetsched.check import check
from hetsched.errors import PlanError
from hetsched.graph.graph import Graph, Where
from hetsched.machine import HOST, Device, Link, Machine, MemoryNode, Resource
from hetsched.placement.costs import RooflineCosts
from hetsched.placement.draft import GraphDraft
from hetsched.placement.policies import find
from hetsched.placement.problem import problem_of
from hetsched.testing.policy import gpu_only, mix, random_problem
from hetsched.timeline import Copy, Lane, Launch

# A task of 1e6 operations takes 1 ms on a lane of the CPU, 0.1 ms on the GPU; 1 kB takes 1 ms over the link.
CPU = Device("cpu", "cpu", 2, languages=("array", "host"), flops_per_second={"float32": 1e9}, bytes_per_second=1e15, launch_seconds=0)
GPU = Device(
    "gpu", "gpu", memory="gpu", languages=("accelerator", "array"), flops_per_second={"float32": 1e10}, bytes_per_second=1e15, launch_seconds=0
)


def machine(engines=1, cpu=CPU, gpu=GPU, **more):
    links = (Link(HOST, "gpu", 0.0, 1e6, engines), Link("gpu", HOST, 0.0, 1e6, engines))
    return Machine((cpu, gpu), links, (MemoryNode(HOST), MemoryNode("gpu")), **more)


def drafted(graph, where):
    return GraphDraft(problem_of(graph, where, RooflineCosts(where)))


def choice(draft, device, width=1):
    return next(i for i, c in enumerate(draft.problem.choices) if draft.problem.device_ids[c.device] == device and c.width == width)


def spans(plan, kind):
    return [(s.command, s.start, s.finish) for s in plan.spans if isinstance(s.command, kind)]


def test_a_value_is_copied_once_to_a_node_and_queues_behind_others():
    b = Graph.build()
    x, y = b.input("x", (250,)), b.input("y", (250,))
    first = b.op(mix, x, y, flops=1e6)
    b.op(mix, x, flops=1e6)
    b.output(first, "out")
    graph = b.freeze()
    draft = drafted(graph, machine())
    gpu = choice(draft, "gpu")
    assert draft.finish_times(0)[gpu] == pytest.approx(2.1e-3), "two copies one after the other, then the launch"
    assert draft.finish_times(0)[gpu] == pytest.approx(2.1e-3), "asking leaves nothing behind"
    draft.place(0, gpu)
    assert draft.finish_times(1)[gpu] == pytest.approx(1.1e-3), "x is there from 1 ms on, and the GPU is idle until 2 ms"
    draft.place(1, gpu)
    plan = draft.plan()
    check(plan)
    copies = spans(plan, Copy)
    assert [(c.value, c.src.node, c.dst.node) for c, _, _ in copies] == [
        (graph.inputs["x"], HOST, "gpu"),
        (graph.inputs["y"], HOST, "gpu"),
        (graph.outputs["out"], "gpu", HOST),
    ]
    assert [(round(a * 1e3, 6), round(z * 1e3, 6)) for _, a, z in copies] == [(0, 1), (1, 2), (2.1, 3.1)]
    assert plan.makespan == pytest.approx(3.1e-3)


@pytest.mark.parametrize(("engines", "milliseconds"), [(0, 1.1), (1, 2.1), (2, 1.1)])
def test_engines_say_how_many_copies_go_at_once(engines, milliseconds):
    b = Graph.build()
    b.op(mix, b.input("x", (250,)), b.input("y", (250,)), flops=1e6)
    draft = drafted(b.freeze(), machine(engines))
    assert draft.finish_times(0)[choice(draft, "gpu")] == pytest.approx(milliseconds * 1e-3)
    draft.place(0, choice(draft, "gpu"))
    check(draft.plan())


def test_a_value_comes_from_where_it_arrives_first():
    memories = (MemoryNode(HOST), MemoryNode("a"), MemoryNode("b"))
    speed = {(HOST, "a"): 1e5, (HOST, "b"): 2e4}
    links = [Link(s.name, d.name, 0.0, speed.get((s.name, d.name), 1e7)) for s in memories for d in memories if s is not d]
    devices = (CPU, replace(GPU, id="a", memory="a"), replace(GPU, id="b", memory="b"))
    b = Graph.build()
    x = b.input("x", (250,))
    for _ in range(2):
        b.op(mix, x, flops=1e6)
    draft = drafted(b.freeze(), Machine(devices, tuple(links), memories))
    draft.place(0, choice(draft, "a"))
    draft.place(1, choice(draft, "b"))
    plan = draft.plan()
    check(plan)
    assert [(c.src.node, c.dst.node) for c, _, _ in spans(plan, Copy)] == [(HOST, "a"), ("a", "b")]


def test_a_wide_launch_takes_every_lane():
    wide = replace(CPU, lanes=3, widths=(1, 3))
    b = Graph.build()
    x = b.input("x", (4,))
    b.op(mix, x, flops=1e6)
    b.op(mix, x, flops=1e6)
    draft = drafted(b.freeze(), machine(cpu=wide))
    draft.place(0, choice(draft, "cpu"))
    draft.place(1, choice(draft, "cpu", 3))
    plan = draft.plan()
    check(plan)
    one, three = sorted((s for s in plan.spans if isinstance(s.command, Launch)), key=lambda s: s.start)
    assert three.command.width == 3
    assert three.lanes == tuple(Lane("cpu", i) for i in range(3))
    assert three.start == one.finish


def test_a_short_task_goes_into_the_gap_before_a_long_one():
    b = Graph.build()
    x, y = b.input("x", (500,)), b.input("y", (1,))
    b.op(gpu_only, x, flops=1e6)
    b.op(gpu_only, y, flops=1e6)
    draft = drafted(b.freeze(), machine(engines=2))
    draft.place(0, choice(draft, "gpu"))
    draft.place(1, choice(draft, "gpu"))
    assert draft.start_of[1] < draft.start_of[0]


def test_what_shares_cores_is_not_planned_side_by_side():
    cpu, other = replace(CPU, lanes=1, uses={"cores": 1.0}), replace(GPU, memory=HOST, uses={"cores": 1.0})
    b = Graph.build()
    x = b.input("x", (4,))
    b.op(mix, x, flops=1e6)
    b.op(mix, x, flops=1e6)
    for cores, together in ((1.0, False), (2.0, True)):
        draft = drafted(b.freeze(), Machine((cpu, other), resources=(Resource("cores", cores),)))
        draft.place(0, choice(draft, "cpu"))
        draft.place(1, choice(draft, "gpu"))
        check(draft.plan())
        assert (draft.start_of[1] == 0.0) is together


def test_handing_work_to_another_thread_takes_time():
    b = Graph.build()
    x = b.input("x", (4,))
    a = b.op(mix, x, flops=1e6, name="a")
    b.op(mix, a, flops=1e6, name="next")
    b.op(mix, a, flops=1e6, name="aside")
    draft = drafted(b.freeze(), machine(cpu=replace(CPU, crossing_seconds=2e-4)))
    cpu = choice(draft, "cpu")
    for task in range(3):
        draft.place(task, cpu)
    starts = sorted(round(s * 1e3, 6) for s in draft.start_of[1:])
    assert starts == [1.0, 1.2], "one goes on where its input was made, the other waits for the crossing"


def test_the_second_of_a_group_has_only_the_device_of_the_first():
    b = Graph.build()
    x = b.input("x", (4,))
    b.op(mix, x, flops=1e6, name="a")
    b.op(mix, x, flops=1e6, name="b", where=Where(same_as="a"))
    draft = drafted(b.freeze(), machine())
    cpu, gpu = choice(draft, "cpu"), choice(draft, "gpu")
    draft.place(0, cpu)
    assert [o.device for o in draft.offers(1)] == ["cpu"]
    with pytest.raises(PlanError, match=f"choice {gpu} is not possible"):
        draft.place(1, gpu)
    draft.book(next(draft.offers(1)))
    check(draft.plan())


def test_a_draft_refuses_disorder():
    b = Graph.build()
    x = b.input("x", (4,))
    a = b.op(mix, x, name="a")
    b.op(mix, x, name="b", after=[a])
    draft = drafted(b.freeze(), machine())
    with pytest.raises(PlanError, match="'b' cannot be booked: it needs 'a'"):
        draft.place(1, 0)
    with pytest.raises(PlanError, match="booked 0 of 2 tasks; 'a' is not booked"):
        draft.finish()
    draft.place(0, 0)
    with pytest.raises(PlanError, match="booked already"):
        draft.place(0, 0)
    draft.place(1, 0)
    draft.finish()
    with pytest.raises(PlanError, match="'a' cannot be booked"):
        draft.place(0, 0)


@pytest.mark.parametrize("seed", range(25))
def test_offers_say_what_booking_does(seed):
    draft, dice = GraphDraft(random_problem(seed, 40)), random.Random(seed)
    for task in draft.problem.order.tolist():
        times = draft.finish_times(task)
        offers = list(draft.offers(task))
        assert {o.choice: o.finish for o in offers} == {c: t for c, t in enumerate(times) if t < float("inf")}
        assert times[draft.earliest(task)] == times.min()
        offer = dice.choice(offers)
        draft.book(offer)
        assert (draft.start_of[task], draft.finish_of[task], draft.choice_of[task]) == (offer.start, offer.finish, offer.choice)
    check(draft.plan())


def test_adopting_a_draft_takes_over_its_plan():
    problem = random_problem(3, 30)
    draft, other = GraphDraft(problem), GraphDraft(problem)
    find("heft")(other)
    spans_of_other = other.plan().spans
    draft.adopt(other)
    assert draft.plan().spans == spans_of_other
