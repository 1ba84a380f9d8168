"""Where and when: from a graph, a machine and costs to a plan. `plan_graph` for graphs, `costed.plan_costed` for costed graphs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

from hetsched.graph.graph import Graph, Loop
from hetsched.machine import Machine
from hetsched.placement.bounds import SHARE, lower_bound
from hetsched.placement.costs import CostModel, RooflineCosts
from hetsched.placement.costs.objective import check_objective
from hetsched.placement.draft import GraphDraft, Policy
from hetsched.placement.memory import PlanTooLargeError
from hetsched.placement.policies import earliest_finish, find, one_device, serial
from hetsched.placement.problem import PlanLoop, Problem, problem_of
from hetsched.placement.quiet import no_garbage_collection
from hetsched.placement.search import improve
from hetsched.timeline import Timeline


def plan_graph(
    graph: Graph,
    machine: Machine,
    costs: CostModel | None = None,
    policy: str = "auto",
    objective: str = "time",
    plan_seconds: float = 0.0,
    only: str | None = None,
    memory: Mapping[str, int] | None = None,
) -> Timeline:
    """The plan of `graph` on `machine` by `policy`, laid out in memory, with a lower bound on its makespan. Pure: touches no device.

    costs: the roofline of the machine where None. plan_seconds: time to search for something better than the policy's plan.
    only: a device pattern (`gpu`, `cuda:0`) for the tasks that have a kernel on a matching device; others are not limited.
    memory: node -> bytes at most, instead of the machine's own figures.
    Raises `PlacementError` (no device fits a task, or constraints contradict), `OutOfMemoryError` (no plan was found that fits),
    `CommandLineError` (unknown policy or objective).
    """
    started = time.perf_counter()
    check_objective(objective)
    chosen = find(policy)
    limits = dict(memory or {})
    plan_loop: PlanLoop | None = None
    if any(isinstance(op, Loop) for op in graph.task_ops):
        # Loops plan their bodies with tools of this package: loaded only where there are some.
        from hetsched.placement.loops import plan_loop as plan_body

        plan_loop = partial(plan_body, only=only, memory=limits or None)
    with no_garbage_collection():
        problem = problem_of(graph, machine, costs or RooflineCosts(machine), only=only, memory=limits, plan_loop=plan_loop)
        draft = GraphDraft(problem)
        chosen(draft)
        if plan_seconds > 0:
            improve(draft, started + plan_seconds * (1 - SHARE))
        try:
            plan = draft.plan()
        except PlanTooLargeError as error:
            if policy != "auto":
                raise
            plan = _frugal_plan(problem, error)
        bound = lower_bound(problem, plan_seconds * SHARE, plan.makespan)
    if limits:
        machine = replace(machine, memories=tuple(replace(m, nbytes=limits.get(m.name, m.nbytes)) for m in machine.memories))
    seconds = time.perf_counter() - started
    return replace(plan, machine=machine, policy=policy, objective=objective, bound=bound, plan_seconds=seconds)


def _frugal_plan(problem: Problem, error: PlanTooLargeError) -> Timeline:
    """A plan that fits, by ways that hold less at once, as a rule; where none does, the error of the one that came nearest."""
    errors = [error]
    for name, book in _frugal(problem):
        draft = GraphDraft(problem)
        book(draft)
        draft.notes.append(f"the fastest plan does not fit the memory; this is the one of {name}")
        try:
            return draft.plan()
        except PlanTooLargeError as other:
            errors.append(other)
    raise min(errors, key=lambda e: e.missing)


def _frugal(problem: Problem) -> Iterator[tuple[str, Policy]]:
    yield "earliest_finish", earliest_finish.policy
    yield "one_device", one_device.policy
    for number, device in enumerate(problem.device_ids):
        yield f"one task at a time, on {device} where it can be", partial(serial.one_at_a_time, device=number)


__all__ = ["plan_graph"]
