from __future__ import annotations

import json

from report_samples import MACHINE, chain, looped, straight, traced

from hetsched.report.record import machine_record, plan_record, run_record
from hetsched.timeline import Timeline


def test_the_record_of_a_run_has_every_key_and_is_json():
    record = run_record(straight(), straight(True), 12.5, {"evaluate.accuracy": 0.97}, {"model": "out/m.safetensors", "x": None}, "demo")
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert {
        "version", "status", "wall_seconds", "planned_seconds", "lower_bound_seconds", "policy", "objective", "devices", "transfers", "tasks",
        "metrics", "outputs",
    } <= set(record)  # fmt: skip
    assert record["status"] == "done"
    assert (record["wall_seconds"], record["planned_seconds"], record["lower_bound_seconds"]) == (12.5, 12.0, 10.0)
    assert record["devices"]["gpu:0"] == {"kind": "emulated", "busy_seconds": 5.0, "tasks": 2, "launches": 2}
    assert record["devices"]["gpu:1"]["tasks"] == 0
    assert record["transfers"] == {"copies": 3, "bytes": 12000, "seconds": 5.0, "hidden_seconds": 2.0, "hidden_fraction": 0.4}
    assert record["tasks"][1] == {"name": "t1", "op": "test.same", "device": "gpu:0"}
    assert record["metrics"] == {"evaluate.accuracy": 0.97}
    assert record["outputs"] == {"model": "out/m.safetensors", "x": None}


def test_tasks_of_a_loop_are_listed_once_under_its_name():
    tasks = run_record(looped(), traced(), 1.0, {}, {})["tasks"]
    assert [(t["name"], t["op"], t["device"]) for t in tasks] == [
        ("train", "loop", "cpu+gpu:0"), ("train/a", "test.same", "cpu"), ("train/extra", "test.same", "cpu"), ("train/b", "test.same", "gpu:0"),
    ]  # fmt: skip
    assert tasks[0]["turns"] == 1000
    assert tasks[0]["period"] == 2.0


def test_nothing_copied_is_null():
    assert run_record(None, Timeline(chain(), MACHINE, ()), 0.1, {}, {})["transfers"]["hidden_fraction"] is None


def test_the_record_of_a_plan_has_times_and_the_bound():
    record = plan_record(straight(), "a.yaml")
    assert (record["makespan"], record["lower_bound"], record["file"]) == (12.0, 10.0, "a.yaml")
    assert record["tasks"][0] == {"name": "t0", "op": "test.same", "device": "cpu", "start": 0.0, "finish": 4.0, "lanes": ["cpu/0"]}


def test_the_record_of_a_machine():
    record = machine_record(MACHINE)
    assert [d["id"] for d in record["devices"]] == ["cpu", "gpu:0", "gpu:1"]
    assert len(record["links"]) == 6
