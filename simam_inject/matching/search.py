"""The search of one rule through a model, and how reasons are written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from simam_inject.dataflow.anatomy import Anatomy, Site
from simam_inject.errors import shortened
from simam_inject.matching.hits import Hit, Skip
from simam_inject.recipe.grammar import as_tuple
from simam_inject.recipe.operations import Numbers, is_met
from simam_inject.recipe.rule import Rule
from simam_inject.recipe.wording import join_names

MAX_SHOWN = 8


@dataclass(slots=True)
class Search:
    """What one rule finds in a model: candidates, and near misses with their reasons."""

    rule: Rule
    index: int
    e_lambda: float
    anatomy: Anatomy
    candidates: list[Hit] = field(default_factory=list)
    misses: list[Skip] = field(default_factory=list)

    def add(self, named: Site, block: str) -> None:
        """Add what a rule names: for `after` the value, or each of its maps; for `before` what it reads."""
        if self.rule.position == "after":
            for site in [self.anatomy.site_by_path[path] for path in named.maps] or [named]:
                self._add_hit(site, site, block)
        elif len(named.operands) > 1:
            values = f"{len(named.operands)} values ({write_paths(named.operands)})"
            self.miss(named.path, f"reads {values}; before needs an operation that reads one")
        else:
            self.add_operands(named, named.operands, block)

    def add_operands(self, named: Site, operands: Sequence[str], block: str) -> None:
        """Add values that a site reads, to be attended for that site alone."""
        for operand in dict.fromkeys(operands):
            attended = self.anatomy.site_by_path.get(operand)
            if attended is None:
                self.miss(named.path, f"reads {operand}, which is not a feature map")
            else:
                self._add_hit(named, attended, block)
        if not operands:
            self.miss(named.path, "reads no value that the model computes")

    def _add_hit(self, named: Site, attended: Site, block: str) -> None:
        self.candidates.append(Hit(named, attended, self.rule.position, block, self.index, self.e_lambda))

    def reject(self, hit: Hit, reason: str, depth: int) -> None:
        """Make a near miss of a candidate. Of several inputs of a block, the reason names the one that is meant."""
        is_one_of_several = hit.named.kind == "block" and hit.reader is not None and len(hit.named.operands) > 1
        self.miss(hit.named.path, f"input {hit.path}: {reason}" if is_one_of_several else reason, depth)

    def miss(self, path: str, reason: str, depth: int = 0) -> None:
        """Add a near miss, which met so many of the conditions."""
        self.misses.append(Skip(path, reason, self.index, hit=False, depth=depth))


def check_facts(site: Site, facts: Iterable[tuple[str, Numbers]], wants: str) -> str | None:
    """Why a site does not satisfy conditions on its facts; None if it does.

    Args:
        site: an operation or a feature map.
        facts: name and condition of each.
        wants: what the reason says before the condition: `where.channels requires`.
    """
    for name, condition in facts:
        fact: int | tuple[int, ...] | None = getattr(site, name)
        if fact is None:
            problem = f"this {site.kind} has no {name}{f': {site.obstacle}' if site.obstacle else ''}"
        elif not is_met(condition, fact, depthwise=name == "groups" and site.depthwise):
            problem = f"{name} is {write_fact(fact)}"
        else:
            continue
        return f"{problem}; {wants} {join_names(as_tuple(condition))}"
    return None


def parent_of(path: str) -> str:
    """Path of the module that contains the value."""
    return path.partition(":")[0].rpartition(".")[0]


def write_fact(fact: int | tuple[int, ...]) -> str:
    """`64`, `3x3`."""
    return "x".join(map(str, fact)) if isinstance(fact, tuple) else str(fact)


def write_path(path: str) -> str:
    """The path; that of the model is empty."""
    return path or "the model itself"


def write_paths(paths: Iterable[str]) -> str:
    """A few paths or names, and how many more there are."""
    return shortened(list(dict.fromkeys(map(write_path, paths))), MAX_SHOWN)


def write_counts(names: Iterable[str]) -> str:
    """`Bottleneck (16), Sequential (8)`, the most frequent first."""
    counted = sorted(Counter(names).items(), key=lambda entry: (-entry[1], entry[0]))
    return write_paths(f"{name} ({count})" for name, count in counted)
