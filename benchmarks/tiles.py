"""Which tile each kernel should use on a GPU: every candidate is timed, against a copy of the map and the tile in use.

    python -m benchmarks tiles [--device cuda] [--quick] [--json FILE] [--markdown FILE]

A candidate is a number of planes, a span of positions and a number of warps; `whole` ones read every tensor once, the
others loop over parts of the planes, in two launches. Candidates are compiled first, on all processors, into Triton's
cache. Times are the device's own: replays of one CUDA graph of several launches, whose maps rotate through twice the L2
cache.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from unittest import mock

import torch
import triton
from torch import Tensor

from benchmarks.cases import Case, cases
from benchmarks.measuring import Rotation
from benchmarks.options import parse, publish, tabulate
from simam_inject.attention import composite, kernels, tiles

E_LAMBDA = 1e-4
LARGEST, SMALLEST = 32768, 512
"""Elements of a whole tile. Beyond the largest, registers cannot contain it."""
LOOPED = (2048, 4096, 8192)
"""Elements of one step of a loop."""
SMALL_PLANE = 1024
"""Positions that always fit in a tile."""
PER_THREAD = (16, 32, 64)
WARPS = (1, 2, 4, 8, 16)
MANY_PROGRAMS = (264, 1056)
"""So many at least, if a plane has that many parts."""
REPLAYS = 9
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}

Pass = Callable[[Tensor], object]


@dataclass(frozen=True, slots=True)
class Tile:
    """The compile-time numbers of a kernel."""

    parts: int
    planes: int
    span: int
    num_warps: int

    def __str__(self) -> str:
        return f"{f'{self.parts} parts' if self.parts else 'whole'} {self.planes}x{self.span} w{self.num_warps}"


@dataclass(frozen=True, slots=True)
class Job:
    """One kernel on one map."""

    case: Case
    is_backward: bool

    @property
    def name(self) -> str:
        return f"{'backward' if self.is_backward else 'forward'} {self.case.name}"

    def make(self, device: torch.device) -> tuple[Tensor, Pass]:
        """The map, and the kernel as a function of it alone."""
        x = self.case.make(device)
        _, mean, a = kernels.forward(x, E_LAMBDA, 1.0, 1.0, saves=True)
        assert mean is not None
        assert a is not None
        if self.is_backward:
            grads = Rotation(self.case.make(device))
            return x, lambda one: kernels.backward(one, grads(), mean, a, 1.0, 1.0)
        return x, lambda one: kernels.forward(one, E_LAMBDA, 1.0, 1.0, saves=False)[0]

    def truth(self, x: Tensor, function: Pass) -> object:
        """What the composite gives for the same arguments."""
        with mock.patch.multiple(kernels, forward=composite.forward, backward=composite.backward):
            return function(x)


def main(argv: list[str]) -> int:
    options = parse("tiles", __doc__, argv)
    if options.device.type != "cuda":
        print("tiles: needs --device cuda")
        return 2
    chosen = [case for case in cases(options.device, is_quick=options.quick, is_compiled=False) if is_needed(case)]
    jobs = [Job(case, is_backward) for case in chosen for is_backward in (False, True)]
    compile_all(jobs)
    rows = [run(job, options.device) for job in jobs]
    head = ["kernel and map", "copy us", "tile in use", "/ copy", "best tile", "/ copy", "next"]
    cells = []
    for row in rows:
        in_use, best, *others = map(shown, row["tiles"])
        following = ", ".join(" ".join(one) for one in others[:3])
        cells.append([row["job"], f"{row['copy'] * 1e6:.1f}", *in_use, *best, following])
    publish(options, "Tiles of the Triton kernels", tabulate(head, cells), [], rows)
    return 0


def is_needed(case: Case) -> bool:
    """Not float16, which is as bfloat16, nor another map of 56x56."""
    return case.dtype_name != "fp16" and case.shape[0] != 32


def shown(timed: dict[str, object]) -> tuple[str, str]:
    return str(timed["tile"]), f"{timed['ratio']:.2f}"


def compile_all(jobs: list[Job]) -> None:
    """Launch every candidate once, in many processes, so that all are in Triton's cache on disk."""
    work = [(job, tile) for job in jobs for tile in candidates(job)]
    processes = max(1, min(14, (os.cpu_count() or 2) - 1))
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(launch_once, work, chunksize=4))


