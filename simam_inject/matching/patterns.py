"""Candidates of `pattern` rules: chains of operations along the dataflow, whatever block each of them is in.

`a > b` holds when `b` reads what `a` computes and nothing else does, so that an attention between them has one reader.
"""

from __future__ import annotations

from simam_inject.dataflow.records import Site
from simam_inject.kinds import NOT_OPERATIONS
from simam_inject.matching.search import Search, check_facts, write_counts, write_paths
from simam_inject.recipe.operations import Chain, Link


def search_pattern(search: Search) -> None:
    """Enter what a `pattern` rule names in the model: a member of each chain that it finds."""
    chain = search.rule.chain
    assert chain is not None
    member = chain.find_member(search.rule.target)
    starts = [site for site in search.anatomy.sites if chain.links[0].kinds.matches(site.kind)]
    for start in starts:
        sites = _follow(search, chain, start)
        if sites:
            _enter(search, sites, member)
    if not starts:
        kinds = [site.kind for site in search.anatomy.sites if site.kind not in NOT_OPERATIONS]
        search.miss("", f"computes no {chain.links[0].kinds}; its operations are {write_counts(kinds)}")


def _follow(search: Search, pattern: Chain, start: Site) -> list[Site]:
    """The chain that begins at a site, or nothing; then the search has the reason."""
    chain: list[Site] = []
    site = start
    for link in pattern.links:
        if chain:
            following = _only_reader(search, chain, link)
            if following is None:
                return []
            site = following
        reason = check_facts(site, link.facts, f"the pattern's {link} requires")
        if reason is not None:
            search.miss(start.path, reason if site is start else f"{site.path}: {reason}", len(chain))
            return []
        chain.append(site)
    return chain


def _only_reader(search: Search, chain: list[Site], link: Link) -> Site | None:
    """The one operation that reads the chain's last value, if it is what the link wants."""
    start, last = chain[0], chain[-1]
    reader = search.anatomy.site_by_path.get(last.readers[0]) if len(last.readers) == 1 else None
    if reader is not None and link.kinds.matches(reader.kind):
        return reader
    if len(last.readers) > 1:
        found = (
            f"by {len(last.readers)} operations ({write_paths(last.readers)}); in a pattern each value has one reader"
        )
    elif last.readers:
        found = f"by {last.readers[0]}{f' ({reader.kind})' if reader else ''}; the pattern requires {link}"
    else:
        hidden = " that could be seen" if search.anatomy.opaque else ""
        found = f"by no operation{hidden}; the pattern requires {link}"
    search.miss(start.path, f"{last.path} is read {found}", len(chain))
    return None


def _enter(search: Search, chain: list[Site], member: int) -> None:
    """Enter the member that the rule names; for `before`, the operand through which it reads the member ahead of it."""
    named = chain[member]
    if search.rule.position == "after" or member == 0 or len(named.operands) < 2:
        search.add(named, named.path)
        return
    previous = chain[member - 1].path
    sites = search.anatomy.site_by_path
    for path in named.operands:
        if path == previous or (path in sites and previous in sites[path].reads):
            search.add_operand(named, path, named.path)
            return
    search.miss(named.path, f"how it reads {previous} is not known")
