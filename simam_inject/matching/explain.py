"""Why a rule matches nothing: the nearest misses with their reasons, or what its names may mean."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable

from simam_inject.dataflow.anatomy import SCRIPTED, Anatomy
from simam_inject.errors import join_names, nearest
from simam_inject.kinds import NOT_OPERATIONS
from simam_inject.matching.hits import Skip
from simam_inject.matching.search import JOIN, write_counts, write_path
from simam_inject.recipe.grammar import as_tuple
from simam_inject.recipe.names import Child, Glob, lineage
from simam_inject.recipe.operations import Operation
from simam_inject.recipe.recipe import Recipe
from simam_inject.recipe.rule import Rule

NEAREST = 3
_REGULAR = re.compile(r"[|\\^$()+]|\.\*(?!$)|^\.\*")
"""Signs of a regular expression. `layer3.*` is a glob as well."""
_STRUCTURES = {
    "main": "no module that returns one feature map, which is used, has two convolutions of maps larger than 1x1, "
    "within two map sizes (plain Sequentials count if two or more have most of the convolutions; heads, and the model "
    "itself in a wrapper, do not)",
    "residual": f"no module joins a branch with a skip connection in its own forward {JOIN}",
    "decoder": "no module joins an upsampled feature map with an earlier one that it is given as it is, or apart from "
    "the one that is upsampled, and no block that keeps the map size reads such a join (heads do not count)",
}


def unmatched_message(recipe: Recipe, rule: int, anatomy: Anatomy, misses: Iterable[Skip]) -> str:
    """Say why a rule, given by its index, matches no site: the message of a `NoMatchError`.

    It has the rule, its nearest misses with their reasons, modules whose inside could not be recorded, and a `path`
    that matches nothing. Misses of other rules are ignored.
    """
    selected = recipe.rules[rule]
    head = f"rules[{rule}] ({selected.selector}) matches no site"
    by_reason: dict[str, Skip] = {}
    for miss in sorted(misses, key=lambda miss: -miss.depth):
        if miss.rule == rule:
            by_reason.setdefault(miss.reason, miss)
    near = list(by_reason.values())[:NEAREST]
    if [(miss.path, miss.depth) for miss in near] == [("", 0)]:
        return f"{head}: {near[0].reason}"
    lines = [f"{head}. The nearest misses:", *(f"  {write_path(miss.path)}: {miss.reason}" for miss in near)]
    filters = () if selected.selects == "path" else as_tuple(selected.path)
    unmatched = explain_unmatched_glob("path", filters, anatomy)
    lines += [unmatched] if unmatched else [f"  {sentence}" for sentence in _scripted(anatomy)]
    return "\n".join(lines)


def explain_no_candidate(rule: Rule, anatomy: Anatomy) -> str:
    """Why a rule has no near miss either: nothing has the structure, class, kind or path that it selects."""
    globs = as_tuple(rule.path)
    if rule.selects == "structure":
        words = as_tuple(rule.structure)
        reasons = " and ".join(_STRUCTURES[word] for word in words)
        sentence = f"no block of this model is {join_names(words)}: {reasons}."
    elif rule.selects == "block":
        sentence = _explain_classes(rule, anatomy)
    elif rule.selects == "pattern":
        sentence = f"this model computes no {rule.chain[0].kind}; its operations are {_operations(anatomy)}."
    elif any(_matches_any(glob, anatomy.site_by_path) for glob in globs):
        wanted = join_names(as_tuple(rule.target.op)) if isinstance(rule.target, Operation) else str(rule.target)
        where = join_names(map(repr, globs))
        if wanted == "residual":
            return f"nothing at {where} joins a branch with a skip connection in its own forward {JOIN}."
        if wanted == "output":
            return f"{where} matches only inputs of modules; write the name of an input in full, as in *.x."
        sentence = f"nothing at {where} computes {wanted}; the operations of this model are {_operations(anatomy)}."
    else:
        hints = dict.fromkeys(_hint_path(glob, anatomy.site_by_path) for glob in globs)
        sentence = f"this model has no value at {join_names(map(repr, globs))}.{''.join(hints)}"
    return " ".join([sentence, *_scripted(anatomy)])


def _operations(anatomy: Anatomy) -> str:
    return write_counts(site.kind for site in anatomy.sites if site.kind not in NOT_OPERATIONS)


def unmatched_exclude(recipe: Recipe, anatomy: Anatomy) -> str | None:
    """The message for the first `exclude` that matches nothing, optional rules left out; None if there is none."""
    for index, rule in enumerate(recipe.rules):
        globs = () if rule.optional else as_tuple(rule.exclude)
        if message := explain_unmatched_glob(f"rules[{index}].exclude", globs, anatomy):
            return f"{message} (In a recipe for many models, mark the rule with optional: true.)"
    return None


def explain_unmatched_glob(place: str, globs: Iterable[Glob], anatomy: Anatomy) -> str | None:
    """The message for the first glob, given at `place`, that matches nothing in the model; None if all match."""
    globs = tuple(globs)
    paths = {part for path in anatomy.site_by_path for part in lineage(path)} if globs else set[str]()
    for glob in globs:
        if not any(map(glob.matches, paths)):
            sentence = f"{place}: {str(glob)!r} matches nothing in this model.{_hint_path(glob, paths)}"
            return " ".join([sentence, *_scripted(anatomy)])
    return None


def _scripted(anatomy: Anatomy) -> list[str]:
    """A sentence on the modules whose inside could not be recorded."""
    paths = anatomy.scripted
    more = f" The same holds for {len(paths) - 1} more." if len(paths) > 1 else ""
    return [f"The inside of {path} could not be recorded: it {SCRIPTED}.{more}" for path in paths[:1]]


def _explain_classes(rule: Rule, anatomy: Anatomy) -> str:
    blocks = [site.class_name for site in anatomy.blocks() if site.class_name is not None]
    leaves = [site.class_name for site in anatomy.sites if site.kind != "block" and site.class_name is not None]
    counts = Counter(blocks) + Counter(name for name in leaves if name not in blocks)
    globs = as_tuple(rule.block)
    near = dict.fromkeys(name for glob in globs for name in nearest(glob, counts))
    meant = f" Did you mean {join_names(f'{name} ({counts[name]})' for name in near)}?" if near else ""
    there = f"Its blocks: {write_counts(blocks)}" if blocks else f"It has no blocks at all, only {write_counts(leaves)}"
    hint = _hint_module(rule, anatomy) or meant
    return f"this model has no block named {join_names(map(repr, globs))}.{hint} {there}."


def _hint_module(rule: Rule, anatomy: Anatomy) -> str:
    """A sentence for a `block` that is a path, or the name of a child; empty for any other."""
    for glob in as_tuple(rule.block):
        paths, place = [glob, f"*.{glob}"], str(rule.target)
        if isinstance(rule.target, Child):
            paths = [f"{glob}.{place}", f"{glob}.*.{place}"]
            place = "output" if rule.position == "after" else "input"
        for path in paths:
            if _matches_any(path, anatomy.site_by_path):
                written = repr(path) if path[0] in "*[{" else path
                what = "matches paths" if Glob(path).is_wild else "is a module path"
                return f" {path!r} {what}: write path: {written}, {rule.position}: {place} in a rule of a recipe file."
    return ""


def _hint_path(glob: Glob, paths: Collection[str]) -> str:
    """A sentence on what may be meant by a glob that matches none of the paths; empty if nothing is near."""
    if _REGULAR.search(glob):
        return " Paths are globs, not regular expressions: * is any text, alternatives are {a,b}."
    names = {name for path in paths for name in path.split(".")}
    parts = [
        next(iter(nearest(part, names, count=1)), part) if re.fullmatch(r"\w+", part) and part not in names else part
        for part in glob.split(".")
    ]
    corrected = ".".join(parts)  # `layr4.*` becomes `layer4.*`
    first, _, below = corrected.partition(".")
    above, _, last = corrected.rpartition(".")
    for text in (corrected, f"*.{glob}", f"*.{corrected}", f"{above}.*.{last}", below if first == parts[0] else ""):
        if re.search(r"\w", text) and _matches_any(text, paths):
            return f" Did you mean {text!r}? A glob is matched against the whole path, letter case included."
    return ""


def _matches_any(text: str, paths: Iterable[str]) -> bool:
    """The text is a glob that matches one of the paths."""
    try:
        return any(map(Glob(text).matches, paths))
    except ValueError:  # composed of globs, it can be too long or have too many alternatives
        return False
