from __future__ import annotations

import dataclasses

import pytest
from report_samples import CPU0, CPU1, MACHINE, chain, host, looped, straight

from hetsched.errors import CommandLineError
from hetsched.report.explain import explain
from hetsched.timeline import After, Launch, Span, Timeline


def test_a_launch_that_waits_for_its_data_names_the_copy():
    lines = explain(straight(), "t1").splitlines()
    assert lines[0] == "t1: test.same on gpu:0/0, from 6 s to 10 s"
    assert lines[2].split() == ["t0", "3.91", "KiB", "6", "s", "copy", "from", "host"]
    assert lines[3] == "  waited for its data: the copy of t0 from host to gpu:0"
    assert explain(straight(), "t0").splitlines()[-1] == "  starts at once: it waits for nothing"


def test_a_launch_that_waits_for_its_lane_or_for_bytes_says_so():
    first = Span((CPU0,), Launch(0, 0, (host(0),), (host(1),)), 0.0, 4.0)
    second = Span((CPU0,), Launch(1, 0, (host(0),), (host(2),)), 4.0, 5.0)
    plan = Timeline(chain(), MACHINE, (first, second))
    assert explain(plan, "t1").splitlines()[-1] == "  waited for its lane, busy with t0 on cpu"
    plan = Timeline(chain(), MACHINE, (first, second), after=(After(0, 1),))
    assert explain(plan, "t1").splitlines()[-1] == "  waited for bytes that t0 on cpu used"


def test_what_handing_over_between_threads_costs_is_told():
    cpu, *rest = MACHINE.devices
    machine = dataclasses.replace(MACHINE, devices=(dataclasses.replace(cpu, crossing_seconds=0.5), *rest))
    first = Span((CPU0,), Launch(0, 0, (host(0),), (host(1),)), 0.0, 4.0)
    second = Span((CPU1,), Launch(1, 0, (host(1),), (host(2),)), 4.5, 5.0)
    text = "  waited for its data, handed over from another lane: t0 on cpu"
    assert explain(Timeline(chain(), machine, (first, second)), "t1").splitlines()[-1] == text
    assert explain(Timeline(chain(), MACHINE, (first, second)), "t1").splitlines()[-1] != text


def test_tasks_of_loops_and_groups_are_found():
    assert explain(looped(), "b") == explain(looped(), "train/b")
    assert explain(looped(), "b").splitlines()[0] == "train/b: test.same on gpu:0/0, from 3 s to 5 s of its turn"
    assert explain(looped(), "train").splitlines()[0].startswith("train: loop of 10 turns on cpu/0, cpu/1")


def test_an_unknown_task_is_told_with_the_nearest():
    with pytest.raises(CommandLineError, match="no task 'trian'; did you mean 'train'"):
        explain(looped(), "trian")
