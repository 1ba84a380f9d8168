"""What a plan promises, with the band that its costs leave open; two machines side by side; many machines, and which of them no other beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hetsched.placement.asked import asked_for
from hetsched.placement.costs.band import Band, band_of
from hetsched.placement.costs.figures import Figures, measure
from hetsched.report.record import figures_record
from hetsched.report.text import percent_text, seconds_text, table
from hetsched.timeline import Timeline

LIST_PRICE = "seconds x list price, a list-price estimate: discounts, taxes, storage, traffic and the time to start are not in it"
# A figure that is better by less than this share is not better.
TIE = 1e-9


@dataclass(frozen=True)
class Prediction:
    """A plan's figures and their band."""

    plan: Timeline
    figures: Figures
    band: Band

    def record(self) -> dict[str, Any]:
        """Low and high of each figure as plain data; null where the figure is not known."""
        found = {"seconds": self.figures.seconds, "joules": self.figures.joules, "price": self.figures.price}
        bands = {name: list(pair) if (pair := self.band.of(figure)) is not None else None for name, figure in found.items()}
        return {"source": self.band.source, "low": self.band.low, "high": self.band.high, **bands}


def predict(plan: Timeline) -> Prediction:
    """The figures of `plan` and how far they may be off, by the costs that it was made with."""
    return Prediction(plan, measure(plan), band_of(plan, asked_for(plan).model))


def prediction_lines(prediction: Prediction) -> list[str]:
    """`predicted (roofline, one standard deviation): 38 ms to 110 ms, 34 to 102 J, price 0.0006 to 0.0017`, and what the price is."""
    band, figures = prediction.band, prediction.figures
    parts = [f"{seconds_text(band.low * figures.seconds)} to {seconds_text(band.high * figures.seconds)}"]
    if figures.joules is not None:
        parts.append(f"{band.low * figures.joules:.3g} to {band.high * figures.joules:.3g} J")
    if figures.price is not None:
        parts.append(f"price {band.low * figures.price:.3g} to {band.high * figures.price:.3g}")
    lines = [f"predicted ({band.source}, one standard deviation): {', '.join(parts)}"]
    whole = prediction.plan.machine.price_per_hour
    if figures.price is not None:
        lines.append(f"price: {LIST_PRICE}" + (f"; {whole:g} an hour for the whole machine" if whole is not None else ""))
    return lines


def changed_lines(before: Timeline, after: Timeline) -> list[str]:
    """What a change of the machine gives: the plan on the machine as it is, and on the machine that it would be."""
    old, new = measure(before), measure(after)
    rows = []
    for plan, f in ((before, old), (after, new)):
        joules, price = (f"{x:.4g}" if x is not None else "-" for x in (f.joules, f.price))
        rows.append([plan.machine.name, seconds_text(f.seconds), joules, price, ", ".join(f.devices)])
    lines = table(["machine", "time", "joules", "price", "devices used"], rows, right=(1, 2, 3))
    if old.seconds > 0 and abs(new.seconds / old.seconds - 1) > TIE:
        share = new.seconds / old.seconds - 1
        lines.append(f"the change makes it {percent_text(abs(share))} {'slower' if share > 0 else 'faster'}")
    else:
        lines.append("the change makes it neither faster nor slower")
    return lines


@dataclass(frozen=True)
class Candidate:
    """A machine for a pipeline. prediction: None where the pipeline cannot be planned on it; `problem` says why then."""

    name: str
    prediction: Prediction | None
    problem: str = ""
    unverified: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """The makespan; 0 for a machine that does not do."""
        return self.prediction.figures.seconds if self.prediction is not None else 0.0

    @property
    def figures(self) -> tuple[float | None, float | None, float | None] | None:
        """(seconds, joules, price), None where not known; None for a machine that does not do."""
        f = self.prediction.figures if self.prediction is not None else None
        return None if f is None else (f.seconds, f.joules, f.price)


def on_front(candidates: Sequence[Candidate]) -> list[bool]:
    """True for each candidate that no other beats: is as good in time, energy and price, and better in one.

    A figure that is not known counts as the worst there is.
    """
    worst = float("inf")
    rows = [None if c.figures is None else [worst if x is None else x for x in c.figures] for c in candidates]

    def beats(a: list[float], b: list[float]) -> bool:
        return all(x <= y * (1 + TIE) for x, y in zip(a, b, strict=True)) and any(x < y * (1 - TIE) for x, y in zip(a, b, strict=True))

    return [row is not None and not any(other is not None and beats(other, row) for other in rows) for row in rows]


def candidates_text(candidates: Sequence[Candidate]) -> str:
    """The table of `hetsched machines FILE`, the fastest first, machines that do not do at the end."""
    marks = on_front(candidates)
    order = sorted(
        range(len(candidates)), key=lambda i: (candidates[i].prediction is None, (candidates[i].figures or (0.0,))[0] or 0.0, candidates[i].name)
    )
    rows, problems = [], []
    for i in order:
        c = candidates[i]
        if c.prediction is None:
            problems.append(f"{c.name} does not fit: {c.problem}")
            continue
        f, band = c.prediction.figures, c.prediction.band
        share = f"{percent_text(band.high - 1)}"
        joules = f"{f.joules:.3g}" if f.joules is not None else "-"
        price = (f"{f.price:.3g}" + ("?" if "price_per_hour" in c.unverified else "")) if f.price is not None else "-"
        hour = f"{c.prediction.plan.machine.price_per_hour:g}" if c.prediction.plan.machine.price_per_hour is not None else "-"
        rows.append(["*" if marks[i] else "", c.name, seconds_text(f.seconds), f"+-{share}", joules, price, hour, ", ".join(_short(f.devices))])
    lines = table(["", "machine", "time", "", "joules", "price", "an hour", "devices used"], rows, right=(2, 3, 4, 5, 6)) if rows else []
    lines += problems
    lines.append("* no other machine is as good in time, energy and price, and better in one")
    lines.append(f"price: {LIST_PRICE}; ?: that list price is unverified")
    return "\n".join(lines)


def candidates_record(candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """The rows of `hetsched machines FILE --format json`, in the order given."""
    out = []
    for c, best in zip(candidates, on_front(candidates), strict=True):
        row: dict[str, Any] = {"machine": c.name, "fits": c.prediction is not None, "pareto": best, "unverified": list(c.unverified)}
        if c.prediction is None:
            row["problem"] = c.problem
        else:
            whole = c.prediction.plan.machine.price_per_hour
            row |= {**figures_record(c.prediction.figures), "band": c.prediction.record(), "price_per_hour": whole}
        out.append(row)
    return out


def _short(devices: Sequence[str]) -> list[str]:
    """`cpu, 3 x cuda`."""
    kinds: dict[str, int] = {}
    for device in devices:
        kind = device.partition(":")[0]
        kinds[kind] = kinds.get(kind, 0) + 1
    return [kind if n == 1 else f"{n} x {kind}" for kind, n in kinds.items()]
