"""The sites that a recipe matches in a model, from its anatomy alone.

For each rule, in order:

    search      what the rule names: candidates
    filter      by path, exclude and where
    own         a value belongs to the first rule that matches it
    pick        first, last, every, per group

A candidate that fails becomes a near miss with its reason. `layer1` (a Sequential), `layer1.2` (its last block) and
`layer1.2.relu[3]` (that block's last operation) are one value, to which SimAM is applied once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from simam_inject.dataflow.anatomy import SCRIPTED, Anatomy, Site
from simam_inject.kinds import NOT_OPERATIONS
from simam_inject.matching.explain import explain_no_candidate
from simam_inject.matching.hits import Hit, Matches, Skip
from simam_inject.matching.search import Search, check_facts, search_model, write_fact, write_path, write_paths
from simam_inject.recipe.grammar import as_tuple
from simam_inject.recipe.operations import FactConditions, Operation
from simam_inject.recipe.recipe import Recipe
from simam_inject.recipe.rule import Rule

OWNED = 100
PICKED = 101
"""Depths of the two last steps: a candidate that fails there met every condition."""


def match(recipe: Recipe, anatomy: Anatomy) -> Matches:
    """Find the sites that a recipe matches.

    Args:
        recipe: the rules; a site belongs to the first that matches it.
        anatomy: the facts about the model.

    Returns:
        Hits in the order the model computes them; near misses rule by rule, each with its reason. Values that cannot be
        attended are hits, too, unless the rule has a `pick`; the plan skips them.
    """
    order = {site.path: place for place, site in enumerate(anatomy.sites)}
    hits: list[Hit] = []
    misses: list[Skip] = []
    for index, rule in enumerate(recipe.rules):
        search = Search(rule, index, recipe.e_lambda if rule.e_lambda is None else rule.e_lambda, anatomy)
        taken = _take(search, hits, order)
        hits += taken
        # A value that fails in one role may be taken in another, e.g. as the start and as the end of a chain. Where one
        # input of a block is taken, the reasons of the others stay.
        paths = {hit.named.path for hit in taken if hit.position == "after" or rule.chain}
        for path in _scripted_for(rule, anatomy) if taken else ():
            if path not in paths:
                search.miss(path, SCRIPTED)
        missed = [miss for miss in dict.fromkeys(search.misses) if miss.path not in paths]
        misses += sorted(missed, key=lambda miss: order.get(miss.path, -1))
    hits.sort(key=lambda hit: (order[hit.path], order.get(hit.reader or "", -1)))
    return Matches(tuple(hits), tuple(misses))


def _scripted_for(rule: Rule, anatomy: Anatomy) -> list[str]:
    """Paths of the scripted blocks in which a rule may match something."""
    if rule.selects == "path" and not isinstance(rule.target, Operation):
        return []
    where, exclude = as_tuple(rule.path), as_tuple(rule.exclude)
    found = [path for path in anatomy.scripted if anatomy.site_by_path[path].kind == "block"]
    found = [path for path in found if not where or any(glob.covers(path) for glob in where)]
    return [path for path in found if not any(glob.covers(path) for glob in exclude)]


def why_not_attendable(site: Site) -> str | None:
    """Why SimAM cannot be applied to the value; None if it is a feature map larger than 1x1 that the model computes."""
    if site.obstacle is not None:
        return site.obstacle
    spatial = site.spatial or ()
    if all(length <= 1 for length in spatial):
        size = f"{write_fact(spatial)} map" if len(spatial) > 1 else "map of one position"
        return f"is a {size}: its gate would be the constant sigmoid(0.5)"
    return None


def _take(search: Search, earlier: Iterable[Hit], order: dict[str, int]) -> Sequence[Hit]:
    """The sites that one rule takes, beside those of earlier rules; the search collects the near misses."""
    search_model(search)
    if not search.candidates and not search.misses:
        search.miss("", explain_no_candidate(search.rule, search.anatomy))
    by_value = defaultdict[str, list[Hit]](list)
    for hit in earlier:
        by_value[value_of(hit.attended, search.anatomy)].append(hit)
    candidates = reversed({(hit.path, hit.reader): hit for hit in reversed(search.candidates)}.values())
    taken: list[Hit] = []
    # The outermost path first; last what is deep inside lists and dicts, which is attended under another name only.
    for hit in sorted(candidates, key=lambda hit: (hit.path.count(":") > 1, hit.path.count("."), hit.path != "")):
        same = by_value[value_of(hit.attended, search.anatomy)]
        if problem := _why_filtered(search, hit) or _why_taken(hit, same):
            search.reject(hit, *problem)
        else:
            same.append(hit)
            taken.append(hit)
    return taken if search.rule.choice.takes_all else _pick(search, taken, order)


def _why_filtered(search: Search, candidate: Hit) -> tuple[str, int] | None:
    """Why a candidate does not meet `path`, `exclude` or a condition of `where`, and how many of these it met."""
    rule, named, attended = search.rule, candidate.named, candidate.attended
    paths = as_tuple(rule.path)
    if rule.selects != "path" and paths and not any(glob.covers(named.path) for glob in paths):
        return f"its path is not in path: {' or '.join(paths)}", 1
    for glob in as_tuple(rule.exclude):
        if glob.covers(named.path) or glob.matches(attended.path):
            return f"excluded by {glob}", 2
    for met, (name, condition) in enumerate(rule.conditions, start=3):
        is_of_operation = name in FactConditions.model_fields
        reason = check_facts(named if is_of_operation else attended, [(name, condition)], f"where.{name} requires")
        if reason is not None and is_of_operation and named.kind == "block":
            reason += f"; for an operation inside write {rule.position}: {{op: conv2d, {name}: ...}}"
        if reason is not None:
            return reason, met
    return None


def value_of(site: Site, anatomy: Anatomy) -> str:
    """Path of the operation that computes the output or input of a block; the site's own path for any other value."""
    if site.kind in NOT_OPERATIONS and len(site.reads) == 1 and site.obstacle is None:
        origin = anatomy.site_by_path.get(site.reads[0])
        if origin is not None and origin.shape == site.shape:
            return origin.path
    return site.path


