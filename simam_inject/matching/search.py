"""What one rule names in a model: candidates, and near misses with their reasons.

A `pattern` rule names a chain of operations along the dataflow, whatever block each of them is in: `a > b` matches if
`b` is the only operation that reads the result of `a`, so that a SimAM between them has one reader. Any other rule
selects blocks by structure, class name or path, and names in each of them:

output      what the block returns, or each feature map of a list, tuple or dict; `output:0` is one of them
input       each input of the block, for the block alone
a child     by its path inside the block; if no selected block has such a child, the operations of that kind
{op: ...}   every operation of the kind, at any depth, or the first or last of them
residual    the branch that an addition of the block's own forward joins with the skip connection
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from simam_inject.dataflow.anatomy import Anatomy, Site
from simam_inject.errors import did_you_mean, join_names, shortened
from simam_inject.kinds import NOT_OPERATIONS, TRANSPARENT, find_kind
from simam_inject.matching.hits import Hit, Skip
from simam_inject.recipe.grammar import as_tuple
from simam_inject.recipe.names import BlockValue, Child
from simam_inject.recipe.operations import Link, Numbers, Operation, find_element, is_met
from simam_inject.recipe.rule import Rule

MAX_SHOWN = 8
JOIN = "(an addition of two maps of one origin and scale, one of them after fewer convolutions, two at most)"
"""What joins a branch with a skip connection."""
Inside = Mapping[str, Sequence[tuple[str, Site]]]
"""For each selected block: path inside the block and site, of everything below it, in the order of computation."""


@dataclass(slots=True)
class Search:
    """What one rule finds in a model: candidates, and near misses with their reasons."""

    rule: Rule
    index: int
    e_lambda: float
    anatomy: Anatomy
    candidates: list[Hit] = field(default_factory=list)
    misses: list[Skip] = field(default_factory=list)

    def add(self, named: Site, block: str) -> None:
        """Add what a rule names: for `after` the value, or each of its maps; for `before` what it reads."""
        if self.rule.position == "after":
            for site in [self.anatomy.site_by_path[path] for path in named.maps] or [named]:
                self._add_hit(site, site, block)
        elif len(named.operands) > 1:
            values = f"{len(named.operands)} values ({write_paths(named.operands)})"
            self.miss(named.path, f"reads {values}; before needs an operation that reads one")
        else:
            self.add_operands(named, named.operands, block)

    def add_operands(self, named: Site, operands: Sequence[str], block: str) -> None:
        """Add values that a site reads, to be attended for that site alone."""
        for operand in dict.fromkeys(operands):
            attended = self.anatomy.site_by_path.get(operand)
            if attended is None:
                self.miss(named.path, f"reads {operand}, which is not a feature map")
            else:
                self._add_hit(named, attended, block)
        if not operands:
            self.lack(named, "reads no value that the model computes")

    def _add_hit(self, named: Site, attended: Site, block: str) -> None:
        self.candidates.append(Hit(named, attended, self.rule.position, block, self.index, self.e_lambda))

    def reject(self, hit: Hit, reason: str, depth: int) -> None:
        """Make a near miss of a candidate. Of several inputs of a block, the reason names the one that is meant."""
        is_one_of_several = hit.named.kind == "block" and hit.reader is not None and len(hit.named.operands) > 1
        self.miss(hit.named.path, f"input {hit.path}: {reason}" if is_one_of_several else reason, depth)

    def miss(self, path: str, reason: str, depth: int = 0) -> None:
        """Add a near miss, which met so many of the conditions."""
        self.misses.append(Skip(path, reason, self.index, hit=False, depth=depth))

    def lack(self, site: Site, reason: str) -> None:
        """Add the near miss of a site without what the rule names; of one that never ran, this is not known."""
        self.miss(site.path, reason if site.runs or site.obstacle is None else site.obstacle)


def search_model(search: Search) -> None:
    """Add what the rule names in the model."""
    rule, target = search.rule, search.rule.target
    if rule.chain:
        _search_pattern(search)
        return
    blocks = [site for site in search.anatomy.sites if _is_selected(site, rule)]
    if isinstance(target, Operation):
        _search_operations(search, target, blocks)
    elif isinstance(target, Child):
        _search_children(search, target, blocks)
    elif target.word == "residual":
        _search_branches(search, blocks)
    else:
        for block in blocks:
            _add_value(search, block, target)


def _is_selected(site: Site, rule: Rule) -> bool:
    """The rule selects the site.

    Wildcards on classes select no modules without children; on paths, no inputs unless their name is written in full.
    """
    if rule.selects == "structure":
        return not set(as_tuple(rule.structure)).isdisjoint(site.structure)
    if rule.selects == "path":
        return any(
            glob.matches(site.path)
            and (site.kind != "input" or f".{glob}".endswith(f".{site.path.rpartition('.')[2]}"))
            for glob in as_tuple(rule.path)
        )
    return site.class_name is not None and any(
        glob.matches_any_case(name) and (site.kind == "block" or not glob.is_wild)
        for glob in as_tuple(rule.block)
        for name in {site.class_name, *site.bases}
    )


def _look_inside(search: Search, blocks: Sequence[Site]) -> Inside:
    """List all sites inside each selected block, in one pass over the model."""
    inside: dict[str, list[tuple[str, Site]]] = {
        block.path: [] for block in blocks if block.kind == "block" and ":" not in block.path
    }
    for site in search.anatomy.sites:
        above = site.path
        while above:
            above = above.partition(":")[0].rpartition(".")[0]
            if above in inside:
                inside[above].append((site.path[len(above) + 1 :] if above else site.path, site))
    return inside


def _add_value(search: Search, block: Site, target: BlockValue) -> None:
    site = block if target.key is None else search.anatomy.site_by_path.get(f"{block.path}:{target.key}")
    if target.word == "input":
        search.add_operands(block, block.operands, block.path)
    elif site is not None:
        search.add(site, block.path)
        for path in site.nested_maps:
            if not _is_selected(search.anatomy.site_by_path[path], search.rule):  # a glob takes it as well
                search.miss(path, f"is nested in what {write_path(site.path)} returns: name it, path: {path}")
    else:
        found = block.maps or block.nested_maps
        maps = f"the maps {write_paths(found)}" if found else "no list, tuple or dict of feature maps"
        search.lack(block, f"returns {maps}; there is no {target}")


def _search_branches(search: Search, blocks: Sequence[Site]) -> None:
    branches = defaultdict[str, list[tuple[Site, str]]](list)
    for site in search.anatomy.sites:
        if site.joins in search.anatomy.site_by_path:
            join = search.anatomy.site_by_path[site.joins]
            branches[join.scope].append((join, site.path))
    for block in blocks:
        for join, branch in branches.get(block.path, ()):
            search.add_operands(join, [branch], block.path)
        if block.path not in branches and block.kind == "block":
            below = [scope for scope in branches if not block.path or scope.startswith(f"{block.path}.")]
            nearest = f"; there are some in {write_paths(below)}" if below else ""
            search.lack(block, f"no branch joins a skip connection in its own forward {JOIN}{nearest}")


def _search_children(search: Search, target: Child, blocks: Sequence[Site]) -> None:
    """Add the children of a name; if no selected block has one, the operations of that kind."""
    inside = _look_inside(search, blocks)
    if not inside:
        for block in blocks:
            search.miss(block.path, f"has no children, and so no {target}")
    calls = {path: _find_calls(target, below) for path, below in inside.items()}
    computed = {site.kind for below in inside.values() for _, site in below} - NOT_OPERATIONS
    is_kind = not target.name.is_wild and (find_kind(target.name) or target.name in computed)
    if is_kind and not any(calls.values()):
        _search_operations(search, Operation(op=target.name), blocks, target.call)
        return
    for path, below in inside.items():
        for name, sites in calls[path].items():
            runs = sites[0].runs if sites[0].kind == "block" else 1
            if target.call and runs > 1:
                search.miss(sites[0].path, f"runs {runs} times in one forward, which are one site: leave out the index")
                continue
            is_any = target.call == 0 or target.name.is_wild or len(sites) == 1
            chosen = sites[target.call - 1 : target.call] if target.call else sites if is_any else []
            for site in chosen:
                search.add(site, path)
            if not chosen:
                numbered = join_names(f"{name}[{number}]" for number in range(1, len(sites) + 1))
                search.miss(sites[0].path, f"is called as {numbered} in {write_path(path)}; the rule names {target}")
        if not calls[path] and (search.rule.selects != "path" or not any(calls.values())):
            names = [inner for inner, site in below if site.kind != "input" and inner[-1:] != "]"]
            depth = min((name.count(".") for name in names), default=0)  # 1 if all are in a ModuleList
            names = [name for name in names if name.count(".") == depth]
            words = ["output"] if search.rule.position == "after" else ["input", "residual"]
            others = [] if target.name in computed else [*words, *(inner for inner, _ in below)]
            near = did_you_mean(target.name, others)
            search.miss(path, f"has no child {target.name}; it has {write_paths(names)}{near}")


def _find_calls(target: Child, below: Sequence[tuple[str, Site]]) -> Mapping[str, Sequence[Site]]:
    """Sites with the child's name, by name without call index, in the order of the calls."""
    calls = defaultdict[str, list[Site]](list)
    for inner, site in below:
        name = inner[: inner.rindex("[")] if inner.endswith("]") else inner
        if target.name.matches(name) and (site.kind != "input" or not target.name.is_wild):
            calls[name].append(site)
    return calls


