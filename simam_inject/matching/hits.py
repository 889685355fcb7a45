"""Results of matching: hits, and near misses with their reasons."""

from __future__ import annotations

from dataclasses import dataclass

from simam_inject.dataflow.anatomy import Site


@dataclass(frozen=True, slots=True)
class Hit:
    """A site that a rule matches."""

    named: Site
    """The value that the rule names; `path`, `exclude` and conditions on operations apply to it."""
    attended: Site
    """The value that is attended: the named one, or for `before` one that it reads."""
    position: str
    """`after`: for every reader of the value. `before`: for `reader` alone."""
    block: str
    """Path of the selected block; for a pattern, that of the operation."""
    rule: int
    """Index of the rule in the recipe, from 0."""
    e_lambda: float

    @property
    def path(self) -> str:
        """The attended value, named as `Site.path` is."""
        return self.attended.path

    @property
    def reader(self) -> str | None:
        """For `before`: path of the one operation, or block, that reads the attended value."""
        return self.named.path if self.position == "before" else None


@dataclass(frozen=True, slots=True)
class Skip:
    """A site that a rule matches, or nearly matches, and that gets no SimAM: a skip or a near miss."""

    path: str
    reason: str
    rule: int
    hit: bool
    """True: the rule matches it, but SimAM cannot be applied (a 1x1 map). False: a near miss."""
    depth: int = 0
    """Of a near miss, how many of the rule's conditions it met before one failed: the larger, the nearer."""


@dataclass(frozen=True, slots=True)
class Matches:
    """What one recipe finds in one model: hits in the order the model computes them, misses rule by rule."""

    hits: tuple[Hit, ...]
    misses: tuple[Skip, ...]
