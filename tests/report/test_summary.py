from __future__ import annotations

import random

import pytest
from report_samples import CPU0, GPU, MACHINE, UP, chain, gpu, host, looped, same, straight, traced

from hetsched.graph.graph import Graph, Where
from hetsched.report.events import events
from hetsched.report.summary import bound_line, device_use, hidden_seconds, three_lines, transfers
from hetsched.timeline import Copy, Lane, Launch, Replica, Span, Timeline


def test_hidden_is_the_part_of_a_copy_in_which_its_non_host_end_computes():
    found = transfers(straight())
    # Of 2 + 2 + 1 seconds of copies only those of x, 6-8 s, lie beside compute of the GPU; t0 on the CPU from 0 to 4 hides nothing.
    assert (found.count, found.nbytes, found.seconds, found.hidden_seconds) == (3, 12000, 5.0, 2.0)
    assert found.hidden_fraction == pytest.approx(0.4)


def test_nothing_copied_means_no_fraction():
    plan = Timeline(chain(1), MACHINE, (Span((CPU0,), Launch(0, 0, (host(0),), (host(1),)), 0.0, 4.0),))
    assert transfers(plan).hidden_fraction is None
    assert three_lines(None, plan)[2] == "transfers: none"


def test_the_host_end_does_not_hide_and_of_two_devices_both_must_compute():
    other = Lane("gpu:1", 0)
    between = Copy(0, 0, Replica(0, 0, "gpu:0"), Replica(0, 0, "gpu:1"))
    spans = (
        Span((GPU,), Launch(0, 0, (gpu(0),), (gpu(1),)), 0.0, 6.0),
        Span((other,), Launch(1, 0, (), ()), 4.0, 10.0),
        Span((Lane("gpu:0->gpu:1", 0, "copy"),), between, 2.0, 8.0),
        Span((CPU0,), Launch(2, 0, (), ()), 0.0, 10.0),
    )
    assert transfers(Timeline(chain(), MACHINE, spans)).hidden_seconds == pytest.approx(2.0)


def test_hidden_agrees_with_counting_small_steps():
    rng = random.Random(7)
    for _ in range(50):
        ticks = 60
        spans = []
        for _ in range(rng.randrange(12)):
            a = rng.randrange(ticks - 1)
            spans.append(Span((rng.choice((GPU, Lane("gpu:0", 1), CPU0)),), Launch(0, 0, (), ()), a, rng.randrange(a, ticks)))
        for _ in range(rng.randrange(6)):
            a = rng.randrange(ticks - 1)
            spans.append(Span((UP,), Copy(0, 0, host(0), gpu(0)), a, rng.randrange(a, ticks)))
        found = events(Timeline(chain(), MACHINE, tuple(spans)))
        copies, launches = [e for e in found if e.kind == "copy"], [e for e in found if e.kind == "launch"]
        wanted = sum(
            any(s.start <= t < s.finish for s in spans if isinstance(s.command, Launch) and s.lanes[0].owner == "gpu:0")
            for c in copies
            for t in range(int(c.start), int(c.finish))
        )
        assert hidden_seconds(copies, launches, {"cpu": "host", "gpu:0": "gpu:0"}) == pytest.approx(wanted)


def test_copies_of_a_loop_count_every_turn():
    found = transfers(looped(turns=10))
    assert (found.count, found.nbytes, found.seconds) == (10, 40_000, 10.0)
    # The GPU waits for the first turn's copy and computes beside each of the nine others.
    assert found.hidden_seconds == pytest.approx(9.0)
    long = transfers(looped(turns=1_000_000))
    assert long.count == 1_000_000
    assert long.hidden_fraction == pytest.approx(199 / 200)


def test_every_device_is_told_of_idle_ones_too():
    use = device_use(looped())
    assert list(use) == ["cpu", "gpu:0", "gpu:1"]
    assert (use["cpu"].busy_seconds, use["cpu"].launches, use["cpu"].tasks) == (30.0, 20, 2)
    assert (use["gpu:0"].busy_seconds, use["gpu:0"].launches, use["gpu:0"].tasks) == (20.0, 10, 1)
    assert (use["gpu:1"].busy_seconds, use["gpu:1"].launches) == (0, 0)


def test_the_three_lines():
    where, time, copies = three_lines(straight(), straight(measured=True))
    assert where == "ran: cpu 1 task in 1 launch, 17 % busy, gpu:0 2 tasks in 2 launches, 42 % busy, gpu:1 idle; nothing fell back"
    assert time == "time: 12 s measured, 12 s planned (measured is 1 x the plan); by the costs assumed no plan is below 10 s"
    assert copies == "transfers: 3 copies, 11.7 KiB in 5 s, 40 % of it hidden behind compute"


def test_a_task_that_did_not_get_the_device_it_prefers_fell_back():
    b = Graph.build()
    value = b.input("x", (1000,))
    for name, allow in (("first", ("gpu:1", "cpu")), ("second", ("gpu:0",)), ("third", ("gpu", "cpu"))):
        value = b.op(same, value, name=name, where=Where(allow=allow))
    graph = b.output(value, "y").freeze()
    spans = tuple(Span((lane,), Launch(t, 0, (), ()), t, t + 1.0) for t, lane in enumerate((CPU0, GPU, CPU0)))
    line = three_lines(None, Timeline(graph, MACHINE, spans, measured=True, notes=("a remark",)))[0]
    assert line.endswith("; 2 tasks fell back: first to cpu, third to cpu; a remark")


def test_the_bound_stands_beside_the_makespan():
    assert bound_line(straight()) == "makespan 12 s; lower bound 10 s (critical path): at most 20 % above the best possible"


def test_a_trace_that_kept_few_turns_tells_of_all_of_them():
    found = transfers(traced(turns=1000, kept=3, invariant=True))
    assert (found.count, found.nbytes, found.seconds) == (1001, 1001 * 4000, 1000.5)
    # Of 6.5 kept seconds the copies of the first turn, of the invariant, and of the first turn after the gap lie beside nothing.
    assert found.hidden_fraction == pytest.approx(4 / 6.5)
    use = device_use(traced(turns=1000, kept=3))
    assert (use["cpu"].busy_seconds, use["cpu"].launches, use["cpu"].tasks) == (3000.0, 2000, 2)
    assert (use["gpu:0"].busy_seconds, use["gpu:0"].launches) == (2000.0, 1000)