def _search_operations(search: Search, target: Operation, blocks: Sequence[Site], call: int | None = None) -> None:
    """Add the operations inside each block that meet the conditions: all, one of those that ran, or the `call`-th."""
    inside = _look_inside(search, blocks)
    known = {*inside, *(site.path for sites in inside.values() for _, site in sites)}
    for block in blocks:
        alone = [("", block)] if target.which == "all" and not call else []
        sites = [site for _, site in inside.get(block.path, alone)]
        meant = [site for site in sites if target.includes(site.kind)]
        counted = [site for site in meant if _counts(search, target, site)]
        ran = [site for site in counted if site.runs]
        chosen = {"all": counted, "first": ran[:1], "last": ran[-1:]}[target.which]
        chosen = counted[call - 1 : call] if call else chosen
        paths = {site.path for site in chosen}
        for site in counted:
            if site.path in paths:
                search.add(site, block.path)
            else:
                few = f", which has {len(counted)}" if call and call > len(counted) else ""
                search.miss(site.path, f"is not {search.rule.target} in {write_path(block.path)}{few}")
        if target.which != "all" and target.includes(block.kind) and block.path not in known:
            search.miss(block.path, f"has no operations inside for which: {target.which} to choose from: leave it out")
        if not meant and block.path in inside and search.rule.selects != "path":
            computed = write_paths(sorted({site.kind for site in sites} - NOT_OPERATIONS))
            wanted = join_names(as_tuple(target.op))
            search.lack(block, f"has no operation {wanted}; it computes {computed}")


