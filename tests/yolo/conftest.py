"""A folder with a data set, a stock and an injected checkpoint, and a way to run a stage in a process of its own."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.yolo.drawing import draw_set

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Workshop:
    folder: Path
    done: dict[str, dict] = field(default_factory=dict)
    """Stage -> its result, or its traceback."""

    def run(self, *stages: str, **environment: str) -> dict:
        """Run stages of `stages.py` in one process, if they have not been; returns what the first of them found.

        The assertions of a stage are the test's.
        """
        if stages[0] not in self.done:
            script = str(ROOT / "tests" / "yolo" / "stages.py")
            output = self.call(script, ",".join(stages), str(self.folder), **environment)
            for line in output.splitlines():
                if line.startswith("STAGE "):
                    found = json.loads(line.removeprefix("STAGE "))
                    self.done[found.pop("stage")] = found
        found = self.done[stages[0]]
        if "error" in found:
            pytest.fail(found["error"], pytrace=False)
        return found["result"]

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
    """With a stock and an injected checkpoint, a finished training and one that died."""
    folder = tmp_path_factory.mktemp("yolo")
    draw_set(folder / "set")
    shop = Workshop(folder)
    shop.run("build", "train", "interrupt", "parity")
    return shop
