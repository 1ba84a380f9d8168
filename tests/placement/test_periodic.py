"""Period plans: checked by a checker of their own, compared with what can be computed by hand or by force."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import random
from array import array
from dataclasses import replace

import pytest

from hetsched.errors import FileError, OutOfMemoryError, PlacementError
from hetsched.placement import native
from hetsched.placement import periods as periodic
from hetsched.placement.periods import plan_body_file, plan_period, read_body
from hetsched.placement.periods.assign import Balance, Cycles, least_period
from hetsched.placement.periods.bound import PeriodBound, check_period_bound, period_bound
from hetsched.placement.periods.modulo import Profile, cycle_ratio, lane_arcs, topological
from hetsched.placement.periods.native import Circles, Flat
from hetsched.placement.periods.order import Order
from hetsched.placement.periods.problem import Core, Ops, problem_of
from hetsched.placement.periods.slide import slid

EPSILON = 1e-8


def document(durations, devices, edges=(), carried=(), latency=1e-5, bandwidth=1e9, queue=True, **more):
    """A body: devices are (lanes, memory node); links join all memory nodes."""
    nodes = sorted({m for _, m in devices})
    return {
        "format": "period-bench/1",
        "name": "small",
        "mem_nodes": [f"m{m}" for m in nodes],
        "devices": [{"name": f"d{i}", "kind": "x", "lanes": lanes, "mem": m} for i, (lanes, m) in enumerate(devices)],
        "links": [{"src": a, "dst": b, "latency": latency, "bandwidth": bandwidth, "queue": queue} for a, b in itertools.permutations(nodes, 2)],
        "tasks": [f"t{i}" for i in range(len(durations))],
        "durations": [list(row) for row in durations],
        "edges": [list(e) for e in edges],
        "carried": [list(c) for c in carried],
        **more,
    }


def random_document(seed, n, queue=True):
    """A layered body with state and feedback on 1-3 devices."""
    rng = random.Random(seed)
    devices = [(rng.choice([1, 2, 4]), 0), (1, 1), (1, 2)][: rng.randint(1, 3)]
    durations = []
    for _ in range(n):
        base = rng.randint(20, 4000) * 1e-6
        row = [base, *(round(base / rng.uniform(1, 12), 6) if rng.random() < 0.8 else None for _ in devices[1:])]
        durations.append([x if x is None else max(x, 1e-6) for x in row])
    size = [rng.randint(1, 40) * 60_000 for _ in range(n)]
    edges = [(u, v, size[u]) for v in range(1, n) for u in rng.sample(range(v), min(v, rng.randint(0, 2)))]
    carried = [(t, t, size[t], 1) for t in range(n) if rng.random() < 0.15]
    for _ in range(rng.randint(0, 2)):
        v, u = sorted((rng.randrange(n), rng.randrange(n)))
        carried.append((u, v, size[u], rng.randint(1, 3)))
    return document(durations, devices, edges, carried, bandwidth=12e9, queue=queue)


def violations(doc, plan):
    """Everything that is wrong with a plan, by the model of period-bench/1. Lanes are counted: turns may rotate over them."""
    period, tasks = plan["period"], plan["tasks"]
    memory = [d["mem"] for d in doc["devices"]]
    reads = [(u, v, 0) for u, v, _ in doc["edges"]] + [(u, v, k) for u, v, _, k in doc["carried"]]
    size = {}
    for u, _, nbytes, *_ in [*doc["edges"], *doc["carried"]]:
        size[u] = max(size.get(u, 0), nbytes)
    bad = []
    ready = {}  # (task, memory node) -> when its value is there
    held = {}  # resource -> intervals
    for t, (d, start) in enumerate(tasks):
        seconds = doc["durations"][t][d]
        if seconds is None:
            bad.append(f"task {t} cannot run on device {d}")
            continue
        ready[t, memory[d]] = start + seconds
        held.setdefault(("device", d), []).append((start, seconds))
    for t, link, start in plan["copies"]:
        path = doc["links"][link]
        if (t, path["dst"]) in ready:
            bad.append(f"value {t} arrives twice in {path['dst']}")
        if path["src"] != memory[tasks[t][0]] or start < ready[t, path["src"]] - EPSILON:
            bad.append(f"copy of {t} over {link} starts too early or elsewhere")
        seconds = path["latency"] + size[t] / path["bandwidth"]
        ready[t, path["dst"]] = start + seconds
        if path.get("queue", True):
            held.setdefault(("link", link), []).append((start, seconds))
    for u, v, k in reads:
        at = ready.get((u, memory[tasks[v][0]]), math.inf)
        if tasks[v][1] + k * period < at - EPSILON:
            bad.append(f"task {v} starts before the value of {u}, {k} turns ago, is there")
    for (kind, i), rows in held.items():
        lanes = doc["devices"][i]["lanes"] if kind == "device" else 1
        # Copies of an interval in other turns: count what covers a moment just after each start.
        for at, _ in rows:
            moment = at + 2 * EPSILON
            busy = sum(max(0, math.floor((moment - s) / period) - math.floor((moment - s - w + EPSILON) / period)) for s, w in rows)
            if busy > lanes:
                bad.append(f"{kind} {i}: {busy} at once, {lanes} lanes")
    return bad


@pytest.mark.parametrize("seed", range(40))
def test_random_bodies_keep_the_model_and_their_bound(seed):
    doc = random_document(seed, 3 + seed % 17, queue=seed % 3 > 0)
    problem = problem_of(doc)
    plan = plan_period(problem, evaluations=150)
    assert violations(doc, plan.document()) == []
    assert check_period_bound(problem, plan.bound)
    assert plan.period >= plan.lower_bound * (1 - 1e-9)


def test_the_checker_sees_broken_plans():
    seen = 0
    for seed in range(20):
        doc = random_document(seed, 12)
        plan = plan_period(problem_of(doc), evaluations=100).document()
        shorter = {**plan, "period": plan["period"] * 0.8}
        late = {**plan, "tasks": [[d, s + (0.5 * plan["period"] if t == 0 else 0)] for t, (d, s) in enumerate(plan["tasks"])]}
        seen += bool(violations(doc, shorter)) + bool(violations(doc, late))
    assert seen >= 25


def test_a_plan_depends_on_seed_and_evaluations_alone():
    problem = problem_of(random_document(7, 16))
    one, two = (plan_period(problem, seed=3, evaluations=200) for _ in range(2))
    assert one == two
    assert plan_period(problem, seed=3, evaluations=800).period <= one.period


def test_turns_rotate_over_lanes():
    plan = plan_period(problem_of(document([[8e-3]], [(4, 0)])))
    assert plan.period == pytest.approx(2e-3, rel=1e-6)


def test_state_keeps_turns_in_order():
    plan = plan_period(problem_of(document([[8e-3]], [(4, 0)], carried=[(0, 0, 60_000, 1)])))
    assert plan.period == pytest.approx(8e-3, rel=1e-6)
    assert plan.bound == PeriodBound(8e-3, "task", (0,), 1)


def test_one_lane_takes_the_sum():
    plan = plan_period(problem_of(document([[1e-3], [2e-3], [3e-3]], [(1, 0)], edges=[(0, 1, 60_000), (1, 2, 60_000)])))
    assert plan.period == pytest.approx(6e-3, rel=1e-6)


def test_a_chain_over_two_devices_overlaps():
    doc = document([[1e-3, None], [None, 1e-3]], [(1, 0), (1, 1)], edges=[(0, 1, 60_000)])
    plan = plan_period(problem_of(doc))
    assert plan.period == pytest.approx(1e-3, rel=1e-6)
    assert len(plan.copies) == 1


def test_a_feedback_over_a_link_pays_for_both_copies():
    doc = document([[1e-3, None], [None, 1e-3]], [(1, 0), (1, 1)], edges=[(0, 1, 1_000_000)], carried=[(1, 0, 1_000_000, 1)])
    plan = plan_period(problem_of(doc))
    assert plan.period == pytest.approx(2e-3 + 2 * (1e-5 + 1e-3), rel=1e-6)


def test_two_readers_in_one_memory_share_the_copy_and_a_queue_takes_one_at_a_time():
    doc = document(
        [[1e-4, None], [1e-4, None], [None, 1e-4], [None, 1e-4]], [(2, 0), (1, 1)], [(0, 2, 3_000_000), (0, 3, 3_000_000), (1, 3, 3_000_000)]
    )
    plan = plan_period(problem_of(doc))
    assert len(plan.copies) == 2
    assert plan.period == pytest.approx(2 * (1e-5 + 3e-3), rel=1e-6)
    free = plan_period(problem_of({**doc, "links": [{**x, "queue": False} for x in doc["links"]]}))
    assert free.period == pytest.approx(2e-4, rel=1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_small_bodies_without_cycles_reach_the_best_assignment(seed):
    doc = random_document(seed, 6)
    doc["carried"] = []
    core = Core(problem_of(doc))
    cycles = Cycles(core)
    best = min(least_period(core, cycles, a) for a in itertools.product(*core.allowed))
    assert plan_period(problem_of(doc)).period <= 1.01 * best / 1e9


def test_turns_in_flight_are_limited():
    durations = [[1e-3, None], [None, 1e-3]] * 3
    edges = [(i, i + 1, 60_000) for i in range(5)]
    doc = document(durations, [(3, 0), (3, 1)], edges)
    free, tight = plan_period(problem_of(doc)), plan_period(problem_of({**doc, "max_in_flight": 2}))
    length = {p: max(s + 1e-3 for _, s in p.tasks) - min(s for _, s in p.tasks) for p in (free, tight)}
    assert length[free] / free.period > 2
    assert length[tight] <= 2 * tight.period * (1 + 1e-9)
    assert violations(doc, tight.document()) == []


def test_memory_is_limited():
    durations = [[1e-3, None], [None, 1e-3]] * 3
    doc = document(durations, [(3, 0), (3, 1)], [(i, i + 1, 6_000_000) for i in range(5)])
    doc["memory"] = [5 * 6_000_000, None]
    assert violations(doc, plan_period(problem_of(doc)).document()) == []
    with pytest.raises(OutOfMemoryError, match=r"memory node 0 take 30000000 bytes of 6000000"):
        plan_period(problem_of({**doc, "memory": [6_000_000, None]}))


def test_a_task_without_a_device_is_named():
    with pytest.raises(PlacementError, match="'t1'"):
        plan_period(problem_of(document([[1e-3], [None]], [(1, 0)])))


def test_an_empty_body_takes_no_time():
    plan = plan_period(problem_of(document([], [(1, 0)])))
    assert (plan.period, plan.tasks) == (0.0, ())


def test_time_that_is_over_still_gives_a_plan():
    doc = random_document(4, 18)
    assert violations(doc, plan_period(problem_of(doc), seconds=0.0).document()) == []


# Files ------------------------------------------------------------------------------------------------------------------------


def test_files_plain_and_packed_are_planned(tmp_path):
    doc = random_document(1, 8)
    plain, packed = tmp_path / "body.json", tmp_path / "body.json.gz"
    plain.write_text(json.dumps(doc))
    with gzip.open(packed, "wt") as file:
        json.dump(doc, file)
    one, two = plan_body_file(plain), plan_body_file(packed)
    assert list(one) == ["file", "name", "period", "lower_bound", "seconds", "plan"]
    assert (one["name"], one["plan"]) == ("small", two["plan"])
    assert one["period"] == one["plan"]["period"] >= one["lower_bound"]
    assert violations(doc, json.loads(json.dumps(one))["plan"]) == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format": "other/2"}, "found 'other/2'"),
        ({"carried": [[0, 0, 1, 0]]}, "distance of at least 1"),
        ({"devices": 3}, "not a loop body"),
    ],
)
def test_other_documents_are_refused(tmp_path, change, text):
    path = tmp_path / "body.json"
    path.write_text(json.dumps({**document([[1e-3]], [(1, 0)]), **change}))
    with pytest.raises(FileError, match=text):
        read_body(path)


def test_files_that_are_no_json_are_refused(tmp_path):
    path = tmp_path / "body.json.gz"
    path.write_text("{")
    with pytest.raises(FileError, match="cannot be read"):
        read_body(path)
    with pytest.raises(FileError, match="cannot be read"):
        read_body(tmp_path / "none.json")


# Parts ------------------------------------------------------------------------------------------------------------------------


def test_forged_bounds_are_refused():
    problem = problem_of(random_document(3, 10))
    bound = period_bound(problem)
    assert check_period_bound(problem, bound)
    assert not check_period_bound(problem, replace(bound, seconds=bound.seconds * 1.01))
    assert not check_period_bound(problem, PeriodBound(1e-6, "cycle", (0, 9), 1))


def ratio_by_force(seconds, arcs):
    """The maximum cycle ratio over all simple cycles."""
    best = 0.0
    n = len(seconds)
    for length in range(1, n + 1):
        for cycle in itertools.permutations(range(n), length):
            if cycle[0] != min(cycle):
                continue
            steps = [[k for a, b, k in arcs if (a, b) == (u, cycle[(i + 1) % length])] for i, u in enumerate(cycle)]
            if all(steps) and (distance := sum(map(min, steps))) > 0:
                best = max(best, sum(seconds[u] for u in cycle) / distance)
    return best


@pytest.mark.parametrize("seed", range(15))
def test_the_cycle_ratio_is_that_of_the_worst_cycle(seed):
    rng = random.Random(seed)
    n = 5
    seconds = [rng.randint(1, 100) for _ in range(n)]
    arcs = [(u, v, 0) for u in range(n) for v in range(u + 1, n) if rng.random() < 0.4]
    arcs += [(rng.randrange(n), rng.randrange(n), rng.randint(1, 3)) for _ in range(5)]
    arcs = [(u, v, k) for u, v, k in arcs if u < v or k > 0]
    out = [[(v, k) for a, v, k in arcs if a == u] for u in range(n)]
    period, start, _ = cycle_ratio(seconds, out, topological(n, out))
    assert period == max(1, math.ceil(ratio_by_force(seconds, arcs) - 1e-9))
    assert all(start[v] + k * period >= start[u] + seconds[u] for u, v, k in arcs)


def test_loads_kept_up_are_loads_computed_anew():
    rng = random.Random(2)
    for seed in range(10):
        core = Core(problem_of(random_document(seed, 12)))
        balance = Balance(core, [row[0] for row in core.allowed])
        cycles = Cycles(core)
        for _ in range(60):
            t = rng.randrange(core.n)
            balance.move(t, rng.choice(core.allowed[t]))
            assert balance.load == pytest.approx(Balance(core, balance.assignment).load)
            assert cycles.ratio(balance.assignment, 1) == Cycles(core).ratio(balance.assignment, 1)


def test_profiles_find_the_first_free_lane():
    rng = random.Random(4)
    for _ in range(200):
        period, lanes = rng.randint(5, 40), rng.randint(1, 3)
        profile, booked = Profile(period, lanes), []

        def used(t, booked=booked, period=period):
            return sum((t - s) // period - (t - s - w) // period for s, w in booked)

        for op in range(8):
            w, at = rng.randint(1, period * lanes), rng.randint(0, 3 * period)
            shift = profile.first(at, w, False)
            # A task of several periods holds several lanes at the same phase.
            own = [len(range(i, w, period)) for i in range(min(w, period))]
            free = [d for d in range(period) if all(used(at + d + i) + n <= lanes for i, n in enumerate(own))]
            assert shift == (free[0] if free else -1)
            touching = profile.first(at, w, True)
            assert (touching in free) if free else touching == -1
            if shift >= 0:
                profile.book(op, at + shift, w)
                booked.append((at + shift, w))
        for op in list(profile.booked):
            profile.release(op)
        assert max(profile.used) == 0
        assert profile.first(3, period * lanes, False) == 0


def planned(seed, n=14):
    """(ops, starts, period) of a plan, in whole nanoseconds."""
    core = Core(problem_of(random_document(seed, n)))
    plan = plan_period(core.problem, evaluations=60)
    ops = Ops(core, [d for d, _ in plan.tasks])
    when = {(v, link): s for v, link, s in plan.copies}
    start = [round(s * 1e9) for _, s in plan.tasks] + [round(when[c] * 1e9) for c in ops.copies]
    return ops, start, round(plan.period * 1e9)


def test_exchanges_can_be_taken_back():
    for seed in range(10):
        ops, start, period = planned(seed)
        order = Order(ops, start, period)
        for u in range(ops.count):
            kept = list(order.next), list(order.before), list(order.step)
            if order.next[u] >= 0 and order.exchange(u):
                totals = [sum(order.step[x] for x in range(ops.count) if ops.resource[x] == r) for r in range(ops.core.resources)]
                assert totals == [sum(kept[2][x] for x in range(ops.count) if ops.resource[x] == r) for r in range(ops.core.resources)]
                assert order.exchange(order.before[u])
            assert (order.next, order.before, order.step) == kept


def test_sliding_keeps_period_lanes_and_data_and_shortens_lives():
    shorter = 0
    for seed in range(20):
        ops, start, period = planned(seed)
        early = [s + 7 * period if u % 3 == 0 and not ops.into[u] and not ops.out[u] else s for u, s in enumerate(start)]
        found = slid(ops, early, period)
        assert all(found[v] + k * period >= found[u] + ops.seconds[u] for u in range(ops.count) for v, k in ops.out[u])
        arcs = lane_arcs(ops, found, period)
        assert all(found[v] + k * period >= found[u] + ops.seconds[u] for u, v, k in arcs)

        def lives(starts, ops=ops, period=period):
            total = 0
            for maker, w, _, uses in ops.replicas:
                end = max([starts[maker] + ops.seconds[maker], *(starts[v] + ops.seconds[v] + k * period for v, k in uses)])
                total += ops.core.nbytes[w] * (end - starts[maker])
            return total

        shorter += lives(found) <= lives(start) * 1.0001
    assert shorter >= 18


@pytest.mark.parametrize("seed", range(6))
def test_machine_code_gives_the_periods_of_python(seed, monkeypatch):
    found = native.library()
    if found is None:
        pytest.skip("no C compiler")
    problem = problem_of(random_document(seed, 14))
    plans = []
    for circles in (None, Circles(found.code)):
        monkeypatch.setattr(periodic, "for_body", lambda work, circles=circles: circles)
        plans.append(plan_period(problem, evaluations=400, seed=seed))
    assert plans[0] == plans[1]


def test_machine_code_finds_a_cycle_that_is_too_long_and_the_least_starts_where_there_is_none():
    found = native.library()
    if found is None:
        pytest.skip("no C compiler")
    circles = Circles(found.code)
    # 0 -> 1 -> 2 -> 0 one turn later: 9 + 1 + 4 over one turn.
    flat = Flat([[(1, 0)], [(2, 0)], [(0, 1)]], [9, 1, 4])
    ops, arcs, turns = circles.find(flat, 13, array("q", [0, 0, 0]))
    assert sorted(ops) == [0, 1, 2]
    assert [flat.to[arc] for arc in arcs] == ops
    assert sum(turns) == 1
    start = array("q", [0, 0, 0])
    assert circles.find(flat, 14, start) is None
    assert start.tolist() == [0, 9, 10]
    # With an arc to what follows on its lane, two turns later, the same ops wait for longer.
    assert circles.find(flat, 14, start, follow=(array("q", [-1, 0, -1]), array("q", [0, 0, 0]))) is not None
