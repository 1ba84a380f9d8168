"""A plan as text: a table of its tasks, the Gantt chart, the makespan beside the lower bound."""

from __future__ import annotations

from collections.abc import Sequence

from hetsched.check.certificate import Certificate, certify
from hetsched.graph.graph import If, Loop
from hetsched.placement.costs.figures import Figures, measure
from hetsched.placement.tradeoff import Point
from hetsched.report.gantt import gantt
from hetsched.report.summary import bound_line, transfers
from hetsched.report.text import bytes_text, percent_text, plural, seconds_text, shorten, table
from hetsched.timeline import Launch, Timeline

MOST_ROWS = 60
# Longer plans are not proved before they are shown (10,000 spans take about a second): `hetsched check` does it.
MOST_PROVED = 20_000


def plan_text(plan: Timeline, width: int = 100, ascii_only: bool = False, most: int = MOST_ROWS) -> str:
    """The whole text of `hetsched plan`; of more than `most` tasks the table shows the first ones."""
    rows = _rows(plan)
    total = len(rows)
    rows = rows[:most]
    room = max(width - 46, 16)
    lines = table(
        ["task", "op", "device", "start", "seconds"], [[shorten(n, room), op, shorten(d, 24), s, f] for n, op, d, s, f in rows], right=(3, 4)
    )
    if total > most:
        lines.append(f"... and {plural(total - most, 'more task', 'more tasks')}; --format json shows all")
    lines += ["", gantt(plan, width, ascii_only=ascii_only), "", bound_line(plan)]
    t = transfers(plan)
    if t.count:
        hidden = f", {percent_text(t.hidden_fraction)} hidden behind compute" if t.hidden_fraction is not None else ""
        lines.append(f"transfers: {plural(t.count, 'copy', 'copies')}, {bytes_text(t.nbytes)} in {seconds_text(t.seconds)}{hidden}")
    lines += costs_lines(measure(plan))
    if plan.peak:
        lines.append(certificate_text(certify(plan)) if len(plan.spans) <= MOST_PROVED else f"memory at most: {_peaks(plan)}")
    lines += [f"note: {note}" for note in plan.notes]
    return "\n".join(lines)


def certificate_text(certificate: Certificate) -> str:
    """`memory at most: cuda:0 7.9 GiB of 8 GiB, host 12 MiB of 22.6 GiB; proved, with 48 arrays of known shape and dtype`."""
    nodes = []
    for name, node in sorted(certificate.memory.items()):
        of = f" of {bytes_text(node.limit)}" if node.limit is not None else ""
        nodes.append(f"{name} {bytes_text(node.arena + node.beside)}{of}")
    objects = f", {plural(certificate.objects, 'object')}" if certificate.objects else ""
    evicted = f"; {plural(certificate.evictions, 'value')} brought in again after eviction" if certificate.evictions else ""
    known = f"{plural(certificate.arrays, 'array')} of known shape and dtype{objects}"
    return f"memory at most: {', '.join(nodes) or 'none'}{evicted}; proved, with {known}"


def _peaks(plan: Timeline) -> str:
    return ", ".join(f"{node} {bytes_text(nbytes)}" for node, nbytes in sorted(plan.peak.items()))


def costs_lines(figures: Figures) -> list[str]:
    """`costs (estimated): 2.9 J, 3.3e-05 at the machine's prices`; nothing where the machine states neither watts nor prices."""
    parts = [f"{figures.joules:.3g} J"] if figures.joules is not None else []
    parts += [f"{figures.price:.3g} at the machine's prices"] if figures.price is not None else []
    return [f"costs (estimated): {', '.join(parts)}"] if parts else []


def front_text(points: Sequence[Point]) -> str:
    """The table of `hetsched plan --pareto`: a line a plan, the fastest first."""
    rows = []
    for point in points:
        f = point.figures
        joules, price = (f"{x:.4g}" if x is not None else "-" for x in (f.joules, f.price))
        rows.append([seconds_text(f.seconds), joules, price, ", ".join(f.devices), ", ".join(point.best)])
    lines = table(["time", "joules", "price", "devices", "best in"], rows, right=(0, 1, 2))
    unknown = {goal: why for p in points for goal, why in p.figures.missing.items()}
    lines += [f"note: {goal} is not known: {why}" for goal, why in unknown.items()]
    if points and points[0].plan.bound is not None:
        lines.append(f"{plural(len(points), 'plan')} that no other found beats in all; no plan is below {seconds_text(points[0].plan.bound.seconds)}")
    return "\n".join(lines)


def _rows(plan: Timeline, indent: str = "") -> list[list[str]]:
    """A row a launch; tasks of a loop's body are set in, their starts counted from the start of their turn."""
    out = []
    for span in sorted(plan.spans, key=lambda s: (s.start, s.finish)):
        command = span.command
        if not isinstance(command, Launch):
            continue
        op = plan.graph.task_ops[command.task]
        name = plan.graph.task_names[command.task]
        devices = "+".join(dict.fromkeys(lane.owner for lane in span.lanes if lane.kind != "copy"))
        body = plan.loops.get(command.task)
        what = f"{plural(body.turns if body is not None else op.turns, 'turn')}" if isinstance(op, Loop) else "if" if isinstance(op, If) else op.name
        out.append([indent + name, what, devices, seconds_text(span.start), seconds_text(span.finish - span.start)])
        for inner in body.alternatives if body is not None else ():
            out += _rows(inner, indent + "  " + inner.prefix)
    return out