def _counts(search: Search, target: Operation, site: Site) -> bool:
    """The operation meets the conditions, and in a structure rule it is on the main path; if not, it is a near miss."""
    if search.rule.selects == "structure" and (site.on_skip or site.in_gate):
        what = "is on the skip connection" if site.on_skip else "only scales another feature map, or gives its offsets"
        search.miss(site.path, f"{what}; a structure rule counts operations on the main path")
        return False
    reason = check_facts(site, target.conditions(), f"{search.rule.position} {target} requires")
    if reason is not None:
        search.miss(site.path, reason)
    return reason is None


def _search_pattern(search: Search) -> None:
    chain, by_path = search.rule.chain, search.anatomy.site_by_path
    element = find_element(chain, search.rule.target)
    for start in search.anatomy.sites:
        sites = _follow(search, start) if chain[0].kind.includes(start.kind) else []
        if not sites:
            continue
        named, operands = sites[element], list[str]()
        if search.rule.position == "before" and element > 0:  # the operand by which the chain goes on
            previous = sites[element - 1].path
            reads = {path: path in by_path and previous in by_path[path].reads for path in named.operands}
            operands = [path for path in named.operands if path == previous or reads[path]]
        if operands:
            search.add_operands(named, operands[:1], named.path)
        else:
            search.add(named, named.path)


