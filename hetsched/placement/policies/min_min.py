"""Min-min: of all ready tasks the one that can be over first, where it is over first; then again.

Ibarra, Kim: Heuristic algorithms for scheduling independent tasks on nonidentical processors (JACM 24(2), 1977), algorithm D; named and compared in
Maheswaran et al. (JPDC 59(2), 1999), section 3.2.
"""

from __future__ import annotations

import heapq

import numpy as np

from hetsched.placement.draft import Draft


def policy(draft: Draft) -> None:
    """Book every task of the draft."""
    problem = draft.problem
    starts, later = (a.tolist() for a in problem.succ[:2])
    waiting = np.diff(problem.pred_start).tolist()
    ready = [(_least(draft, t), t) for t in range(len(problem)) if not waiting[t]]
    heapq.heapify(ready)
    while ready:
        _, task = ready[0]
        # Bookings only ever take room away, so what the heap holds is too early rather than too late: ask again only what comes first.
        now = _least(draft, task)
        if len(ready) > 1 and now > min(ready[1:3])[0]:
            heapq.heapreplace(ready, (now, task))
            continue
        heapq.heappop(ready)
        draft.place(task, draft.earliest(task))
        for k in range(starts[task], starts[task + 1]):
            after = later[k]
            waiting[after] -= 1
            if not waiting[after]:
                heapq.heappush(ready, (_least(draft, after), after))


def _least(draft: Draft, task: int) -> float:
    return float(draft.finish_times(task).min())
