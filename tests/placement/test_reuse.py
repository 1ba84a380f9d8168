"""Orders of tasks that find more of their inputs in the cache."""

import random
from dataclasses import replace

import numpy as np
import pytest

import hetsched as hs
from hetsched.check import check
from hetsched.errors import MachineError
from hetsched.executors.backends import cpu as backend
from hetsched.executors.backends.cpu import last_caches, own_cache
from hetsched.locked import read_plan, write_plan
from hetsched.machine import Device, Machine
from hetsched.machine.described import read_machine
from hetsched.placement import plan_graph
from hetsched.placement.costs.estimate import Estimate
from hetsched.placement.reuse import COUNTED_SHARE, OWN_SHARE, Work, by_reuse, inputs_nbytes, missed_bytes
from hetsched.placement.shared import LEAST_CHANGE
from hetsched.timeline import Launch

TILE = 64  # elements of a side of a tile
TILE_NBYTES = 4 * TILE * TILE
CAPACITY = 16 * TILE_NBYTES  # what is counted on of the cache


def cache(capacity):
    """Bytes of a cache of which so many are counted on."""
    return round(capacity / COUNTED_SHARE)


CPU = Device("cpu", "cpu", lanes=2, languages=("host", "array"), shares_lanes=True, bytes_per_second=1e9, cache_nbytes=cache(CAPACITY))
WITH, WITHOUT = Machine((CPU,)), Machine((replace(CPU, cache_nbytes=None),))


class Costs:
    """The same seconds for every task."""

    seconds = 1e-4

    def launch(self, graph, task, device, width=1):
        return Estimate(self.seconds if width == 1 else float("inf"))

    def copy(self, nbytes, link):
        return Estimate(link.seconds(nbytes))


def updates(tiles=8):
    """Tiles of a matrix that are updated again and again by products of rows and columns: c[i, j] += a[i, k] b[k, j], as an outer product each."""
    b = hs.Graph.build("updates")
    a = {(i, k): b.input(f"a{i}_{k}", (TILE, TILE)) for i in range(tiles) for k in range(tiles)}
    w = {(k, j): b.input(f"b{k}_{j}", (TILE, TILE)) for j in range(tiles) for k in range(tiles)}
    for i in range(tiles):
        for j in range(tiles):
            total = b.op("tensor.mul", a[i, 0], w[0, j], name=f"c{i}_{j}_0")
            for k in range(1, tiles):
                total = b.op("tensor.add", total, b.op("tensor.mul", a[i, k], w[k, j], name=f"p{i}_{j}_{k}"), name=f"c{i}_{j}_{k}")
            b.output(total, f"c{i}_{j}")
    return b.freeze()


def fetched(plan, capacity):
    """Bytes of inputs that are not among the last `capacity` bytes touched, when the launches of a plan run in the order of their starts."""
    graph, recent, total = plan.graph, [], 0
    last = {v: max(s.start for s in plan.launches if v in graph.reads(s.command.task)) for s in plan.launches for v in graph.reads(s.command.task)}
    for span in sorted(plan.launches, key=lambda s: (s.start, s.finish)):
        task = span.command.task
        for value in dict.fromkeys(graph.reads(task)):
            if value in recent:
                recent.remove(value)
            else:
                total += int(graph.value_nbytes[value])
            recent.append(value)
        recent = [v for v in recent if last.get(v, np.inf) > span.start] + list(graph.writes(task))
        while sum(int(graph.value_nbytes[v]) for v in recent) > capacity:
            recent.pop(0)
    return total


def test_tasks_that_read_the_same_tiles_run_together():
    graph = updates()
    near, far = plan_graph(graph, WITH, Costs(), "heft"), plan_graph(graph, WITHOUT, Costs(), "heft")
    assert near.keeps_order
    assert not far.keeps_order
    check(near)
    assert fetched(near, CAPACITY) < 0.8 * fetched(far, CAPACITY)
    assert near.makespan < 1.02 * far.makespan
    (note,) = [n for n in near.notes if "run close together" in n]
    told = [int(word.replace(",", "")) for word in note.split() if word.replace(",", "").isdigit()]
    assert told[0] < told[1]


