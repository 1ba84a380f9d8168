"""What runs have taught, in one SQLite file in the user's cache: per device, kind of task and width the seconds and their spread.

Each run gives one observation of each kind (of many launches the middle half). What is known is the median of the last four, and where the middle
two are far apart the lower of them: what disturbs a machine makes it slower, never faster. So one bad run among good ones counts for nothing, and
what was seen under load is forgotten after two runs without. Where most kinds of a device are off in one direction by more than their spreads, the
device itself has changed (throttled, shared, repaired), and its `factor` is multiplied, which moves every kind that was not measured since as well.
A run alone is believed where the change is larger than what another process that comes and goes makes of two cores, and where the threads of the run
did not have to wait for other work; else an alarm says so, and the next run must say so too: what surprised in a run that nothing confirms is not
taken in. Factors have limits, those that make slower fade by half every six hours, and who plans looks at such a device again before it is avoided
(`suspects`, `looked`), or nothing that was seen under load would ever be seen again.

What was measured alone, or by a run that other work disturbed, is weak: the first run that was not disturbed replaces it.

Several processes may read and write at once (WAL; each run is one short transaction). A file that is locked, or not a database, costs a warning.
"""

from __future__ import annotations

import math
import os
import sqlite3
import statistics
import time
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from hetsched.folders import cache_folder
from hetsched.machine.calibration import CROWDED
from hetsched.placement.costs.kinds import GAP

VERSION = 2
BUSY_SECONDS = 0.25
# Kinds kept; the ones longest not seen go first.
MOST_ROWS = 20_000
# Runs that are remembered of each kind. The middle two of them are averaged where they differ by less than this factor.
MEMORY, ALIKE = 4, 1.5
# A surprise is off by so many spreads, and by at least this share.
SPREADS, SHARE = 4.0, 0.35
# What one run has shown is taken to spread by this share.
FIRST_SPREAD = 0.2
# So many kinds must agree (or all there are, from 2 on) before the device is said to have changed.
AGREE = 0.6
# A device that is so many times slower, or faster, is believed at once.
AT_ONCE = 2.5
# A device is held to be at most so many times slower or faster than it was, and half of a slowness is forgotten in this time.
MOST_FACTOR, FADE_SECONDS = 8.0, 6 * 3600.0
# A device that is slower than it was by this factor is looked at again: before the next plan, and then, when runs avoid it, after ever longer waits.
SUSPECT, FIRST_WAIT, MOST_WAIT = 1.3, 10.0, 86400.0
# What was measured alone, or by few runs, is measured again after this time, so many times at most.
WEAK_SECONDS, WEAK_TRIES = 600.0, 3
# What is known: from runs, from a measurement alone, from a run that other work disturbed.
SOUND, ALONE, DISTURBED = 0, 1, 2

_SCHEMA = """
CREATE TABLE IF NOT EXISTS cost (
    device TEXT NOT NULL, op TEXT NOT NULL, kind TEXT NOT NULL, width INTEGER NOT NULL,
    dtype TEXT NOT NULL, flops REAL NOT NULL, nbytes REAL NOT NULL, n INTEGER NOT NULL, seconds REAL NOT NULL, spread REAL NOT NULL,
    recent TEXT NOT NULL, factor REAL NOT NULL, source INTEGER NOT NULL, seen REAL NOT NULL,
    PRIMARY KEY (device, kind, width)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS device (
    device TEXT PRIMARY KEY, factor REAL NOT NULL, pending REAL NOT NULL, seen REAL NOT NULL, wait REAL NOT NULL, looked REAL NOT NULL
);
"""


class Lesson(NamedTuple):
    """One run's observation of a kind on a device: the middle of the seconds of `launches` launches, and their deviation.

    alone: measured by itself, not in a run; a run's observation replaces it. first: of a launch that did what a process does once: it counts where
    nothing is known, or nothing but such, and less was seen.
    """

    device: str
    op: str
    kind: str
    width: int
    dtype: str
    flops: float
    nbytes: float
    seconds: float
    spread: float
    launches: int
    alone: bool = False
    first: bool = False


