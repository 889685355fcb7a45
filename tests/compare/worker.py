"""A worker of a study with short runs, to be killed: python -m tests.compare.worker STORAGE SEEDS."""

import sys
import time

from simam_inject.compare import compare, variants
from tests.compare.networks import make_model, noisy, stand_in_inject


def train(model, seed, report):
    time.sleep(0.05)
    return noisy(model, seed, report)


def work(storage, seeds):
    variants.inject = stand_in_inject
    compare(make_model, ["0"], train, ["se", "eca"], seeds, storage)


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]))
