"""Whether eager mode on a CPU should hand large maps to a compiled SimAM: what a call gains, and what it costs first.

    python -m benchmarks switch [--quick] [--json FILE] [--markdown FILE]

"compile s" is the processor time of the first call without caches, C++ compiler included, once the compiler is loaded;
"break-even" is the number of calls that regain it. The first map is so small that only the overhead of a call counts.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import asdict

import torch
import torch._inductor.config
from torch import Tensor

from benchmarks.cases import CPU_SHAPES, Case
from benchmarks.measuring import measure, shown
from benchmarks.options import parse, publish, tabulate
from simam_inject import simam

TINY = (1, 4, 2, 2)


def main(argv: list[str]) -> int:
    options = parse("switch", __doc__, argv)
    shapes = (TINY, *CPU_SHAPES[: 1 if options.quick else None])
    dtypes = (torch.float32,) if options.quick else (torch.float32, torch.bfloat16)
    _, first = _compile(Case(TINY, "nchw", torch.float32, True).make(options.device))
    rows = [_run(Case(shape, "nchw", dtype, True), options.device) for dtype in dtypes for shape in shapes]
    head = ["map", "eager us", "compiled / eager", "compile s", "break-even, calls"]
    cells = [
        [row["case"], f"{row['eager'] * 1e6:.0f}", row["shown"], f"{row['compile']:.1f}", _calls(row)] for row in rows
    ]
    note = f"The first compilation of a process, which loads the compiler: {first:.1f} s."
    publish(options, "A compiled kernel for eager mode", tabulate(head, cells), [note], {"first": first, "maps": rows})
    return 0


def _run(case: Case, device: torch.device) -> dict[str, object]:
    x = case.make(device)
    with torch.no_grad():
        compiled, seconds = _compile(x)
        times = measure({"eager": lambda: simam(x), "compiled": lambda: compiled(x)}, device)
    ratio = times.ratio("compiled", "eager")
    return {"case": case.name, "eager": times.of("eager").median, "shown": shown(ratio), "compile": seconds} | asdict(
        ratio
    )


def _compile(x: Tensor) -> tuple[Callable[[Tensor], Tensor], float]:
    """Compile for maps like `x`, and return the processor time that it took, of this process and its children."""
    torch._dynamo.reset()
    started = sum(os.times()[:4])
    # Not in worker processes, whose time would not count.
    with torch._inductor.config.patch(force_disable_caches=True, compile_threads=1):
        compiled = torch.compile(simam, dynamic=False)
        compiled(x)
    return compiled, sum(os.times()[:4]) - started


def _calls(row: dict[str, object]) -> str:
    gain = row["eager"] * (1 - row["median"])
    return f"{math.ceil(row['compile'] / gain):,}" if gain > 0 else "never"
