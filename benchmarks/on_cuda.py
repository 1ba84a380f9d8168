"""Everything that needs a CUDA device, most important first: the tests of what runs there, then each benchmark of its own figures.

    python benchmarks/on_cuda.py [--out FOLDER] [--seconds 600] [--only NAME,...] [--list]

Each part is a process of its own with a limit of time, so that one that hangs or crashes costs the others nothing; what it prints goes to
FOLDER/NAME.txt at once, its figures to FOLDER/NAME.json, and its last lines here. Parts that would begin after `--seconds` are left out and named.
Costs and kernels are kept in a folder of FOLDER, empty at first: first runs are those of a new user. Exit 0: every part that began ended well.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import _gpu

ROOT = Path(__file__).parent.parent


class Part(NamedTuple):
    """seconds: its limit. command: behind the interpreter; {json}: the file for its figures. lines: how many of its last are shown."""

    name: str
    seconds: float
    command: tuple[str, ...]
    lines: int = 12


def benchmark(name: str, seconds: float, file: str, *options: str, lines: int = 12) -> Part:
    return Part(name, seconds, (f"benchmarks/{file}.py", *options, "--json", "{json}"), lines)


def tests(name: str, seconds: float, *paths: str) -> Part:
    several = ("-n", str(min(os.cpu_count() or 1, 12))) if find_spec("xdist") else ()
    return Part(name, seconds, ("-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", *several, *paths), 25)


def pipeline(name: str, *options: str) -> Part:
    return Part(f"run-{name}", 60, ("-m", "hetsched", "run", f"pipelines/{name}.yaml", "-d", "cuda", *options), 14)


PARTS = (
    tests("tests-backend", 120, "tests/executors", "tests/testing"),
    tests("tests-kernels", 120, "tests/graph"),
    benchmark("train-step", 90, "train_step", "--only", "cuda"),
    benchmark("latency", 60, "latency", "--cuda"),
    benchmark("overlap", 70, "overlap", "--cuda"),
    benchmark("cuda-kernels", 70, "cuda_kernels", lines=40),
    pipeline("digits_mlp"),
    pipeline("digits_cnn"),
    pipeline("matmul_conv"),
    pipeline("vector_add", "--trust"),
    benchmark("outofcore", 60, "outofcore", "--device", "cuda"),
    Part("calibrate", 60, ("-m", "hetsched", "calibrate", "cuda:0")),
    Part("prediction", 120, ("benchmarks/prediction.py", "-d", "cuda", "--anyway", "--seconds", "100", "--fresh", "--save", "{json}"), 20),
)


def run(part: Part, out: Path, limit: float, environment: dict[str, str]) -> int | None:
    """Its exit status; None where it was ended at its limit."""
    log = out / f"{part.name}.txt"
    command = [sys.executable, *(word.replace("{json}", str(out / f"{part.name}.json")) for word in part.command)]
    with log.open("w") as file:
        file.write(f"$ {' '.join(command)}\n")
        file.flush()
        try:
            return subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=environment, timeout=limit, check=False).returncode
        except subprocess.TimeoutExpired:
            return None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="default: a new folder among the temporary ones, which is told")
    parser.add_argument("--seconds", type=float, default=600, help="begin no further part after so long (default: 600)")
    parser.add_argument("--only", default="", help="parts whose names begin with one of these, separated by commas")
    parser.add_argument("--list", action="store_true", help="name the parts, and end")
    options = parser.parse_args(argv)
    parts = [p for p in PARTS if p.name.startswith(tuple(options.only.split(",")))]
    if not parts:
        print(f"no part begins with {options.only!r}; there are {', '.join(p.name for p in PARTS)}", file=sys.stderr)
        return 2
    if options.list:
        for part in parts:
            print(f"{part.name:16} {part.seconds:4.0f} s at most   python {' '.join(part.command)}")
        return 0
    if lacks := _gpu.missing():
        print(f"nothing to measure: {lacks}", file=sys.stderr)
        return 1
    out = (options.out or Path(tempfile.mkdtemp(prefix="hetsched-on-cuda-"))).absolute()
    kept = out / "kept"
    kept.mkdir(parents=True, exist_ok=True)
    print(f"{_gpu.device_name()}; files in {out}", flush=True)
    environment = os.environ | {"XDG_CACHE_HOME": str(kept), "XDG_STATE_HOME": str(kept), "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    begin, failed, left = time.monotonic(), [], []
    for part in parts:
        at = time.monotonic() - begin
        if at > options.seconds:
            left.append(part.name)
            continue
        status = run(part, out, min(part.seconds, max(options.seconds + 10 - at, 10)), environment)
        took = time.monotonic() - begin - at
        told = "ended at its limit" if status is None else f"exit {status}"
        print(f"\n== {part.name}: {told}, {took:.0f} s", flush=True)
        for line in (out / f"{part.name}.txt").read_text(errors="replace").splitlines()[-part.lines :]:
            print(line[:300], flush=True)
        if status != 0:
            failed.append(part.name)
    print(f"\n{len(parts) - len(failed) - len(left)} of {len(parts)} parts ended well", end="")
    print(f"; not well: {', '.join(failed)}" if failed else "", end="")
    print(f"; no time for: {', '.join(left)}" if left else "")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
