"""Candidates of `pattern` rules: chains of operations along the dataflow, whatever block each of them is in.

`a > b` holds when `b` reads what `a` computes and nobody else does, so that an attention between them has one reader.
"""

from __future__ import annotations

from simam_inject.dataflow.records import Anatomy, Site
from simam_inject.kinds import NOT_OPERATIONS
from simam_inject.matching.candidates import Search, check_facts
from simam_inject.matching.wording import write_counts, write_paths
from simam_inject.recipe.chains import Chain, Link
from simam_inject.recipe.rule import Rule


def search_pattern(rule: Rule, anatomy: Anatomy) -> Search:
    """What a `pattern` rule names in the model: a member of each chain that it finds."""
    search = Search(anatomy)
    assert rule.pattern is not None
    member = rule.pattern.find_member(rule.target)
    joins = frozenset(site.joins for site in anatomy.sites if site.joins is not None)
    starts = [site for site in anatomy.sites if rule.pattern.links[0].kinds.matches(site.kind)]
    for start in starts:
        chain = _follow(search, rule.pattern, start, joins)
        if chain:
            _enter(search, rule, chain, member)
    if not starts:
        kinds = [site.kind for site in anatomy.sites if site.kind not in NOT_OPERATIONS]
        search.fail("", f"computes no {rule.pattern.links[0].kinds}; its operations are {write_counts(kinds)}")
    return search


def _follow(search: Search, pattern: Chain, start: Site, joins: frozenset[str]) -> list[Site]:
    """The chain that begins at a site, or nothing; then the search has the reason."""
    chain: list[Site] = []
    site = start
    for link in pattern.links:
        if chain:
            following = _only_reader(search, chain, link, joins)
            if following is None:
                return []
            site = following
        reason = check_facts(site, link.facts, f"the pattern's {link} wants")
        if reason is not None:
            search.fail(start.path, reason if site is start else f"{site.path}: {reason}")
            return []
        chain.append(site)
    return chain


def _only_reader(search: Search, chain: list[Site], link: Link, joins: frozenset[str]) -> Site | None:
    """The one operation that reads the chain's last value, if it is what the link wants."""
    start, last = chain[0], chain[-1]
    if not last.readers:
        search.fail(start.path, f"no operation reads {last.path}; the pattern wants {link} to")
        return None
    if len(last.readers) > 1:
        skip = next((reader for reader in last.readers if reader in joins), None)
        residual = f"; {skip} is where a residual branch joins" if skip is not None else ""
        readers = f"{len(last.readers)} operations ({write_paths(last.readers)})"
        search.fail(start.path, f"{last.path} is read by {readers}; in a pattern each value has one reader{residual}")
        return None
    reader = search.anatomy.site_by_path.get(last.readers[0])
    if reader is None or not link.kinds.matches(reader.kind):
        found = f"{last.readers[0]} ({reader.kind})" if reader is not None else last.readers[0]
        search.fail(start.path, f"{last.path} is read by {found}; the pattern wants {link}")
        return None
    return reader


def _enter(search: Search, rule: Rule, chain: list[Site], member: int) -> None:
    named = chain[member]
    if rule.position == "after" or member == 0 or len(named.operands) < 2:
        search.add(named, named.scope, rule.position)
        return
    previous = chain[member - 1].path
    sites = search.anatomy.site_by_path
    operands = [
        path for path in named.operands if path == previous or (path in sites and previous in sites[path].reads)
    ]
    if len(operands) == 1:
        search.add_operand(named, operands[0], named.scope)
    else:
        search.fail(named.path, f"how it reads {previous} is not known")
