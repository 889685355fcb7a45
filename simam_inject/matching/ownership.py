"""Who has a value already. The first rule that takes it owns it, by whatever path a later one names it.

`layer1` (a Sequential), `layer1.2` (its last block) and `layer1.2.relu[3]` (that block's last operation) are one value:
two attentions on it would be one after the other.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from simam_inject.dataflow.records import Anatomy, Site
from simam_inject.matching.search import Candidate, write_path


@dataclass(frozen=True, slots=True)
class _Claim:
    path: str
    reader: str | None
    rule: int

    def excludes(self, other: _Claim) -> bool:
        """Both would attend the value on the way to one and the same reader."""
        return self.reader is None or other.reader is None or self.reader == other.reader


@dataclass(slots=True)
class Ownership:
    """The claims on the values of one model."""

    anatomy: Anatomy
    _claims: defaultdict[str, list[_Claim]] = field(default_factory=lambda: defaultdict(list))

    def take(self, candidate: Candidate, rule: int) -> None:
        """Let a rule own what the candidate attends."""
        self._claims[self._value(candidate.attended)].append(_claim(candidate, rule))

    def conflict(self, candidate: Candidate, rule: int) -> str | None:
        """Why a rule cannot have the candidate; None if it is free."""
        mine = _claim(candidate, rule)
        for claim in self._claims[self._value(candidate.attended)]:
            if claim.excludes(mine):
                taken = f"taken by rules[{claim.rule}]" if claim.rule != rule else "which this rule takes"
                if claim.path == mine.path:
                    return f"already {taken}"
                return f"is the same value as {write_path(claim.path)}, {taken}"
        return None

    def _value(self, site: Site) -> str:
        """Path of the operation that computes what a block returns or is given; the own path of any other value."""
        if site.kind in ("block", "input") and len(site.reads) == 1 and site.obstacle is None:
            origin = self.anatomy.site_by_path.get(site.reads[0])
            if origin is not None and origin.shape == site.shape:
                return origin.path
        return site.path


def _claim(candidate: Candidate, rule: int) -> _Claim:
    """What a block is given is attended for that block alone, as if the block were a reader."""
    given = candidate.attended.scope if candidate.attended.kind == "input" else None
    return _Claim(candidate.attended.path, candidate.reader if candidate.reader is not None else given, rule)
