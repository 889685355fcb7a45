"""The conditions that narrow a rule: `path`, `exclude`, `where`; each failure is a sentence."""

from __future__ import annotations

from simam_inject.dataflow.records import Site
from simam_inject.matching.candidates import FACTS, Candidate, check_facts, write_fact
from simam_inject.recipe.rule import Rule

Failure = tuple[str, int]
"""The reason, and how many conditions held before."""


def check_filters(rule: Rule, candidate: Candidate) -> Failure | None:
    """Why a candidate is not taken, or None if every condition holds."""
    path = candidate.named.path
    narrowed = rule.path if rule.structure or rule.block or rule.pattern is not None else ()
    if narrowed and not any(glob.covers(path) for glob in narrowed):
        return f"its path is not in path: {' or '.join(glob.text for glob in narrowed)}", 1
    excluded = next((glob for glob in rule.exclude if glob.covers(path) or glob.matches(candidate.attended.path)), None)
    if excluded is not None:
        return f"excluded by {excluded.text}", 2
    for met, (name, bounds) in enumerate(rule.where.conditions() if rule.where is not None else ()):
        if name in FACTS:
            reason = check_facts(candidate.named, ((name, bounds),), f"where.{name} wants")
            if reason is not None and candidate.named.kind == "block":
                reason += f"; an operation has it: {rule.position}: {{op: conv2d, {name}: {bounds}}}"
        else:
            fact: int | tuple[int, ...] | None = getattr(candidate.attended, name)
            reason = (
                None
                if fact is not None and bounds.admits(fact)
                else _explain(candidate.attended, name, fact, str(bounds))
            )
        if reason is not None:
            return reason, 3 + met
    return None


def _explain(site: Site, name: str, fact: int | tuple[int, ...] | None, wanted: str) -> str:
    if fact is None:
        return f"{name} is not known: {site.obstacle or 'its shape is not known'}; where.{name} wants {wanted}"
    return f"{name} is {write_fact(fact)}; where.{name} wants {wanted}"


def why_not_attendable(site: Site) -> str | None:
    """Why no rule could attend this value; None if it is a feature map larger than 1x1 that the model computes."""
    if site.obstacle is not None:
        return site.obstacle
    if site.runs < 1:
        return "never ran in the example forward"
    if site.spatial is None:
        return "its shape is not known"
    if all(length <= 1 for length in site.spatial):
        return f"is a {write_fact(site.spatial)} map: its gate would be the constant sigmoid(0.5)"
    return None
