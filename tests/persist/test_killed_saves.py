"""A killed save never leaves an unreadable file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its children")
@pytest.mark.parametrize("kills", [12, pytest.param(100, marks=pytest.mark.long)])
def test_kills_at_random_moments(kills, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.persist.killed_saves", str(tmp_path), str(kills), "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["whole"] == kills
    assert found["states"] == [0, 1]
    assert found["interrupted"] >= kills // 12, "too few kills fell into a save to prove anything"
    assert "x.safetensors" in found["left"]
    assert all(name.endswith(".part") for name in found["left"] if name != "x.safetensors")
