"""Candidates of rules that select blocks, by structure, class name or path, and name something of each block.

What it names:
    output      what the block returns, each map where it returns several; `output:0` is one of them
    input       every value the block is given, for the block alone
    a child     by its path inside the block; a name that no selected block has as a child may be a kind of operation
    {op: ...}   every operation of the kind, at any depth, or the first or last of them
    residual    the branch that enters an add of the block's own forward
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from simam_inject.dataflow.records import Site
from simam_inject.kinds import NOT_OPERATIONS, find_kind
from simam_inject.matching.search import Search, check_facts, parent_of, write_path, write_paths
from simam_inject.recipe.grammar import entries_of
from simam_inject.recipe.names import Child, Kind, Whole, parse_kind
from simam_inject.recipe.operations import Operation
from simam_inject.recipe.rule import Rule
from simam_inject.recipe.wording import did_you_mean, join_names

Inside = Mapping[str, Sequence[tuple[str, Site]]]
"""For each selected block: path inside the block and site, of everything below it, in the order of computation."""


def search_blocks(search: Search) -> None:
    """Enter what a `structure` or `block` rule, or a rule with `path` alone, names in the model."""
    target = search.rule.target
    owners = [site for site in search.anatomy.sites if _is_selected(site, search.rule)]
    if isinstance(target, Child):
        _search_child(search, target, _look_inside(search, owners))
    elif isinstance(target, Operation):
        _search_operation(search, target, owners)
    elif target.word == "residual":
        _search_branches(search, owners)
    else:
        for owner in owners:
            if target.word == "output":
                _enter_output(search, owner, target)
            elif owner.operands:
                for operand in dict.fromkeys(owner.operands):
                    search.add_operand(owner, operand, owner.path)
            else:
                search.miss_operands(owner)


def _is_selected(site: Site, rule: Rule) -> bool:
    """The site is a block that the rule selects.

    A wildcard selects neither leaf modules by class nor inputs by path: both are meant only where they are written out.
    """
    if rule.selects == "structure":
        return not set(entries_of(rule.structure)).isdisjoint(site.structure)
    if rule.selects == "path":
        return any(
            glob.matches(site.path) and (site.kind != "input" or glob == site.path or not glob.is_wild)
            for glob in entries_of(rule.path)
        )
    return site.class_name is not None and any(
        glob.matches_any_case(name) and (site.kind == "block" or not glob.is_wild)
        for glob in entries_of(rule.block)
        for name in {site.class_name, *site.bases}
    )


def _look_inside(search: Search, owners: Sequence[Site]) -> Inside:
    """One walk over all sites: each is entered with every selected block above it."""
    inside: dict[str, list[tuple[str, Site]]] = {
        owner.path: [] for owner in owners if owner.kind == "block" and ":" not in owner.path
    }
    for site in search.anatomy.sites:
        above = site.path
        while above:
            above = parent_of(above)
            if above in inside:
                inside[above].append((site.path[len(above) + 1 :] if above else site.path, site))
    return inside


def _enter_output(search: Search, owner: Site, target: Whole) -> None:
    site = owner if target.key is None else search.anatomy.site_by_path.get(f"{owner.path}:{target.key}")
    if site is not None:
        search.add(site, owner.path)
    else:
        maps = f"the maps {write_paths(owner.maps)}" if owner.maps else "no list, tuple or dict of maps"
        search.miss(owner.path, f"returns {maps}; there is no {target}")


def _search_branches(search: Search, owners: Sequence[Site]) -> None:
    branches: defaultdict[str, list[tuple[Site, Site]]] = defaultdict(list)
    for site in search.anatomy.sites:
        join = search.anatomy.site_by_path.get(site.joins) if site.joins is not None else None
        if join is not None:
            branches[join.scope].append((join, site))
    for owner in owners:
        for join, branch in branches.get(owner.path, ()):
            search.add_operand(join, branch.path, owner.path)
        if owner.path not in branches and owner.kind == "block":
            below = [scope for scope in branches if f"{scope}.".startswith(f"{owner.path}.")]
            nearest = f"; there are some in {write_paths(below)}" if below else ""
            search.miss_block(owner.path, f"no branch joins a skip in its own forward{nearest}", nested=False)


def _search_child(search: Search, target: Child, inside: Inside) -> None:
    """A name means the children of that name; where no selected block has one, the operations of that kind."""
    found = {block: _find_calls(target, below) for block, below in inside.items()}
    kind = None if any(found.values()) else _as_kind(target, inside)
    if kind is not None:
        operations = {block: [site for _, site in below if kind.names(site.kind)] for block, below in inside.items()}
        found = {block: {kind: sites} for block, sites in operations.items() if sites}
    each = kind is not None or target.name.is_wild
    for block, below in inside.items():
        for name, sites in found.get(block, {}).items():
            counted = sites if kind is None else [site for site in sites if _counts(search, site)]
            _enter_calls(search, target, block, name, counted, each=each)
        if not found.get(block) and (search.rule.selects != "path" or not any(found.values())):
            search.miss_block(block, _explain_lack(target, below))


def _find_calls(target: Child, below: Sequence[tuple[str, Site]]) -> dict[str, list[Site]]:
    """Sites with the child's name, by name without call index."""
    calls: defaultdict[str, list[Site]] = defaultdict(list)
    for inner, site in below:
        name = inner[: inner.rindex("[")] if inner.endswith("]") else inner
        if target.name.matches(name) and (site.kind != "input" or not target.name.is_wild):
            calls[name].append(site)
    return calls


