"""Costed graphs from a few numbers, and the best plan of the smallest by trying all."""

import itertools

import numpy as np

from hetsched.placement.costed.planning import CostedDraft, costed_problem


def costed(durations, edges=(), lanes=None, links=1.0):
    n = len(durations[0]) if durations else 1
    return costed_problem(
        {
            "format": "placement-bench/1",
            "mem_nodes": [f"m{d}" for d in range(n)],
            "devices": [{"name": f"d{d}", "lanes": lanes[d] if lanes else 1, "mem": d} for d in range(n)],
            "links": [{"src": a, "dst": b, "latency": links, "bandwidth": 1.0} for a, b in itertools.permutations(range(n), 2)],
            "durations": durations,
            "edges": list(edges),
        }
    )


def best_makespan(problem):
    """The optimum of a small problem without lanes to queue on: every assignment, every order."""
    best = np.inf
    n, c = problem.durations.shape
    edges = [(int(problem.pred_task[k]), t) for t in range(n) for k in range(problem.pred_start[t], problem.pred_start[t + 1])]
    able = [[d for d in range(c) if problem.durations[t, d] < np.inf] for t in range(n)]
    for order in itertools.permutations(range(n)):
        if any(order.index(u) > order.index(v) for u, v in edges):
            continue
        for choices in itertools.product(*able):
            draft = CostedDraft(problem)
            for task in order:
                draft.place(task, choices[task])
            best = min(best, draft.finish())
    return best
