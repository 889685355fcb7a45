"""A process fit for timing on a CPU: one thread, and an allocator that keeps what it is given back.

With glibc's defaults large tensors, and by history smaller ones, come from a fresh mapping each time. The plain form,
which allocates most, then takes 45 to 129 ms where it needs 27, and all else looks several times better than it is.
Imports no torch: the settings are read when libraries load.
"""

import os
import sys

POOLED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
WANTED = POOLED | ONE_THREAD


def is_pooled() -> bool:
    """Whether this process was started with the settings."""
    return all(os.environ.get(name) == value for name, value in WANTED.items())


def rerun_pooled(argv: list[str]) -> None:
    """Replace this process by `python -m benchmarks argv` under the settings, unless it has them."""
    if not is_pooled():
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks", *argv], os.environ | WANTED)