def _follow(search: Search, start: Site) -> list[Site]:
    """The sites of the chain that begins at `start`; empty, with a near miss, if there is none."""
    sites: list[Site] = []
    for link in search.rule.chain:
        site = _next_of_chain(search, sites, link) if sites else start
        if site is None:
            return []
        reason = check_facts(site, link.facts.conditions(), f"the pattern's {link.text} requires")
        if reason is not None:
            search.miss(start.path, reason if site is start else f"{site.path}: {reason}", len(sites))
            return []
        sites.append(site)
    return sites


def _next_of_chain(search: Search, sites: Sequence[Site], link: Link) -> Site | None:
    """The one operation that reads the last of the sites, if it is of the kind of the link; else a near miss.

    Operations that pass their input on, such as dropout, are looked through unless the link names them.
    """
    last, reader = sites[-1], _only_reader(search, sites[-1])
    while reader is not None and reader.kind in TRANSPARENT and not link.kind.includes(reader.kind):
        last, reader = reader, _only_reader(search, reader)
    if reader is not None and link.kind.includes(reader.kind):
        return reader
    found = f"{reader.path} ({reader.kind})" if reader is not None else "no operation"
    problem = f"{found}; the pattern requires {link.text}"
    if len(last.readers) > 1:
        found = f"{len(last.readers)} operations ({write_paths(last.readers)})"
        problem = f"{found}; in a pattern each value has one reader"
    search.miss(sites[0].path, f"{last.path} is read by {problem}", len(sites))
    return None


def _only_reader(search: Search, site: Site) -> Site | None:
    return search.anatomy.site_by_path.get(site.readers[0]) if len(site.readers) == 1 else None


def check_facts(site: Site, facts: Iterable[tuple[str, Numbers]], wants: str) -> str | None:
    """Why a site does not satisfy conditions on its facts, with `wants` before the condition; None if it does."""
    for name, condition in facts:
        fact: int | tuple[int, ...] | None = getattr(site, name)
        if fact is None:
            problem = f"this {site.kind} has no {name}{f': {site.obstacle}' if site.obstacle else ''}"
        elif not is_met(condition, fact, depthwise=name == "groups" and site.depthwise):
            problem = f"{name} is {write_fact(fact)}"
        else:
            continue
        return f"{problem}; {wants} {join_names(as_tuple(condition))}"
    return None


def write_fact(fact: int | tuple[int, ...]) -> str:
    """`64`, `3x3`."""
    return "x".join(map(str, fact)) if isinstance(fact, tuple) else str(fact)


def write_path(path: str) -> str:
    """The path; that of the model is empty."""
    return path or "the model itself"


def write_paths(paths: Iterable[str]) -> str:
    """A few paths or names, and how many more there are."""
    return shortened(list(dict.fromkeys(map(write_path, paths))), MAX_SHOWN)


def write_counts(names: Iterable[str]) -> str:
    """`Bottleneck (16), Sequential (8)`, the most frequent first."""
    counted = sorted(Counter(names).items(), key=lambda entry: (-entry[1], entry[0]))
    return write_paths(f"{name} ({count})" for name, count in counted)
