"""A problem as a model for OR-Tools CP-SAT (extra `exact`), loaded only where it is asked for.

Times are whole ticks, rounded down, so that what the solver proves about ticks holds for seconds. Copies do not queue and memory is unbounded in the
model, as in a costed graph; of a graph on a machine it is a relaxation, so that its bound holds there too, while its plan may be beaten.
"""

from __future__ import annotations

from itertools import pairwise
from math import floor, inf, isfinite
from typing import Any, NamedTuple

import numpy as np

from hetsched.errors import CommandLineError, PlanError
from hetsched.placement.bounds.paths import from_host, shortest_links, to_host
from hetsched.placement.problem import Problem
from hetsched.timeline import Bound

# Tasks that CP-SAT is asked to place; beyond, it seldom proves anything, and the model grows with the square of the choices.
MOST_TASKS = 100
# Ticks of the plan that is known: rounding takes at most (tasks of a path) of so many from the bound.
TICKS = 500_000
# Effort, in the solver's own measure, the same on every run: 1 is 1 to 10 s. And seconds at most, however slow the machine is.
EFFORT, MOST_SECONDS = 4.0, 60.0


class CpSatWitness(NamedTuple):
    """CP-SAT found that no plan is shorter than `ticks` of `tick_seconds` each. To verify means to solve again."""

    ticks: int
    tick_seconds: float


class Solved(NamedTuple):
    """What CP-SAT found: of each task its choice and its start in ticks (None where it found no plan), and what it proved."""

    choices: list[int] | None
    starts: list[int] | None
    bound: Bound


def solver() -> Any:
    """The module of CP-SAT. Raises `CommandLineError` with the way out where it is not installed."""
    try:
        from ortools.sat.python import cp_model
    except ImportError as error:
        raise CommandLineError(
            'policy "exact" needs OR-Tools, which is not installed: pip install "hetsched[exact]", or use --policy auto --plan-time 10s'
        ) from error
    return cp_model


def solve(problem: Problem, makespan: float, hint: tuple[list[int], list[float]], effort: float = EFFORT) -> Solved:
    """Look for the best plan, given one of `makespan` seconds as (choices, starts in seconds).

    Raises `CommandLineError` where the graph is too large or OR-Tools is missing.
    """
    cp_model = solver()
    if len(problem) > MOST_TASKS:
        raise CommandLineError(
            f'policy "exact" is for graphs of at most {MOST_TASKS} tasks, this one has {len(problem)}; use --policy auto --plan-time 10s'
        )
    tick = makespan / TICKS
    if tick <= 0:
        return Solved(None, None, Bound(0.0, "cp-sat", CpSatWitness(0, 1.0)))
    # Rounded down, the known plan is no longer than this.
    model, starts, able, last = _model(cp_model, problem, tick, TICKS)
    for t, choice in enumerate(hint[0]):
        model.add_hint(starts[t], min(floor(hint[1][t] / tick), TICKS))
        for c, literal in able[t].items():
            model.add_hint(literal, c == choice)
    model.minimize(last)
    engine = _engine(cp_model, effort)
    status = engine.solve(model)
    proved = max(int(np.ceil(engine.best_objective_bound - 1e-6)), 0)
    # Less one tick, and by a share: rounding of seconds to ticks and back must not lift the bound.
    bound = Bound(max(proved - 1, 0) * tick * (1 - 1e-9), "cp-sat", CpSatWitness(max(proved - 1, 0), tick))
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Solved(None, None, bound)
    chosen = [next(c for c, literal in row.items() if engine.boolean_value(literal)) for row in able]
    return Solved(chosen, [engine.value(s) for s in starts], bound)


def check_solved(problem: Problem, bound: Bound) -> float:
    """The bound in seconds, if CP-SAT proves once more that nothing is shorter. Raises `PlanError` if it does not within its effort."""
    witness = bound.witness
    if not isinstance(witness, CpSatWitness) or not isfinite(witness.tick_seconds) or witness.tick_seconds <= 0:
        raise PlanError(f"the witness of a bound by CP-SAT is {witness!r}; wanted a CpSatWitness with ticks of above 0 s")
    if witness.ticks <= 0:
        return 0.0
    cp_model = solver()
    model, *_ = _model(cp_model, problem, witness.tick_seconds, witness.ticks - 1)
    engine = _engine(cp_model, 2 * EFFORT)
    if engine.solve(model) != cp_model.INFEASIBLE:
        raise PlanError(f"CP-SAT does not prove again that no plan is shorter than {witness.ticks} ticks of {witness.tick_seconds:.9g} s")
    return witness.ticks * witness.tick_seconds


