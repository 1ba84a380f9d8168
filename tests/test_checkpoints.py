"""Checkpoints: a run that was cut off goes on from the last one, and ends with the bits of a run in one; what has changed is refused."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_samples import CPU, HOME, Arrays, arrays, batches, planned

import hetsched as hs
from hetsched.checkpoints import ground
from hetsched.checkpoints.running import run_with_checkpoints
from hetsched.checkpoints.store import STATE, Store
from hetsched.costing import Taught, learn_from_run
from hetsched.graph.graph import Graph, Loop
from hetsched.graph.pieces import Places, next_turn, piece_of, shape_of, why_whole
from hetsched.graph.spec import Sequence, Spec
from hetsched.machine import HOST, Device, Link, Machine, MemoryNode
from hetsched.testing.graphs import random_graph, random_machine
from hetsched.testing.opencl import available
from hetsched.testing.runs import value_problems
from hetsched.timeline import Launch


class CutError(Exception):
    """The process ends here."""


def cut_after(runs: int) -> Callable[..., Any]:
    """What runs parts and pieces, and is cut off when so many have run."""
    done = 0

    def run_one(plan: hs.Timeline, given: Arrays, timeout: float | None = None, progress: Any = None) -> Any:
        nonlocal done
        if done == runs:
            raise CutError
        done += 1
        return hs.run(plan, given, learn=False)

    return run_one


def same_bits(a: Arrays, b: Arrays) -> bool:
    return set(a) == set(b) and all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


# Values -----------------------------------------------------------------------------------------------------------------------


def test_progress_goes_on_from_where_the_run_was(tmp_path):
    plan, given = planned(batches(32, 8, 6)), arrays(32)
    asked = hs.Checkpoint(tmp_path / "kept", turns=4)
    with pytest.raises(CutError):
        run_with_checkpoints(plan, given, asked, cut_after(4))
    told = []

    def run_one(part, values, timeout=None, progress=None):
        return hs.run(part, values, learn=False, progress=progress)

    run_with_checkpoints(plan, given, asked, run_one, progress=lambda *now: told.append(now))
    done, total, _ = told[0]
    assert done < 0.8 * total
    assert told[-1][0] == told[-1][1] == total


def with_ifs(turns: int) -> Graph:
    """An if before a loop, and one in it whose condition changes from turn to turn."""

    def branch(op: str, **attributes: Any) -> Graph:
        b = Graph.build()
        return b.output(b.op(op, b.input("x", (3,)), **attributes), "y").freeze()

    less, more = branch("tensor.scale", factor=0.5), branch("nn.tanh")
    body = Graph.build()
    state = body.input("state", (3,))
    large = body.op("tensor.greater", body.op("tensor.mean", state, axes=[0]), body.constant(np.float32(0.5)))
    noise = body.op("random.normal", body.input("turn", (), np.int64), shape=(3,), seed=1)
    body.output(body.op("tensor.add", body.branch(large, less, more, {"x": state}, name="kept")["y"], noise), "new")
    b = Graph.build()
    first = b.input("first", (3,))
    chosen = b.branch(b.op("tensor.greater", b.op("tensor.mean", first, axes=[0]), b.constant(np.float32(0))), less, more, {"x": first})
    (last,) = b.loop(Loop(body.freeze(), turns, carried=(("state", "new"),), turn="turn"), chosen["y"], name="train")
    return b.output(last, "last").freeze()


@pytest.mark.parametrize("cut", range(4))
def test_graphs_with_ifs_go_on_too(tmp_path, cut):
    plan, given = planned(with_ifs(12)), {"first": np.linspace(-1, 2, 3, dtype=np.float32)}
    wanted = hs.run(plan, given, learn=False)
    asked = hs.Checkpoint(tmp_path / "kept", turns=5)
    with pytest.raises(CutError):
        run_with_checkpoints(plan, given, asked, cut_after(cut))
    assert same_bits(wanted, run_with_checkpoints(plan, given, asked, cut_after(99)))


@pytest.mark.parametrize(("rows", "epochs", "turns"), [(32, 3, 4), (32, 3, 3), (35, 3, 2), (35, 3, 5), (35, 3, 7), (5, 6, 2), (8, 1, 1)])
def test_wherever_a_run_is_cut_off_it_ends_with_the_bits_of_a_run_in_one(tmp_path, rows, epochs, turns):
    plan, given = planned(batches(rows, 8, epochs)), arrays(rows)
    wanted = hs.run(plan, given, learn=False)
    asked = hs.Checkpoint(tmp_path / "kept", turns=turns)
    for runs in (0, 1, 2, 4, 7, 50):
        told: list[str] = []
        try:
            whole = run_with_checkpoints(plan, given, replace(asked, fresh=True), cut_after(runs))
        except CutError:
            counted = Store(asked.folder)
            found = counted.read()
            result = hs.run(plan, given, learn=False, checkpoint=replace(asked, tell=told.append))
            assert same_bits(result, wanted), runs
            if found is not None and "train" in counted.loops:
                assert told == [f"goes on from turn {counted.loops['train'].turn} of {epochs * -(-rows // min(8, rows))} of loop 'train'"]
            continue
        assert same_bits(whole, wanted)
        assert not (tmp_path / "kept").exists(), "what is done is kept no longer"
        return
    raise AssertionError("the run was never whole")


@pytest.mark.parametrize("seed", [1, 4, 10, 31, 45, 57, 76, 93])
def test_random_graphs_in_pieces_give_what_they_give_in_one(tmp_path, seed):
    graph, given = random_graph(seed, tasks=10)
    simulated = {"executor": "simulated"} if seed % 3 == 0 else {}
    plan = hs.plan(graph, machine=random_machine(seed, memory_limits=False) if simulated else HOME, learn=False)
    wanted = hs.run(plan, given, learn=False, **simulated)
    found = hs.run(plan, given, learn=False, checkpoint=hs.Checkpoint(tmp_path / "kept", turns=1), **simulated)
    assert not value_problems(found, wanted)


def every_kind(turns: int = 12) -> tuple[Graph, Arrays]:
    """Two loops one after the other, the second with a loop inside: sequences from an array and a list, rows, a task that runs every third turn."""
    inner = Graph.build()
    s = inner.input("s", (4,))
    inner.output(inner.op("nn.tanh", s), "s_new")
    body = Graph.build()
    x, y, s, turn = body.input("x", (4,)), body.input("y", (2, 4)), body.input("s", (4,)), body.input("turn", (), np.int64)
    seldom = body.op("random.uniform", turn, name="seldom", shape=(4,), seed=2)
    (deep,) = body.loop(Loop(inner.freeze(), 3, carried=(("s", "s_new"),)), s, name="deep")
    body.output(body.op("tensor.add", body.op("tensor.add", deep, seldom), x), "s_new")
    body.output(body.op("nn.relu", y, name="rows"), "rows")
    first = Graph.build()
    z = first.input("z", (4,))
    first.output(first.op("tensor.scale", z, factor=0.9), "z_new")
    first.output(first.op("tensor.sum", z), "sum")
    b = Graph.build()
    z, sums = b.loop(Loop(first.freeze(), 7, carried=(("z", "z_new"),), collected=("sum",)), b.input("z", (4,)), name="first")
    loop = Loop(
        body.freeze(), turns, sequences=("x", "y"), carried=(("s", "s_new"),), collected=("rows",), rows={"rows": 2 * turns}, turn="turn",
        every={"seldom": 3},
    )  # fmt: skip
    y = b.input("y", Sequence(Spec((2, 4), np.dtype("f4")), turns, 2 * turns))
    s, rows = b.loop(loop, b.input("x", (turns, 4)), y, z, name="second")
    for name, value in {"s": s, "rows": rows, "sums": sums}.items():
        b.output(value, name)
    rng = np.random.default_rng(0)
    given = {name: rng.normal(size=shape).astype(np.float32) for name, shape in {"z": (4,), "x": (turns, 4), "y": (2 * turns, 4)}.items()}
    return b.freeze(), given


@pytest.mark.parametrize("turns", [1, 2, 3, 5])
def test_loops_after_loops_and_in_loops_sequences_and_rows(tmp_path, turns):
    graph, given = every_kind()
    plan = planned(graph)
    wanted = hs.run(plan, given, learn=False)
    for runs in range(1, 20, 5):
        asked = hs.Checkpoint(tmp_path / "kept", turns=turns, fresh=True)
        try:
            result = run_with_checkpoints(plan, given, asked, cut_after(runs))
        except CutError:
            result = hs.run(plan, given, learn=False, checkpoint=replace(asked, fresh=False))
        assert same_bits(result, wanted)


@pytest.mark.skipif(not available(), reason="no OpenCL device")
def test_on_an_opencl_device_too(tmp_path):
    plan, given = hs.plan(batches(35, 8, 3), only="opencl", learn=False), arrays(35)
    wanted = hs.run(plan, given, learn=False)
    asked = hs.Checkpoint(tmp_path / "kept", turns=4)
    with pytest.raises(CutError):
        run_with_checkpoints(plan, given, asked, cut_after(3))
    result = hs.run(plan, given, learn=False, checkpoint=asked)
    assert same_bits(result, wanted)
    assert (
        {"opencl"} == {owner.partition(":")[0] for owner in result.plans[-1].loops[0].owners if "->" not in owner} if result.plans[-1].loops else True
    )


def test_pieces_of_one_shape_are_one_plan_and_keep_the_places_of_the_whole(tmp_path):
    gpu = Device("gpu:0", "emulated", memory="gpu:0", hardware="gpu", bytes_per_second=8e11, flops_per_second={"float32": 8e12}, launch_seconds=1e-7)
    links = (Link(HOST, "gpu:0", 1e-7, 5e11), Link("gpu:0", HOST, 1e-7, 5e11))
    plan = hs.plan(batches(4096, 512, 3), machine=Machine((CPU, gpu), links, (MemoryNode(HOST), MemoryNode("gpu:0"))), learn=False)
    loop = next(iter(plan.loops))
    there = {plan.loops[loop].graph.task_names[t]: plan.loops[loop].device_of(t) for t in range(len(plan.loops[loop].graph))}
    assert set(there.values()) == {"cpu", "gpu:0"} or set(there.values()) == {"gpu:0"}
    result = hs.run(plan, arrays(4096), executor="simulated", learn=False, checkpoint=hs.Checkpoint(tmp_path / "kept", turns=2))
    pieces = [p for p in result.plans[1:] if p.loops]
    assert len(pieces) == 1, "twelve pieces of two turns inside of epochs"
    (body,) = pieces[0].loops.values()
    here = {body.graph.task_names[t]: body.device_of(t) for t in range(len(body.graph))}
    assert {name: here[name] for name in there if name in here} == {name: device for name, device in there.items() if name in here}
    assert set(there) - set(here) == {"order"}, "made once a piece, before it"


@hs.op(hs.Opaque("state", 8))
def grown(state: list[int]) -> list[int]:
    return [*state, len(state)]


def wide_tasks(plan: hs.Timeline) -> set[str]:
    """The tasks that a plan gives several lanes at once, those of loops too."""
    here = {plan.graph.task_names[s.command.task] for s in plan.launches if isinstance(s.command, Launch) and s.command.width > 1}
    return here.union(*map(wide_tasks, plan.loops.values()))


@pytest.mark.parametrize("lanes", [2, 4])
def test_products_that_take_all_lanes_take_them_in_pieces_too_and_no_others_do(tmp_path, lanes):
    """How many threads share a product decides about its last bits."""
    machine = Machine((replace(CPU, lanes=lanes, widths=(1, lanes)),), (), (MemoryNode(HOST),))
    body = Graph.build()
    w, s, t = body.input("w", (64, 64)), body.input("s", (64, 64)), body.input("t", (64, 64))
    body.output(body.op("tensor.scale", body.op("tensor.matmul", s, w, name="chain"), factor=0.01), "s_new")
    body.output(body.op("nn.tanh", t), "t_new")
    b = Graph.build()
    w = b.op("tensor.matmul", b.input("a", (64, 64)), b.input("b", (64, 64)), name="before")
    s, _ = b.loop(Loop(body.freeze(), 9, invariants=("w",), carried=(("s", "s_new"), ("t", "t_new"))), w, w, b.input("t", (64, 64)), name="train")
    b.output(b.op("tensor.matmul", s, w, name="behind"), "out")
    plan = hs.plan(b.freeze(), machine=machine, learn=False)
    assert wide_tasks(plan), "else this test shows nothing"
    given = {name: np.random.default_rng(i).normal(size=(64, 64)).astype(np.float32) for i, name in enumerate("abt")}
    result = hs.run(plan, given, learn=False, checkpoint=hs.Checkpoint(tmp_path / "kept", turns=4), executor="simulated")
    assert set().union(*map(wide_tasks, result.plans[1:])) == wide_tasks(plan)


# Where loops are cut ----------------------------------------------------------------------------------------------------------


def loop_of(graph: Graph) -> tuple[int, Loop]:
    return next((t, op) for t, op in enumerate(graph.task_ops) if isinstance(op, Loop))


def cuts(loop: Loop, most: int) -> list[int]:
    turn, out = 0, []
    while turn < loop.turns:
        turn = next_turn(loop, turn, most)
        out.append(turn)
    return out


def test_pieces_end_at_epochs_or_lie_inside_of_one():
    _, loop = loop_of(batches(35, 8, 4))  # five batches, the last of three rows
    assert cuts(loop, 100) == [20]
    assert cuts(loop, 12) == [10, 20]
    assert cuts(loop, 5) == [5, 10, 15, 20]
    assert cuts(loop, 3) == [3, 5, 8, 10, 13, 15, 18, 20]
    assert cuts(loop, 1) == [*range(1, 21)]
    assert [shape_of(loop, 0, 10)[1:], shape_of(loop, 0, 3)[1:], shape_of(loop, 3, 5)[1:]] == [(False, False), (True, False), (True, True)]


def test_what_belongs_together_is_not_parted():
    body = Graph.build()
    s = body.input("s", (4,))
    seldom = body.op("nn.tanh", s, name="seldom")
    body.output(body.op("tensor.add", s, seldom), "s_new")
    b = Graph.build()
    b.output(b.loop(Loop(body.freeze(), 12, carried=(("s", "s_new"),), every={"seldom": 4}), b.input("s", (4,)))[0], "s")
    _, loop = loop_of(b.freeze())
    assert cuts(loop, 1) == [4, 8, 12], "what runs every fourth turn is made of the state of its turn"


def test_a_piece_has_the_tasks_of_the_loop_and_the_number_of_the_turn_from_outside():
    graph = batches(35, 8, 4)
    t, loop = loop_of(graph)
    piece = piece_of(graph, t, shape_of(loop, 3, 5), Places())
    assert [s.kind for s in piece.sources.values()].count("first") == 1
    inner = piece.graph.task_ops[piece.number]
    assert isinstance(inner, Loop)
    assert (inner.turns, inner.cycle, dict(inner.every)) == (2, 2, {})
    assert [piece.graph.task_names[n] for n, whole in enumerate(piece.tasks) if whole < 0] == ["order"]
    assert not inner.problems()


def stopping(limit: float, turns: int = 20) -> tuple[Graph, Arrays]:
    """A loop that counts until it is enough, and what is made of the numbers that it collected."""
    body = Graph.build()
    s = body.input("s", ())
    new = body.op("tensor.add", s, body.constant(np.float32(1.0), "one"))
    body.output(new, "s_new")
    body.output(body.op("tensor.scale", new, factor=0.5), "half")
    body.output(body.op("tensor.greater_equal", new, body.constant(np.float32(limit), "limit")), "enough")
    b = Graph.build()
    loop = Loop(body.freeze(), turns, carried=(("s", "s_new"),), collected=("half",), stop="enough")
    s, halves = b.loop(loop, b.input("s", ()), name="until")
    b.output(s, "s")
    b.output(halves, "halves")
    return b.freeze(), {"s": np.zeros((), np.float32)}


@pytest.mark.parametrize("limit", [1, 3, 4, 7, 50])
def test_a_loop_that_ends_by_a_value_ends_in_the_turn_in_which_it_would(tmp_path, limit):
    graph, given = stopping(limit)
    plan = planned(graph)
    wanted = hs.run(plan, given, learn=False)
    assert wanted["s"] == min(limit, 20)
    for runs in (1, 2, 50):
        asked = hs.Checkpoint(tmp_path / "kept", turns=3, fresh=True)
        try:
            result = run_with_checkpoints(plan, given, asked, cut_after(runs))
        except CutError:
            result = hs.run(plan, given, learn=False, checkpoint=replace(asked, fresh=False))
        assert same_bits(result, wanted)
        assert result.trace.loops[0].turns == min(limit, 20)


def test_a_loop_that_cannot_be_taken_up_again_says_so_before_it_runs(tmp_path):
    body = Graph.build()
    state = body.input("state", hs.Opaque("state", 8))
    body.output(body.op(grown, state), "next")
    b = Graph.build()
    b.output(b.loop(Loop(body.freeze(), 20, carried=(("state", "next"),)), b.input("state", hs.Opaque("state", 8)), name="grow")[0], "state")
    graph = b.freeze()
    told: list[str] = []

    def run_one(*args: Any, **options: Any) -> Any:
        assert told == [f"no checkpoints in loop 'grow': {why_whole(graph, 0)}"]
        return hs.run(*args[:2], learn=False)

    result = run_with_checkpoints(planned(graph), {"state": [0]}, hs.Checkpoint(tmp_path / "kept", turns=10, tell=told.append), run_one)
    assert len(result["state"]) == 21
    assert "its carried value 'state' is" in told[0]
    assert told[0] in result.trace.notes


# How often --------------------------------------------------------------------------------------------------------------------


def test_the_time_between_checkpoints_is_kept_from_the_second_piece_on(tmp_path):
    """Turns take 0.1 s by the clock of the test, whatever was planned: after a first piece to measure, pieces of 3 s."""
    plan, given = planned(batches(800, 8, 4)), arrays(800)
    now, lengths = 0.0, list[int]()

    def run_one(part: hs.Timeline, given: Arrays, timeout: float | None = None, progress: Any = None) -> Any:
        nonlocal now
        loops = [op for op in part.graph.task_ops if isinstance(op, Loop)]
        lengths.extend(op.turns for op in loops)
        now += sum(0.1 * op.turns for op in loops)
        return hs.run(part, given, learn=False)

    seconds = plan.loops[loop_of(plan.graph)[0]].makespan  # so the first piece is an eighth of what is planned
    asked = hs.Checkpoint(tmp_path / "kept", seconds=seconds)
    loop = loop_of(plan.graph)[1]
    run_with_checkpoints(plan, given, asked, run_one, clock=lambda: now / 3.0 * seconds)
    assert sum(lengths) == loop.turns
    assert lengths[0] in range(40, 60), "an eighth of 400 turns, the epoch of 100 in equal pieces"
    assert lengths[1:] == [18, 32, *([34, 34, 32] * 3)], "30 turns take 3 s: an epoch of 100 in three pieces"


def test_short_loops_are_not_parted(tmp_path):
    plan, given = planned(batches(32, 8, 2)), arrays(32)
    result = hs.run(plan, given, learn=False, checkpoint=hs.Checkpoint(tmp_path / "kept"))
    assert len(result.plans) == 2, "the whole, and the whole as one part"


def test_what_a_run_with_checkpoints_tells_is_of_the_whole_graph(tmp_path, monkeypatch):
    """The trace is one of the whole graph, progress goes on over all pieces, and what teaches are the traces of the pieces themselves."""
    plan, given, told = planned(batches(400, 8, 6)), arrays(400), []
    asked = hs.Checkpoint(tmp_path / "kept", turns=25)
    result = hs.run(plan, given, learn=False, checkpoint=asked, progress=lambda done, total, name: told.append((done, total)))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == told[-1][1] == max(total for _, total in told)
    assert len(told) >= 12, "behind each of twelve pieces"
    task, loop = loop_of(plan.graph)
    trace = result.trace.loops[task]
    assert trace.graph is plan.loops[task].graph
    turns = {span.command.turn for span in trace.spans if isinstance(span.command, Launch)}
    assert trace.turns == loop.turns == 300
    assert turns >= {*range(25), *range(275, 300)}
    assert len(turns) <= 200
    assert [p.graph for p in result.plans[1:]] == [t.graph for t in result.traces]
    taught: list[Any] = []
    monkeypatch.setattr("hetsched.costing.learn_from", lambda trace, crowded, plan: taught.append((trace, plan)) or Taught((), (), "", 0.0))
    learn_from_run(result)
    assert taught == list(zip(result.traces, result.plans[1:], strict=True))
    bare = hs.run(plan, given, learn=False, trace=False, checkpoint=asked)
    awaited = asyncio.run(hs.run_async(plan, given, learn=False, checkpoint=asked))
    assert same_bits(bare, result)
    assert same_bits(awaited, result)


# Refusals ---------------------------------------------------------------------------------------------------------------------


def cut_off(folder: Path, graph: Graph, given: Arrays) -> None:
    with pytest.raises(CutError):
        run_with_checkpoints(planned(graph), given, hs.Checkpoint(folder, turns=4), cut_after(3))
    assert (folder / STATE).exists()


def test_what_has_changed_is_refused_and_named_and_fresh_begins_anew(tmp_path, monkeypatch):
    folder, given = tmp_path / "kept", arrays(32)
    cut_off(folder, batches(32, 8, 3), given)
    other = {**given, "first": np.zeros(3, np.float32)}
    kept = sorted(os.listdir(folder))
    with pytest.raises(hs.GraphError, match=r"this run cannot go on as it began: input 'first' has changed; begin anew with --fresh"):
        hs.run(planned(batches(32, 8, 3)), other, learn=False, checkpoint=folder)
    with pytest.raises(hs.GraphError, match=r"was made for another graph: it has changed .train."):
        hs.run(planned(batches(32, 8, 5)), given, learn=False, checkpoint=folder)
    for what, value, told in (("__version__", "9.9", "hetsched was 9.9, is 0."), ("", "", "the code of hetsched itself has changed")):
        rests_on = json.loads((folder / "rests-on.json").read_text())
        key = "hetsched" if what else "code"
        (folder / "rests-on.json").write_text(json.dumps({**rests_on, key: value or "other"}))
        with pytest.raises(hs.GraphError, match=told):
            hs.run(planned(batches(32, 8, 3)), given, learn=False, checkpoint=folder)
        (folder / "rests-on.json").write_text(json.dumps(rests_on))
    assert sorted(os.listdir(folder)) == kept, "what is kept stays, whoever is refused"
    result = hs.run(planned(batches(32, 8, 3)), other, learn=False, checkpoint=hs.Checkpoint(folder, fresh=True))
    assert same_bits(result, hs.run(planned(batches(32, 8, 3)), other, learn=False))


def with_own_op(factor: float) -> Graph:
    @hs.op(lambda x: x, name="checkpoint_test.own")
    def own(x: np.ndarray) -> np.ndarray:
        return x * np.float32(factor)

    body = Graph.build()
    body.output(body.op(own, body.input("s", (4,))), "s_new")
    b = Graph.build()
    b.output(b.loop(Loop(body.freeze(), 24, carried=(("s", "s_new"),)), b.input("s", (4,)), name="train")[0], "s")
    return b.freeze()


def test_changed_code_of_an_op_is_refused(tmp_path):
    given = {"s": np.ones(4, np.float32)}
    cut_off(tmp_path / "kept", with_own_op(0.5), given)
    with pytest.raises(hs.GraphError, match=r"the code of op 'checkpoint_test\.own' has changed"):
        hs.run(planned(with_own_op(0.25)), given, learn=False, checkpoint=tmp_path / "kept")
    result = hs.run(planned(with_own_op(0.5)), given, learn=False, checkpoint=tmp_path / "kept")
    assert result["s"][0] == np.float32(0.5**24)


def test_a_changed_file_is_refused_by_its_content(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.ones(4, np.float32))
    before = ground._file(str(path))
    os.utime(path, ns=(1, 1))
    assert ground._same_file(before, ground._file(str(path))), "written anew with the same bytes"
    np.save(path, np.zeros(4, np.float32))
    assert not ground._same_file(before, ground._file(str(path)))
    large = [before[0], 5, ""]
    assert not ground._same_file(large, [before[0], 6, ""])


def test_inputs_that_cannot_be_told_apart_are_refused_before_the_run():
    with pytest.raises(hs.HetschedError, match=r"input 'x' holds an object \(object\)"):
        ground.digest_of([1, object()], "x")
    assert ground.digest_of({"a": [1, "b", np.arange(3)]}, "x") == ground.digest_of({"a": [1, "b", np.arange(3)]}, "x")
    assert ground.digest_of(np.arange(3), "x") != ground.digest_of(np.arange(3.0), "x")


@pytest.mark.parametrize("name", ["state.json", "carried", "plan.json"])
def test_what_is_damaged_is_told_with_a_way_out(tmp_path, name):
    cut_off(tmp_path / "kept", batches(32, 8, 3), arrays(32))
    (path,) = [p for p in (tmp_path / "kept").iterdir() if p.name.startswith(name)]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content[:-8]))
    with pytest.raises(hs.HetschedError, match=path.name) as error:
        hs.run(planned(batches(32, 8, 3)), arrays(32), learn=False, checkpoint=tmp_path / "kept")
    assert error.value.exit_code == 7


def test_two_processes_never_share_a_folder(tmp_path):
    with Store(tmp_path / "kept"), pytest.raises(hs.HetschedError, match="another process runs with these checkpoints"):
        hs.run(planned(batches(32, 8, 3)), arrays(32), learn=False, checkpoint=tmp_path / "kept")


def test_wrong_times_and_options_are_refused(tmp_path):
    for wrong in ({"seconds": 0}, {"seconds": float("nan")}, {"turns": 0}, {"turns": 1.5}, {"seconds": True}):
        with pytest.raises(hs.HetschedError, match="a checkpoint is made every"):
            hs.Checkpoint(tmp_path, **wrong)
    with pytest.raises(hs.HetschedError, match="a run with checkpoints cannot keep going"):
        hs.run(planned(batches(32, 8, 3)), arrays(32), checkpoint=tmp_path, keep_going=True)


def test_a_disk_that_is_full_costs_the_checkpoints_not_the_run(tmp_path, monkeypatch):
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "_put_arrays", full)
    told: list[str] = []
    plan = planned(batches(32, 8, 3))
    result = hs.run(plan, arrays(32), learn=False, checkpoint=hs.Checkpoint(tmp_path / "kept", turns=4, tell=told.append))
    assert same_bits(result, hs.run(plan, arrays(32), learn=False))
    assert len(told) == 1
    assert "No space left on device" in told[0]


# Retries ----------------------------------------------------------------------------------------------------------------------


def flaky(failures: list[float], pure: bool = True) -> tuple[Graph, Arrays]:
    """A loop that counts to 24 and fails, once each, at the numbers in `failures`."""

    @hs.op(lambda x: x, name="checkpoint_test.flaky", pure=pure)
    def counted(x: np.ndarray) -> np.ndarray:
        if failures and x[0] == failures[0]:
            failures.pop(0)
            raise OSError("no answer")
        return x + np.float32(1)

    body = Graph.build()
    body.output(body.op(counted, body.input("s", (4,)), name="count"), "s_new")
    b = Graph.build()
    b.output(b.loop(Loop(body.freeze(), 24, carried=(("s", "s_new"),)), b.input("s", (4,)), name="train")[0], "s")
    return b.freeze(), {"s": np.zeros(4, np.float32)}


def test_a_task_that_fails_is_tried_again_from_the_last_checkpoint(tmp_path):
    graph, given = flaky([6.0, 7.0, 14.0])
    told: list[str] = []
    result = hs.run(planned(graph), given, learn=False, checkpoint=hs.Checkpoint(tmp_path / "kept", turns=4, retries=3, tell=told.append))
    assert result["s"].tolist() == [24.0] * 4
    assert [text.rpartition("; ")[2] for text in told] == [f"tried again from turn {n} of loop 'train'" for n in (4, 4, 12)]
    assert all("no answer" in text and "count" in text for text in told)
    assert set(told) <= set(result.trace.notes)


def test_more_failures_than_retries_end_the_run_which_can_be_taken_up_again(tmp_path):
    failures = [6.0, 6.0, 6.0]
    graph, given = flaky(failures)
    with pytest.raises(hs.TaskError, match="no answer"):
        hs.run(planned(graph), given, learn=False, checkpoint=hs.Checkpoint(tmp_path / "kept", turns=4, retries=2))
    assert (tmp_path / "kept" / STATE).exists()
    assert not failures
    with pytest.raises(hs.HetschedError, match="retries are a whole number"):
        hs.Checkpoint(tmp_path, retries=-1)


def test_effects_outside_are_not_repeated(tmp_path):
    graph, given = flaky([6.0], pure=False)
    with pytest.raises(hs.TaskError, match="no answer"):
        hs.run(planned(graph), given, learn=False, checkpoint=hs.Checkpoint(tmp_path / "kept", turns=4, retries=5))


# Cut off for good -------------------------------------------------------------------------------------------------------------

SCRIPT = """
import os, signal, sys
sys.path[:0] = [{root!r}, {tests!r}]
import hetsched as hs
from checkpoint_samples import arrays, batches, planned

