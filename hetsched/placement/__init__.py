"""Where and when: from a graph, a machine and costs to a plan. `plan_graph` for graphs, `costed.plan_costed` for costed graphs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from hetsched.errors import CommandLineError
from hetsched.graph.graph import Graph
from hetsched.machine import Machine
from hetsched.placement.asked import Asked, remember
from hetsched.placement.bounds import SHARE, lower_bound
from hetsched.placement.costs import CostModel, RooflineCosts
from hetsched.placement.costs.objective import Objective, ObjectiveLike
from hetsched.placement.draft import GraphDraft, Policy
from hetsched.placement.memory import PlanTooLargeError
from hetsched.placement.memory.fitting import fitted
from hetsched.placement.policies import find, name_of
from hetsched.placement.problem import PlanLoop, Problem, limits_of, problem_of
from hetsched.placement.search.improve import improve
from hetsched.placement.tradeoff import Point, Pool, choose, front, is_worth_it
from hetsched.quiet import no_garbage_collection
from hetsched.timeline import Bound, Timeline

LEFT_OUT = "{0} was left out: its programs would take longer to build than all this takes; -d {0} uses it, `hetsched calibrate {0}` has plans use it"


def plan_graph(
    graph: Graph,
    machine: Machine,
    costs: CostModel | None = None,
    policy: str | Policy = "auto",
    objective: ObjectiveLike = "time",
    plan_seconds: float = 0.0,
    only: str | None = None,
    memory: Mapping[str, int] | int | None = None,
) -> Timeline:
    """The plan of `graph` on `machine` by `policy`, laid out in memory, with a lower bound on its makespan. Pure: touches no device.

    policy: its name, or a function of a draft. costs: the roofline of the machine where None.
    objective: what is to be least (`costs.objective.Objective.of`): where it is not `time`, the plan is the best of a pool by the objective's own
    measure (`tradeoff`). plan_seconds: time to search for something better than the policy's plan.
    only: a device pattern (`gpu`, `cuda:0`) for the tasks that have a kernel on a matching device; others are not limited.
    memory: bytes at most, instead of the machine's own figures: by memory node, device or pattern of devices (`gpu`); a number is the host's.
    What does not fit at once is evicted, in an order that is planned.
    Raises `PlacementError` (no device fits a task, constraints contradict, a deadline cannot be kept, the machine does not state what the objective
    is about), `OutOfMemoryError` (no plan was found that fits), `CommandLineError` (unknown policy or objective).
    """
    started = time.perf_counter()
    goal = Objective.of(objective)
    given = policy
    limits = limits_of(machine, memory)
    chosen, policy = find(policy), policy if isinstance(policy, str) else name_of(policy)
    with no_garbage_collection():
        problem, plan_loop = _problem(graph, machine, costs, only, limits, policy=given)

        def write(problem: Problem, plan_loop: PlanLoop | None) -> tuple[Timeline, Problem]:
            if goal == Objective() and not (policy == "auto" and is_worth_it(problem)):
                draft = GraphDraft(problem)
                chosen(draft)
                if plan_seconds > 0:
                    improve(draft, plan_seconds * (1 - SHARE))
                try:
                    return draft.plan(), problem
                except PlanTooLargeError as error:
                    return fitted(draft, chosen, error, is_auto=policy == "auto"), problem
            pool = _pool(problem, chosen, policy, plan_loop, only)
            left = started + plan_seconds * (1 - SHARE) - time.perf_counter() if plan_seconds > 0 else 0.0
            return choose(pool, goal, lower_bound(pool.bound_problem()), max(left, 0.0)), pool.bound_problem()

        try:
            plan, problem = write(problem, plan_loop)
        except PlanTooLargeError as error:
            plan, problem = _with_smaller_loops(error, problem, lambda bodies: write(*_problem(graph, machine, costs, only, limits, bodies, given)))
        bound = lower_bound(problem, plan_seconds * SHARE, plan.makespan)
    finished = _finished(plan, machine, limits, policy, goal, bound, started)
    left_out = [name for name in getattr(costs, "building", ()) if name not in finished.owners]
    if left_out:
        finished = replace(finished, notes=(*finished.notes, *map(LEFT_OUT.format, left_out)))
    return remember(finished, Asked(machine, costs, given, goal, plan_seconds, only, limits or None))


def plan_front(
    graph: Graph,
    machine: Machine,
    costs: CostModel | None = None,
    policy: str = "auto",
    only: str | None = None,
    memory: Mapping[str, int] | int | None = None,
) -> list[Point]:
    """The front of time, energy and price: plans that no other plan found beats in all three, the fastest first. Arguments are those of `plan_graph`.

    What the machine states no watts or prices for does not count; `Point.figures.missing` says so.
    """
    started = time.perf_counter()
    limits = limits_of(machine, memory)
    chosen = find(policy)
    with no_garbage_collection():
        problem, plan_loop = _problem(graph, machine, costs, only, limits, policy=policy)
        pool = _pool(problem, chosen, policy, plan_loop, only)
        points = front(pool)
        bound = lower_bound(pool.bound_problem())
    goal = Objective()
    return [replace(p, plan=_finished(p.plan, machine, limits, policy, goal, bound, started)) for p in points]


def _with_smaller_loops(
    error: PlanTooLargeError, problem: Problem, write: Callable[[Mapping[str, int]], tuple[Timeline, Problem]]
) -> tuple[Timeline, Problem]:
    """What `write` gives where the bodies of loops are limited to so many bytes of a node: as much as the rest of the graph leaves, or less.

    A body is planned by itself, with all of the memory: what the rest of the graph holds meanwhile shows only when the whole is laid out. Raises
    `error` where nothing fits, or no loop takes of that memory: what it says would be enough is.
    """
    bodies = dict.fromkeys(problem.node_names, 0)
    for body in problem.loops.values():
        bodies |= {node: max(bodies[node], nbytes) for node, nbytes in body.room.items()}
    limits: dict[str, int] = {}
    last = error
    for share in (1.0, 0.5, 0.25, 0.0, 0.0):
        node = last.node
        if node is None or not bodies.get(node):
            break
        # At first what is missing less; at last as much as a loop needs at least, which it says where it is given a byte.
        is_refused = limits.get(node) == 1
        limits[node] = max(1, bodies[node] - last.missing if share == 1.0 else 1 + last.missing if is_refused else int(bodies[node] * share))
        try:
            return write(limits)
        except PlanTooLargeError as found:
            last = found
    raise error


def _problem(
    graph: Graph,
    machine: Machine,
    costs: CostModel | None,
    only: str | None,
    memory: Mapping[str, int] | None,
    bodies: Mapping[str, int] | None = None,
    policy: str | Policy = "auto",
) -> tuple[Problem, PlanLoop | None]:
    """The problem, and what plans the bodies of its loops and, by `policy`, the branches of its ifs; `bodies`: what one of those may have of a

    memory node, where less than the whole.
    """
    limits = dict(memory or {})
    plan_loop: PlanLoop | None = None
    if graph.has_loops:
        # Loops plan their bodies with tools of this package: loaded only where there are some.
        from hetsched.placement.branches import plan_nested as plan_body

        plan_loop = partial(plan_body, only=only, memory=limits | dict(bodies or {}) or None, policy=policy)
    return problem_of(graph, machine, costs or RooflineCosts(machine), only=only, memory=limits, plan_loop=plan_loop), plan_loop


def _pool(problem: Problem, chosen: Policy, policy: str, plan_loop: PlanLoop | None, only: str | None) -> Pool:
    def plan_body(task: int, machine: Machine) -> Timeline:
        assert problem.graph is not None
        assert plan_loop is not None
        return plan_loop(problem.graph.task_ops[task], machine, problem.costs, where=problem.graph.where.get(task))

    return Pool(problem, chosen, plan_body, is_auto=policy == "auto", only=only)


def _finished(
    plan: Timeline, machine: Machine, memory: Mapping[str, int] | None, policy: str, goal: Objective, bound: Bound, started: float
) -> Timeline:
    if memory:
        machine = replace(machine, memories=tuple(replace(m, nbytes=memory.get(m.name, m.nbytes)) for m in machine.memories))
    return replace(plan, machine=machine, policy=policy, objective=str(goal), bound=bound, plan_seconds=time.perf_counter() - started)


def _explain(plan: Timeline, task: str, **options: Any) -> Any:
    from hetsched.placement.why import explain_task

    if plan.measured:
        raise CommandLineError("this timeline is a trace of what has run; explain its plan (Result.plan)")
    return explain_task(plan, task, plan_graph, **options)


Timeline.explainer = staticmethod(_explain)


__all__ = ["plan_front", "plan_graph"]
