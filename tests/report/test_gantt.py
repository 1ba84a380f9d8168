from __future__ import annotations

import dataclasses

import pytest
from report_samples import CPU0, MACHINE, chain, host, looped, straight, traced

from hetsched.report.gantt import gantt
from hetsched.timeline import Launch, Span, Timeline


def test_every_lane_is_a_row_with_links_last_and_the_share_of_idle_time():
    lines = gantt(straight(), 80).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["cpu/0", "gpu:0/0", "gpu:0->host/0", "host->gpu:0/0"]
    assert [line.split("|")[-1].strip() for line in lines[1:]] == ["67 % idle", "58 % idle", "92 % idle", "67 % idle"]


def test_spans_stand_where_they_run():
    lines = gantt(straight(), 80).splitlines()
    row = {line.split()[0]: line.split("|", 1)[1].rsplit("|", 1)[0] for line in lines[1:]}
    n = len(row["cpu/0"])
    assert row["cpu/0"].startswith("[t0=")
    assert row["cpu/0"].index("]") == pytest.approx(n * 4 / 12, abs=1.5)
    assert row["gpu:0/0"].index("[t1") == pytest.approx(n * 6 / 12, abs=1)
    assert row["gpu:0/0"].endswith("   ")


@pytest.mark.parametrize("width", [0, 40, 41, 57, 80, 200])
@pytest.mark.parametrize("make", [straight, looped])
def test_no_line_is_wider_than_asked_for(make, width):
    assert all(len(line) <= max(width, 40) for line in gantt(make(), width).splitlines())


def test_a_loop_is_drawn_with_its_period_and_a_few_turns():
    text = gantt(looped(), 100, turns=2)
    assert "loop train: 10 turns, period 2 s, one turn 5 s, 3 turns in flight; turns 0 to 1 drawn" in text
    inner = text[text.index("loop train") :].splitlines()
    cpu = next(line for line in inner if line.startswith("cpu/0"))
    assert "[a 000" in cpu
    assert "[a 111" in cpu
    assert "a 22" not in cpu
    assert cpu.endswith("0 % idle")


def test_a_million_turns_cost_no_more_than_a_few():
    assert "1,000,000 turns" in gantt(looped(turns=1_000_000))


def test_the_shortest_launch_stays_visible():
    plan = Timeline(chain(2), MACHINE, (
        Span((CPU0,), Launch(0, 0, (host(0),), (host(1),)), 0.0, 1e-9),
        Span((CPU0,), Launch(1, 0, (host(1),), (host(2),)), 5.0, 10.0),
    ))  # fmt: skip
    row = gantt(plan, 60).splitlines()[1].split("|")[1]
    assert row[0] == "░"
    assert set(row[1 : len(row) // 3]) == {" "}


def test_ascii_only_is_ascii_only():
    short = Span((CPU0,), Launch(1, 0, (), ()), 11.99, 12.0)
    text = gantt(dataclasses.replace(straight(), spans=(*straight().spans[:1], short)), 60, ascii_only=True)
    assert text.isascii()
    assert "." in text.splitlines()[1].split("|")[1]


def test_an_empty_timeline_says_so():
    assert gantt(Timeline(chain(), MACHINE, ())) == "nothing runs"


def test_a_trace_of_a_loop_is_drawn_with_the_turns_it_kept():
    text = gantt(traced(turns=1000, kept=3), 100, turns=2)
    assert "loop train: 1,000 turns, period 2 s; turns 0 to 1 drawn" in text
