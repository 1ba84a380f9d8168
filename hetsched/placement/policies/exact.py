"""Exact: the best plan there is, by OR-Tools CP-SAT, with its proof. For graphs of at most 100 tasks; needs the extra `exact`.

The proof is of costed graphs. On a machine with links that queue or memory that runs out the solver's plan is taken where it is better than that of
`auto`, and its bound still holds. The solver's effort is limited (a minute at most), and what it has proved by then is told in a note.
"""

from __future__ import annotations

from hetsched.placement.cpsat import solve, solver
from hetsched.placement.draft import Draft
from hetsched.placement.policies import auto


def policy(draft: Draft) -> None:
    """Book every task of the draft. Raises `CommandLineError` where OR-Tools is not installed or the graph is too large."""
    problem = draft.problem
    solver()
    known = type(draft)(problem)
    auto.policy(known)
    makespan = known.finish()
    solved = solve(problem, makespan, (known.choice_of, known.start_of))
    problem.memo["proved"] = solved.bound
    found = known
    if solved.choices is not None and solved.starts is not None:
        place = {t: i for i, t in enumerate(problem.order.tolist())}
        trial = type(draft)(problem)
        for _, _, task, choice in sorted((start, place[t], t, c) for t, (start, c) in enumerate(zip(solved.starts, solved.choices, strict=True))):
            trial.place(task, choice)
        if trial.finish() < makespan:
            found = trial
    found.notes.clear()
    found.notes.append(_told(found.finish(), solved.bound.seconds))
    draft.adopt(found)


def _told(makespan: float, bound: float) -> str:
    if makespan <= bound * (1 + 1e-4):
        return "CP-SAT proved that no plan is shorter by more than 0.01 %"
    return f"CP-SAT proved that no plan takes less than {bound:.6g} s"
