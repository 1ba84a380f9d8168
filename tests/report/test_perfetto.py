from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise

import numpy as np
import pytest
from report_samples import CPU0, MACHINE, chain, host, looped, straight

import hetsched as hs
from hetsched.machine import HOST, Device, Link, Machine, MemoryNode
from hetsched.report.perfetto import perfetto, perfetto_text
from hetsched.timeline import Launch, Span, Timeline


def slices(trace):
    out = defaultdict(list)
    for e in trace["traceEvents"]:
        if e["ph"] == "X":
            out[e["pid"], e["tid"]].append(e)
    return out


def names(trace, what):
    return {(e["pid"], e["tid"]): e["args"]["name"] for e in trace["traceEvents"] if e["ph"] == "M" and e["name"] == what}


@pytest.mark.parametrize("make", [straight, looped])
def test_spans_of_a_track_never_overlap(make):
    found = slices(perfetto(make()))
    assert len(found) >= 4
    for row in found.values():
        row.sort(key=lambda e: e["ts"])
        for before, after in pairwise(row):
            assert before["ts"] + before["dur"] <= after["ts"] + 1e-9


def test_what_would_overlap_goes_to_a_further_track():
    spans = tuple(Span((CPU0,), Launch(t, 0, (host(t),), (host(t + 1),)), 0.5 * t, 0.5 * t + 1) for t in range(3))
    trace = perfetto(Timeline(chain(), MACHINE, spans, measured=True))
    assert sorted(n for n in names(trace, "thread_name").values()) == ["cpu/0", "cpu/0 (overlapping 1)"]
    assert sorted(len(row) for row in slices(trace).values()) == [1, 2]


def test_a_process_per_device_and_a_track_per_lane():
    trace = perfetto(straight())
    processes = {pid: name for (pid, _), name in names(trace, "process_name").items()}
    tracks = {(processes[pid], name) for (pid, _), name in names(trace, "thread_name").items()}
    assert tracks == {
        ("cpu (cpu)", "cpu/0"), ("gpu:0 (Test GPU)", "gpu:0/0"), ("host->gpu:0", "host->gpu:0/0"), ("gpu:0->host", "gpu:0->host/0"),
    }  # fmt: skip
    first = next(e for e in trace["traceEvents"] if e["ph"] == "X" and e["name"] == "t1")
    assert (first["ts"], first["dur"]) == (6e6, 4e6)


def test_arrows_lead_from_the_producer_over_the_copy_to_the_reader_and_begin_and_end_inside_their_slices():
    trace = perfetto(straight())
    rows = slices(trace)

    def inside(e):
        return next(s["name"] + ":" + s["cat"] for s in rows[e["pid"], e["tid"]] if s["ts"] <= e["ts"] < s["ts"] + s["dur"])

    starts = {e["id"]: inside(e) for e in trace["traceEvents"] if e["ph"] == "s"}
    ends = {e["id"]: inside(e) for e in trace["traceEvents"] if e["ph"] == "f"}
    assert {(starts[i], ends[i]) for i in starts} == {("t0:launch", "t0:copy"), ("t0:copy", "t1:launch"), ("t2:launch", "t2:copy")}


def test_turns_of_a_loop_are_set_out_and_arrows_stay_within_a_turn():
    trace = perfetto(looped(), turns=3)
    launches = [e for e in trace["traceEvents"] if e["ph"] == "X" and e["name"] == "train/b"]
    assert [(e["ts"], e["args"]["turn"]) for e in launches] == [(4e6, 0), (6e6, 1), (8e6, 2)]
    arrows = [e for e in trace["traceEvents"] if e["ph"] == "s"]
    assert len(arrows) == 6
    loop = next(e for e in trace["traceEvents"] if e["ph"] == "X" and e["cat"] == "loop")
    assert names(trace, "process_name")[loop["pid"], 0] == "loops"


