"""What a study is made of: variants, runs of them (cells), and what a training function reports."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from torch import nn

from simam_inject.recipe import Recipe

PLAIN, AGAIN = "plain", "plain again"
AGAIN_OFFSET = 1_000_000
"""*Plain again* has the weights of seed s and the data order of seed s + this."""
WRONG_SIGN = "the values of plain fall during training; higher must be better, so return the negative of a loss"


@dataclass(frozen=True, slots=True)
class Variant:
    """One column of the comparison."""

    name: str
    """The name in results: `plain`, `plain again`, `simam`, `simam 0.1`, or that of another attention."""
    recipe: str = ""
    """The name of its recipe in results."""
    where: Recipe | None = None
    """The recipe, with the lambda of this variant; None without attention."""
    attention: Callable[[int], nn.Module] | None = None
    """Makes another attention for a number of channels; None for SimAM."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What one variant costs."""

    parameters: int
    kept_bytes: int | None = None
    """What autograd saves for the backward pass; None without example inputs."""
    seconds: float | None = None
    """Time of one forward in evaluation mode; None without example inputs."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run and its result."""

    variant: str
    recipe: str
    seed: int
    value: float | None
    """The metric; None if the run raised or diverged."""
    error: str = ""
    """Why `value` is None."""
    curve: tuple[tuple[int, float], ...] = ()
    correct: str = ""
    """Which test samples were right: packed bits in base64; empty if the training function did not report them."""
    samples: int = 0
    weights: str = ""
    """Hash of the initial weights, without those of the attention."""
    costs: Costs | None = None
    seconds: float = 0.0

    @property
    def falls(self) -> bool:
        """Whether the learning curve ends below its start: perhaps the metric is a loss."""
        return len(self.curve) > 2 and self.curve[-1][1] < self.curve[0][1]

    def right(self) -> np.ndarray:
        """Which test samples were right, booleans of shape (samples,)."""
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
        """Record which test samples are right at the end, in the same order in every run."""
        self.correct = np.fromiter((bool(one) for one in correct), bool)
