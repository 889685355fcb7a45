"""A folder with a data set, a stock and an injected checkpoint, and a way to run a stage in a process of its own."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.yolo.drawing import draw_set

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Workshop:
    folder: Path

    def run(self, stage: str, **environment: str) -> dict:
        """Run a stage of `stages.py`; its assertions are the test's."""
        output = self.call(str(ROOT / "tests" / "yolo" / "stages.py"), stage, str(self.folder), **environment)
        (line,) = [line for line in output.splitlines() if line.startswith("RESULT ")]
        return json.loads(line.removeprefix("RESULT "))

    def call(self, *arguments: str, code: int = 0, **environment: str) -> str:
        """Run Python with the repository importable; returns what it printed, both streams."""
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        done = subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout[-4000:]
        return done.stdout


@pytest.fixture(scope="session")
def workshop(tmp_path_factory) -> Workshop:
    folder = tmp_path_factory.mktemp("yolo")
    draw_set(folder / "set")
    shop = Workshop(folder)
    shop.run("build")
    return shop


@pytest.fixture(scope="session")
def trained(workshop) -> Workshop:
    """The same with a finished training in it."""
    workshop.run("train")
    return workshop
