"""Save over one file again and again, and be killed at random moments; after each kill the file must be whole.

Usage: python -m tests.persist.killed_saves FOLDER COUNT SEED. Prints one JSON line. torch is imported once and the
children are forked: a fresh process for each kill would spend its life importing.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from simam_inject import inject
from simam_inject.persist import load, save
from tests.persist.networks import EXAMPLE, RECIPE, net

CHANNELS = 96  # 4 MB, so that there is something to interrupt


def model(seed):
    return inject(net(seed, channels=CHANNELS, blocks=6), RECIPE, example_inputs=EXAMPLE, verify=False)


def saving(models, file):
    """The child: alternate between two states until killed."""
    os.close(sys.stdout.fileno())
    while True:
        for one in models:
            save(one, file)


def main(folder, count, seed):
    torch.set_num_threads(1)
    file = folder / "x.safetensors"
    models = [model(1), model(2)]
    known = [one.state_dict() for one in models]
    began = time.perf_counter()
    save(models[0], file)
    duration = time.perf_counter() - began
    generator = random.Random(seed)
    target = net(0, channels=CHANNELS, blocks=6)
    found, interrupted = [], 0
    for _ in range(count):
        child = os.fork()
        if not child:
            saving(models, file)
        time.sleep(generator.uniform(0, 4 * duration))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        leftovers = [entry for entry in folder.iterdir() if entry != file]
        interrupted = len(leftovers)
        load(file, target)
        state = target.state_dict()
        found.append(
            [all(torch.equal(state[name], tensor) for name, tensor in one.items()) for one in known].index(True)
        )
    save(models[0], file)
    print(
        json.dumps(
            {
                "whole": len(found),
                "states": sorted(set(found)),
                "interrupted": interrupted,
                "left": [entry.name for entry in folder.iterdir()],
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
