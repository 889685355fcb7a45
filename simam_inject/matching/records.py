"""What matching says: hits, and for every candidate that was touched and not taken, a near miss with its reason."""

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
class Skip:
    """A site that a rule named, or nearly named, and that gets no SimAM."""

    path: str
    reason: str
    rule: int
    hit: bool
    """True: the rule took it and it was skipped all the same (a 1x1 map). False: a near miss."""
    depth: int = 0
    """Of a near miss, how many of the rule's conditions it met before one failed: the larger, the nearer."""


@dataclass(frozen=True, slots=True)
class Matches:
    """What one recipe finds in one model: hits in the order the model computes them, misses rule by rule."""

    hits: tuple[Hit, ...]
    misses: tuple[Skip, ...]
