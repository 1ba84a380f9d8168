"""How bad can `auto` be? Hunts for graphs of 10 to 20 tasks on which simple policies outside its portfolio beat it, and prints the worst ratio.

usage: adversarial.py [--evaluations N] [--seed S] [--keep K] [--save FOLDER]

Twice: `auto` as it is (instant), and `auto` with 20 ms of search. The worst K of both are then planned with --plan-time 1s: a whole hunt with a
second for each graph would take hours. The goal: at 1 s at most 1.02.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hetsched.placement.costed import CostedDraft, costed_problem
from hetsched.placement.policies import find
from hetsched.placement.problem import Problem
from hetsched.placement.search import improve
from hetsched.testing.adversary import Prey, hunt, planner

RIVALS = ("lookahead", "min_min", "mct", "heteroprio", "cpop", "earliest_finish", "one_device")
SHORT, LONG = 0.02, 1.0
GOAL = 1.02


def searching(seconds: float):
    """`auto`, then the search for so long."""

    def makespan(problem: Problem) -> float:
        draft = CostedDraft(problem)
        find("auto")(draft)
        improve(draft, seconds)
        return draft.finish()

    return makespan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=int, default=20, help="how many of the worst are planned with a second each")
    parser.add_argument("--save", metavar="FOLDER", help="write the worst graphs there, as costed graphs")
    args = parser.parse_args()
    rivals = {name: planner(find(name)) for name in RIVALS}

    instant = hunt(planner(find("auto")), rivals, args.evaluations, seed=args.seed)
    report("instant", instant[0], args.evaluations)

    short = hunt(searching(SHORT), rivals, args.evaluations, seed=args.seed + 1)
    report(f"--plan-time {1000 * SHORT:.0f}ms", short[0], args.evaluations)
    again = []
    for prey in [*instant[: args.keep], *short[: args.keep]]:
        problem = costed_problem(prey.document)
        best = min(plan(problem) for plan in rivals.values())
        again.append(Prey(prey.document, searching(LONG)(costed_problem(prey.document)) / best, prey.rival))
    worst = max(again, key=lambda prey: prey.ratio)
    report("--plan-time 1s", worst, len(again))
    print(f"goal at 1 s: at most {GOAL}: {'kept' if worst.ratio <= GOAL else 'MISSED'}")
    if args.save:
        folder = Path(args.save)
        folder.mkdir(parents=True, exist_ok=True)
        for name, prey in (("instant", instant[0]), ("short", short[0]), ("second", worst)):
            (folder / f"{name}.json").write_text(json.dumps(prey.document))


def report(what: str, prey: Prey, graphs: int) -> None:
    tasks, edges = len(prey.document["durations"]), len(prey.document["edges"])
    print(f"{what:<18} worst of {graphs} graphs: {prey.ratio:.3f} times {prey.rival} ({tasks} tasks, {edges} edges)", flush=True)


if __name__ == "__main__":
    main()
