"""What matching says: hits, and for every candidate that was touched and not taken, a miss with its reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Hit:
    """A site that a rule takes."""

    path: str
    """The attended value, named as `Site.path` is."""
    position: str
    """`after`: every reader of the value gets the attended one. `before`: only `reader` does."""
    reader: str | None
    """For `before`: path of the one operation, or block, that reads the attended value."""
    rule: int
    """Index of the rule in the recipe, from 0."""
    e_lambda: float


@dataclass(frozen=True, slots=True)
class Miss:
    """A site that a rule touched and did not take."""

    path: str
    rule: int
    reason: str
    depth: int = 0
    """How many of the rule's conditions it met before one failed: the larger, the nearer the miss."""


@dataclass(frozen=True, slots=True)
class Matches:
    """What one recipe finds in one model: hits in the order the model computes them, misses rule by rule."""

    hits: tuple[Hit, ...]
    misses: tuple[Miss, ...]