def test_values_are_the_same_in_either_order():
    graph, rng = updates(5), np.random.default_rng(0)
    given = {name: rng.standard_normal((TILE, TILE)).astype(np.float32) for name in graph.inputs}
    cpu = replace(CPU, cache_nbytes=cache(6 * TILE_NBYTES))
    near = plan_graph(graph, Machine((cpu,)), Costs(), "heft")
    assert near.keeps_order
    found, wanted = hs.run(near, given, learn=False), hs.run(plan_graph(graph, WITHOUT, Costs(), "heft"), given, learn=False)
    for name in graph.outputs:
        np.testing.assert_array_equal(found[name], wanted[name])


@pytest.mark.parametrize(
    ("change", "tiles"),
    [
        ({"cache_nbytes": 10_000 * TILE_NBYTES}, 8),  # everything fits
        ({"cache_nbytes": None}, 8),  # not known
        ({"bytes_per_second": 1e15}, 8),  # memory is as fast as the cache
        ({"shares_lanes": False}, 8),  # streams keep the order that they were given
        ({}, 1),
    ],
)
def test_nothing_is_changed_where_nothing_is_gained(change, tiles):
    graph, cpu = updates(tiles), replace(CPU, **change)
    plan = plan_graph(graph, Machine((cpu,)), Costs(), "heft")
    bare = plan_graph(graph, Machine((replace(cpu, cache_nbytes=None),)), Costs(), "heft")
    assert not plan.keeps_order
    assert [s[2:] for s in plan.spans] == [s[2:] for s in bare.spans]
    assert plan.notes == bare.notes


