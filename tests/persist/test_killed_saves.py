"""A killed save never leaves an unreadable file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its children")
def test_fifty_kills_at_random_moments(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.persist.killed_saves", str(tmp_path), "50", "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["whole"] == 50
    assert told["states"] == [0, 1]
    assert told["interrupted"] >= 5, "too few kills fell into a save to prove anything"
    assert told["most_leftovers"] == 1, "each save removes what the killed one before it left"
    assert told["left"] == ["x.safetensors"]
