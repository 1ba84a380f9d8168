"""The best of several policies, each tried on a draft of its own. Never worse than the better of HEFT and PEFT, and at most 4 times the work of HEFT.

A plan that is certain to be longer than the best so far is given up. Where runs have shown what handing steps to threads, streams and links takes,
small graphs are compared by what a run is expected to take, and all that a device can run is tried there alone, for each device: policies do not see
what lies between tasks. Of large graphs each device that can run them is tried alone too, where its lanes, never idle, would be done sooner than the
best plan so far. The plan of a small costed graph is improved by a search of a few hundred plans, which takes some milliseconds.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from hetsched.placement.costs.handover import handover_of
from hetsched.placement.draft import Draft, HopelessError, Policy
from hetsched.placement.policies import TOOK, earliest_finish, heft, one_device, peft, twice
from hetsched.placement.problem import Problem
from hetsched.placement.ranks import by_rank, mean_copies, mean_durations, upward_ranks
from hetsched.placement.search.improve import improve

# Up to this many tasks the weaker members are tried too where copies queue on links: they win on small graphs whose copies are dear.
SMALL = 300
# Up to this many tasks HEFT is tried a second time: it costs a whole HEFT, with which large graphs would take 3 to 3.5 times the time of HEFT.
AGAIN = 500
# Each of so many devices is tried alone, for graphs of up to so many tasks: with 140 of them auto took 3.2 times the time of HEFT.
MOST_HOMES, ALONE = 4, 64
# Plans that are tried by search, for costed graphs of up to so many tasks: 7 ms (12 without machine code), and plans of at most 40 tasks come from
# 1.095 times the best known makespans to 1.029.
TRIED, SEARCHED = 200, 64


def policy(draft: Draft) -> None:
    """Book every task of the draft as the best of the portfolio does."""
    problem = draft.problem
    best = type(draft)(problem)
    heft.policy(best)
    known = not problem.is_costed and problem.machine is not None and bool(handover_of(problem.costs, problem.machine).known)
    counts_all = known and len(problem) <= SMALL
    name, least = "heft", best.expected() if counts_all else best.finish()

    def attempt(called: str, member: Policy) -> None:
        nonlocal best, name, least
        trial = type(draft)(problem)
        trial.give_up_above = least
        try:
            member(trial)
        except HopelessError:
            return
        found = trial.expected() if counts_all else trial.finish()
        if found < least:
            best, name, least = trial, called, found

    attempt("peft", peft.policy)
    if len(problem) <= AGAIN:
        attempt("heft, a second time", lambda trial: twice.again(trial, best))
    if problem.has_wide:
        attempt("heft without wide launches", narrow_heft)
    if not problem.is_costed and len(problem) <= SMALL:
        attempt("earliest_finish", earliest_finish.policy)
        attempt("one_device", one_device.policy)
    homes = len(problem.device_ids)
    if counts_all and 1 < homes <= MOST_HOMES and len(problem) <= ALONE:
        for home in range(homes):
            attempt(f"heft on {problem.device_ids[home]}", partial(heft_at, home=home))
    elif homes > 1 and not problem.is_costed:
        # Of a large graph only these are compared by what a run takes: one device more must not make the whole longer than doing without it.
        if known and not counts_all and len({problem.choices[c].device for c in best.choice_of}) > 1:
            counts_all, least = True, best.expected()
        for home, seconds in sufficient_homes(problem)[:MOST_HOMES]:
            if seconds < least:
                attempt(f"heft on {problem.device_ids[home]}", partial(heft_at, home=home))
    draft.adopt(best)
    draft.notes.append(TOOK + name)
    if problem.is_costed and 0 < len(problem) <= SEARCHED:
        improve(draft, evaluations=TRIED)


def sufficient_homes(problem: Problem) -> list[tuple[int, float]]:
    """The devices that can run as many tasks as any other, and the seconds that each would take at least to do so alone; the least first."""
    device_of, widths = np.array([c.device for c in problem.choices]), np.array([float(c.width) for c in problem.choices])
    lanes = np.array([float(problem.pools[c.pool].lanes) for c in problem.choices])
    taken = problem.durations * (widths / lanes)
    best = np.stack([taken[:, device_of == home].min(axis=1, initial=math.inf) for home in range(len(problem.device_ids))])
    runs = np.isfinite(best)
    seconds, counts = np.where(runs, best, 0.0).sum(axis=1), runs.sum(axis=1)
    return sorted(((int(home), float(seconds[home])) for home in np.flatnonzero(counts == counts.max())), key=lambda found: found[1])


def heft_at(draft: Draft, home: int) -> None:
    """HEFT that leaves device number `home` only for what that cannot run."""
    problem = draft.problem
    away = np.array([0.0 if choice.device == home else math.inf for choice in problem.choices])
    has_home = np.isfinite(problem.durations + away).any(axis=1)
    order = by_rank(problem, upward_ranks(problem, mean_durations(problem), mean_copies(problem)))
    draft.place_all(order, np.where(has_home[:, None], away, 0.0))


def narrow_heft(draft: Draft) -> None:
    """HEFT that launches nothing wide: greedy choice gives a device's lanes to one task even where others could use them at the same time."""
    problem = draft.problem
    wide = np.array([math.inf if choice.width > 1 else 0.0 for choice in problem.choices])
    order = by_rank(problem, upward_ranks(problem, mean_durations(problem), mean_copies(problem)))
    draft.place_all(order, np.broadcast_to(wide, problem.durations.shape))
