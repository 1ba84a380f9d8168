"""Tasks in the order of the graph, dealt to the devices in turn. A device that cannot run a task is passed over. The line below every comparison."""

from __future__ import annotations

import numpy as np

from hetsched.placement.draft import Draft


def policy(draft: Draft) -> None:
    """Book every task of the draft."""
    problem = draft.problem
    narrow = [c for c, choice in enumerate(problem.choices) if choice.width == 1]
    order = problem.order.tolist()
    possible = np.isfinite(problem.durations).tolist()
    turn = 0
    wanted = [-1] * len(problem)
    for task in order:
        row = possible[task]
        if task in problem.groups:  # which device it must share is known when the others are booked
            for earlier in order[len(draft.booked) :]:
                if earlier == task:
                    break
                draft.place(earlier, wanted[earlier])
            row = np.isfinite(draft.finish_times(task)).tolist()
        choice = next((c for i in range(len(narrow)) if row[c := narrow[(turn + i) % len(narrow)]]), -1)
        turn = (narrow.index(choice) + 1) % len(narrow) if choice >= 0 else turn
        wanted[task] = choice if choice >= 0 else row.index(True)
        if task in problem.groups:
            draft.place(task, wanted[task])
    draft.place_all(order[len(draft.booked) :], None, wanted)
