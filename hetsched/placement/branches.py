"""Plans of what holds graphs: the body of a loop (`loops`), the two branches of an if.

A run does one branch, once: each has a straight plan of its own, on all devices, as if it were a graph by itself. Its inputs lie on the host, where
its outputs go. The plan around it books the longer branch, or their mean by the likelihood of the condition, and the bytes of the larger.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from hetsched.errors import GraphError
from hetsched.graph.graph import Graph, If, Loop, Nested, Where
from hetsched.machine import Machine
from hetsched.placement.bounds import lower_bound
from hetsched.placement.costs.estimate import CostModel
from hetsched.placement.draft import GraphDraft, Policy
from hetsched.placement.loops import plan_loop
from hetsched.placement.memory import PlanTooLargeError
from hetsched.placement.memory.fitting import fitted
from hetsched.placement.policies import TOOK, find, name_of
from hetsched.placement.problem import Problem, problem_of
from hetsched.timeline import Timeline


def plan_nested(
    op: Nested,
    machine: Machine,
    costs: CostModel,
    *,
    only: str | None = None,
    memory: Mapping[str, int] | None = None,
    where: Where | None = None,
    name: str | None = None,
    policy: str | Policy = "auto",
) -> Timeline:
    """The plan of a loop's body, or of branch `then` of an if with that of the other as its `otherwise`.

    only: device pattern that limits the tasks which have a kernel on a matching device. memory: node -> bytes, instead of the machine's. where:
    devices for the whole, kept where a task can. name: what errors call it, else its own. policy: what plans branches.
    Raises as `plan_graph` does.
    """
    nested = partial(plan_nested, only=only, memory=memory, policy=policy)
    if isinstance(op, Loop):
        return plan_loop(op, machine, costs, only=only, memory=memory, where=where, name=name, nested=nested)
    assert isinstance(op, If)
    problems = op.problems()
    if problems:
        raise GraphError([f"if {name or op.name!r}: {p}" for p in problems])
    then, otherwise = (_plan_branch(op, graph, machine, costs, only, memory, where, policy) for graph in op.graphs)
    return replace(then, otherwise=otherwise)


def _plan_branch(
    op: If, graph: Graph, machine: Machine, costs: CostModel, only: str | None, memory: Mapping[str, int] | None, where: Where | None,
    policy: str | Policy,
) -> Timeline:  # fmt: skip
    began = time.perf_counter()

    def nested(inner: Nested, on: Machine, prices: CostModel, where: Where | None = where, name: str | None = None) -> Timeline:
        return plan_nested(inner, on, prices, only=only, memory=memory, where=where, name=name, policy=policy)

    problem = _held(problem_of(graph, machine, costs, only=only, memory=memory, plan_loop=nested), graph, machine, where)
    draft, chosen = GraphDraft(problem), find(policy)
    chosen(draft)
    try:
        plan = draft.plan()
    except PlanTooLargeError as error:
        plan = fitted(draft, chosen, error, is_auto=policy == "auto")
    bound = lower_bound(problem, 0.0, plan.makespan)
    name = policy if isinstance(policy, str) else name_of(policy)
    notes = tuple(note for note in plan.notes if not note.startswith(TOOK))  # which policy it was is told of the whole
    beginning = getattr(costs, "beginning", None)  # a branch begins and ends as a loop does: bindings, threads, handing over results
    more = beginning(plan) if beginning is not None else 0.0
    return replace(plan, branch=op, begin_seconds=more, notes=notes, policy=name, bound=bound, plan_seconds=time.perf_counter() - began)


def _held(problem: Problem, graph: Graph, machine: Machine, where: Where | None) -> Problem:
    """The problem with tasks that say nothing themselves on the devices of `where`, where they can."""
    if where is None or where.same_as is not None:
        return problem
    device = np.array([c.device for c in problem.choices])
    durations = problem.durations.copy()
    for task in range(len(graph)):
        if task in problem.loops or task in graph.where or task in problem.groups:
            continue
        able = np.isfinite(durations[task])
        kept = able & ~np.isin(device, [i for i, d in enumerate(machine.devices) if any(d.matches(p) for p in where.exclude)])
        kept = kept if kept.any() else able
        liked = (kept & np.isin(device, [i for i, d in enumerate(machine.devices) if d.matches(p)]) for p in where.allow)
        durations[task, ~next((mask for mask in liked if mask.any()), kept)] = np.inf
    return replace(problem, durations=durations)


__all__ = ["plan_nested"]
