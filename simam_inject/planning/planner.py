"""From hits to a plan: which SimAM is added where and by which edit, and what is skipped with which reason."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, replace

from simam_inject.dataflow.records import Anatomy, Site
from simam_inject.dataflow.sites import Dataflow
from simam_inject.errors import NoMatchError
from simam_inject.matching import Hit, Matches, Skip, idle_exclude, unmatched_message, why_not_attendable
from simam_inject.modules import is_taken
from simam_inject.planning.edits import Resolved, resolve
from simam_inject.planning.records import PRESENT, Input, Insertion, Output, Rewritten
from simam_inject.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Planned:
    """An insertion, and what the hooks need to know beyond it."""

    insertion: Insertion
    witness: str | None = None
    expression: dict[str, object] | None = None


@dataclass(slots=True)
class Decision:
    """What became of the hits."""

    planned: list[Planned] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    fulfilled: set[int] = field(default_factory=set)
    """Rules that take at least one site, or whose sites have SimAM already."""


def decide(recipe: Recipe, flow: Dataflow, matches: Matches, present: tuple[Insertion, ...] = ()) -> Decision:
    """Turn matches into insertions and skips.

    Args:
        present: what is in the model already; a value is not attended twice.

    Raises:
        NoMatchError: a rule that is not optional matches no site that can be attended, or excludes what is not there.
    """
    anatomy = flow.anatomy
    decision = settle(flow, matches.hits, present)
    decision.skips[:0] = [*matches.misses, *_other_calls(recipe, flow, matches.hits)]
    for index, rule in enumerate(recipe.rules):
        if index not in decision.fulfilled and not rule.optional:
            raise NoMatchError(_nothing(recipe, index, anatomy, matches, decision.skips))
    if idle := idle_exclude(recipe, anatomy):
        raise NoMatchError(idle)
    return decision


def settle(flow: Dataflow, hits: tuple[Hit, ...], present: tuple[Insertion, ...] = ()) -> Decision:
    """Find the edit of each hit, or the reason why it is skipped."""
    anatomy = flow.anatomy
    decision = Decision()
    taken = {(_origin(anatomy, there.path), there.reader): there.path for there in present}
    for there in present:
        calls = _calls(flow, there.path) if there.edit == Output(there.path) else []
        taken |= {(_origin(anatomy, call), None): there.path for call in calls if len(calls) > 1}
    names = {there.module for there in present}
    together = _hits_of_one_module(flow, hits)
    for hit in hits:
        site = anatomy.site_by_path[hit.path]
        reason = why_not_attendable(site) or _repetition(anatomy, hit, taken, present)
        if reason is None:
            module = together.get(hit.path)
            if module is not None:
                site = replace(site, runs=flow.recording.calls[module])
            resolved = resolve(flow, site, hit.reader)
            if isinstance(resolved, Resolved):
                if module is not None:
                    taken |= {(_origin(anatomy, call), None): hit.path for call in _calls(flow, module)}
                taken[_origin(anatomy, hit.path), hit.reader] = hit.path
                decision.planned.append(_place(flow, site, hit, resolved, names))
                decision.fulfilled.add(hit.rule)
                continue
            reason = f"SimAM cannot be applied: {resolved}"
        elif reason == PRESENT or hit.path in together:
            decision.fulfilled.add(hit.rule)
        decision.skips.append(Skip(hit.path, reason, hit.rule, hit=True))
    return decision


def _other_calls(recipe: Recipe, flow: Dataflow, hits: tuple[Hit, ...]) -> list[Skip]:
    """Further calls of the modules that rules name by their path, which is the name of the first call alone."""
    named = {hit.rule: [other.reader or other.path for other in hits if other.rule == hit.rule] for hit in hits}
    return [
        Skip(call, f"is another call of {path}, which the rule does not match", rule, hit=False)
        for rule, paths in named.items()
        if recipe.rules[rule].selects == "path"
        for path in dict.fromkeys(paths)
        for call in _calls(flow, path)[1:]
        if call not in paths
    ]


def _hits_of_one_module(flow: Dataflow, hits: tuple[Hit, ...]) -> dict[str, str]:
    """Hits that one hook attends together, with their module: every call of a module that one forward calls repeatedly.

    A head that is shared by the levels of a pyramid is called once for each: `head`, `head[2]`, `head[3]`.
    """
    found: dict[str, str] = {}
    by_path = {hit.path: hit for hit in reversed(hits)}
    for path, hit in by_path.items():
        calls = _calls(flow, path)
        if len(calls) < 2 or not all(call in by_path and by_path[call].e_lambda == hit.e_lambda for call in calls):
            continue
        sites = [flow.anatomy.site_by_path[call] for call in calls]
        if any(
            why_not_attendable(site) or (site.axes, site.dtype) != (sites[0].axes, sites[0].dtype) for site in sites
        ):
            continue
        runs = flow.recording.calls[path]
        edits = [resolve(flow, replace(site, runs=runs), by_path[site.path].reader) for site in sites]
        is_one = all(isinstance(one, Resolved) and one.edit == Output(path) for one in edits)
        if is_one and sum(site.runs for site in sites) == runs:
            found |= dict.fromkeys(calls, path)
    return found


def _calls(flow: Dataflow, module: str) -> list[str]:
    """Paths of what a module returns in each of its calls, in one forward of its caller."""
    found = [module] if module in flow.recording.modules and module in flow.anatomy.site_by_path else []
    while found and (path := f"{module}[{len(found) + 1}]") in flow.anatomy.site_by_path:
        found.append(path)
    return found


def _place(flow: Dataflow, site: Site, hit: Hit, resolved: Resolved, names: set[str]) -> Planned:
    edit = resolved.edit
    holder = edit.owner if isinstance(edit, Rewritten) else edit.module
    module = _free_name(flow, holder, _child_name(edit), names)
    names.add(module)
    insertion = Insertion(
        path=site.path,
        position=hit.position,
        shape=site.shape or (),
        e_lambda=hit.e_lambda,
        rule=hit.rule,
        edit=edit,
        module=module,
        reader=hit.reader,
        channel_dim=site.channel_dim,
        axes=site.axes,
        axes_measured=site.axes_measured,
        dtype=site.dtype or "float32",
        reduction=site.reduction,
        runs=site.runs,
        note=resolved.note,
    )
    expression = None if resolved.expression is None else asdict(resolved.expression)
    return Planned(insertion, resolved.witness, expression)


def _child_name(edit: Output | Input | Rewritten) -> str:
    if isinstance(edit, Rewritten):
        return f"simam_{edit.value}"
    key = "" if edit.key is None else f"_{edit.key}"
    if isinstance(edit, Output):
        return f"simam{key}"
    return f"simam_input{key}" if edit.argument == 0 else f"simam_{edit.argument}{key}"


def _free_name(flow: Dataflow, holder: str, name: str, names: set[str]) -> str:
    """The name that the SimAM gets among the children of its holder."""
    name = re.sub(r"\W+", "_", name).strip("_")
    module = flow.recording.modules[holder]
    prefix = f"{holder}." if holder else ""
    free, count = name, 1
    while is_taken(module, free) or f"{prefix}{free}" in names:
        count += 1
        free = f"{name}_{count}"
    return f"{prefix}{free}"


def _repetition(
    anatomy: Anatomy, hit: Hit, taken: dict[tuple[str, str | None], str], present: tuple[Insertion, ...]
) -> str | None:
    origin = _origin(anatomy, hit.path)
    for (other, reader), path in taken.items():
        if other != origin or (hit.reader is not None and reader is not None and hit.reader != reader):
            continue
        there = next((there for there in present if there.path == path and reader in (None, there.reader)), None)
        if there is not None and there.e_lambda != hit.e_lambda:
            return f"{PRESENT}, with e_lambda {there.e_lambda:g} instead of {hit.e_lambda:g}; call eject(model) first"
        if there is not None:
            return PRESENT
        if path == hit.path:
            return "already has a SimAM in this plan"
        if hit.path.rpartition("[")[0] == path:
            return f"is covered by the SimAM on {path}"
        return f"is the same value as {path}, which already has a SimAM"
    return None


def _origin(anatomy: Anatomy, path: str) -> str:
    """The operation whose very value a block returns; the path itself for anything else."""
    site = anatomy.site_by_path.get(path)
    while site is not None and site.kind == "block" and len(site.reads) == 1:
        source = anatomy.site_by_path.get(site.reads[0])
        if source is None or source.shape != site.shape or source.path == site.path:
            break
        site = source
    return path if site is None else site.path


def _nothing(recipe: Recipe, index: int, anatomy: Anatomy, matches: Matches, skips: list[Skip]) -> str:
    refused = [skip for skip in skips if skip.rule == index and skip.hit]
    if not refused:
        return unmatched_message(recipe, index, anatomy, matches.misses)
    count = "1 site" if len(refused) == 1 else f"{len(refused)} sites"
    head = f"rules[{index}] ({recipe.rules[index].selector}) matched {count}, but SimAM cannot be applied to any"
    lines = [f"{head}:"]
    lines += [f"  {skip.path}: {skip.reason}" for skip in refused[:3]]
    if len(refused) > 3:
        lines.append(f"  ... and {len(refused) - 3} more")
    return "\n".join(lines)