def _as_kind(target: Child, inside: Inside) -> Kind | None:
    """The name read as a kind of operation, if it is one or the selected blocks compute it."""
    computed = {site.kind for below in inside.values() for _, site in below} - NOT_OPERATIONS
    is_kind = not target.name.is_wild and (find_kind(target.name) or target.name in computed)
    return parse_kind(target.name) if is_kind else None


def _enter_calls(search: Search, target: Child, owner: str, name: str, sites: Sequence[Site], *, each: bool) -> None:
    """Enter those calls of one child, or operations of one kind, that the rule means; `each` without a number."""
    times = "once" if len(sites) == 1 else f"{len(sites)} times"
    there = f"{name} is called {times} in {write_path(owner)}"
    if target.call is None and len(sites) > 1 and not each:
        choices = join_names(f"{name}[{number}]" for number in range(1, len(sites) + 1))
        search.miss(sites[0].path, f"{there}; write {choices}")
    elif target.call and sites and target.call > len(sites):
        search.miss(sites[0].path, f"{there}; there is no {name}[{target.call}]")
    else:
        for site in sites[target.call - 1 : target.call] if target.call else sites:
            search.add(site, owner)


def _explain_lack(target: Child, below: Sequence[tuple[str, Site]]) -> str:
    names = [inner for inner, site in below if "." not in inner and site.kind != "input" and inner[-1:] != "]"]
    there = f"it has {write_paths(names)}" if names else "nothing is known of what it computes"
    near = did_you_mean(target.name, [inner for inner, _ in below])
    return f"has no child and no operation named {target.name}; {there}{near}"


def _counts(search: Search, site: Site) -> bool:
    """In a structure rule only operations on the main path count; the others are entered as misses."""
    if search.rule.selects != "structure" or not (site.on_skip or site.in_gate):
        return True
    what = "lies on the skip" if site.on_skip else "only scales another map"
    search.miss(site.path, f"{what}; a structure rule counts operations on the main path")
    return False


def _search_operation(search: Search, target: Operation, owners: Sequence[Site]) -> None:
    inside = _look_inside(search, owners)
    for owner in owners:
        is_block = owner.path in inside
        if not is_block and target.which != "all":
            continue
        sites = [site for _, site in inside[owner.path]] if is_block else [owner]
        meant = [site for site in sites if target.is_one(site.kind)]
        _enter_operations(search, target, owner, [site for site in meant if _counts(search, site)])
        if not meant and is_block and search.rule.selects != "path":
            computed = write_paths(sorted({site.kind for site in sites} - NOT_OPERATIONS)) or "nothing that is known"
            search.miss_block(
                owner.path, f"has no operation {join_names(entries_of(target.op))}; it computes {computed}"
            )


def _enter_operations(search: Search, target: Operation, owner: Site, sites: Sequence[Site]) -> None:
    """Enter the operations of one block that meet the conditions: all, or the first or last of those that ran."""
    meeting: list[Site] = []
    for site in sites:
        reason = check_facts(site, target.conditions(), f"{search.rule.position} {target} wants")
        if reason is None:
            meeting.append(site)
        else:
            search.miss(site.path, reason)
    ran = [site for site in meeting if site.runs]
    chosen = {"all": meeting, "first": ran[:1], "last": ran[-1:]}[target.which]
    for site in meeting:
        if site in chosen:
            search.add(site, owner.path)
        else:
            search.miss(site.path, f"is not the {target.which} one in {write_path(owner.path)}")
