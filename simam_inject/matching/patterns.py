"""Candidates of `pattern` rules: chains of operations along the dataflow, whatever block each of them is in.

`a > b` matches if `b` is the only operation that reads the result of `a`, so that a SimAM between them has one reader.
"""

from __future__ import annotations

from collections.abc import Sequence

from simam_inject.dataflow.anatomy import Site
from simam_inject.matching.search import Search, check_facts, write_paths
from simam_inject.recipe.operations import Link, find_element


def search_pattern(search: Search) -> None:
    """Add what a `pattern` rule names in the model: an element of each chain that it finds."""
    chain = search.rule.chain
    element = find_element(chain, search.rule.target)
    for start in search.anatomy.sites:
        sites = _follow(search, chain, start) if chain[0].kind.includes(start.kind) else []
        if sites:
            _add_element(search, sites, element)


def _follow(search: Search, chain: Sequence[Link], start: Site) -> list[Site]:
    """The sites of the chain that begins at `start`; empty, with a near miss, if there is none."""
    sites: list[Site] = []
    for link in chain:
        site = _only_reader(search, sites, link) if sites else start
        if site is None:
            return []
        reason = check_facts(site, link.facts.conditions(), f"the pattern's {link.text} requires")
        if reason is not None:
            search.miss(start.path, reason if site is start else f"{site.path}: {reason}", len(sites))
            return []
        sites.append(site)
    return sites


def _only_reader(search: Search, sites: list[Site], link: Link) -> Site | None:
    """The one operation that reads the last of the sites, if it is of the kind of the link; else a near miss."""
    last = sites[-1]
    reader = search.anatomy.site_by_path.get(last.readers[0]) if len(last.readers) == 1 else None
    if reader is not None and link.kind.includes(reader.kind):
        return reader
    if len(last.readers) > 1:
        found = f"{len(last.readers)} operations ({write_paths(last.readers)}); in a pattern each value has one reader"
    elif reader is not None:
        found = f"{reader.path} ({reader.kind}); the pattern requires {link.text}"
    else:
        found = f"no operation; the pattern requires {link.text}"
    search.miss(sites[0].path, f"{last.path} is read by {found}", len(sites))
    return None


def _add_element(search: Search, chain: list[Site], element: int) -> None:
    """Add the element that the rule names; for `before`, the operand through which it reads the previous element."""
    named = chain[element]
    operands: list[str] = []
    if search.rule.position == "before" and element > 0:
        previous, sites = chain[element - 1].path, search.anatomy.site_by_path
        operands = [
            path for path in named.operands if path == previous or (path in sites and previous in sites[path].reads)
        ]
    if operands:
        search.add_operands(named, operands[:1], named.path)
    else:
        search.add(named, named.path)
