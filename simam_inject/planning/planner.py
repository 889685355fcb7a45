"""From hits to a plan: which SimAM is added where and by which edit, and what is skipped with which reason."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial

from simam_inject.dataflow.anatomy import Site
from simam_inject.dataflow.sites import Dataflow
from simam_inject.dataflow.values import Value
from simam_inject.errors import NoMatchError, plural
from simam_inject.matching.explain import unmatched_exclude, unmatched_message
from simam_inject.matching.hits import Hit, Matches, Skip
from simam_inject.matching.match import have_common_reader, value_of, why_not_attendable
from simam_inject.matching.search import write_path
from simam_inject.modules import is_taken
from simam_inject.planning.edits import Resolved, resolve
from simam_inject.planning.insertions import PRESENT, Edit, Input, Insertion, Output, Rewritten
from simam_inject.planning.plan import Plan
from simam_inject.recipe import Recipe


def decide(recipe: Recipe, flow: Dataflow, matches: Matches, present: Sequence[Insertion] = ()) -> Plan:
    """Turn matches into insertions and skips.

    Args:
        present: what is in the model already; a value is not attended twice.

    Raises:
        NoMatchError: a rule that is not optional matches no site that can be attended, or excludes what is not there.
    """
    insertions, skips = list[Insertion](), [*matches.misses, *_other_calls(recipe, flow, matches.hits)]
    fulfilled = set()
    there = _present_by_value(flow, present)
    together = _calls_of_one_module(flow, matches.hits)
    names = {one.module for one in present}
    source_of = cache(partial(_source, flow))
    for hit in sorted(matches.hits, key=lambda hit: hit.rule):  # a value belongs to the first rule that matches it
        site = flow.anatomy.site_by_path[hit.path]
        module = together.get(hit.path)
        reason = why_not_attendable(site) or _why_present(hit, there[value_of(site, flow.anatomy)])
        if reason is None and module is not None and module != hit.path:
            reason = f"is covered by the SimAM on {module}"
        if reason is None:
            site = replace(site, runs=flow.recording.calls[module]) if module is not None else site
            resolved = resolve(flow, site, hit.reader)
            if isinstance(resolved, str):
                reason = f"SimAM cannot be applied: {resolved}"
            elif (reason := _why_taken(flow, hit, resolved.edit, source_of, present, insertions)) is None:
                insertions.append(_insertion(flow, site, hit, resolved, names))
        if reason in (None, PRESENT) or module is not None:
            fulfilled.add(hit.rule)
        if reason is not None:
            skips.append(Skip(hit.path, reason, hit.rule, hit=True))
    _check_rules(recipe, flow, skips, fulfilled)
    order = {(hit.path, hit.reader): place for place, hit in enumerate(matches.hits)}
    insertions.sort(key=lambda one: order[one.path, one.reader])
    return Plan(recipe, tuple(insertions), tuple(skips), flow, tuple(present))


def _check_rules(recipe: Recipe, flow: Dataflow, skips: Sequence[Skip], fulfilled: set[int]) -> None:
    """Refuse a rule, or an `exclude`, without any effect."""
    for index, rule in enumerate(recipe.rules):
        if index not in fulfilled and not rule.optional:
            raise NoMatchError(_explain_nothing(recipe, index, flow, skips))
    if message := unmatched_exclude(recipe, flow.anatomy):
        raise NoMatchError(message)


# Calls of one module: `head`, `head[2]`, `head[3]` for a head that is shared by the levels of a pyramid


def _calls(flow: Dataflow, module: str) -> list[str]:
    """Paths of what a module returns in each of its calls, in one forward of its caller."""
    sites = flow.anatomy.site_by_path
    found = [module] if module in flow.recording.modules and module in sites else []
    while found and (path := f"{module}[{len(found) + 1}]") in sites:
        found.append(path)
    return found


def _other_calls(recipe: Recipe, flow: Dataflow, hits: Sequence[Hit]) -> list[Skip]:
    """Further calls of the modules that rules name by their path, which is the name of the first call alone."""
    named = defaultdict[int, list[str]](list)
    for hit in hits:
        if recipe.rules[hit.rule].selects == "path":
            named[hit.rule].append(hit.reader or hit.path)
    return [
        Skip(call, f"is another call of {path}, which the rule does not match", rule, hit=False)
        for rule, paths in named.items()
        for path in dict.fromkeys(paths)
        for call in _calls(flow, path)[1:]
        if call not in paths
    ]


def _calls_of_one_module(flow: Dataflow, hits: Sequence[Hit]) -> dict[str, str]:
    """Hits that one hook attends together, with their module: all calls of a module that runs repeatedly."""
    found: dict[str, str] = {}
    by_path = {hit.path: hit for hit in reversed(hits)}
    for path, hit in by_path.items():
        calls = _calls(flow, path)
        if len(calls) < 2 or not all(call in by_path and by_path[call].e_lambda == hit.e_lambda for call in calls):
            continue
        runs = flow.recording.calls[path]
        sites = [flow.anatomy.site_by_path[call] for call in calls]
        if any(why_not_attendable(site) for site in sites) or sum(site.runs for site in sites) != runs:
            continue
        edits = [resolve(flow, replace(site, runs=runs), by_path[site.path].reader) for site in sites]
        is_one = all(isinstance(one, Resolved) and one.edit == Output(path) for one in edits)
        if is_one and len({(site.axes, site.dtype) for site in sites}) == 1:
            found |= dict.fromkeys(calls, path)
    return found


# What is in the model already


def _present_by_value(flow: Dataflow, present: Sequence[Insertion]) -> defaultdict[str, list[Insertion]]:
    """The insertions that attend each value."""
    found = defaultdict[str, list[Insertion]](list)
    for one in present:
        calls = _calls(flow, one.path) if one.edit == Output(one.path) else []
        for path in calls or [one.path]:
            site = flow.anatomy.site_by_path.get(path)
            found[path if site is None else value_of(site, flow.anatomy)].append(one)
    return found


def _why_present(hit: Hit, present: Sequence[Insertion]) -> str | None:
    """The reason of a hit whose value has SimAM already, for all readers or for the same one."""
    for one in present:
        if not isinstance(one.edit, Input) or have_common_reader(hit.reader, one.reader):
            if isinstance(one.edit, Input) and one.reader and not f"{hit.reader or ''}.".startswith(f"{one.reader}."):
                return f"{one.reader} reads it and has SimAM, other readers have none; call eject(model) first"
            wanted = f"with e_lambda {one.e_lambda:g} instead of {hit.e_lambda:g}; call eject(model) first"
            return PRESENT if one.e_lambda == hit.e_lambda else f"{PRESENT}, {wanted}"
    return None


def _why_taken(
    flow: Dataflow,
    hit: Hit,
    edit: Edit,
    source_of: Callable[[str], Value | None],
    present: Sequence[Insertion],
    planned: Sequence[Insertion],
) -> str | None:
    """The reason of a hit that has the tensor of another one: an identity makes it the value of two sites."""
    value, source = flow.recording.value(hit.path), source_of(hit.path)

    def is_same(one: Insertion) -> bool:
        if one.edit == edit or value is None or source is not source_of(one.path):
            return one.edit == edit
        first, last = sorted([_when(flow, hit.path, hit.reader), _when(flow, one.path, one.reader)])
        writes = flow.recording.writes.get(value.storage, ()) if value is flow.recording.value(one.path) else ()
        if any(first < tick < last for tick in writes):
            return False
        return have_common_reader(hit.reader, one.reader)

    if there := [one for one in present if is_same(one)]:
        return _why_present(hit, there) or PRESENT
    other = next((one for one in planned if is_same(one)), None)
    return None if other is None else f"is the same value as {other.path or '(model)'}, taken by rules[{other.rule}]"


def _source(flow: Dataflow, path: str) -> Value | None:
    """The value at a path, or what it is made of by dropouts and the like that alone read it."""
    value = flow.recording.value(path)
    for one in [] if value is None else value.passed_from()[1:]:
        if len({read.path for read in one.readings}) != 1:
            break
        value = one
    return value


def _when(flow: Dataflow, path: str, reader: str | None) -> int:
    """The time at which a value is attended: when a module returns it or is given it, or at its operation."""
    step = flow.recording.steps.get(path if reader is None else reader)
    if step is None:
        return 0
    step = step.whole
    if step.call is not None:
        return step.call.end if reader is None else step.call.start
    if step.kind == "input" and step.frame is not None:
        return step.frame.start
    return min((value.made for _, value in step.values), default=0)


# Insertions


def _insertion(flow: Dataflow, site: Site, hit: Hit, resolved: Resolved, names: set[str]) -> Insertion:
    module = _free_name(flow, resolved.edit, names)
    names.add(module)
    return Insertion(
        path=site.path,
        position=hit.position,
        shape=site.shape or (),
        e_lambda=hit.e_lambda,
        rule=hit.rule,
        edit=resolved.edit,
        module=module,
        reader=hit.reader,
        channel_dim=site.channel_dim,
        axes=site.axes,
        axes_measured=site.axes_measured,
        dtype=site.dtype or "float32",
        reduction=site.reduction,
        runs=site.runs,
        note=resolved.note,
        witness=resolved.witness,
        expression=resolved.expression,
    )


def _free_name(flow: Dataflow, edit: Edit, names: set[str]) -> str:
    """Dotted name of the SimAM: a free one among the children of its holder."""
    if isinstance(edit, Rewritten):
        name = f"simam_{edit.value}"
    else:
        place = "" if isinstance(edit, Output) else "_input" if edit.argument == 0 else f"_{edit.argument}"
        name = f"simam{place}" + ("" if edit.key is None else f"_{edit.key}")
    name = re.sub(r"\W+", "_", name).strip("_")
    holder = flow.recording.modules[edit.module]
    prefix = f"{edit.module}." if edit.module else ""
    free, count = name, 1
    while is_taken(holder, free) or f"{prefix}{free}" in names:
        count += 1
        free = f"{name}_{count}"
    return f"{prefix}{free}"


def _explain_nothing(recipe: Recipe, index: int, flow: Dataflow, skips: Sequence[Skip]) -> str:
    """Why a rule has no effect."""
    refused = [skip for skip in skips if skip.rule == index and skip.hit]
    if not refused:
        return unmatched_message(recipe, index, flow.anatomy, [skip for skip in skips if not skip.hit])
    matched = f"rules[{index}] ({recipe.rules[index].selector}) matched {plural(len(refused), 'site')}"
    lines = [f"{matched}, but SimAM cannot be applied to any:"]
    lines += [f"  {write_path(skip.path)}: {skip.reason}" for skip in refused[:3]]
    more = len(refused) - 3
    return "\n".join([*lines, *([f"  ... and {more} more"] if more > 0 else [])])
