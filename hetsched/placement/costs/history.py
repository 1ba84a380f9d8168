"""What runs have taught, in one SQLite file in the user's cache: per device, kind of task and width a running mean and spread.

Each run gives one observation of each kind (the mean over its launches). The mean is Welford's (Technometrics 4(3), 1962, 419-420) as long as the
device stays what it was. An observation that is off by more than its spread allows is a surprise: until the next run the truth is taken to lie half
way between; if that run agrees with the surprise it replaces the mean, else it is forgotten. Where most kinds of a device surprise in one direction,
the device itself has changed (throttled, shared, repaired): its `factor` is multiplied, which moves every kind that was not measured since as well.

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

VERSION = 1
BUSY_SECONDS = 0.25
# Kinds kept; the ones longest not seen go first.
MOST_ROWS = 20_000
# Observations after which the mean still follows: 1/8 of the newest.
MEMORY = 8
# A surprise is off by so many spreads, and by at least this share.
SPREADS, SHARE = 4.0, 0.35
# So many kinds must agree (or all there are, from 2 on) before the device is said to have changed.
AGREE = 0.6

_SCHEMA = """
CREATE TABLE IF NOT EXISTS cost (
    device TEXT NOT NULL, op TEXT NOT NULL, kind TEXT NOT NULL, width INTEGER NOT NULL,
    dtype TEXT NOT NULL, flops REAL NOT NULL, nbytes REAL NOT NULL, n INTEGER NOT NULL, mean REAL NOT NULL, m2 REAL NOT NULL,
    surprise REAL NOT NULL, factor REAL NOT NULL, alone INTEGER NOT NULL, seen REAL NOT NULL,
    PRIMARY KEY (device, kind, width)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS device (device TEXT PRIMARY KEY, factor REAL NOT NULL, seen REAL NOT NULL);
"""


class Lesson(NamedTuple):
    """One run's observation of a kind on a device: mean seconds of a launch over `launches`, their standard deviation.

    alone: measured by itself, not in a run; a run's observation replaces it.
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


class Known(NamedTuple):
    """What is known of a kind on a device: mean seconds, standard deviation between runs, number of runs (0: only measured alone)."""

    op: str
    dtype: str
    flops: float
    nbytes: float
    seconds: float
    spread: float
    runs: int


class Drift(NamedTuple):
    """A device that was off by more than its spread in one run: measured over known seconds (median), over `kinds` kinds."""

    device: str
    factor: float
    kinds: int


class History:
    """The file at `path` (by default in the user's cache). `warning`: why it could not be used, "" where it could."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path if path is not None else cache_folder() / "costs.sqlite"
        self.warning = ""

    def known(self, devices: Iterable[str]) -> dict[tuple[str, str, int], Known]:
        """(device, kind, width) -> what is known, for these devices (as `kinds.device_key` and `link_key` name them)."""
        names = [name for name in dict.fromkeys(devices) if name]
        if not names or not self.path.exists():
            return {}
        out: dict[tuple[str, str, int], Known] = {}
        marks = ",".join("?" * len(names))
        try:
            with closing(self._open()) as db:
                factors = self._factors(db, names)
                rows = db.execute(
                    f"SELECT device, kind, width, op, dtype, flops, nbytes, mean, m2, surprise, n, factor, alone FROM cost WHERE device IN ({marks})",
                    names,
                )
                for device, kind, width, op, dtype, flops, nbytes, mean, m2, surprise, n, factor, alone in rows:
                    since = factors.get(device, 1.0) / factor
                    spread = math.sqrt(m2 / max(n, 1))
                    if surprise:
                        mean, spread = (mean + surprise) / 2, max(spread, abs(mean - surprise) / 2)
                    out[device, kind, width] = Known(op, dtype, flops, nbytes, mean * since, spread * since, 0 if alone else n)
        except (sqlite3.Error, OSError, ValueError, TypeError) as error:
            self._fails(error)
            return {}
        return out

    def factors(self, devices: Iterable[str]) -> dict[str, float]:
        """How much slower than when they were calibrated devices were last seen to be; those that are not known to differ are left out."""
        names = [name for name in dict.fromkeys(devices) if name]
        if not names or not self.path.exists():
            return {}
        try:
            with closing(self._open()) as db:
                return self._factors(db, names)
        except (sqlite3.Error, OSError) as error:
            self._fails(error)
            return {}

    def learn(self, lessons: Sequence[Lesson], now: float | None = None) -> list[Drift]:
        """Take in what one run has taught; returns the devices that were off by more than their spread. One transaction."""
        if not lessons:
            return []
        moment = time.time() if now is None else now
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._open()) as db, db:
                db.execute("BEGIN IMMEDIATE")
                drifts = self._take_in(db, lessons, moment)
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
                    db.executescript("DROP TABLE IF EXISTS cost; DROP TABLE IF EXISTS device;")
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
    def _factors(db: sqlite3.Connection, names: Sequence[str]) -> dict[str, float]:
        marks = ",".join("?" * len(names))
        return dict(db.execute(f"SELECT device, factor FROM device WHERE device IN ({marks})", list(names)).fetchall())

    def _take_in(self, db: sqlite3.Connection, lessons: Sequence[Lesson], now: float) -> list[Drift]:
        by_device: dict[str, list[Lesson]] = {}
        for lesson in lessons:
            if lesson.device and math.isfinite(lesson.seconds) and lesson.seconds >= 0:
                by_device.setdefault(lesson.device, []).append(lesson)
        drifts = []
        for device, rows in by_device.items():
            factor = self._factors(db, [device]).get(device, 1.0)
            before = [
                db.execute(
                    "SELECT n, mean, m2, surprise, factor, alone FROM cost WHERE device=? AND kind=? AND width=?", (device, x.kind, x.width)
                ).fetchone()
                for x in rows
            ]
            ratios = [_surprise(x, b, factor) for x, b in zip(rows, before, strict=True) if b is not None and not b[5] and not x.alone]
            off = [r for r in ratios if r is not None]
            drift = _drift(off, len(ratios))
            if drift is not None:
                drifts.append(Drift(device, drift, len(ratios)))
                factor *= drift
                db.execute("INSERT OR REPLACE INTO device VALUES (?, ?, ?)", (device, factor, now))
            for lesson, old in zip(rows, before, strict=True):
                n, mean, m2, surprise = _updated(lesson, old, factor)
                db.execute(
                    "INSERT OR REPLACE INTO cost VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                    (
                        device, lesson.op, lesson.kind, lesson.width, lesson.dtype, lesson.flops, lesson.nbytes, n, mean, m2, surprise, factor,
                        int(lesson.alone and (old is None or bool(old[5]))), now,
                    ),
                )  # fmt: skip
        return drifts


_Row = tuple[int, float, float, float, float, int]


def _surprise(lesson: Lesson, old: _Row, factor: float) -> float | None:
    """Measured over known seconds where that is more than the spread allows, else None."""
    n, mean, m2, _, then, _ = old
    mean, spread = mean * factor / then, math.sqrt(m2 / n) * factor / then
    # What one run saw of itself is the least that the next may differ by.
    allowed = max(SPREADS * max(spread, lesson.spread / math.sqrt(lesson.launches)), SHARE * mean)
    return lesson.seconds / mean if mean > 0 and lesson.seconds > 0 and abs(lesson.seconds - mean) > allowed else None


def _drift(off: Sequence[float], of: int) -> float | None:
    """The factor by which a device has changed: the median, where most kinds say so and in one direction."""
    slower, faster = [r for r in off if r > 1], [r for r in off if r < 1]
    side = slower if len(slower) >= len(faster) else faster
    return statistics.median(side) if len(side) >= 2 and len(side) >= AGREE * of else None


def _updated(lesson: Lesson, old: _Row | None, factor: float) -> tuple[int, float, float, float]:
    """(n, mean, sum of squared deviations, surprise) after an observation; old figures are brought to the device's factor of today."""
    x = lesson.seconds
    # One run says little about the spread between runs: begin with what it saw itself, at least a tenth.
    fresh = (1, x, max(lesson.spread, 0.1 * x) ** 2, 0.0)
    if old is None or (old[5] and not lesson.alone):
        return fresh
    n, mean, m2, surprise, then, alone = old
    if lesson.alone and not alone:
        return n, mean * factor / then, m2 * (factor / then) ** 2, surprise
    off = _surprise(lesson, old, factor)
    surprise, mean, m2 = surprise * factor / then, mean * factor / then, m2 * (factor / then) ** 2
    if off is not None:
        if surprise and abs(x - surprise) <= SHARE * max(x, surprise):
            return 2, (x + surprise) / 2, max((x - surprise) ** 2 / 2, fresh[2]), 0.0
        return n, mean, m2, x
    n = min(n + 1, MEMORY)
    delta = x - mean
    mean += delta / n
    # The oldest observation is dropped from the sum of squares where the memory is full.
    m2 = m2 * (1 - 1 / n if n == MEMORY else 1.0) + delta * (x - mean)
    return n, mean, m2, 0.0
