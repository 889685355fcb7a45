"""What a run costs: time, interleaved with other runs, and memory.

Every variant runs once a round, in shuffled order, so that noise on the machine hits all alike.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

NOISY = 0.25
"""Ratios whose interquartile range exceeds this part of their median are not quoted."""


@dataclass(frozen=True, slots=True)
class Quartiles:
    """Median and quartiles of a sample."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, sample: list[float]) -> Quartiles:
        """Of at least one number."""
        low, median, high = statistics.quantiles(sample * 2 if len(sample) == 1 else sample, n=4, method="inclusive")
        return cls(median, low, high)

    @property
    def is_noisy(self) -> bool:
        """Too spread out to be quoted."""
        return self.high - self.low > NOISY * self.median


def time_rounds(
    variants: Mapping[str, Callable[[], object]], *, rounds: int, warmups: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each variant, round by round.

    On a CPU the clock is the process time divided by the number of threads, since wall time on a shared machine
    measures the neighbours; on a GPU it is device time between two events.

    Args:
        variants: what to run, by name.
        rounds: how often each is timed.
        warmups: how often each runs untimed before.
        device: where they run.
    """
    shuffle, names = random.Random(0), list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warmups, rounds):
        shuffle.shuffle(names)
        for name in names:
            spent = _time_once(variants[name], device)
            if number >= 0:
                seconds[name].append(spent)
    return seconds


def _time_once(function: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        stream = torch.cuda.current_stream(device)  # the current device may be another one
        start.record(stream)
        function()
        end.record(stream)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3
    started = time.process_time()
    function()
    return (time.process_time() - started) / torch.get_num_threads()


def ratios(seconds: Mapping[str, list[float]], base: str) -> dict[str, Quartiles]:
    """Quartiles of each variant's time over the base's, taken round by round."""
    return {
        name: Quartiles.of([own / other for own, other in zip(sample, seconds[base], strict=True)])
        for name, sample in seconds.items()
    }


def bytes_kept(model: nn.Module, run: Callable[[], object]) -> int:
    """Bytes of the distinct storages that `run` saves for backward, parameters and buffers aside."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # an output that holds its own graph would never be freed

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(kept.values())


def peak_bytes(run: Callable[[], object], device: torch.device) -> int | None:
    """Most bytes allocated on the GPU while `run` runs; None on a CPU, whose allocator does not count."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device))
