"""Better plans for more time. `improve` is anytime and never worse than what it starts from.

Costed graphs are searched as lists of tasks with devices (`search/costed.py`), plans of graphs, where copies queue and resources run out, by decoding
priorities with the draft itself (`search/draft.py`). The plan that either tries as its n-th depends on the seed and n alone: with the same number of
evaluations the result is the same, with more it is never worse.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from hetsched.placement import native
from hetsched.placement.costed.draft import CostedDraft
from hetsched.placement.draft import Draft
from hetsched.placement.policies import find
from hetsched.placement.search.costed import Found, improve_costed
from hetsched.placement.search.draft import improve_draft

SEED = 7
# What pays for building machine code (about 0.5 s): seconds of search, or evaluations times tasks. Once built it costs nothing.
COMPILED_FROM_SECONDS = 0.5
COMPILED_FROM_WORK = 2e7
# Policies whose plans a search of so many seconds looks at first, for graphs of at most so many tasks: where they take no time that matters.
STARTS = {"mct": 300, "min_min": 300, "heteroprio": 300, "cpop": 300, "lookahead": 100}
STARTS_FROM_SECONDS = 0.5


def improve(
    draft: Draft,
    seconds: float = math.inf,
    *,
    evaluations: float = math.inf,
    seed: int = SEED,
    target: float = 0.0,
    compiled: bool | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Found:
    """Replace what is booked in `draft`, which must be whole, by the best plan found within `seconds` and `evaluations`, whichever is less.

    target: a makespan in seconds at which to stop, such as a lower bound. compiled: whether machine code does the work (costed graphs only); None:
    where it is there or pays for being built, which is not counted in `seconds`.
    """
    if seconds == math.inf and evaluations == math.inf:
        raise ValueError("a search without end: give seconds or evaluations")
    before = draft.finish()
    if not len(draft.problem) or before <= target:
        return Found(0, 0.0)
    if isinstance(draft, CostedDraft):
        if compiled is None:
            work = min(evaluations, 1e12) * len(draft.problem)
            compiled = native.is_built() or (seconds >= COMPILED_FROM_SECONDS and work >= COMPILED_FROM_WORK)
        if seconds >= STARTS_FROM_SECONDS and evaluations >= len(draft.problem):
            _try_others(draft)
        found = improve_costed(draft, seconds, evaluations, seed=seed, clock=clock, compiled=compiled, target=target)
    else:
        found = Found(improve_draft(draft, seconds, evaluations, seed=seed, clock=clock, target=target), 0.0)
    after = draft.finish()
    gain = f"{100 * (1 - after / before):.1f} % shorter" if after < before else "none shorter"
    draft.notes.append(f"search tried {found.evaluations:,} plans: {gain}")
    return found


def _try_others(draft: CostedDraft) -> None:
    """Start from the best plan of more policies: where all of a cluster of tasks must move at once, another start is worth more than many steps."""
    problem = draft.problem
    for name, most_tasks in STARTS.items():
        if len(problem) <= most_tasks:
            trial = CostedDraft(problem)
            find(name)(trial)
            if trial.finish() < draft.finish():
                trial.notes = draft.notes
                draft.adopt(trial)


__all__ = ["Found", "improve"]