folder, kill = sys.argv[1], int(sys.argv[2])

def progress(done, total, name):
    if kill and done > total // 2 and os.path.exists(os.path.join(folder, "state.json")):
        os.kill(os.getpid(), kill)

try:
    result = hs.run(planned(batches(64, 8, 6)), arrays(64), learn=False, progress=progress, checkpoint=hs.Checkpoint(folder, turns=8, tell=print))
except KeyboardInterrupt:
    sys.exit(130)
print(result["after"].tobytes().hex(), result["sums"].tobytes().hex())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_was_killed_is_taken_up_again(tmp_path, kill):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), root=str(Path(hs.__file__).parents[1])))

    def run(how: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, str(script), str(tmp_path / "kept"), str(int(how))], capture_output=True, text=True, check=False)

    first = run(kill)
    assert first.returncode == (-signal.SIGKILL if kill == signal.SIGKILL else 130), first.stderr
    second = run(0)
    assert second.returncode == 0, second.stderr
    told, values = second.stdout.splitlines()
    assert told.startswith("goes on from turn "), told
    assert int(told.split()[4]) >= 4
    wanted = hs.run(planned(batches(64, 8, 6)), arrays(64), learn=False)
    assert values == f"{wanted['after'].tobytes().hex()} {wanted['sums'].tobytes().hex()}"