def launch_once(work: tuple[Job, Tile]) -> None:
    job, tile = work
    x, function = job.make(torch.device("cuda"))
    try:
        with forced(tile):
            function(x)
    except triton.runtime.errors.OutOfResources:
        return


def candidates(job: Job) -> Iterator[Tile]:
    """The tiles that could be fast."""
    shape = job.case.shape
    channels, positions = shape[1], shape[2] * shape[3]
    span = triton.next_power_of_2(positions)
    narrowest = 1 if job.case.layout == "nchw" else 8
    planes = [2**power for power in range(9) if narrowest <= 2**power <= triton.next_power_of_2(channels)]
    for count in planes:
        if SMALLEST <= count * span <= LARGEST:
            yield from _with_warps(0, count, span)
        if span > SMALL_PLANE and count <= (1 if narrowest == 1 else 64):
            blocks = shape[0] * triton.cdiv(channels, count)
            for parts in dict.fromkeys(parts_for(least, blocks) for least in MANY_PROGRAMS):
                for size in LOOPED:
                    if size // count * parts < 2 * positions:
                        yield from _with_warps(parts, count, size // count)


def parts_for(programs: int, blocks: int) -> int:
    return min(64, int(triton.next_power_of_2(triton.cdiv(programs, blocks))))


def _with_warps(parts: int, planes: int, span: int) -> Iterator[Tile]:
    for warps in WARPS:
        if planes * span // (32 * warps) in (PER_THREAD[:2] if parts else PER_THREAD):
            yield Tile(parts, planes, span, warps)


def forced(tile: Tile | None) -> mock._patch[object]:
    """Use this tile; with None, the one that `kernels` chooses."""

    def choose(flat: tiles.Flat) -> tuple[tuple[int], dict[str, int]]:
        if tile is None:
            return original(flat)
        return (flat.sizes[0] * triton.cdiv(flat.sizes[1], tile.planes) * max(1, tile.parts),), asdict(tile)

    original = kernels.choose
    return mock.patch.object(kernels, "choose", choose)


def run(job: Job, device: torch.device) -> dict[str, object]:
    """Check and time the tile in use, then all candidates, best first."""
    x, function = job.make(device)
    inputs = Rotation(x)
    copy = replayed_seconds(torch.clone, inputs, x)
    truth = job.truth(x, function)
    order = tiles.spatial_order(x.shape, x.stride())
    _, in_use = tiles.choose(tiles.flatten(x.shape, x.stride(), order))
    timed = []
    for tile in candidates(job):
        try:
            with forced(tile):
                error = (function(x).double() - truth.double()).norm() / truth.double().norm()
                seconds = replayed_seconds(function, inputs, x)
        except triton.runtime.errors.OutOfResources:
            continue
        if not error < TOLERANCE[x.dtype]:
            raise RuntimeError(f"{job.name}, {tile}: relative error {float(error)}")
        timed.append({"tile": str(tile), "seconds": seconds, "ratio": seconds / copy})
    with forced(None):
        seconds = replayed_seconds(function, inputs, x)
    timed.sort(key=lambda one: one["seconds"])
    now = {"tile": str(Tile(**in_use)), "seconds": seconds, "ratio": seconds / copy}
    print(job.name, f"copy {copy * 1e6:.1f} us; in use {shown(now)}; best", *map(shown, timed[:3]), flush=True)
    return {"job": job.name, "copy": copy, "tiles": [now, *timed]}


def replayed_seconds(function: Pass, inputs: Rotation, x: Tensor) -> float:
    """Median time of one launch on the device."""
    launches = max(4, min(64, (256 << 20) // x.nbytes))
    for _ in range(2):
        function(inputs())
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [function(inputs()) for _ in range(launches)]  # all alive, so that each is written to its own memory
    spent = []
    for _ in range(REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        spent.append(start.elapsed_time(end) / 1e3 / len(results))
    return statistics.median(spent[1:])
