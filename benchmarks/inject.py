"""What the tool itself takes: planning, inserting and verifying real networks, and the start of the command line.

    python -m benchmarks inject [--quick] [--json FILE] [--markdown FILE]

Planning, inserting and verifying are timed as process time on one thread, since wall time on a shared machine measures
the neighbours. `verify` is also given in forwards of the plain network in eval mode, timed before and after it. The
command line is timed as user and system time of a new process.
"""

from __future__ import annotations

import gc
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.options import parse, publish, tabulate
from simam_inject import eject, plan, verify
from simam_inject.adapters import network_of
from simam_inject.dataflow.example import example_of
from simam_inject.zoo import build

EVERY_CONV = {"rules": [{"path": "*", "after": {"op": "conv2d"}}]}
NETWORKS = {
    "resnet50": ("torchvision:resnet50", "paper"),
    "yolov8n": ("yolov8n", "after c2f"),
    "efficientnet_b0": ("timm:efficientnet_b0", "after invertedresidual"),
    "nasnetalarge": ("timm:nasnetalarge", EVERY_CONV),
    "densenet264d": ("timm:densenet264d", EVERY_CONV),
    "rtdetr-x": ("rtdetr-x", EVERY_CONV),
}
"""The last three take longest to plan of all in docs/coverage.md."""
COMMANDS = (("--help",), ("resnet50", "--recipe", "papr"), ("resnet50", "--after", "bottleneck"))
ROUNDS = 5


def main(argv: list[str]) -> int:
    """Measure, print a Markdown table, and write JSON where asked."""
    options = parse("inject", __doc__, argv)
    warnings.simplefilter("ignore")
    rows = [_measure(name) for name in (["resnet50"] if options.quick else NETWORKS)]
    cells = [
        [row["network"], f"{row['sites']}", *(f"{row[name]:.3f}" for name in row if name.endswith("_seconds"))]
        for row in rows
    ]
    for row, cell in zip(rows, cells, strict=True):
        cell.append(f"{row['verify_forwards']:.1f}")
    table = tabulate(["network", "sites", "plan s", "insert s", "forward s", "verify s", "verify / forward"], cells)
    commands = {" ".join(command): _command_seconds(*command) for command in COMMANDS}
    notes = [f"`simam-inject {command}`: {seconds:.2f} s" for command, seconds in commands.items()]
    publish(options, "The tool itself", table, notes, {"networks": rows, "command_seconds": commands})
    return 0


def _measure(name: str) -> dict[str, object]:
    source, recipe = NETWORKS[name]
    model = build(source).model
    planning, inserting = [], []
    sites = 0
    for _ in range(ROUNDS):
        started = time.process_time()
        planned = plan(model, recipe)
        middle = time.process_time()
        planned.apply()
        planning.append(middle - started)
        inserting.append(time.process_time() - middle)
        sites = len(planned.insertions)
        eject(model)
    network = network_of(model).eval()
    example = example_of(network)
    forwards, verifying, ratios = [], [], []
    with torch.no_grad():
        example.run(network)
    for _ in range(ROUNDS):  # interleaved: the machine has other work at one time than at another
        with torch.no_grad():
            forwards.append(_seconds(lambda: example.run(network)))
        planned = plan(model, recipe)
        planned.apply()
        verifying.append(_seconds(lambda: _verified(name, model)))
        eject(model)
        with torch.no_grad():
            after = _seconds(lambda: example.run(network))
        ratios.append(2 * verifying[-1] / (forwards[-1] + after))
    return {
        "network": name,
        "sites": sites,
        "plan_seconds": statistics.median(planning),
        "insert_seconds": statistics.median(inserting),
        "forward_seconds": statistics.median(forwards),
        "verify_seconds": statistics.median(verifying),
        "verify_forwards": statistics.median(ratios),
    }


def _seconds(run: Callable[[], object]) -> float:
    gc.collect()  # of the graphs of earlier networks
    started = time.process_time()
    run()
    return time.process_time() - started


def _verified(name: str, model: nn.Module) -> None:
    verified = verify(model)
    if not verified.ok:
        raise RuntimeError(f"{name}: verification failed: {verified}")


def _command_seconds(*arguments: str) -> float:
    """Median user and system time of `simam-inject ARGUMENTS` in a new process."""
    spent = []
    for _ in range(ROUNDS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "simam_inject", *arguments], check=False, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(spent)
