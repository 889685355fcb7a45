"""A killed save never leaves an unreadable file: saves are killed at random moments, and each time the file is whole.

`python -m tests.persist.test_killed_saves FOLDER COUNT` prints one JSON line. torch is imported once and the children
are forked: a fresh process for each kill would spend its life importing.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from simam_inject import inject
from simam_inject.persist import load, save
from tests.persist.networks import EXAMPLE, RECIPE, net

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its children")
@pytest.mark.parametrize("kills", [12, pytest.param(100, marks=pytest.mark.long)])
def test_kills_at_random_moments(kills, tmp_path):
    command = [sys.executable, "-m", "tests.persist.test_killed_saves", str(tmp_path), str(kills)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    states, left = json.loads(done.stdout)
    assert len(states) >= kills
    assert set(states) == {0, 1}
    assert left, "no kill fell into a save"
    assert all(name.endswith(".part") for name in left)


def large(seed):
    """4 MB, so that there is something to interrupt."""
    return net(seed, channels=96, blocks=6)


def saving(models, file):
    """The child: alternate between two states until killed."""
    os.close(sys.stdout.fileno())
    while True:
        for one in models:
            save(one, file)


def main(folder, count):
    """Print which of the two states was found after each kill, and which other files are left."""
    torch.set_num_threads(1)
    file = folder / "x.safetensors"
    models = [inject(large(seed), RECIPE, example_inputs=EXAMPLE, verify=False) for seed in (1, 2)]
    began = time.perf_counter()
    save(models[0], file)
    duration = time.perf_counter() - began
    generator, target, found = random.Random(0), large(0), []
    # A busy machine may kill each child before its first save: go on until both states and a part of a file were seen.
    while len(found) < count or (len(found) < 10 * count and (len(set(found)) < 2 or len(list(folder.iterdir())) < 2)):
        child = os.fork()
        if not child:
            saving(models[:: (-1) ** len(found)], file)
        time.sleep(generator.uniform(0, 4 * duration))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        state = load(file, target).state_dict()
        same = [all(torch.equal(state[name], tensor) for name, tensor in one.state_dict().items()) for one in models]
        found.append(same.index(True))
    print(json.dumps([found, [entry.name for entry in folder.iterdir() if entry != file]]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
