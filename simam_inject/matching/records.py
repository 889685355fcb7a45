"""What matching says: hits, and for every candidate that was touched and not taken, a near miss with its reason."""

from __future__ import annotations

from dataclasses import dataclass

from simam_inject.dataflow.records import Site


@dataclass(frozen=True, slots=True)
class Hit:
    """A site that a rule takes."""

    named: Site
    """The value that the rule names; `path`, `exclude` and facts of operations look at it."""
    attended: Site
    """The value that is attended: the named one, or for `before` one that it reads."""
    position: str
    """`after`: every reader of the value gets the attended one. `before`: only `reader` does."""
    reader: str | None
    """For `before`: path of the one operation, or block, that reads the attended value."""
    block: str
    """Path of the selected block; for a pattern, that of the operation."""
    rule: int
    """Index of the rule in the recipe, from 0."""
    e_lambda: float

    @property
    def path(self) -> str:
        """The attended value, named as `Site.path` is."""
        return self.attended.path


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
