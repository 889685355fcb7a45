"""What a study is made of: variants, cells (one run each), and what is read off them."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import numpy as np

from simam_inject.compare import statistics
from simam_inject.compare.statistics import Difference

PLAIN, AGAIN = "plain", "plain again"
SIMAM = "simam"
AGAIN_OFFSET = 1_000_000
"""The A/A arm trains from the weights of seed s on the data order of seed s + this."""
SIGN = "the values of plain fall during training; higher must be better, so return the negative of a loss"


@dataclass(frozen=True, slots=True)
class Variant:
    """One column of the comparison."""

    attention: str
    """`plain`, `plain again`, `simam` or the name of a peer."""
    recipe: str = ""
    e_lambda: float | None = None

    @property
    def name(self) -> str:
        """How it is called in results, e.g. `simam 0.1`."""
        return self.attention if self.e_lambda is None else f"{self.attention} {self.e_lambda:g}"


@dataclass(frozen=True, slots=True)
class Costs:
    """What one variant costs."""

    parameters: int
    kept_bytes: int | None = None
    """What autograd keeps of one forward for the backward pass; None where no example input was given."""
    seconds: float | None = None
    """Median time of one forward in evaluation mode."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run: what was trained, and what came out."""

    variant: str
    recipe: str
    seed: int
    value: float | None
    """The metric; None if the run raised or diverged, and then `error` says how."""
    error: str = ""
    curve: tuple[tuple[int, float], ...] = ()
    correct: str = ""
    """Packed bits in base64: which test samples were right; empty if the training function did not say."""
    samples: int = 0
    weights: str = ""
    """Fingerprint of the network's weights before anything was attached."""
    costs: Costs | None = None
    seconds: float = 0.0

    @property
    def key(self) -> tuple[str, str]:
        """Variant and recipe."""
        return self.variant, self.recipe

    @property
    def falls(self) -> bool:
        """The learning curve ends below its start: perhaps a loss was returned, of which lower is better."""
        return len(self.curve) > 2 and self.curve[-1][1] < self.curve[0][1]

    def right(self) -> np.ndarray:
        """One boolean a test sample."""
        bits = np.frombuffer(base64.b64decode(self.correct), np.uint8)
        return np.unpackbits(bits, count=self.samples).astype(bool)


class Report:
    """Given to the training function, which may call it: `report(epoch, value)` for the learning curve."""

    def __init__(self) -> None:
        self.curve: list[tuple[int, float]] = []
        self.correct = np.zeros(0, bool)

    def __call__(self, epoch: int, value: float) -> None:
        """Add a point to the learning curve."""
        self.curve.append((int(epoch), float(value)))

    def samples(self, correct: Iterable[bool]) -> None:
        """Say which test samples were right at the end, always in the same order: gives the noise of the test set."""
        self.correct = np.fromiter((bool(one) for one in correct), bool)


Train = Callable[[Any, int, Report], float]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a study is."""

    done: int
    total: int
    seconds_left: float | None
    """At the pace of this worker alone; None before its first run has ended."""


@dataclass(frozen=True, slots=True)
class Results:
    """All cells of a study and what they say."""

    cells: tuple[Cell, ...]
    settings: dict[str, Any]
    made_with: dict[str, str] = field(default_factory=dict)
    total: int = 0
    """Cells of the whole study; more than `cells` while it is unfinished."""
    looks: int = 1
    resolve: float | None = None
    """The difference whose needed seeds are reported."""
    differences: tuple[Difference, ...] = field(init=False)
    """Each variant and recipe against plain."""
    noise_floor: Difference | None = field(init=False)
    """The A/A arm: plain again, from the same weights with another data order. Its true difference is zero."""

    def __post_init__(self) -> None:
        keys = dict.fromkeys(cell.key for cell in self.cells)
        values = {key: {cell.seed: cell.value for cell in self.of(*key)} for key in keys}
        plain, again = values.pop((PLAIN, ""), {}), values.pop((AGAIN, ""), None)
        differences = statistics.compare_to(plain, values, resolve=self.resolve, looks=self.looks)
        object.__setattr__(self, "differences", tuple(map(self._with_test_noise, differences)))
        floor = None
        if again is not None:
            (floor,) = statistics.compare_to(plain, {(AGAIN, ""): again}, resolve=self.resolve)
            floor = self._with_test_noise(replace(floor, verdict=statistics.NOISE_ONLY))
        object.__setattr__(self, "noise_floor", floor)

    def of(self, variant: str, recipe: str = "") -> tuple[Cell, ...]:
        """Cells of one variant, by seed."""
        return tuple(sorted((cell for cell in self.cells if cell.key == (variant, recipe)), key=lambda c: c.seed))

    def _with_test_noise(self, difference: Difference) -> Difference:
        plain, other = (
            {cell.seed: cell for cell in self.of(*key) if cell.correct and cell.value is not None}
            for key in ((PLAIN, ""), (difference.variant, difference.recipe))
        )
        seeds = sorted(plain.keys() & other.keys())
        if not seeds:
            return difference
        unit = (plain[seeds[0]].value or 0.0) / max(float(plain[seeds[0]].right().mean()), 1e-9)
        noise = statistics.sample_noise([plain[s].right() for s in seeds], [other[s].right() for s in seeds], unit)
        return replace(difference, test_noise=noise)

    def costs(self, variant: str, recipe: str = "") -> Costs | None:
        """Parameters, bytes and time of one variant: medians over its runs."""
        every = [cell.costs for cell in self.of(variant, recipe) if cell.costs is not None]
        if not every:
            return None
        kept = [cost.kept_bytes for cost in every if cost.kept_bytes is not None]
        seconds = [cost.seconds for cost in every if cost.seconds is not None]
        return Costs(every[0].parameters, int(median(kept)) if kept else None, median(seconds) if seconds else None)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know before believing the numbers."""
        return tuple(_notes(self))


def _notes(results: Results) -> Iterator[str]:
    plain, floor = results.of(PLAIN), results.noise_floor
    if len(results.cells) < results.total:
        yield (
            f"unfinished: {len(results.cells)} of {results.total} runs; the verdicts are valid only if the "
            "decision to stop did not depend on them"
        )
    if results.looks > 1:
        yield f"seeds were added after a first result, so every p value is multiplied by {results.looks}"
    if len(plain) > 1 and 2 * sum(cell.falls for cell in plain) > len(plain):
        yield SIGN
    if len(plain) > 1 and len({cell.value for cell in plain} - {None}) == 1:
        yield "plain gave the same value at every seed: the runs ignore the seed, or the metric is saturated"
    starts = {(cell.seed, cell.weights) for cell in results.cells if cell.weights}
    if len(starts) > len({seed for seed, _ in starts}):
        yield (
            "the variants of one seed did not start from the same weights: make_model ignores the seed, or the "
            "workers differ. The differences are noisier than necessary"
        )
    if floor is not None and floor.p < statistics.LEVEL:
        yield (
            f"plain again differs from plain by {floor.mean:+.2f} (p {floor.p:.3f}), though nothing but the data order "
            "differs: this happens by chance in one study out of twenty. Interpret small differences with care"
        )