class Known(NamedTuple):
    """What is known of a kind on a device: seconds, standard deviation between runs, number of runs (0: only measured alone, or under load).

    source: `SOUND`, `ALONE` or `DISTURBED`. times, seen: how often it was measured, and when last (seconds since the epoch).
    """

    op: str
    dtype: str
    flops: float
    nbytes: float
    seconds: float
    spread: float
    runs: int
    source: int = SOUND
    times: int = 0
    seen: float = 0.0

    def is_worth_a_look(self, now: float) -> bool:
        """True for what a run with other work beside it has taught, and for what rests on little and is some time old."""
        return self.source == DISTURBED or (self.times < WEAK_TRIES and now - self.seen > WEAK_SECONDS)


class Drift(NamedTuple):
    """A device that was off by more than its spread in one run: measured over known seconds (median), over `kinds` kinds.

    counts: plans count on it from now on; False: only when the next run says so too. crowded: the share of the run in which its threads
    waited for a core that other work had.
    """

    device: str
    factor: float
    kinds: int
    counts: bool = True
    crowded: float = 0.0


class History:
    """The file at `path` (by default in the user's cache). `warning`: why it could not be used, "" where it could."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path if path is not None else cache_folder() / "costs.sqlite"
        self.warning = ""

    def known(self, devices: Iterable[str], now: float | None = None) -> dict[tuple[str, str, int], Known]:
        """(device, kind, width) -> what is known, for these devices (as `kinds.device_key` and `link_key` name them)."""
        names = [name for name in dict.fromkeys(devices) if name]
        if not names or not self.path.exists():
            return {}
        out: dict[tuple[str, str, int], Known] = {}
        marks = ",".join("?" * len(names))
        try:
            with closing(self._open()) as db:
                factors = self._factors(db, names, time.time() if now is None else now)
                columns = "device, kind, width, op, dtype, flops, nbytes, seconds, spread, n, factor, source, seen"
                rows = db.execute(f"SELECT {columns} FROM cost WHERE device IN ({marks})", names)
                for device, kind, width, op, dtype, flops, nbytes, seconds, spread, n, factor, source, seen in rows:
                    since = factors.get(device, 1.0) / factor
                    runs = 0 if source else n
                    out[device, kind, width] = Known(op, dtype, flops, nbytes, seconds * since, spread * since, runs, source, n, seen)
        except (sqlite3.Error, OSError, ValueError, TypeError) as error:
            self._fails(error)
            return {}
        return out

    def factors(self, devices: Iterable[str], now: float | None = None) -> dict[str, float]:
        """How much slower than when they were calibrated devices were last seen to be; those that are not known to differ are left out."""
        names = [name for name in dict.fromkeys(devices) if name]
        if not names or not self.path.exists():
            return {}
        try:
            with closing(self._open()) as db:
                return self._factors(db, names, time.time() if now is None else now)
        except (sqlite3.Error, OSError) as error:
            self._fails(error)
            return {}

    def suspects(self, devices: Iterable[str], now: float | None = None) -> list[str]:
        """Devices that were last seen slower than they were, and for some time not at all: worth measuring again (see `looked`)."""
        names = [name for name in dict.fromkeys(devices) if name]
        if not names or not self.path.exists():
            return []
        moment = time.time() if now is None else now
        marks = ",".join("?" * len(names))
        try:
            with closing(self._open()) as db:
                factors = self._factors(db, names, moment)
                rows = db.execute(f"SELECT device, seen, wait, looked FROM device WHERE device IN ({marks})", names).fetchall()
                due = [d for d, seen, wait, looked in rows if wait < 0 or moment > max(seen + FIRST_WAIT, looked + wait)]
                return [d for d in due if factors[d] > SUSPECT]
        except (sqlite3.Error, OSError) as error:
            self._fails(error)
            return []

    def looked(self, device: str, ratio: float, now: float | None = None) -> float:
        """A device was measured again, alone: `ratio` of what is known. It is held to be that much faster, if it is; else it has its rest for twice

        as long as the last time. Returns its factor.
        """
        moment = time.time() if now is None else now
        try:
            with closing(self._open()) as db, db:
                db.execute("BEGIN IMMEDIATE")
                factor = self._factors(db, [device], moment).get(device, 1.0)
                faster = 0 < ratio < 1 / SUSPECT
                after = max(factor * ratio, 1.0) if faster else factor
                wait = "0" if faster else f"MIN(MAX(2 * wait, {FIRST_WAIT}), {MOST_WAIT})"
                # What fades goes on from where it was taken to be.
                db.execute(f"UPDATE device SET factor = ?, pending = 0, seen = ?, looked = ?, wait = {wait} WHERE device = ?",
                           (after, moment, moment, device))  # fmt: skip
                return after
        except (sqlite3.Error, OSError) as error:
            self._fails(error)
            return 1.0

    def learn(self, lessons: Sequence[Lesson], now: float | None = None, crowded: float = 0.0) -> list[Drift]:
        """Take in what one run has taught; returns the devices that were off by more than their spread. One transaction.

        crowded: the share of the run in which its threads waited for a core that other work had.
        """
        if not lessons:
            return []
        moment = time.time() if now is None else now
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._open()) as db, db:
                db.execute("BEGIN IMMEDIATE")
                drifts = self._take_in(db, lessons, moment, crowded)
                if db.execute("SELECT COUNT(*) FROM cost").fetchone()[0] > MOST_ROWS:
                    db.execute(
                        "DELETE FROM cost WHERE (device, kind, width) IN (SELECT device, kind, width FROM cost ORDER BY seen LIMIT ?)",
                        (MOST_ROWS // 10,),
                    )
                return drifts
        except (sqlite3.Error, OSError, ValueError, TypeError) as error:
            self._fails(error)
            return []

    def forget(self, device: str) -> None:
        """Drop what is known of a device: it has been calibrated anew."""
        try:
            if self.path.exists():
                with closing(self._open()) as db, db:
                    db.execute("DELETE FROM cost WHERE device = ?", (device,))
                    db.execute("DELETE FROM device WHERE device = ?", (device,))
        except (sqlite3.Error, OSError) as error:
            self._fails(error)

    # Inside ---------------------------------------------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version != VERSION:
                if version:
                    db.executescript("DROP TABLE IF EXISTS cost; DROP TABLE IF EXISTS device;")  # a cache: it learns anew
                # With WAL readers do not wait for writers. A power cut may lose the last runs, never the file.
                db.execute("PRAGMA journal_mode=WAL")
                db.executescript(_SCHEMA)
                db.execute(f"PRAGMA user_version={VERSION}")
            db.execute("PRAGMA synchronous=OFF")
        except BaseException:
            db.close()
            raise
        return db

    def _fails(self, error: Exception) -> None:
        self.warning = f"what runs have taught cannot be used: {self.path}: {error}"
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
            broken = self.path.with_name(f"{self.path.name}.broken")
            with suppress(OSError):
                os.replace(self.path, broken)
                for suffix in ("-wal", "-shm"):
                    with suppress(FileNotFoundError):
                        os.unlink(f"{self.path}{suffix}")
                self.warning += f"; it was put aside as {broken.name}, and learning begins anew"

    @staticmethod
    def _factors(db: sqlite3.Connection, names: Sequence[str], now: float) -> dict[str, float]:
        marks = ",".join("?" * len(names))
        rows = db.execute(f"SELECT device, factor, seen FROM device WHERE device IN ({marks})", list(names)).fetchall()
        return {device: _faded(factor, now - seen) for device, factor, seen in rows}

    def _take_in(self, db: sqlite3.Connection, lessons: Sequence[Lesson], now: float, crowded: float) -> list[Drift]:
        by_device: dict[str, list[Lesson]] = {}
        for lesson in lessons:
            if lesson.device and math.isfinite(lesson.seconds) and lesson.seconds >= 0:
                by_device.setdefault(lesson.device, []).append(lesson)
        drifts = []
        for device, rows in by_device.items():
            before = self._rows(db, device, rows)
            factor, drift = self._changed(db, device, rows, before, now, crowded > CROWDED)
            waits = drift is not None and not drift.counts
            drifts += [drift._replace(crowded=crowded)] if drift is not None else []
            written = []
            for lesson, old in zip(rows, before, strict=True):
                if lesson.first and old is not None and not (old.source == DISTURBED and lesson.seconds < old.today(factor).seconds):
                    continue
                if waits and old is not None and _is_firm(lesson, old) and _surprise(lesson, old, factor) is not None:
                    continue  # the next run says whether the device has changed, or something disturbed this one
                new = _updated(lesson, old, factor, lesson.first or crowded > CROWDED)
                written.append(
                    (
                        device, lesson.op, lesson.kind, lesson.width, lesson.dtype, lesson.flops, lesson.nbytes, new.n, new.seconds, new.spread,
                        " ".join(map(repr, new.recent)), factor, new.source, now,
                    )
                )  # fmt: skip
            db.executemany("INSERT OR REPLACE INTO cost VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)", written)
        return drifts

    @staticmethod
    def _rows(db: sqlite3.Connection, device: str, lessons: Sequence[Lesson], chunk: int = 500) -> list[_Row | None]:
        """What is known of the kinds of `lessons`."""
        found: dict[tuple[str, int], _Row] = {}
        for i in range(0, len(lessons), chunk):
            kinds = [x.kind for x in lessons[i : i + chunk]]
            marks = ",".join("?" * len(kinds))
            columns = "kind, width, n, seconds, spread, recent, factor, source"
            rows = db.execute(f"SELECT {columns} FROM cost WHERE device = ? AND kind IN ({marks})", (device, *kinds))
            for kind, width, n, seconds, spread, recent, factor, source in rows:
                found[kind, width] = _Row(n, seconds, spread, tuple(map(float, recent.split())), factor, source)
        return [found.get((x.kind, x.width)) for x in lessons]

    def _changed(
        self, db: sqlite3.Connection, device: str, rows: Sequence[Lesson], before: Sequence[_Row | None], now: float, is_crowded: bool
    ) -> tuple[float, Drift | None]:
        """(the device's factor from now on, by how much it was off)."""
        stored = db.execute("SELECT pending, wait, looked FROM device WHERE device = ?", (device,)).fetchone()
        pending, wait, looked = stored or (0.0, 0.0, 0.0)
        factor = self._factors(db, [device], now).get(device, 1.0)
        ratios = [_surprise(x, b, factor) for x, b in zip(rows, before, strict=True) if b is not None and _is_firm(x, b)]
        if not ratios:
            return factor, None
        off = _drift([r for r in ratios if r is not None], len(ratios))
        agrees = off is not None and pending > 0 and (off > 1) == (pending > 1)
        counts = off is not None and (agrees or off * AT_ONCE <= 1 or (off >= AT_ONCE and not is_crowded))
        if off is not None and counts:
            was = factor
            factor *= (min(off, pending) if off > 1 else max(off, pending)) if agrees else off
            if (was - 1) * (factor - 1) < 0:
                factor = 1.0  # what ends is over: steps that are not quite equal must not add up
            factor = min(max(factor, 1 / MOST_FACTOR), MOST_FACTOR)
        left = off if off is not None and not counts else 0.0
        wait = 0.0 if factor <= SUSPECT else -1.0 if off is not None else max(wait, 0.0)
        if stored is not None or off is not None:
            db.execute("INSERT OR REPLACE INTO device VALUES (?, ?, ?, ?, ?, ?)", (device, factor, left, now, wait, looked))
        return factor, None if off is None else Drift(device, off, len(ratios), counts)


class _Row(NamedTuple):
    """What is kept of a kind. n: runs. recent: their seconds, the newest last. factor: the device's when this was written."""

    n: int
    seconds: float
    spread: float
    recent: tuple[float, ...]
    factor: float
    source: int

    def today(self, factor: float) -> _Row:
        """The same at another factor of the device."""
        k = factor / self.factor
        return self._replace(seconds=self.seconds * k, spread=self.spread * k, recent=tuple([x * k for x in self.recent]), factor=factor)


def _faded(factor: float, age: float) -> float:
    """What is left of a factor after `age` seconds in which the device was not seen."""
    return factor if factor <= 1 else factor ** (0.5 ** (max(age, 0.0) / FADE_SECONDS))


def _is_firm(lesson: Lesson, old: _Row) -> bool:
    """True where what a run measured stands against what runs have measured, of something that a device does."""
    return not old.source and not lesson.alone and not lesson.first and lesson.op != GAP


def _surprise(lesson: Lesson, old: _Row, factor: float) -> float | None:
    """Measured over known seconds where that is more than the spread allows, else None."""
    k = factor / old.factor
    known, spread = old.seconds * k, old.spread * k
    # What one run saw of itself is the least that the next may differ by.
    allowed = max(SPREADS * max(spread, lesson.spread / math.sqrt(lesson.launches)), SHARE * known)
    if lesson.seconds < known:  # a wide spread hides no faster device
        allowed = min(allowed, (1 - 1 / (1 + max(SHARE, SPREADS * FIRST_SPREAD / old.n))) * known)
    return lesson.seconds / known if known > 0 and lesson.seconds > 0 and abs(lesson.seconds - known) > allowed else None


def _drift(off: Sequence[float], of: int) -> float | None:
    """The factor by which a device has changed: the median, where most kinds say so and in one direction."""
    slower, faster = [r for r in off if r > 1], [r for r in off if r < 1]
    side = slower if len(slower) >= len(faster) else faster
    return statistics.median(side) if len(side) >= 2 and len(side) >= AGREE * of else None


def _updated(lesson: Lesson, old: _Row | None, factor: float, is_crowded: bool) -> _Row:
    """What is known after an observation; old figures are brought to the device's factor of today."""
    x = lesson.seconds
    if old is None or (old.source and not lesson.alone):
        source = DISTURBED if is_crowded else ALONE if lesson.alone else SOUND
        return _Row(1, x, max(lesson.spread, FIRST_SPREAD * x), (x,), factor, source)
    old = old.today(factor)
    if lesson.alone:
        # Measured again: what disturbs only makes slower.
        if not (old.source or x * SUSPECT < old.seconds):
            return old
        n, least = 1 if is_crowded or old.source == DISTURBED else old.n + 1, min(old.seconds, x)
        return _Row(n, least, max(lesson.spread, FIRST_SPREAD * least), (least,), factor, DISTURBED if is_crowded else ALONE)
    if is_crowded and x > (1 + SHARE) * old.seconds:
        return old
    recent = (*old.recent, x)[-MEMORY:]
    seconds, spread = _settled(recent)
    if lesson.width > 1:
        # Threads that are woken late now and then belong to a wide launch: what happens in one of four counts for a quarter.
        seconds = max(seconds, sum(recent) / len(recent))
    return _Row(min(old.n + 1, 1000), seconds, spread, recent, factor, SOUND)


def _settled(recent: Sequence[float]) -> tuple[float, float]:
    """(seconds, spread) by the last runs: the median, and the deviation of the others from it, the farthest one of several left out."""
    ordered, n = sorted(recent), len(recent)
    low, high = ordered[(n - 1) // 2], ordered[n // 2]
    seconds = (low + high) / 2 if high <= ALIKE * low else low
    off = sorted(abs(x - seconds) for x in recent)[: n - 1 if n > 2 else n]
    return seconds, max(math.sqrt(sum(x * x for x in off) / len(off)), FIRST_SPREAD * seconds / n)