def _why_taken(candidate: Hit, same: Iterable[Hit]) -> tuple[str, int] | None:
    """Why a candidate gets no second SimAM: one of the hits that attend the same value is for the same reader."""
    for other in same:
        if have_common_reader(candidate.reader, other.reader):
            whose = f"taken by rules[{other.rule}]" if other.rule != candidate.rule else "which this rule takes"
            what = f"is the same value as {write_path(other.path)}," if other.path != candidate.path else "already"
            return f"{what} {whose}", OWNED
    return None


def have_common_reader(one: str | None, other: str | None) -> bool:
    """Whether two sites of one value are both for the same reader, given the readers of their `before` rules.

    None is for every reader. What reads inside a module gets what the module is given.
    """
    if one is None or other is None:
        return True
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _pick(search: Search, candidates: Sequence[Hit], order: dict[str, int]) -> list[Hit]:
    """What the rule picks in each group; only values that can be attended count."""
    pick = search.rule.choice
    groups = defaultdict[object, list[Hit]](list)
    for hit in sorted(candidates, key=lambda hit: order[hit.path]):
        # A site has no attribute `model`: all sites are in one group.
        group = (
            hit.block.partition(":")[0].rpartition(".")[0]
            if pick.per == "parent"
            else getattr(hit.attended, pick.per, "")
        )
        problem = why_not_attendable(hit.attended) or (f"its {pick.per} is not known" if group is None else None)
        if problem is not None:
            search.reject(hit, f"pick {pick} does not count it: {problem}", PICKED)
        else:
            groups[group].append(hit)
    taken: list[Hit] = []
    for members in groups.values():
        chosen = pick.choose(members)
        reason = f"pick {pick} takes {write_paths(hit.path for hit in chosen)}"
        for hit in members:
            if hit not in chosen:
                search.reject(hit, reason, PICKED)
        taken += chosen
    return taken