def test_memory_counters_rise_and_fall_to_nothing():
    counters = [(e["name"], e["ts"], e["args"]["bytes"]) for e in perfetto(straight())["traceEvents"] if e["ph"] == "C"]
    gpu = [(ts / 1e6, alive) for name, ts, alive in counters if name == "memory gpu:0"]
    # Copied in at 4; t1's output and the copy of x at 6; x is never read and goes at 8; the copied-in value at 10, t2's output takes its place.
    assert gpu == [(4, 4000), (6, 12000), (8, 8000), (10, 8000), (11, 4000), (12, 0)]
    loop = [(e["ts"] / 1e6, e["args"]["bytes"]) for e in perfetto(looped())["traceEvents"] if e["ph"] == "C"]
    assert loop == [(1, 16384), (24, 0)]


def test_a_run_over_two_streams_and_copies_keeps_the_format():
    """Of a measured trace: a named track for every slice, one for each lane of the plan; each arrow has one beginning and one end, later and inside
    slices; counters of both memories that never fall below nothing and end there."""
    cpu = Device("cpu", "cpu", lanes=2, languages=("host", "array"), shares_lanes=True, bytes_per_second=1e10, flops_per_second={"float32": 1e10})
    gpu = Device("gpu:0", "emulated", lanes=2, memory="gpu:0", hardware="gpu", bytes_per_second=1e9, flops_per_second={"float32": 1e12})
    machine = Machine((cpu, gpu), (Link(HOST, "gpu:0", 1e-5, 1e9), Link("gpu:0", HOST, 1e-5, 1e9)), (MemoryNode(HOST), MemoryNode("gpu:0")))
    there = hs.Where(("gpu:0",))
    b = hs.Graph.build()
    x = b.input("x", (4096,))
    made = b.op("tensor.exp", x, name="made", where=hs.Where(("cpu",)))
    left, right = b.op("tensor.neg", made, name="left", where=there), b.op("tensor.neg", x, name="right", where=there)
    b.output(b.op("tensor.add", b.op("tensor.mul", left, right, where=there), made, name="last", where=hs.Where(("cpu",))), "y")
    plan = hs.plan(b.freeze(), machine)
    trace = json.loads(perfetto_text(hs.run(plan, {"x": np.zeros(4096, np.float32)}).trace))
    found = trace["traceEvents"]
    tracks, rows = names(trace, "thread_name"), slices(trace)
    assert set(rows) <= set(tracks)
    assert {str(lane) for lane in plan.lanes if lane.owner != "cpu"} <= set(tracks.values())
    assert sum(len(row) for row in rows.values()) == sum(bool(s.lanes) for s in plan.spans)
    flows = defaultdict(dict)
    for e in found:
        if e["ph"] in "sf":
            assert e["ph"] not in flows[e["id"]]
            flows[e["id"]][e["ph"]] = e
            assert any(s["ts"] <= e["ts"] <= s["ts"] + s["dur"] for s in rows[e["pid"], e["tid"]])
    assert len(flows) >= 2 * len(plan.copies) - 1
    assert all(set(pair) == {"s", "f"} and pair["s"]["ts"] <= pair["f"]["ts"] and pair["f"]["bp"] == "e" for pair in flows.values())
    counters = defaultdict(list)
    for e in found:
        if e["ph"] == "C":
            counters[e["name"]].append((e["ts"], e["args"]["bytes"]))
    assert set(counters) == {"memory host", "memory gpu:0"}
    for steps in counters.values():
        assert [ts for ts, _ in steps] == sorted(ts for ts, _ in steps)
        assert min(alive for _, alive in steps) == 0 == steps[-1][1]
        assert max(alive for _, alive in steps) > 0


def test_the_text_is_strict_json():
    trace = json.loads(perfetto_text(straight(True)))
    assert trace["otherData"]["kind"] == "trace"
    assert {e["ph"] for e in trace["traceEvents"]} == {"X", "M", "s", "f", "C"}
