from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data, a link out of it and no consents."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    place = tmp_path / "work"
    place.mkdir()
    np.savez(place / "data.npz", x=np.arange(160, dtype=np.float32).reshape(20, 8), y=np.arange(20) % 3)
    np.savez(tmp_path / "data.npz", x=np.zeros((20, 8), np.float32))
    (place / "damaged.npz").write_bytes(b"PK\3\4 not really")
    (place / "folder").mkdir()
    (place / "link").symlink_to(tmp_path)
    return place
