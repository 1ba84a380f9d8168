"""No test reads or writes the user's own folders, and none learns from another: a test of learning says so itself (`monkeypatch.setenv`)."""

import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import pytest

# Before anything of hetsched is imported, and for the processes that tests start: what the user has set is for the user's own runs.
for _name in [*(name for name in os.environ if name.startswith("HETSCHED_") and name != "HETSCHED_REQUIRE_OPENCL"), "POCL_DEVICES"]:
    os.environ.pop(_name, None)
# Beside pytest's own cache: what was built once is not built again.
_KEPT = Path(__file__).resolve().parents[1] / ".pytest_cache" / "hetsched"
os.environ["XDG_CACHE_HOME"] = str(_KEPT / "cache")
os.environ["XDG_STATE_HOME"] = str(_KEPT / "state")
os.environ["HETSCHED_LEARN"] = "0"
os.environ["HETSCHED_OPENCL_TWINS"] = "1"  # a card that is there twice is tested twice
shutil.rmtree(_KEPT / "cache" / "hetsched" / "calibration", ignore_errors=True)  # what is measured of this machine is of no account here

# The same examples in every run, however long one takes: a machine that stands still for a moment is no counter-example.
hypothesis.settings.register_profile(
    "repeatable", derandomize=True, database=None, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("repeatable")


# What is taken to be measured of the devices here: plans of `Machine.here()` are then those of every machine with as many cores.
_CPU = {"float32": 1e11, "float64": 5e10, "bytes": 2e10, "launch": 1e-6, "crossing": 2e-5}
_OPENCL = {
    "float32": 4e10, "float64": 2e10, "bytes": 2e10, "launch": 1.2e-5, "up_latency": 2.4e-5, "up_bytes": 8e9, "down_latency": 2.4e-5,
    "down_bytes": 1e10,
}  # fmt: skip
# Slower than any card: a plan that is free to choose leaves it alone, so that tests of the processor hold on a machine with one.
_CUDA = {
    "float32": 2e10, "float64": 1e10, "bytes": 1e10, "launch": 3e-5, "replay": 3e-5, "up_latency": 5e-5, "up_bytes": 4e9, "down_latency": 5e-5,
    "down_bytes": 4e9,
}  # fmt: skip


def pytest_configure(config):
    """No test depends on how fast this machine is, or was while it was looked at; none is skipped for the want of a device that is said to be there

    (`HETSCHED_REQUIRE_OPENCL=1`).
    """
    from hetsched.executors import cpu as threads
    from hetsched.executors.backends import cpu, cuda, opencl

    threads.cores = lambda: 16  # described processors get the threads that they were planned with, however many cores there are
    for backend, stated in ((cpu, _CPU), (opencl, _OPENCL), (cuda, _CUDA)):
        backend._speeds = _stated(backend._speeds, stated)
    assert set(_CUDA) == set(cuda._NEEDED), "or every card would be one that cannot be used, and its tests would skip"
    cpu.CACHES = _KEPT / "no-such-folder"
    if os.environ.get("HETSCHED_REQUIRE_OPENCL"):
        found = opencl.find()
        if not found.devices:
            pytest.exit("HETSCHED_REQUIRE_OPENCL is set, and no OpenCL device works: " + "; ".join(found.notes), returncode=3)


def _stated(measured, stated):
    """Speeds are measured as ever, and those that are stated given in their place; what says that a device does not work stays."""

    def speeds(*device):
        found = measured(*device)
        return found if isinstance(found, str) else {name: stated[name] for name in found}

    return speeds


@pytest.fixture
def no_cuda(monkeypatch):
    """As on a machine without a CUDA device."""
    from hetsched.executors import backends
    from hetsched.executors.backends import cuda

    monkeypatch.setattr(cuda, "find", lambda: backends.Found(notes=("no CUDA: this test takes it that there is none",)))


@pytest.fixture
def quiet(monkeypatch):
    """What else the machine does at the time spoils no measurement, so that what is learned does not depend on it."""
    monkeypatch.setattr("hetsched.needs.Crowding", lambda: nullcontext(SimpleNamespace(share=0.0)))
