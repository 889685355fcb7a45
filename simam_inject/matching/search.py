"""What one rule finds, and the words of reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from simam_inject.dataflow.records import Anatomy, Site
from simam_inject.matching.records import Hit, Skip
from simam_inject.recipe.grammar import as_tuple
from simam_inject.recipe.operations import Numbers, admits
from simam_inject.recipe.rule import Rule
from simam_inject.recipe.wording import join_names

MAX_SHOWN = 8


@dataclass(slots=True)
class Search:
    """One rule's search through a model: candidates, and for each near one a `Skip` with the reason why it is none."""

    rule: Rule
    index: int
    e_lambda: float
    anatomy: Anatomy
    candidates: list[Hit] = field(default_factory=list)
    misses: list[Skip] = field(default_factory=list)

    def add(self, named: Site, block: str) -> None:
        """Enter what a rule names: for `after` the value, or each map that it holds; for `before` what it reads."""
        if self.rule.position == "after":
            for site in [self.anatomy.site_by_path[path] for path in named.maps] or [named]:
                self.candidates.append(Hit(site, site, "after", None, block, self.index, self.e_lambda))
        elif len(named.operands) > 1:
            values = f"{len(named.operands)} values ({write_paths(named.operands)})"
            self.miss(named.path, f"reads {values}; before needs an operation that reads one")
        else:
            self.add_operands(named, named.operands, block)

    def add_operands(self, named: Site, operands: Sequence[str], block: str) -> None:
        """Enter values that a site reads, to be attended for that site alone."""
        for operand in dict.fromkeys(operands):
            attended = self.anatomy.site_by_path.get(operand)
            if attended is None:
                self.miss(named.path, f"reads {operand}, which is not a feature map")
            else:
                hit = Hit(named, attended, "before", named.path, block, self.index, self.e_lambda)
                self.candidates.append(hit)
        if not operands:
            self.miss(named.path, "reads no value that the model computes")

    def miss(self, path: str, reason: str, depth: int = 0) -> None:
        """Enter a near miss; `depth` says how many conditions it met."""
        self.misses.append(Skip(path, reason, self.index, hit=False, depth=depth))


def check_facts(site: Site, facts: Iterable[tuple[str, Numbers]], wants: str) -> str | None:
    """Why a site does not satisfy conditions on its facts; None if it does.

    Args:
        site: an operation or an attended map.
        facts: name and condition of each.
        wants: who sets the conditions, for the reason.
    """
    for name, condition in facts:
        fact: int | tuple[int, ...] | None = getattr(site, name)
        if fact is None:
            problem = f"this {site.kind} has no {name}{f': {site.obstacle}' if site.obstacle else ''}"
        elif not admits(condition, fact, depthwise=name == "groups" and site.depthwise):
            problem = f"{name} is {write_fact(fact)}"
        else:
            continue
        return f"{problem}; {wants} {join_names(as_tuple(condition))}"
    return None


def parent_of(path: str) -> str:
    """Path of the module above a value; the model itself is above all."""
    return path.partition(":")[0].rpartition(".")[0]


def write_fact(fact: int | tuple[int, ...]) -> str:
    """`64`, `3x3`."""
    return "x".join(map(str, fact)) if isinstance(fact, tuple) else str(fact)


def write_path(path: str) -> str:
    """The path; the model itself has none."""
    return path or "the model itself"


def write_paths(paths: Iterable[str]) -> str:
    """A few paths or names, and how many more there are."""
    every = list(dict.fromkeys(paths))
    more = f" and {len(every) - MAX_SHOWN} more" if len(every) > MAX_SHOWN else ""
    return ", ".join(map(write_path, every[:MAX_SHOWN])) + more


def write_counts(names: Iterable[str]) -> str:
    """`Bottleneck (16), Sequential (8)`, the most frequent first."""
    counted = sorted(Counter(names).items(), key=lambda entry: (-entry[1], entry[0]))
    return write_paths(f"{name} ({count})" for name, count in counted)
