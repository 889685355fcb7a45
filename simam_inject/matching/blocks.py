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
from simam_inject.matching.search import Search, check_facts, parent_of, write_path, write_paths, write_times
from simam_inject.recipe.names import Child, Kinds, Whole
from simam_inject.recipe.operations import Operation
from simam_inject.recipe.rule import Rule
from simam_inject.recipe.wording import did_you_mean, join_names

Inside = Mapping[str, Sequence[tuple[str, Site]]]
"""For each selected block: path inside the block and site, of everything below it, in the order of computation."""


def search_blocks(search: Search) -> None:
    """Enter what a `structure` or `block` rule, or a rule with `path` alone, names in the model."""
    rule, target = search.rule, search.rule.target
    owners = [site for site in search.anatomy.sites if _is_selected(site, rule)]
    if isinstance(target, Whole) and target.word == "residual":
        _enter_branches(search, owners)
    elif isinstance(target, Whole):
        enter = _enter_output if target.word == "output" else _enter_inputs
        for owner in owners:
            enter(search, owner, target)
    elif isinstance(target, Child):
        _search_child(search, target, _look_inside(search, owners))
    else:
        _search_operation(search, target, owners)


def _is_selected(site: Site, rule: Rule) -> bool:
    """The site is a block that the rule selects.

    A wildcard selects neither leaf modules by class nor inputs by path: both are meant only where they are written out.
    """
    if rule.selects == "structure":
        return not set(rule.structures).isdisjoint(site.structure)
    if rule.selects == "path":
        return any(
            glob.matches(site.path) and (site.kind != "input" or glob.text == site.path or not glob.is_wild)
            for glob in rule.paths
        )
    if site.class_name is None:
        return False
    names = dict.fromkeys((site.class_name, *site.bases))
    return any(
        glob.matches_any_case(name) and (site.kind == "block" or not glob.is_wild)
        for glob in rule.blocks
        for name in names
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
    if target.key is None:
        search.add(owner, owner.path)
        return
    site = search.anatomy.site_by_path.get(f"{owner.path}:{target.key}")
    if site is not None:
        search.add(site, owner.path)
    else:
        maps = f"the maps {write_paths(owner.maps)}" if owner.maps else "no list, tuple or dict of feature maps"
        search.miss(owner.path, f"returns {maps}; it has no {target}")


def _enter_inputs(search: Search, owner: Site, _: Whole) -> None:
    for operand in dict.fromkeys(owner.operands):
        search.add_operand(owner, operand, owner.path)
    if not owner.operands:
        hidden = owner.scope in search.anatomy.opaque
        search.miss(owner.path, "its input could not be recorded" if hidden else "has no input that the model computes")


def _enter_branches(search: Search, owners: Sequence[Site]) -> None:
    branches: defaultdict[str, list[tuple[Site, Site]]] = defaultdict(list)
    for site in search.anatomy.sites:
        join = search.anatomy.site_by_path.get(site.joins) if site.joins is not None else None
        if join is not None:
            branches[join.scope].append((join, site))
    for owner in owners:
        for join, branch in branches[owner.path]:
            search.add_operand(join, branch.path, owner.path)
        if not branches[owner.path] and owner.kind == "block":
            below = [scope for scope in branches if branches[scope] and f"{scope}.".startswith(f"{owner.path}.")]
            nearest = f"; there are some in {write_paths(below)}" if below else ""
            search.miss_block(
                owner.path, f"no branch joins a skip connection in its own forward{nearest}", nested=False
            )


def _search_child(search: Search, target: Child, inside: Inside) -> None:
    found = {path: _find_calls(target, below) for path, below in inside.items()}
    kinds = _as_kinds(target, inside) if not any(found.values()) else None
    for path, below in inside.items():
        name = str(target.name)
        if kinds is not None:
            operations = [site for _, site in below if kinds.matches(site.kind) and _counts(search, site)]
            _enter_calls(search, target, path, name, operations, each=True)
        for child, sites in found[path].items():
            _enter_calls(search, target, path, child, sites, each=target.name.is_wild)
        missing = kinds is None and not found[path]
        if missing and (search.rule.selects != "path" or not any(found.values())):
            search.miss_block(path, _explain_children(name, below))


def _find_calls(target: Child, below: Sequence[tuple[str, Site]]) -> dict[str, list[Site]]:
    """Sites with the child's name, by name without call index, in the order of the calls."""
    calls: defaultdict[str, list[Site]] = defaultdict(list)
    for inner, site in below:
        name = inner[: inner.rindex("[")] if inner.endswith("]") else inner
        if target.name.matches(name) and (site.kind != "input" or not target.name.is_wild):
            calls[name].append(site)
    return {name: sorted(sites, key=lambda site: _call_number(site.path)) for name, sites in calls.items()}


def _call_number(path: str) -> int:
    return int(path[path.rindex("[") + 1 : -1]) if path.endswith("]") else 1


def _as_kinds(target: Child, inside: Inside) -> Kinds | None:
    """The name read as a kind of operation, if it is one or the selected blocks compute it."""
    name = str(target.name)
    if target.name.is_wild:
        return None
    known = find_kind(name)
    if known is not None:
        return Kinds(known)
    computed = {site.kind for below in inside.values() for _, site in below} - NOT_OPERATIONS
    return Kinds(name) if name in computed else None


def _enter_calls(search: Search, target: Child, owner: str, name: str, sites: Sequence[Site], *, each: bool) -> None:
    """Enter those calls of one child, or operations of one kind, that the rule means; `each` without a number."""
    if not sites:
        search.miss_block(owner, f"has no child and no operation named {name}")
    elif target.call is None and len(sites) > 1 and not each:
        choices = join_names(f"{name}[{number}]" for number in range(1, len(sites) + 1))
        search.miss(sites[0].path, f"{name} is called {write_times(len(sites))}; write {choices}")
    elif target.call is not None and target.call > len(sites):
        there = f"{name} is called {write_times(len(sites))} in {write_path(owner)}"
        search.miss(sites[0].path, f"{there}; there is no {name}[{target.call}]")
    else:
        for site in [sites[target.call - 1]] if target.call else sites:
            search.add(site, owner)


def _explain_children(name: str, below: Sequence[tuple[str, Site]]) -> str:
    names = [inner for inner, site in below if "." not in inner and site.kind != "input" and inner[-1:] != "]"]
    if not names:
        return f"has no child {name}; what it computes could not be recorded"
    return f"has no child {name}; it has {write_paths(names)}{did_you_mean(name, [inner for inner, _ in below])}"


def _counts(search: Search, site: Site) -> bool:
    """In a structure rule only operations on the main path count; the others are entered as misses."""
    if search.rule.selects != "structure" or not (site.on_skip or site.in_gate):
        return True
    what = "is on the skip connection" if site.on_skip else "only scales another feature map"
    search.miss(site.path, f"{what}; a structure rule counts operations on the main path")
    return False


def _search_operation(search: Search, target: Operation, owners: Sequence[Site]) -> None:
    inside = _look_inside(search, owners)
    for owner in owners:
        is_block = owner.path in inside
        if not is_block and target.which != "all":
            continue
        sites = [site for _, site in inside[owner.path]] if is_block else [owner]
        meant = [site for site in sites if any(kinds.matches(site.kind) for kinds in target.kinds)]
        _enter_operations(search, target, owner, [site for site in meant if _counts(search, site)])
        if not meant and is_block and search.rule.selects != "path":
            computed = (
                write_paths(sorted({site.kind for site in sites} - NOT_OPERATIONS)) or "nothing that could be recorded"
            )
            wanted = join_names(kinds.text for kinds in target.kinds)
            search.miss_block(owner.path, f"has no operation {wanted}; it computes {computed}")


def _enter_operations(search: Search, target: Operation, owner: Site, sites: Sequence[Site]) -> None:
    """Enter the operations of one block that meet the conditions: all, or the first or last of those that ran."""
    meeting: list[Site] = []
    for site in sites:
        reason = check_facts(site, target.conditions(), f"{search.rule.position} {target} requires")
        if reason is not None:
            search.miss(site.path, reason)
        else:
            meeting.append(site)
    chosen = meeting if target.which == "all" else target.choose([site for site in meeting if site.runs])
    for site in meeting:
        if site in chosen:
            search.add(site, owner.path)
        else:
            search.miss(site.path, f"is not the {target.which} one in {write_path(owner.path)}")
