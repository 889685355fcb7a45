"""How the tool's own work grows with the network: chains of residual blocks, and the fitted exponent.

    python -m benchmarks growth [--quick] [--json FILE] [--markdown FILE]

Process time on one thread, the median of three rounds; memory is what Python allocated at most (tracemalloc, in a round
of its own). An exponent of 1 is a cost in proportion to the number of blocks.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
import tracemalloc
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.options import parse, publish, tabulate
from simam_inject import eject, plan, verify

LENGTHS = (50, 100, 200, 400, 800)
RECIPE = {"rules": [{"block": "ChainBlock", "after": {"op": "batch_norm"}}]}
STEPS = ("plan", "insert", "verify", "eject")
ROUNDS = 3


class ChainBlock(nn.Module):
    """Convolution, norm, activation and a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        nn.init.constant_(self.norm.weight, 0.01)  # 800 sums in a row stay finite

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.norm(self.conv(x))).relu()


def main(argv: list[str]) -> int:
    options = parse("growth", __doc__, argv)
    gc.collect()
    gc.freeze()  # a collection of all objects of torch takes 0.3 s, and would count for the step that triggers it
    lengths = LENGTHS[:3] if options.quick else LENGTHS
    rows = [_measure(length) for length in lengths]
    head = ["blocks", *(f"{step} s" for step in STEPS), *(f"{step} MB" for step in STEPS)]
    names = [f"{step}_{unit}" for unit in ("seconds", "bytes") for step in STEPS]
    scale = {name: 1.0 if name.endswith("seconds") else 1e-6 for name in names}
    cells = [[str(row["blocks"]), *(f"{row[name] * scale[name]:.3f}" for name in names)] for row in rows]
    exponents = {name: exponent(lengths, [row[name] for row in rows]) for name in names}
    cells.append(["exponent", *(f"{exponents[name]:.2f}" for name in names)])
    publish(options, "How the tool's work grows", tabulate(head, cells), [], {"rows": rows, "exponents": exponents})
    return 0


def _measure(length: int) -> dict[str, float]:
    torch.manual_seed(0)
    model = nn.Sequential(*(ChainBlock() for _ in range(length))).eval()
    seconds = [_run(model, time.process_time) for _ in range(ROUNDS)]
    tracemalloc.start()
    memory = _run(model, _peak)
    tracemalloc.stop()
    found: dict[str, float] = {"blocks": length}
    found |= {f"{step}_seconds": statistics.median(one[step] for one in seconds) for step in STEPS}
    return found | {f"{step}_bytes": memory[step] for step in STEPS}


def _peak() -> float:
    """Bytes at most since the last call."""
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    return float(peak)


def _run(model: nn.Module, read: Callable[[], float]) -> dict[str, float]:
    example = torch.rand(1, 4, 16, 16)
    marks = [read()]
    planned = plan(model, RECIPE, example_inputs=example)
    marks.append(read())
    planned.apply()
    marks.append(read())
    verified = verify(model)
    marks.append(read())
    eject(model)
    marks.append(read())
    if not verified.ok:
        raise RuntimeError(str(verified))
    if read is _peak:
        return dict(zip(STEPS, marks[1:], strict=True))
    return {step: after - before for step, before, after in zip(STEPS, marks, marks[1:], strict=False)}


def exponent(lengths: tuple[int, ...], costs: list[float]) -> float:
    """Slope of the logarithm of the cost over the logarithm of the length, by least squares."""
    x, y = [math.log(length) for length in lengths], [math.log(max(cost, 1e-9)) for cost in costs]
    middle = statistics.fmean(x), statistics.fmean(y)
    above = sum((a - middle[0]) * (b - middle[1]) for a, b in zip(x, y, strict=True))
    return above / sum((a - middle[0]) ** 2 for a in x)
