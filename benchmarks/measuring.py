"""Interleaved timing, ratios round by round, and the refusal to quote what is too noisy."""

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from simam_inject.bench.measuring import Quartiles, ratios, time_rounds

Variants = Mapping[str, Callable[[], object]]

ROUNDS = {"cpu": 25, "cuda": 25}
WARMUPS = 2
SAMPLE_SECONDS = {"cpu": 0.008, "cuda": 0.02}
"""One sample lasts at least this long, by repeating the call."""
L2_BYTES = 128 << 20
"""Inputs on a GPU are rotated through more than twice this, lest a cache pass for memory."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of each variant, round by round."""

    seconds: dict[str, list[float]]

    def of(self, name: str) -> Quartiles:
        return Quartiles.of(self.seconds[name])

    def ratio(self, name: str, base: str) -> Quartiles | None:
        """Quartiles of the ratio; None where either was not run."""
        if name not in self.seconds or base not in self.seconds:
            return None
        return ratios({name: self.seconds[name], base: self.seconds[base]}, base)[name]


def measure(variants: Variants, device: torch.device, rounds: int | None = None, sample: float | None = None) -> Times:
    """Time all variants in one process, shuffled anew each round. A sample lasts `sample` seconds or more."""
    kind = device.type
    shortest = sample or SAMPLE_SECONDS[kind]
    once = time_rounds(variants, rounds=2, warmups=WARMUPS, device=device)
    repeats = {name: max(1, math.ceil(shortest / max(min(spent), 1e-7))) for name, spent in once.items()}
    loops = {name: _repeated(function, repeats[name]) for name, function in variants.items()}
    spent = time_rounds(loops, rounds=rounds or ROUNDS[kind], warmups=1, device=device)
    return Times({name: [one / repeats[name] for one in sample] for name, sample in spent.items()})


def _repeated(function: Callable[[], object], times: int) -> Callable[[], None]:
    def loop() -> None:
        for _ in range(times):
            function()

    return loop


class Rotation:
    """Copies of a tensor, handed out in turn: on a GPU enough of them to defeat its cache, else the tensor alone."""

    def __init__(self, x: torch.Tensor) -> None:
        count = 1 + 2 * L2_BYTES // max(x.nbytes, 1) if x.is_cuda else 1
        copies = [x, *(x.detach().clone().requires_grad_(x.requires_grad) for _ in range(min(count, 64) - 1))]
        self._copies = copies
        self._next = 0

    def __call__(self) -> torch.Tensor:
        self._next = (self._next + 1) % len(self._copies)
        return self._copies[self._next]


def geometric_mean(numbers: list[float]) -> float:
    """Of at least one positive number."""
    return math.exp(statistics.fmean(math.log(number) for number in numbers))


def shown(ratio: Quartiles | None, scale: float = 1.0, digits: int = 2) -> str:
    """A table's cell: median and quartiles, or why there is none."""
    if ratio is None:
        return ""
    if ratio.is_noisy:
        return "refused: noisy"
    median, low, high = (f"{scale * one:.{digits}f}" for one in (ratio.median, ratio.low, ratio.high))
    return f"{median} [{low}, {high}]"
