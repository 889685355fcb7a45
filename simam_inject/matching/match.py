"""(recipe, anatomy) -> hits and misses. Pure: it knows facts about a model, never the model.

For each rule, in order:
    find        what the rule names                         -> candidates
    narrow      path, exclude, where                        -> misses with what was found and what is wanted
    own         values that an earlier rule took stay its   -> misses
    pick        first, last, every, per group               -> misses
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from simam_inject.dataflow.records import Anatomy, Site
from simam_inject.matching.blocks import search_blocks
from simam_inject.matching.ownership import Ownership
from simam_inject.matching.patterns import search_pattern
from simam_inject.matching.records import Hit, Matches, Miss
from simam_inject.matching.search import OPERATION_FACTS, Candidate, Search, check_facts, write_fact, write_path
from simam_inject.recipe.recipe import Recipe

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
        search = Search(rule, index, anatomy)
        taken = _take(search, ownership, order)
        e_lambda = recipe.e_lambda if rule.e_lambda is None else rule.e_lambda
        hits += [Hit(site.attended.path, rule.position, site.reader, index, e_lambda) for site in taken]
        # A value may fail as one thing and be taken as another, e.g. as the start and as the end of a chain.
        paths = {site.named.path for site in taken}
        missed = [miss for miss in dict.fromkeys(search.misses) if miss.path not in paths]
        misses += sorted(missed, key=lambda miss: order.get(miss.path, -1))
    hits.sort(key=lambda hit: (order[hit.path], order.get(hit.reader or "", -1)))
    return Matches(tuple(hits), tuple(misses))


def why_not_attendable(site: Site) -> str | None:
    """Why no rule could attend this value; None if it is a feature map larger than 1x1 that the model computes."""
    if site.obstacle is not None:
        return site.obstacle
    if site.runs < 1:
        return "never ran in the example forward"
    if site.spatial is None:
        return "its shape is unknown"
    if all(length <= 1 for length in site.spatial):
        size = f"{write_fact(site.spatial)} map" if len(site.spatial) > 1 else "map of one position"
        return f"is a {size}: its gate would be the constant sigmoid(0.5)"
    return None


def _take(search: Search, ownership: Ownership, order: dict[str, int]) -> Sequence[Candidate]:
    """One rule's way from candidates to what it takes; the search collects the misses."""
    (search_blocks if search.rule.selects != "pattern" else search_pattern)(search)
    named = {(site.attended.path, site.reader): site for site in reversed(search.candidates)}
    narrowed = [site for site in named.values() if _complies(search, site)]
    outermost_first = sorted(narrowed, key=lambda site: (site.attended.path.count("."), site.attended.path != ""))
    own = Ownership(search.anatomy)
    free: list[Candidate] = []
    for site in outermost_first:
        conflict = ownership.conflict(site, search.index) or own.conflict(site, search.index)
        if conflict is not None:
            search.miss(site.named.path, conflict, OWNED)
        else:
            own.take(site, search.index)
            free.append(site)
    taken = free if search.rule.choice.takes_all else _pick(search, free, order)
    for site in taken:
        ownership.take(site, search.index)
    return taken


def _complies(search: Search, candidate: Candidate) -> bool:
    """A candidate meets `path`, `exclude` and every condition of `where`; if not, it becomes a miss."""
    rule, named, attended = search.rule, candidate.named, candidate.attended
    if rule.selects != "path" and rule.path and not any(glob.covers(named.path) for glob in rule.paths):
        search.miss(named.path, f"its path is not in path: {' or '.join(map(str, rule.paths))}", 1)
        return False
    for glob in rule.excluded:
        if glob.covers(named.path) or glob.matches(attended.path):
            search.miss(named.path, f"excluded by {glob}", 2)
            return False
    for met, (name, bounds) in enumerate(rule.conditions):
        if name in OPERATION_FACTS:
            reason = check_facts(named, ((name, bounds),), f"where.{name} requires")
            if reason is not None and named.kind == "block":
                reason += f"; write {rule.position}: {{op: conv2d, {name}: {bounds}}} for an operation inside"
        else:
            fact: int | tuple[int, ...] | None = getattr(attended, name)
            found = (
                f"is not known: {attended.obstacle or 'it has no shape'}" if fact is None else f"is {write_fact(fact)}"
            )
            fails = fact is None or not bounds.admits(fact)
            reason = f"{name} {found}; where.{name} requires {bounds}" if fails else None
        if reason is not None:
            search.miss(named.path, reason, 3 + met)
            return False
    return True


def _pick(search: Search, candidates: Sequence[Candidate], order: dict[str, int]) -> list[Candidate]:
    """The rule's choice in each group; only values that can be attended count."""
    pick = search.rule.choice
    groups: defaultdict[str, list[Candidate]] = defaultdict(list)
    for site in sorted(candidates, key=lambda site: order[site.attended.path]):
        group = _group(site, pick.per)
        problem = why_not_attendable(site.attended) or (f"its {pick.per} is not known" if group is None else None)
        if group is None or problem is not None:
            search.miss(site.named.path, f"pick {pick} does not count it: {problem}", PICKED)
        else:
            groups[group].append(site)
    taken: list[Candidate] = []
    for group, sites in groups.items():
        chosen = pick.choose(sites)
        ends = dict.fromkeys((chosen[0].attended.path, chosen[-1].attended.path))
        for site in sites:
            if site not in chosen:
                reason = f"pick {pick} takes {' to '.join(map(write_path, ends))}{group}"
                search.miss(site.named.path, reason, PICKED)
        taken += chosen
    return taken


def _group(site: Candidate, per: str) -> str | None:
    """Name of the group that a candidate is counted in, as a message ends; None if it is not known."""
    if per == "model":
        return ""
    if per == "parent":
        return f" in {write_path(site.parent)}"
    fact = site.attended.stage if per == "stage" else site.attended.reduction
    return None if fact is None else f" at {per} {fact}"