def test_a_plan_says_so_when_it_is_kept_in_a_file(tmp_path):
    plan = plan_graph(updates(), WITH, Costs(), "heft")
    write_plan(plan, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json", plan.graph, WITH).keeps_order


def test_threads_keep_to_the_order():
    """One thread: with the flag in the order of the starts, without it on with what it has just made ready."""
    graph = updates()
    one = replace(CPU, lanes=1)
    plan = plan_graph(graph, Machine((one,)), Costs(), "heft")
    assert plan.keeps_order
    rng = np.random.default_rng(0)
    given = {name: rng.standard_normal((TILE, TILE)).astype(np.float32) for name in graph.inputs}

    def begun(timeline):
        return [s.command.task for s in sorted(timeline.launches, key=lambda s: (s.start, s.finish))]

    planned = begun(plan)
    kept = begun(hs.run(plan, given, learn=False).trace)
    # A task whose one reader reads nothing else is one step with it; all else is as it was planned.
    joined = {t for t in planned if graph.task_ops[t].name == "tensor.mul"}
    assert [t for t in kept if t not in joined] == [t for t in planned if t not in joined]


def work_of(seed):
    """Random tasks: each reads some of 8 inputs and of what was made before it."""
    rng = random.Random(seed)
    n, inputs = rng.randint(1, 40), 8
    reads, later = [], [[] for _ in range(n)]
    for task in range(n):
        values = rng.sample(range(inputs + task), rng.randint(1, min(3, inputs + task)))
        reads.append(values)
        for value in values:
            if value >= inputs:
                later[value - inputs].append(task)
    readers = [sum(v in row for row in reads) for v in range(inputs + n)]
    return Work(
        list(range(n)), [rng.uniform(0, 1) for _ in range(n)], reads, [[inputs + t] for t in range(n)], later,
        [rng.randint(0, 100) for _ in range(inputs + n)], readers,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(40))
def test_orders_of_random_work(seed):
    work = work_of(seed)
    for threads, capacity in ((1, 0), (1, 150), (2, 150), (5, 10_000)):
        order = by_reuse(work, threads, capacity)
        place = {task: i for i, task in enumerate(order)}
        assert sorted(order) == list(range(len(work.order)))
        assert all(place[task] < place[after] for task, row in enumerate(work.later) for after in row)
        assert missed_bytes(work, order, 10**9) == inputs_nbytes(work)
        assert inputs_nbytes(work) <= missed_bytes(work, order, capacity) <= missed_bytes(work, order, 0)
        for caches in (2, 3):
            order = by_reuse(work, threads, capacity, caches)
            assert sorted(order) == list(range(len(work.order)))
            assert missed_bytes(work, order, 10**9) <= missed_bytes(work, order, capacity, caches) <= missed_bytes(work, order, 0)


def test_bytes_are_counted_by_hand():
    # Three inputs of 10 bytes; 0 reads a, 1 reads b, 2 reads a and what 0 made, 3 reads c and a.
    work = Work([0, 1, 2, 3], [1.0] * 4, [[0], [1], [0, 3], [2, 0]], [[3], [4], [5], [6]], [[2], [], [], []], [10] * 7, [3, 1, 1, 1, 0, 0, 0])
    assert inputs_nbytes(work) == 30
    assert missed_bytes(work, [0, 1, 2, 3], 1000) == 30
    # Room for two values: after 0 they are a and 3; after 1 (b is read for the last time and gone) 3 and 4; 2 fetches a, which leaves a and 5 when 3
    # is gone; 3 fetches c alone.
    assert missed_bytes(work, [0, 1, 2, 3], 20) == 10 + 10 + 10 + 10
    assert missed_bytes(work, [0, 2, 3, 1], 20) == 10 + 0 + 10 + 10
    assert by_reuse(work, 1, 20)[:2] == [0, 2]


def test_what_is_urgent_goes_first():
    # A chain of tasks that takes all the time there is, and others beside it that read the same input.
    chain, others = 20, 20
    n = chain + others
    reads = [[0] if t == 0 else [1 + t] for t in range(chain)] + [[1]] * others
    work = Work(
        list(range(n)), [1.0] * n, reads, [[2 + t] for t in range(n)], [[t + 1] if t + 1 < chain else [] for t in range(n)], [10] * (n + 2),
        [1, others, *[1] * (chain - 1), *[0] * (others + 1)],
    )  # fmt: skip
    order = by_reuse(work, 2, 1000)
    assert [t for t in order if t < chain] == list(range(chain))
    assert max(order.index(t) for t in range(chain)) >= n - 2
    assert order.index(chain - 1) >= n - 2, "the chain and the rest end together"


def made_up(folder, cores, levels, sharing):
    """Caches as Linux tells of them. levels: (level, kind, size); sharing: the lists of cores that share one of the last level."""
    for core in cores:
        for number, (level, kind, size) in enumerate(levels):
            at = folder / f"cpu{core}" / "cache" / f"index{number}"
            at.mkdir(parents=True)
            mine = next((text for text in sharing if core in backend._numbers(text)), str(core)) if number == len(levels) - 1 else str(core)
            for name, text in (("level", level), ("type", kind), ("size", size), ("shared_cpu_list", mine)):
                (at / name).write_text(text + "\n")


LEVELS = [("1", "Data", "32K"), ("1", "Instruction", "64K"), ("2", "Unified", "1024K"), ("3", "Unified", "32M")]


@pytest.mark.parametrize(
    ("levels", "sharing", "allowed", "wanted"),
    [
        (LEVELS, ["0-7"], range(8), (32 << 20, 1)),
        (LEVELS, ["0-1,4-5", "2-3,6-7"], range(8), (32 << 20, 2)),  # core complexes of two cores with two threads each
        (LEVELS, ["0-1,4-5", "2-3,6-7"], [1, 4, 5], (32 << 20, 1)),  # the process may use one of them
        (LEVELS[:3], [], range(8), (1 << 20, 8)),  # each core has its own
        ([("1", "Data", "32K"), ("2", "Instruction", "64K")], [], range(2), (32 << 10, 2)),
        ([("1", "Data", "many")], [], range(2), (None, 1)),
        ([], [], range(2), (None, 1)),
        (LEVELS, ["0-7"], [], (None, 1)),
    ],
)
def test_the_last_caches_of_the_cores_of_a_process(tmp_path, levels, sharing, allowed, wanted):
    made_up(tmp_path, range(8), levels, sharing)
    assert last_caches(tmp_path, allowed) == wanted


def test_of_unequal_caches_the_least_counts(tmp_path):
    made_up(tmp_path, range(4), LEVELS, ["0-3"])
    made_up(tmp_path, range(4, 8), [*LEVELS[:3], ("3", "Unified", "96M")], ["4-7"])
    assert last_caches(tmp_path, range(8)) == (32 << 20, 2)


def test_the_processor_found_here_has_as_many_caches_as_linux_tells_and_no_more_than_lanes(tmp_path, monkeypatch):
    monkeypatch.setattr(backend, "CACHES", tmp_path)
    monkeypatch.setattr(backend, "cores", lambda: 3)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    made_up(tmp_path, range(8), LEVELS[:3], [])
    (found,) = backend.find().devices
    assert (found.lanes, found.cache_nbytes, found.caches, found.lane_cache_nbytes) == (3, 1 << 20, 3, None)


def test_a_described_device_has_no_more_caches_than_lanes(tmp_path):
    file = tmp_path / "m.yaml"
    text = "hetsched_machine: 1\ndevices:\n  - {id: cpu, kind: cpu, lanes: 2, shares_lanes: true, cache_nbytes: 32 MiB, caches: CACHES}\n"
    file.write_text(text.replace("CACHES", "2"))
    assert read_machine(file).device("cpu").caches == 2
    file.write_text(text.replace("CACHES", "3"))
    with pytest.raises(MachineError, match=r"m.yaml:3:\d+: .*3 last caches for 2 lanes"):
        read_machine(file)


@pytest.mark.parametrize(
    ("levels", "sharing", "allowed", "wanted"),
    [
        (LEVELS, ["0-7"], range(8), 1 << 20),
        (LEVELS[:3], [], range(8), None),  # what stands below the last one is of the first level
        ([], [], range(2), None),
        (LEVELS, ["0-7"], [], None),
    ],
)
def test_the_own_cache_of_a_core(tmp_path, levels, sharing, allowed, wanted):
    made_up(tmp_path, range(8), levels, sharing)
    assert own_cache(tmp_path, allowed) == wanted


@pytest.mark.parametrize(("allowed", "wanted"), [(range(8), 256 << 10), ([0, 1, 4], 512 << 10), ([1], 1 << 20)])
def test_threads_of_a_core_and_cores_of_a_cluster_share_its_cache(tmp_path, allowed, wanted):
    made_up(tmp_path, range(8), LEVELS, ["0-7"])
    for core in range(8):
        mates = "0,4" if core in (0, 4) else "2-3,6-7" if core in (2, 3, 6, 7) else str(core)
        (tmp_path / f"cpu{core}" / "cache" / "index2" / "shared_cpu_list").write_text(mates)
    assert own_cache(tmp_path, allowed) == wanted


def test_what_the_last_cache_holds_is_put_in_an_order_for_the_own_caches_of_lanes():
    graph = updates()
    cpu = replace(CPU, cache_nbytes=10_000 * TILE_NBYTES, lane_cache_nbytes=round(16 * TILE_NBYTES / OWN_SHARE))
    near = plan_graph(graph, Machine((cpu,)), Costs(), "heft")
    bare = plan_graph(graph, Machine((replace(cpu, lane_cache_nbytes=None),)), Costs(), "heft")
    assert near.keeps_order
    assert not bare.keeps_order
    check(near)
    assert dealt(near, 16 * TILE_NBYTES, 2) < 0.85 * dealt(bare, 16 * TILE_NBYTES, 2)
    assert near.makespan < 1.02 * bare.makespan
    (note,) = [n for n in near.notes if "run close together" in n]
    assert "from beyond the cache of a core" in note
    assert "from memory" not in note  # from there comes what comes in any order


def test_an_own_cache_that_does_not_hold_what_a_task_touches_changes_nothing():
    graph = updates()
    cpu = replace(CPU, cache_nbytes=10_000 * TILE_NBYTES, lane_cache_nbytes=round(2 * TILE_NBYTES / OWN_SHARE))
    assert not plan_graph(graph, Machine((cpu,)), Costs(), "heft").keeps_order


def test_of_tasks_with_as_much_in_the_cache_the_first_of_the_graph_goes_first():
    # Nothing that they read is shared; ranks have them the other way round.
    n = 6
    work = Work([5, 4, 3, 2, 1, 0], [1.0] * n, [[t] for t in range(n)], [[n + t] for t in range(n)], [[]] * n, [10] * 2 * n, [2] * n + [0] * n)
    assert by_reuse(work, 1, 20) == list(range(n))


def test_a_lanes_own_cache_is_no_larger_than_the_last_one(tmp_path):
    file = tmp_path / "m.yaml"
    text = "hetsched_machine: 1\ndevices:\n  - {id: cpu, kind: cpu, lanes: 2, cache_nbytes: 32 MiB, lane_cache_nbytes: OWN}\n"
    file.write_text(text.replace("OWN", "1 MiB"))
    assert read_machine(file).device("cpu").lane_cache_nbytes == 1 << 20
    file.write_text(text.replace("OWN", "64 MiB"))
    with pytest.raises(MachineError, match=r"m.yaml:3:\d+: .*own cache of 67,108,864 bytes"):
        read_machine(file)


def test_tasks_are_dealt_to_several_caches():
    # Both inputs of 10 bytes are read by all four tasks: each of two caches fetches each of them.
    work = Work([0, 1, 2, 3], [1.0] * 4, [[0], [0], [0, 1], [0, 1]], [[2], [3], [4], [5]], [[], [], [], []], [10] * 6, [4, 2, 0, 0, 0, 0])
    assert [missed_bytes(work, [0, 1, 2, 3], 1000, caches) for caches in (1, 2, 4)] == [20, 40, 60]
    # 0 makes what 1 reads, in the other cache; by then 0 is in both, and a value that nobody reads again has left both.
    work = Work([0, 1, 2], [1.0] * 3, [[0], [1], [0]], [[1], [2], [3]], [[1], [], []], [10] * 4, [2, 1, 0, 0])
    assert [missed_bytes(work, [0, 1, 2], 1000, caches) for caches in (1, 2)] == [10, 20]


def test_an_order_for_two_caches_spares_what_each_of_them_fetches():
    graph, four = updates(), replace(CPU, lanes=4)
    bare = plan_graph(graph, Machine((replace(four, cache_nbytes=None),)), Costs(), "heft")
    two = plan_graph(graph, Machine((replace(four, caches=2),)), Costs(), "heft")
    assert two.keeps_order
    check(two)
    assert dealt(two, CAPACITY, 2) < 0.9 * dealt(bare, CAPACITY, 2)
    # As one cache that holds what both do they would be taken to fetch less than they can.
    (note,) = [n for n in two.notes if "run close together" in n]
    one = plan_graph(graph, Machine((replace(four, cache_nbytes=cache(2 * CAPACITY)),)), Costs(), "heft")
    (other,) = [n for n in one.notes if "run close together" in n]
    assert mebibytes(note) > mebibytes(other)


def mebibytes(note):
    """What the note says to come from memory, with the order and without."""
    return [int(word.replace(",", "")) for word in note.split() if word.replace(",", "").isdigit()]


def dealt(plan, capacity, caches):
    """`fetched`, each cache by itself: of the launches in the order of their starts, dealt in turn."""
    order = sorted(plan.launches, key=lambda s: (s.start, s.finish))
    return sum(fetched(replace(plan, spans=tuple(order[k::caches]), prologue=(), epilogue=()), capacity) for k in range(caches))


def test_the_least_change_is_asked_of_both_sides():
    """Time that is lost counts as much as bytes that are spared: where each costs a hundredth, nothing is changed."""
    plan = plan_graph(updates(), WITH, Costs(), "heft")
    bare = plan_graph(updates(), WITHOUT, Costs(), "heft")
    spared = (fetched(bare, CAPACITY) - fetched(plan, CAPACITY)) / (CPU.bytes_per_second * CPU.lanes)
    assert spared - (plan.makespan - bare.makespan) > LEAST_CHANGE * bare.makespan
    assert all(isinstance(s.command, Launch) for s in plan.launches)
