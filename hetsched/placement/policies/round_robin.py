"""Tasks in the order of the graph, dealt to the devices in turn. A device that cannot run a task is passed over. The line below every comparison."""

from __future__ import annotations

import numpy as np

from hetsched.placement.draft import Draft


def policy(draft: Draft) -> None:
    """Book every task of the draft."""
    problem = draft.problem
    narrow = [c for c, choice in enumerate(problem.choices) if choice.width == 1]
    turn = 0
    for task in problem.order.tolist():
        if task in problem.groups:
            possible = np.isfinite(draft.finish_times(task))
        else:
            possible = np.isfinite(problem.durations[task])
        choice = next((c for i in range(len(narrow)) if possible[c := narrow[(turn + i) % len(narrow)]]), -1)
        draft.place(task, choice if choice >= 0 else int(np.argmax(possible)))
        turn = (narrow.index(choice) + 1) % len(narrow) if choice >= 0 else turn
