"""Kept runs as text: the list, one run, two compared, what other policies would have made of one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from hetsched.placement.costs.replay import Regret
from hetsched.report.after import compare_table, drift_lines
from hetsched.report.energy import energy_from, energy_lines
from hetsched.report.runs import compared_of, drifts_of
from hetsched.report.text import bytes_text, percent_text, plural, seconds_text, table

# A policy is told to have saved something from this share on.
LEAST_SAVED = 0.01


def runs_lines(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line a run, the newest first."""
    rows = []
    for r in reversed(records):
        used = [name for name, use in r["devices"].items() if use["tasks"]]
        rows.append([r["id"], r["name"], r["status"], seconds_text(r["measured_seconds"]), _ratio(r), r["policy"], ", ".join(used)])
    return table(["run", "pipeline", "status", "measured", "of plan", "policy", "devices"], rows, right=(3, 4))


def _ratio(record: Mapping[str, Any]) -> str:
    planned = record["planned_seconds"]
    return f"{record['measured_seconds'] / planned:.2f}" if planned else "-"


def run_lines(record: Mapping[str, Any], most: int = 12) -> list[str]:
    """One run: when, what, how long, where, and the tasks furthest from what was planned."""
    r = record
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(r["at"]))
    lines = [f"{r['id']}: {r['name']} ({r['file']}), {when}, {r['status']}"]
    given = {**r["parameters"], **{k: " ".join(v) if isinstance(v, list) else v for k, v in r["options"].items()}}
    options = [f"{k}={v}" for k, v in given.items() if v not in (None, "", False)]
    lines += [f"asked for: {', '.join(options)}"] if options else []
    lines.append(
        f"time: {seconds_text(r['measured_seconds'])} measured, {seconds_text(r['planned_seconds'])} planned by {r['policy']} "
        f"(measured is {_ratio(r)} x the plan); {seconds_text(r['wall_seconds'])} from the call to the last output"
    )
    for name, use in r["devices"].items():
        if use["tasks"]:
            busy = f"busy {seconds_text(use['busy_seconds'])}"
            lines.append(f"{name}: {plural(use['tasks'], 'task')} in {plural(use['launches'], 'launch', 'launches')}, {busy}")
    t = r["transfers"]
    if t["copies"]:
        hidden = f", {percent_text(t['hidden_fraction'])} hidden" if t["hidden_fraction"] is not None else ""
        lines.append(f"transfers: {plural(t['copies'], 'copy', 'copies')}, {bytes_text(t['bytes'])} in {seconds_text(t['seconds'])}{hidden}")
    if around := t.get("around_loops"):
        lines.append(f"copies around loops, not timed: {around['copies']}, {bytes_text(around['bytes'])}")
    lines += energy_lines(energy_from(r["energy"])) if r.get("energy") else []  # runs of older versions have none
    lines += drift_lines(drifts_of(r))
    lines += [f"{name}: {value:.6g}" for name, value in r["metrics"].items()]
    lines += [f"{name} -> {path}" for name, path in r["outputs"].items() if path]
    rows = compared_of(r)
    return [*lines, "", *compare_table(rows, most)] if rows else lines


def diff_lines(a: Mapping[str, Any], b: Mapping[str, Any], most: int = 20) -> list[str]:
    """Two runs: what was asked for otherwise, the whole, and the tasks whose measured seconds differ most."""
    lines = [f"a: {a['id']} {a['name']}", f"b: {b['id']} {b['name']}"]
    for key in ("file", "sha256", "policy", "objective"):
        if a[key] != b[key]:
            lines.append(f"{key}: {a[key]} and {b[key]}")
    for key in sorted({*a["parameters"], *b["parameters"]}):
        if a["parameters"].get(key) != b["parameters"].get(key):
            lines.append(f"{key}: {a['parameters'].get(key)} and {b['parameters'].get(key)}")
    for what, key in (("measured", "measured_seconds"), ("planned", "planned_seconds")):
        lines.append(f"{what}: {seconds_text(a[key])} and {seconds_text(b[key])}{_change(a[key], b[key])}")
    before, after = ((r.get("energy") or {}).get("joules") for r in (a, b))
    if before is not None and after is not None:
        lines.append(f"energy: {before:.3g} J and {after:.3g} J{_change(before, after)}")
    here, there = ({row.name: row for row in compared_of(r)} for r in (a, b))
    moved = [f"{n}: {here[n].device} and {there[n].device}" for n in here if n in there and here[n].device != there[n].device]
    lines += [f"placed otherwise: {'; '.join(moved[:8])}{' ...' if len(moved) > 8 else ''}"] if moved else []
    for which, mine, others in (("a", here, there), ("b", there, here)):
        alone = [n for n in mine if n not in others]
        lines += [f"only in {which}: {', '.join(alone[:8])}{' ...' if len(alone) > 8 else ''}"] if alone else []
    both = sorted((n for n in here if n in there), key=lambda n: (-abs(there[n].measured - here[n].measured), n))
    cells = [
        [n, there[n].device, seconds_text(here[n].measured), seconds_text(there[n].measured), _change(here[n].measured, there[n].measured)[2:-1]]
        for n in both[:most]
    ]
    return [*lines, "", *table(["task", "device (b)", "a", "b", "change"], cells, right=(2, 3, 4))] if cells else lines


def diff_record(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """The object of `diff --format json` for two runs: what was asked for otherwise, the whole, and every task of either with its seconds."""
    here, there = ({row.name: row for row in compared_of(r)} for r in (a, b))
    asked = {key: [a[key], b[key]] for key in ("file", "sha256", "policy", "objective") if a[key] != b[key]}
    names = sorted({*a["parameters"], *b["parameters"]})
    parameters = {name: [a["parameters"].get(name), b["parameters"].get(name)] for name in names}
    tasks = []
    for name in dict.fromkeys([*here, *there]):
        rows = [found.get(name) for found in (here, there)]
        devices, seconds = [r and r.device for r in rows], [r and r.measured for r in rows]
        tasks.append({"name": name, "devices": devices, "measured_seconds": seconds})
    return {
        "version": 1,
        "runs": [a["id"], b["id"]],
        "asked": asked | {"parameters": {name: both for name, both in parameters.items() if both[0] != both[1]}},
        "measured_seconds": [a["measured_seconds"], b["measured_seconds"]],
        "planned_seconds": [a["planned_seconds"], b["planned_seconds"]],
        "joules": [(r.get("energy") or {}).get("joules") for r in (a, b)],
        "tasks": tasks,
    }


def _change(a: float, b: float) -> str:
    if a <= 0:
        return ""
    return f" ({100 * (b / a - 1):+.1f} %)"


def regret_lines(found: Sequence[Regret]) -> list[str]:
    """`regret: peft would have saved 4 %`: by the costs that the run measured."""
    if not found:
        return ["regret: no other policy can plan this"]
    best = found[0]
    head = f"regret: by the costs measured the plan takes {seconds_text(best.followed)}; "
    head += f"{best.policy} would have saved {percent_text(best.saved)}" if best.saved >= LEAST_SAVED else "no other policy would have saved 1 %"
    rows = [[r.policy, seconds_text(r.seconds), f"{round(-100 * r.saved, 1) + 0.0:+.1f} %"] for r in found]
    return [head, *table(["policy", "would take", "of the plan"], rows, right=(1, 2))]
