"""All that one device can tell, in one call: the kernels' tests on a GPU, then every table, into a folder.

    python -m benchmarks all [--device cuda] [--output benchmarks/results] [--minutes 9]

Writes micro, train, additive (on a CPU), yolo and model as Markdown and JSON, as each is done. On a GPU all maps are
timed, on a CPU a few. A step that fails, or is not done when the time is up, is reported at the end, and takes none of
the others with it. On a GPU needs torch with Triton, rich, pytest (for the tests), timm and torchvision (for model),
and ultralytics (for yolo).
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLES = ("micro", "train", "yolo", "model")
"""In this order: what matters most comes first, should time run out."""
CPU_TABLES = ("micro", "train", "additive", "yolo", "model")
"""A GPU launches attentions while the network computes: alone, as `additive` times them, they seem to cost more."""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks all", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--minutes", type=float, default=None, help="stop after this time; 9 on a GPU, else no limit")
    options = parser.parse_args(argv)
    is_gpu = options.device.startswith("cuda")
    minutes = options.minutes if options.minutes is not None or not is_gpu else 9.0
    end = None if minutes is None else time.monotonic() + 60 * minutes
    options.output.mkdir(parents=True, exist_ok=True)
    ends = {name: run(command, end) for name, command in steps(options.device, options.output.resolve())}
    print("\n".join(f"{name}: {how}" for name, how in ends.items()))
    return 0 if set(ends.values()) == {"done"} else 1


def steps(device: str, output: Path) -> Iterator[tuple[str, list[str]]]:
    """Name and command of each step."""
    is_gpu = device.startswith("cuda")
    if is_gpu:
        yield "tests", [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/attention/test_kernels.py"]
    for name in TABLES if is_gpu else CPU_TABLES:
        where = output / f"{name}-{device.replace(':', '')}"
        files = ["--json", f"{where}.json", "--markdown", f"{where}.md"]
        quick = ["--quick"] if not is_gpu or name == "model" else []
        yield name, [sys.executable, "-m", "benchmarks", name, "--device", device, *quick, *files]


def run(command: list[str], end: float | None) -> str:
    """Run one step until `end`, and say how it went."""
    left = None if end is None else end - time.monotonic()
    if left is not None and left < 1:
        return "not started: the time was up"
    try:
        status = subprocess.run(command, cwd=ROOT, timeout=left, check=False).returncode
    except subprocess.TimeoutExpired:
        return "stopped: the time was up"
    return "done" if status == 0 else f"failed with status {status}"
