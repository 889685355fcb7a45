"""Candidates of rules that select blocks, by class name or by path, and name something of each block.

What it names:
    output      what the block returns
    input       every value the block is given, for the block alone
    a child     by its path inside the block; a name that no selected block has as a child may be a kind of operation
    {op: ...}   every operation of the kind, at any depth
    residual    the branch that enters an add of the block's own forward
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from simam_inject.dataflow.records import Anatomy, Site
from simam_inject.kinds import NOT_OPERATIONS, find_kind
from simam_inject.matching.candidates import Search, check_facts, parent_of
from simam_inject.matching.wording import write_path, write_paths, write_times
from simam_inject.recipe.kinds import Kinds
from simam_inject.recipe.rule import Rule
from simam_inject.recipe.targets import Child, Input, Operation, Output, Residual
from simam_inject.recipe.wording import did_you_mean, join_names

Inside = Mapping[str, Sequence[tuple[str, Site]]]
"""For each selected block: path inside the block and site, of everything below it, in the order of computation."""


def search_blocks(rule: Rule, anatomy: Anatomy) -> Search:
    """What a `block` rule, or a rule with `path` alone, names in the model."""
    search = Search(anatomy)
    owners = [site for site in anatomy.sites if _is_selected(site, rule)]
    _mention_slips(search, rule, owners)
    target = rule.target
    if isinstance(target, Output):
        for owner in owners:
            search.add(owner, parent_of(owner.path), "after")
    elif isinstance(target, Input):
        for owner in owners:
            _enter_inputs(search, owner)
    elif isinstance(target, Residual):
        _search_residual(search, owners)
    elif isinstance(target, Child):
        _search_child(search, rule, target, owners)
    else:
        _search_operation(search, rule, target, owners)
    return search


def _is_selected(site: Site, rule: Rule) -> bool:
    """The site is a block that the rule selects.

    A wildcard selects neither leaf modules by class nor inputs by path: both are meant only where they are written out.
    """
    if rule.structure:
        return not set(rule.structure).isdisjoint(site.structure)
    if not rule.block:
        return any(
            glob.matches(site.path) and (site.kind != "input" or glob.text == site.path or not glob.is_wild)
            for glob in rule.path
        )
    if site.class_name is None:
        return False
    names = dict.fromkeys((site.class_name, *site.bases))
    return any(
        glob.matches_any_case(name) and (site.kind == "block" or not glob.is_wild)
        for glob in rule.block
        for name in names
    )


def _mention_slips(search: Search, rule: Rule, owners: Sequence[Site]) -> None:
    """A class name that selects nothing is fine among others, unless it is close to one that the rule leaves out."""
    if not owners or len(rule.block) < 2:
        return
    selected = {name for site in owners for name in (site.class_name or "", *site.bases)}
    others = {site.class_name for site in search.anatomy.blocks() if site.class_name is not None} - selected
    for glob in rule.block:
        if not glob.is_wild and not any(map(glob.matches_any_case, selected)):
            near = did_you_mean(glob.text, others)
            if near:
                search.fail("", f"has no block named {glob.text!r}{near}")


def _look_inside(owners: Sequence[Site], anatomy: Anatomy) -> Inside:
    """One walk over all sites: each is entered with every selected block above it."""
    inside: dict[str, list[tuple[str, Site]]] = {owner.path: [] for owner in owners if owner.kind == "block"}
    for site in anatomy.sites:
        above = site.path
        while above:
            above = parent_of(above)
            if above in inside:
                inside[above].append((site.path[len(above) + 1 :] if above else site.path, site))
    return inside


def _enter_inputs(search: Search, owner: Site) -> None:
    for operand in dict.fromkeys(owner.operands):
        search.add_operand(owner, operand, parent_of(owner.path))
    if not owner.operands:
        search.fail(owner.path, "what it is given is not known")


def _search_residual(search: Search, owners: Sequence[Site]) -> None:
    branches: defaultdict[str, list[Site]] = defaultdict(list)
    for site in search.anatomy.sites:
        join = search.anatomy.site_by_path.get(site.joins) if site.joins is not None else None
        if join is not None:
            branches[join.scope].append(site)
    for owner in owners:
        for branch in branches[owner.path]:
            if branch.joins is not None:
                search.add_operand(search.anatomy.site_by_path[branch.joins], branch.path, parent_of(owner.path))
        if not branches[owner.path] and owner.kind == "block":
            below = [
                scope
                for scope in branches
                if scope.startswith(f"{owner.path}." if owner.path else "") and branches[scope]
            ]
            nearest = f"; there are some in {write_paths(below)}" if below else ""
            search.fail(owner.path, f"no branch joins a skip in its own forward{nearest}")


def _search_child(search: Search, rule: Rule, target: Child, owners: Sequence[Site]) -> None:
    inside = _look_inside(owners, search.anatomy)
    found = {path: _find_calls(target, below) for path, below in inside.items()}
    kinds = _as_kinds(target, inside) if not any(found.values()) else None
    for path, below in inside.items():
        if kinds is not None:
            calls = {str(target.name): [site for _, site in below if kinds.matches(site.kind)]}
            _enter_operations(search, rule, path, calls[str(target.name)], target)
            continue
        for name, sites in found[path].items():
            _enter_calls(search, rule, target, path, name, sites)
        if not found[path] and (rule.block or not any(found.values())):
            search.fail(path, _explain_children(str(target.name), below))


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


def _enter_calls(search: Search, rule: Rule, target: Child, owner: str, name: str, sites: Sequence[Site]) -> None:
    """Enter those calls of one child that the rule means."""
    numbers = range(1, len(sites) + 1)
    if target.call is None and len(sites) > 1 and not target.name.is_wild:
        choices = join_names(f"{name}[{number}]" for number in numbers)
        search.fail(sites[0].path, f"{name} is called {write_times(len(sites))}; write {choices}")
    elif target.call is not None and target.call > len(sites):
        called = write_times(len(sites))
        reason = f"{name} is called {called} in {write_path(owner)}; there is no {name}[{target.call}]"
        search.fail(sites[0].path, f"{reason}{_both(search, owner, target)}")
    else:
        for number in [target.call] if target.call else numbers:
            search.add(sites[number - 1], parent_of(owner), rule.position)


def _enter_operations(search: Search, rule: Rule, owner: str, sites: Sequence[Site], target: Child) -> None:
    """Enter the operations of a kind that a child's name turned out to be: all, or the one that was counted."""
    if not sites:
        search.fail(owner, f"has no child and no operation named {target.name}")
    elif target.call and target.call > len(sites):
        computed = write_times(len(sites))
        reason = f"{target.name} is computed {computed} in it; there is no {target.name}[{target.call}]"
        search.fail(owner, f"{reason}{_both(search, owner, target)}")
    else:
        for site in [sites[target.call - 1]] if target.call else sites:
            search.add(site, parent_of(owner), rule.position)


