"""No test reads or writes the user's own folders, and none learns from another: a test of learning says so itself (`monkeypatch.setenv`)."""

import os
from pathlib import Path

import pytest

# Before anything of hetsched is imported, and for the processes that tests start. Beside pytest's own cache: what was built once is not built again.
_KEPT = Path(__file__).resolve().parents[1] / ".pytest_cache" / "hetsched"
os.environ["XDG_CACHE_HOME"] = str(_KEPT / "cache")
os.environ["XDG_STATE_HOME"] = str(_KEPT / "state")
os.environ["HETSCHED_LEARN"] = "0"


def pytest_configure(config):
    """Where an OpenCL device is said to be there (`HETSCHED_REQUIRE_OPENCL=1`), its tests must not be skipped for the want of one."""
    if os.environ.get("HETSCHED_REQUIRE_OPENCL"):
        from hetsched.executors.backends import opencl

        found = opencl.find()
        if not found.devices:
            pytest.exit("HETSCHED_REQUIRE_OPENCL is set, and no OpenCL device works: " + "; ".join(found.notes), returncode=3)
