"""The message for a rule that matches no site: the nearest misses with their reasons, or what its names may mean."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from simam_inject.dataflow.records import Anatomy
from simam_inject.matching.records import Miss
from simam_inject.matching.search import write_counts, write_path
from simam_inject.recipe.names import Child, Glob, lineage
from simam_inject.recipe.recipe import Recipe
from simam_inject.recipe.rule import Rule
from simam_inject.recipe.wording import nearest

NEAREST = 3
_REGULAR = re.compile(r"[|\\^$()+]|\.\*(?!$)|^\.\*")
"""Signs of a regular expression. `layer3.*` is a glob as well."""
_STRUCTURES = {
    "main": "no module that returns one feature map has two convolutions within two map sizes",
    "residual": "no module joins a branch with a skip connection in its own forward",
    "decoder": "no module joins an upsampled feature map with an earlier one",
}


def unmatched_message(recipe: Recipe, rule: int, anatomy: Anatomy, misses: Iterable[Miss]) -> str:
    """Say why a rule matches no site.

    Args:
        recipe: the recipe.
        rule: index of the rule, from 0.
        anatomy: the facts about the model.
        misses: what matching left out; those of other rules are ignored.

    Returns:
        The message of a `NoMatchError`: the rule; modules whose inside could not be recorded; then either the nearest
        block classes or paths with their counts, or the three nearest misses with their reasons.
    """
    selected = recipe.rules[rule]
    head = f"rules[{rule}] ({selected.selector}) matches no site"
    near = nearest_misses(miss for miss in misses if miss.rule == rule)
    if not near:
        return f"{head}: {why_nothing(selected, anatomy)}"
    lines = [f"  {write_path(miss.path)}: {miss.reason}" for miss in near]
    met_none = near[0].depth == 0 or selected.selects == "pattern"
    if met_none and not any(" could not be recorded" in line for line in lines):
        lines = [f"  {sentence}" for sentence in _unseen(anatomy)] + lines
    idle = explain_idle("path", selected.paths, every_path(anatomy)) if selected.selects != "path" else None
    return "\n".join([f"{head}. The nearest misses:", *lines, *([idle] if idle else [])])


def why_nothing(rule: Rule, anatomy: Anatomy) -> str:
    """Why a rule did not even touch a site: nothing has the structure, the class or the path that it selects."""
    unseen = "".join(f" {sentence}" for sentence in _unseen(anatomy))
    if rule.selects == "structure":
        reasons = " and ".join(_STRUCTURES[word] for word in rule.structures)
        return f"no block of this model is {' or '.join(rule.structures)}: {reasons}.{unseen}"
    if rule.selects == "block":
        return _explain_classes(rule, anatomy, unseen)
    wanted = " or ".join(repr(glob.text) for glob in rule.paths)
    hints = dict.fromkeys(_hint_path(glob, every_path(anatomy)) for glob in rule.paths)
    return f"this model has no value at {wanted}.{''.join(hints) or unseen}"


def nearest_misses(misses: Iterable[Miss], count: int = NEAREST) -> tuple[Miss, ...]:
    """The misses that met most conditions first; one of each reason is chosen before a second of any."""
    ranked = sorted(misses, key=lambda miss: -miss.depth)
    seen: Counter[str] = Counter()
    rounds: list[tuple[int, Miss]] = []
    for miss in ranked:
        rounds.append((seen[miss.reason], miss))
        seen[miss.reason] += 1
    chosen = [miss for _, miss in sorted(rounds, key=lambda entry: entry[0])[:count]]
    return tuple(sorted(chosen, key=lambda miss: -miss.depth))


def idle_exclude(recipe: Recipe, anatomy: Anatomy) -> str | None:
    """The message for the first `exclude` that leaves nothing out because it matches nothing; None if there is none.

    That of an optional rule may match nothing, since the rule itself may: so one recipe can speak of many models.
    """
    paths = every_path(anatomy)
    for index, rule in enumerate(recipe.rules):
        message = None if rule.optional else explain_idle(f"rules[{index}].exclude", rule.excluded, paths)
        if message is not None:
            unseen = "".join(f" {sentence}" for sentence in _unseen(anatomy))
            return f"{message}{unseen} (In a recipe for many models, mark the rule with optional: true.)"
    return None


def explain_idle(place: str, globs: Iterable[Glob], paths: frozenset[str]) -> str | None:
    """The message for the first of the globs at `place` that matches none of the paths; None if all match."""
    for glob in globs:
        if not any(map(glob.matches, paths)):
            return f"{place}: {glob.text!r} matches nothing in this model.{_hint_path(glob, paths)}"
    return None


def every_path(anatomy: Anatomy) -> frozenset[str]:
    """Paths of all values and of all modules that contain one."""
    return frozenset(part for path in anatomy.site_by_path for part in lineage(path))


def _unseen(anatomy: Anatomy) -> list[str]:
    """Sentences on the modules whose inside could not be recorded."""
    entries = [
        f"The inside of {write_path(path)} could not be recorded: {reason}." for path, reason in anatomy.opaque.items()
    ]
    more = [f"The same holds for {len(entries) - NEAREST} more."] if len(entries) > NEAREST else []
    return entries[:NEAREST] + more


def _explain_classes(rule: Rule, anatomy: Anatomy, unseen: str) -> str:
    blocks = [site.class_name for site in anatomy.blocks() if site.class_name is not None]
    leaves = [site.class_name for site in anatomy.sites if site.kind != "block" and site.class_name is not None]
    wanted = " or ".join(repr(glob.text) for glob in rule.blocks)
    hint = _hint_module(rule, anatomy)
    if not blocks:
        only = f", only {write_counts(leaves)}" if leaves else ""
        return f"this model has no block named {wanted}; it has no blocks at all{only}.{hint}{unseen}"
    counts = Counter(blocks) + Counter({name: count for name, count in Counter(leaves).items() if name not in blocks})
    near = dict.fromkeys(name for glob in rule.blocks for name in nearest(glob.text, counts))
    meant = f" Did you mean {' or '.join(f'{name} ({counts[name]})' for name in near)}?" if near else unseen
    return f"this model has no block named {wanted}.{hint or meant} Its blocks: {write_counts(blocks)}."


def _hint_module(rule: Rule, anatomy: Anatomy) -> str:
    """A sentence for a name at `block` that is the path of a module; empty for any other."""
    for glob in rule.blocks:
        whole = f"{glob}.{rule.target}" if isinstance(rule.target, Child) else glob.text
        if any(map(Glob(whole).matches, anatomy.site_by_path)):
            place = "output" if rule.position == "after" else "input"
            return f" {whole!r} is a module path: write path: {whole}, {rule.position}: {place}."
    return ""


def _hint_path(glob: Glob, paths: frozenset[str]) -> str:
    """A sentence on how a glob that matches none of the paths may have been meant; empty where nothing is near."""
    if _REGULAR.search(glob.text):
        return " Paths are globs, not regular expressions: * is any text, alternatives are {a,b}."
    other_case = sorted(path for path in paths if glob.matches_any_case(path))
    if other_case:
        return f" Letter case counts; did you mean {other_case[0]}?"
    inside = Glob(f"*.{glob.text}")
    if any(map(inside.matches, paths)):
        return f" Did you mean {inside.text!r}? A glob is matched against the whole path."
    near = _mend_glob(glob, paths) if glob.is_wild else nearest(glob.text, paths)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def _mend_glob(glob: Glob, paths: frozenset[str]) -> Sequence[str]:
    """The glob with names that are no part of any path put right: `layr4.*` becomes `layer4.*`."""
    if "{" in glob.text:  # a name may reach across the braces
        return []
    names = {name for path in paths for name in path.split(".")}
    parts = [
        part if Glob(part).is_wild or part in names else next(iter(nearest(part, names, count=1)), part)
        for part in glob.text.split(".")
    ]
    mended = ".".join(parts)
    return [repr(mended)] if any(map(Glob(mended).matches, paths)) else []
