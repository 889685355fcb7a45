"""(recipe, anatomy) -> hits and misses. Pure: it knows facts about a model, never the model.

For each rule, in order:
    find        what the rule names                         -> candidates
    narrow      path, exclude, where                        -> misses with what was found and what is wanted
    own         sites that an earlier rule took stay its    -> misses
    pick        first, last, every, per group               -> misses
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from simam_inject.dataflow.records import Anatomy
from simam_inject.matching.blocks import search_blocks
from simam_inject.matching.candidates import Candidate
from simam_inject.matching.filters import check_filters, why_not_attendable
from simam_inject.matching.ownership import Ownership
from simam_inject.matching.patterns import search_pattern
from simam_inject.matching.records import Hit, Matches, Miss
from simam_inject.matching.wording import write_path
from simam_inject.recipe.recipe import Recipe
from simam_inject.recipe.rule import Rule

OWNED = 100
PICKED = 101
"""Depths of the two last steps: a candidate that fails there met every condition."""


def match(recipe: Recipe, anatomy: Anatomy) -> Matches:
    """Find the sites that a recipe takes.

    Args:
        recipe: the rules; the first that takes a site owns it.
        anatomy: the facts about the model.

    Returns:
        Hits in the order the model computes them; misses rule by rule, each with its reason. Values that cannot be
        attended are hits all the same, unless `pick` counts: to skip them is the plan's business.
    """
    order = {site.path: place for place, site in enumerate(anatomy.sites)}
    ownership = Ownership(anatomy)
    hits: list[Hit] = []
    misses: list[Miss] = []
    for index, rule in enumerate(recipe.rules):
        taking = _Taking(rule, index, order)
        taken = taking.run(anatomy, ownership)
        e_lambda = recipe.e_lambda if rule.e_lambda is None else rule.e_lambda
        hits += [Hit(site.attended.path, rule.position, site.reader, index, e_lambda) for site in taken]
        misses += sorted(taking.misses, key=lambda miss: order.get(miss.path, -1))
    hits.sort(key=lambda hit: (order[hit.path], order.get(hit.reader or "", -1)))
    return Matches(tuple(hits), tuple(misses))


@dataclass(slots=True)
class _Taking:
    """One rule's way from candidates to what it takes, with the misses it leaves."""

    rule: Rule
    index: int
    order: dict[str, int]
    """Place of each path in the order of computation."""
    misses: list[Miss] = field(default_factory=list)

    def run(self, anatomy: Anatomy, ownership: Ownership) -> Sequence[Candidate]:
        search = (search_blocks if self.rule.pattern is None else search_pattern)(self.rule, anatomy)
        self.misses += [Miss(path, self.index, reason) for path, reason in dict.fromkeys(search.failures)]
        named = {(site.attended.path, site.reader): site for site in reversed(search.candidates)}
        free = self._free(self._narrow(list(named.values())), anatomy, ownership)
        taken = free if self.rule.pick.takes_all else self._pick(free)
        for site in taken:
            ownership.take(site, self.index)
        # A value may fail as one thing and be taken as another, e.g. as the start and as the end of a chain.
        paths = {site.named.path for site in taken}
        self.misses = [miss for miss in self.misses if miss.path not in paths]
        return taken

    def _narrow(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        kept: list[Candidate] = []
        for site in candidates:
            failure = check_filters(self.rule, site)
            if failure is None:
                kept.append(site)
            else:
                self._miss(site, *failure)
        return kept

    def _free(self, candidates: Sequence[Candidate], anatomy: Anatomy, ownership: Ownership) -> list[Candidate]:
        """Those that no rule owns; of several paths to one value, the outermost."""
        own = Ownership(anatomy)
        free: list[Candidate] = []
        for site in sorted(candidates, key=lambda site: site.attended.path.count(".") if site.attended.path else -1):
            reason = ownership.conflict(site, self.index) or own.conflict(site, self.index)
            if reason is None:
                own.take(site, self.index)
                free.append(site)
            else:
                self._miss(site, reason, OWNED)
        return free

    def _pick(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The rule's choice in each group; only values that can be attended count."""
        pick = self.rule.pick
        groups: defaultdict[str, list[Candidate]] = defaultdict(list)
        for site in sorted(candidates, key=lambda site: self.order[site.attended.path]):
            obstacle = why_not_attendable(site.attended)
            group = _group(site, pick.per)
            if obstacle is not None or group is None:
                self._miss(site, f"pick {pick} does not count it: {obstacle or f'its {pick.per} is not known'}", PICKED)
            else:
                groups[group].append(site)
        return [site for name, group_sites in groups.items() for site in self._choose(group_sites, name)]

    def _choose(self, sites: Sequence[Candidate], group: str) -> Sequence[Candidate]:
        """The rule's choice in one group; the others are misses that name it."""
        chosen = self.rule.pick.choose(sites)
        ends = dict.fromkeys((chosen[0].attended.path, chosen[-1].attended.path))
        taken = {id(site) for site in chosen}
        for site in sites:
            if id(site) not in taken:
                self._miss(site, f"pick {self.rule.pick} takes {' to '.join(map(write_path, ends))}{group}", PICKED)
        return chosen

    def _miss(self, site: Candidate, reason: str, depth: int) -> None:
        self.misses.append(Miss(site.named.path, self.index, reason, depth))


def _group(site: Candidate, per: str) -> str | None:
    """Name of the group that a candidate is counted in, as a message ends; None if it is not known."""
    if per == "model":
        return ""
    if per == "parent":
        return f" in {write_path(site.parent)}"
    fact = site.attended.stage if per == "stage" else site.attended.reduction
    return None if fact is None else f" at {per} {fact}"
