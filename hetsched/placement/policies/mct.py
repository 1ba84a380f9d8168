"""MCT: tasks as they become ready, each at once where it completes first. A dispatcher without knowledge of what is still to come.

Maheswaran, Ali, Siegel, Hensgen, Freund: Dynamic mapping of a class of independent tasks onto heterogeneous computing systems (JPDC 59(2), 1999),
section 3.1; for graphs the arrival of a task is the finish of its last predecessor.
"""

from __future__ import annotations

import heapq

import numpy as np

from hetsched.placement.draft import Draft


def policy(draft: Draft) -> None:
    """Book every task of the draft."""
    problem = draft.problem
    place = np.empty(len(problem), dtype=np.int64)
    place[problem.order] = np.arange(len(problem))
    first = place.tolist()
    starts, later = (a.tolist() for a in problem.succ[:2])
    waiting = np.diff(problem.pred_start).tolist()
    arrival = [0.0] * len(problem)
    ready = [(0.0, first[t], t) for t in range(len(problem)) if not waiting[t]]
    heapq.heapify(ready)
    while ready:
        _, _, task = heapq.heappop(ready)
        finish = draft.place(task, draft.earliest(task))
        for k in range(starts[task], starts[task + 1]):
            after = later[k]
            arrival[after] = max(arrival[after], finish)
            waiting[after] -= 1
            if not waiting[after]:
                heapq.heappush(ready, (arrival[after], first[after], after))
