"""(recipe, anatomy) -> hits and misses. Pure: it knows facts about a model, never the model.

For each rule, in order:
    find        what the rule names                         -> candidates
    narrow      path, exclude, where                        -> misses with what was found and what is wanted
    own         values that an earlier rule took stay its   -> misses
    pick        first, last, every, per group               -> misses

A value is owned by whatever path it was taken: `layer1` (a Sequential), `layer1.2` (its last block) and
`layer1.2.relu[3]` (that block's last operation) are one value, and two attentions on it would be one after the other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from simam_inject.dataflow.records import Anatomy, Site
from simam_inject.matching.blocks import search_blocks
from simam_inject.matching.explain import explain_nothing
from simam_inject.matching.patterns import search_pattern
from simam_inject.matching.records import Hit, Matches, Skip
from simam_inject.matching.search import Search, check_facts, parent_of, write_fact, write_path, write_paths
from simam_inject.recipe.grammar import as_tuple
from simam_inject.recipe.operations import Conditions
from simam_inject.recipe.recipe import Recipe

OWNED = 100
PICKED = 101
"""Depths of the two last steps: a candidate that fails there met every condition."""
Owners = defaultdict[str, list[Hit]]
"""Value -> the candidates that attend it."""


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
    owners: Owners = defaultdict(list)
    hits: list[Hit] = []
    misses: list[Skip] = []
    for index, rule in enumerate(recipe.rules):
        search = Search(rule, index, recipe.e_lambda if rule.e_lambda is None else rule.e_lambda, anatomy)
        taken = _take(search, owners, order)
        hits += taken
        # A value may fail as one thing and be taken as another, e.g. as the start and as the end of a chain.
        paths = {hit.named.path for hit in taken}
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


def _take(search: Search, owners: Owners, order: dict[str, int]) -> Sequence[Hit]:
    """One rule's way from candidates to what it takes; the search collects the misses."""
    (search_pattern if search.rule.chain else search_blocks)(search)
    if not search.candidates and not search.misses:
        search.miss("", explain_nothing(search.rule, search.anatomy))
    named = {(hit.path, hit.reader): hit for hit in reversed(search.candidates)}
    narrowed = [hit for hit in named.values() if _complies(search, hit)]
    free: list[Hit] = []
    own: Owners = defaultdict(list)
    outermost_first = sorted(narrowed, key=lambda hit: (hit.path.count("."), hit.path != ""))
    for hit in outermost_first:
        value = value_of(hit.attended, search.anatomy)
        conflict = _conflict(hit, [*owners[value], *own[value]])
        if conflict is not None:
            search.miss(hit.named.path, conflict, OWNED)
        else:
            own[value].append(hit)
            free.append(hit)
    taken = free if search.rule.choice.takes_all else _pick(search, free, order)
    for hit in taken:
        owners[value_of(hit.attended, search.anatomy)].append(hit)
    return taken


def _complies(search: Search, candidate: Hit) -> bool:
    """A candidate meets `path`, `exclude` and every condition of `where`; if not, it becomes a miss."""
    rule, named, attended = search.rule, candidate.named, candidate.attended
    paths = as_tuple(rule.path)
    if rule.selects != "path" and paths and not any(glob.covers(named.path) for glob in paths):
        search.miss(named.path, f"its path is not in path: {' or '.join(paths)}", 1)
        return False
    for glob in as_tuple(rule.exclude):
        if glob.covers(named.path) or glob.matches(attended.path):
            search.miss(named.path, f"excluded by {glob}", 2)
            return False
    for met, (name, condition) in enumerate(rule.conditions):
        is_of_operation = name in Conditions.model_fields
        reason = check_facts(named if is_of_operation else attended, [(name, condition)], f"where.{name} requires")
        if reason is not None:
            if is_of_operation and named.kind == "block":
                reason += f"; for an operation inside write {rule.position}: {{op: conv2d, {name}: ...}}"
            search.miss(named.path, reason, 3 + met)
            return False
    return True


def value_of(site: Site, anatomy: Anatomy) -> str:
    """Path of the operation that computes what a block returns or is given; the own path of any other value."""
    if site.kind in ("block", "input") and len(site.reads) == 1 and site.obstacle is None:
        origin = anatomy.site_by_path.get(site.reads[0])
        if origin is not None and origin.shape == site.shape:
            return origin.path
    return site.path


def _conflict(candidate: Hit, taken: Iterable[Hit]) -> str | None:
    """Why a rule cannot have the candidate, of whose value some are taken; None if it is free."""
    for other in taken:
        readers = {_only_reader(candidate), _only_reader(other)}
        if None in readers or len(readers) == 1:
            whose = f"taken by rules[{other.rule}]" if other.rule != candidate.rule else "which this rule takes"
            same = f"is the same value as {write_path(other.path)}," if other.path != candidate.path else "already"
            return f"{same} {whose}"
    return None


def _only_reader(candidate: Hit) -> str | None:
    """For whom alone the value is attended; what a block is given is, for that block."""
    given = candidate.attended.scope if candidate.attended.kind == "input" else None
    return candidate.reader if candidate.reader is not None else given


def _pick(search: Search, candidates: Sequence[Hit], order: dict[str, int]) -> list[Hit]:
    """The rule's choice in each group; only values that can be attended count."""
    pick = search.rule.choice
    groups: defaultdict[object, list[Hit]] = defaultdict(list)
    for hit in sorted(candidates, key=lambda hit: order[hit.path]):
        # Of the whole model no site has a fact, and all are one group.
        group = parent_of(hit.block) if pick.per == "parent" else getattr(hit.attended, pick.per, "")
        problem = why_not_attendable(hit.attended) or (f"its {pick.per} is not known" if group is None else None)
        if problem is not None:
            search.miss(hit.named.path, f"pick {pick} does not count it: {problem}", PICKED)
        else:
            groups[group].append(hit)
    taken: list[Hit] = []
    for members in groups.values():
        chosen = pick.choose(members)
        reason = f"pick {pick} takes {write_paths(hit.path for hit in chosen)}"
        for hit in members:
            if hit not in chosen:
                search.miss(hit.named.path, reason, PICKED)
        taken += chosen
    return taken