def _engine(cp_model: Any, effort: float) -> Any:
    engine = cp_model.CpSolver()
    engine.parameters.max_deterministic_time = effort
    engine.parameters.max_time_in_seconds = MOST_SECONDS
    # One worker gives the same answer every time. So do strategies that take turns, but they were 5 to 40 times slower to a proof.
    engine.parameters.num_workers = 1
    engine.parameters.random_seed = 7
    return engine


def _model(cp_model: Any, problem: Problem, tick: float, horizon: int) -> tuple[Any, list[Any], list[dict[int, Any]], Any]:
    """(model, start of each task, task -> choice -> literal, the last finish), all within `horizon` ticks."""

    def ticks(seconds: float) -> int:
        return floor(seconds / tick * (1 + 1e-12))

    model = cp_model.CpModel()
    n, nodes = len(problem), range(len(problem.node_names))
    latency, per_byte = shortest_links(problem)
    given, home = from_host(problem, latency, per_byte), to_host(problem, latency, per_byte)
    last = model.new_int_var(0, horizon, "last")
    starts = [model.new_int_var(0, horizon, f"start{t}") for t in range(n)]
    finishes = [model.new_int_var(0, horizon, f"finish{t}") for t in range(n)]
    able: list[dict[int, Any]] = []
    on_node: list[dict[int, Any]] = []
    booked: list[list[tuple[Any, int]]] = [[] for _ in problem.pools]
    for t in range(n):
        row = {c: model.new_bool_var(f"{t}on{c}") for c in range(len(problem.choices)) if problem.durations[t, c] < inf}
        model.add_exactly_one(row.values())
        here: dict[int, Any] = {}
        for m in nodes:
            own = [literal for c, literal in row.items() if problem.choices[c].node == m]
            if len(own) == 1:
                here[m] = own[0]
            elif own:
                here[m] = model.new_bool_var(f"{t}at{m}")
                model.add(sum(own) == here[m])
        for c, literal in row.items():
            choice, seconds = problem.choices[c], float(problem.durations[t, c])
            span = model.new_optional_interval_var(starts[t], ticks(seconds), finishes[t], literal, f"{t}span{c}")
            if choice.pool >= 0:
                booked[choice.pool].append((span, choice.width))
        for m, literal in here.items():
            if given[t, m] > 0:
                model.add(starts[t] >= ticks(float(given[t, m]))).only_enforce_if(literal)
            model.add(last >= finishes[t] + ticks(float(home[t, m]))).only_enforce_if(literal)
        able.append(row)
        on_node.append(here)
    for pool, spans in zip(problem.pools, booked, strict=True):
        if pool.lanes == 1:
            model.add_no_overlap([span for span, _ in spans])
        else:
            model.add_cumulative([span for span, _ in spans], [width for _, width in spans], pool.lanes)
    for t in range(n):
        for k in range(int(problem.pred_start[t]), int(problem.pred_start[t + 1])):
            before, nbytes = int(problem.pred_task[k]), float(problem.pred_largest[k])
            model.add(starts[t] >= finishes[before])
            for a, from_a in on_node[before].items() if nbytes >= 0 else ():
                for b, to_b in on_node[t].items():
                    wait = ticks(float(latency[a, b] + nbytes * per_byte[a, b])) if a != b else 0
                    if wait > 0:
                        model.add(starts[t] >= finishes[before] + wait).only_enforce_if(from_a, to_b)
    for group in {tuple(sorted(g)) for g in problem.groups.values()}:
        for one, other in pairwise(group):
            for device in range(len(problem.device_ids)):
                sides = [sum(x for c, x in able[t].items() if problem.choices[c].device == device) for t in (one, other)]
                model.add(sides[0] == sides[1])
    return model, starts, able, last
