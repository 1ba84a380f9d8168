"""No test reads or writes the user's own folders, and none learns from another: a test of learning says so itself (`monkeypatch.setenv`)."""

import os
from pathlib import Path

# Before anything of hetsched is imported, and for the processes that tests start. Beside pytest's own cache: what was built once is not built again.
_KEPT = Path(__file__).resolve().parents[1] / ".pytest_cache" / "hetsched"
os.environ["XDG_CACHE_HOME"] = str(_KEPT / "cache")
os.environ["XDG_STATE_HOME"] = str(_KEPT / "state")
os.environ["HETSCHED_LEARN"] = "0"
