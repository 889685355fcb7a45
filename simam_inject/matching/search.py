"""What one rule finds: candidates, and for each near one a `Miss` with the reason why it is none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from simam_inject.dataflow.records import Anatomy, Site
from simam_inject.matching.records import Miss
from simam_inject.recipe.bounds import Bounds
from simam_inject.recipe.rule import Rule

MAX_SHOWN = 8
OPERATION_FACTS = ("kernel", "stride", "dilation", "groups")
"""Facts of the named operation; the others are those of the attended map."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A place that a rule names."""

    named: Site
    """The value that the rule names; `path`, `exclude` and facts of operations look at it."""
    attended: Site
    """The value that would be attended: the named one, or for `before` one that it reads."""
    reader: str | None
    parent: str
    """The module that contains the selected block: the group of `per: parent`."""


@dataclass(slots=True)
class Search:
    """One rule's search through a model."""

    rule: Rule
    index: int
    anatomy: Anatomy
    candidates: list[Candidate] = field(default_factory=list)
    misses: list[Miss] = field(default_factory=list)

    def add(self, named: Site, block: str) -> None:
        """Enter what a rule names in a block: for `after` the value, or each map it holds; for `before` what it reads.

        Args:
            named: the value that the rule names.
            block: path of the selected block.
        """
        if self.rule.position == "after":
            for site in [self.anatomy.site_by_path[path] for path in named.maps] or [named]:
                self.candidates.append(Candidate(site, site, None, parent_of(block)))
        elif len(named.operands) == 1:
            self.add_operand(named, named.operands[0], block)
        elif named.kind == "input":
            self.miss(named.path, "is given to the block, which reads nothing itself; write after instead of before")
        elif not named.operands:
            self.miss(
                named.path,
                "what it reads could not be recorded"
                if named.scope in self.anatomy.opaque
                else "reads no value that the model computes",
            )
        else:
            values = f"{len(named.operands)} values ({write_paths(named.operands)})"
            self.miss(named.path, f"reads {values}; before needs an operation that reads one")

    def add_operand(self, named: Site, operand: str, block: str) -> None:
        """Enter the value at path `operand`, to be attended for `named` alone."""
        attended = self.anatomy.site_by_path.get(operand)
        if attended is None:
            self.miss(named.path, f"reads {operand}, which is not a feature map")
        else:
            self.candidates.append(Candidate(named, attended, named.path, parent_of(block)))

    def miss(self, path: str, reason: str, depth: int = 0) -> None:
        """Enter a near miss; `depth` says how many conditions it met."""
        self.misses.append(Miss(path, self.index, reason, depth))

    def miss_block(self, block: str, reason: str, *, nested: bool = True) -> None:
        """Enter a block that lacks something, unless its inside could not be recorded: then that is the reason.

        Args:
            block: path of the block.
            reason: what it lacks, as far as it was seen.
            nested: what it lacks could be inside a block of it.
        """
        own = self.anatomy.opaque.get(block)
        inner = [path for path in self.anatomy.opaque if path.startswith(f"{block}." if block else "")]
        if own is not None:
            reason = f"its inside could not be recorded: {own}"
        elif nested and inner:
            reason += f"; the inside of {inner[0]} could not be recorded: {self.anatomy.opaque[inner[0]]}"
        self.miss(block, reason)


def check_facts(site: Site, facts: Iterable[tuple[str, Bounds]], wants: str) -> str | None:
    """Why an operation does not satisfy conditions on its kernel, stride, dilation or groups; None if it does.

    Args:
        site: the operation.
        facts: the conditions.
        wants: who sets them, for the reason.
    """
    for name, bounds in facts:
        fact: int | tuple[int, ...] | None = getattr(site, name)
        if fact is None:
            return f"this {site.kind} has no {name}; {wants} {bounds}"
        if not bounds.admits(fact, depthwise=name == "groups" and site.depthwise):
            return f"{name} is {write_fact(fact)}; {wants} {bounds}"
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


def write_counts(names: Sequence[str]) -> str:
    """`Bottleneck (16), Sequential (8)`, the most frequent first."""
    counted = sorted(Counter(names).items(), key=lambda entry: (-entry[1], entry[0]))
    return write_paths(f"{name} ({count})" for name, count in counted)


def write_times(count: int) -> str:
    """`once`, `twice`, `3 times`."""
    return {1: "once", 2: "twice"}.get(count, f"{count} times")
