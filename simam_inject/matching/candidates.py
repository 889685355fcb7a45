"""A rule's candidates: what it names in the model, before any filter.

Either a candidate or the reason why there is none; a `Search` collects both.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from simam_inject.dataflow.records import Anatomy, Site
from simam_inject.matching.wording import write_paths
from simam_inject.recipe.bounds import Bounds

FACTS = ("kernel", "stride", "dilation", "groups")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A place that a rule names."""

    named: Site
    """The value that the rule names; `path`, `exclude` and facts of operations look at it."""
    attended: Site
    """The value that would be attended: the named one, or for `before` the one it reads."""
    reader: str | None
    parent: str
    """The module that contains the selected block: the group of `per: parent`."""


@dataclass(slots=True)
class Search:
    """What one rule finds: candidates, and near ones with the reason why they are none."""

    anatomy: Anatomy
    candidates: list[Candidate] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    """Path and reason."""

    def add(self, named: Site, parent: str, position: str) -> None:
        """Enter a named value: itself (or each map it holds) for `after`, for `before` the one value it reads."""
        if position == "after":
            held = [self.anatomy.site_by_path[path] for path in named.maps if path in self.anatomy.site_by_path]
            for site in held or [named]:
                self.candidates.append(Candidate(site, site, None, parent))
            return
        if len(named.operands) != 1:
            self.fail(named.path, _explain_operands(named))
        else:
            self.add_operand(named, named.operands[0], parent)

    def add_operand(self, named: Site, operand: str, parent: str) -> None:
        """Enter the value at path `operand`, to be attended for `named` alone."""
        attended = self.anatomy.site_by_path.get(operand)
        if attended is None:
            self.fail(named.path, f"reads {operand}, which is no feature map")
        else:
            self.candidates.append(Candidate(named, attended, named.path, parent))

    def fail(self, path: str, reason: str) -> None:
        """Enter a near miss."""
        self.failures.append((path, reason))


def _explain_operands(site: Site) -> str:
    if site.kind == "input":
        return "is what the block is given and reads nothing itself; write after instead of before"
    if not site.operands:
        return "what it reads is not known"
    return f"reads {len(site.operands)} values ({write_paths(site.operands)}); before needs a reader of one"


def check_facts(site: Site, facts: tuple[tuple[str, Bounds], ...], wants: str) -> str | None:
    """Why an operation does not satisfy conditions on its kernel, stride, dilation or groups; None if it does.

    Args:
        site: the operation.
        facts: the conditions.
        wants: who sets them, for the reason.
    """
    for name, bounds in facts:
        fact: int | tuple[int, ...] | None = getattr(site, name)
        if fact is None:
            return f"{name} is not known: this {site.kind} has none; {wants} {bounds}"
        if not bounds.admits(fact, depthwise=name == "groups" and site.depthwise):
            return f"{name} is {write_fact(fact)}; {wants} {bounds}"
    return None


def write_fact(fact: int | tuple[int, ...]) -> str:
    """`64`, `3x3`."""
    return "x".join(map(str, fact)) if isinstance(fact, tuple) else str(fact)


def parent_of(path: str) -> str:
    """Path of the module above; the model itself is above all."""
    return path.partition(":")[0].rpartition(".")[0]