def _both(search: Search, owner: str, target: Child) -> str:
    """Advice where a call number such as `conv[12]` was meant as a glob for `conv1` and `conv2`."""
    names = [f"{target.name}{digit}" for digit in str(target.call)]
    prefix = f"{owner}." if owner else ""
    if not all(f"{prefix}{name}" in search.anatomy.site_by_path for name in names):
        return ""
    wanted = f"'{{{','.join(names)}}}'" if len(names) > 1 else names[0]
    return f"; [..] counts calls; the children are {wanted}"


def _explain_children(name: str, below: Sequence[tuple[str, Site]]) -> str:
    names = [inner for inner, site in below if "." not in inner and site.kind != "input" and not inner.endswith("]")]
    if not names:
        return f"has no child {name}: what it computes inside is not known"
    near = did_you_mean(name, [inner for inner, _ in below])
    return f"has no child {name}; it has {write_paths(names)}{near}"


def _search_operation(search: Search, rule: Rule, target: Operation, owners: Sequence[Site]) -> None:
    inside = _look_inside(owners, search.anatomy)
    for owner in owners:
        sites = [site for _, site in inside[owner.path]] if owner.kind == "block" else [owner]
        named: list[Site] = []
        meant = [site for site in sites if any(kinds.matches(site.kind) for kinds in target.kinds)]
        for site in meant:
            reason = check_facts(site, target.facts, f"{rule.position} {target} wants")
            if rule.structure and (site.on_skip or site.in_gate):
                reason = "lies on the skip" if site.on_skip else "only scales another map"
                reason += "; a structure rule counts the main path"
            if reason is None:
                named.append(site)
            else:
                search.fail(site.path, reason)
        chosen = target.choose([site for site in named if site.runs]) if target.which != "all" else named
        for site in named:
            if site in chosen:
                search.add(site, parent_of(owner.path), rule.position)
            else:
                where = f"the {target.which} one in {write_path(owner.path)}"
                search.fail(site.path, f"is not {where}{f', {chosen[0].path}' if chosen else ''}")
        if not meant and owner.kind == "block" and rule.block:
            kinds = write_paths(sorted({site.kind for site in sites} - NOT_OPERATIONS)) or "nothing that is known"
            search.fail(
                owner.path, f"has no operation {join_names([k.text for k in target.kinds])}; it computes {kinds}"
            )
