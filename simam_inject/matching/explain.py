"""The message for a rule that takes no site: what it may have meant, and the nearest misses with their reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from simam_inject.dataflow.records import Anatomy
from simam_inject.matching.hints import advise, hint_class, hint_path
from simam_inject.matching.records import Miss
from simam_inject.matching.wording import write_counts, write_path
from simam_inject.recipe.globs import Glob
from simam_inject.recipe.recipe import Recipe
from simam_inject.recipe.rule import Rule
from simam_inject.recipe.wording import nearest

NEAREST = 3


def unmatched_message(recipe: Recipe, rule: int, anatomy: Anatomy, misses: Iterable[Miss]) -> str:
    """Say why a rule takes no site.

    Args:
        recipe: the recipe.
        rule: index of the rule, from 0.
        anatomy: the facts about the model.
        misses: what matching left out; those of other rules are ignored.

    Returns:
        The message of a `NoMatchError`: the rule, then either the nearest block classes or paths with their counts, or
        the three nearest misses with their reasons.
    """
    selected = recipe.rules[rule]
    head = f"rules[{rule}] ({selected.selector}) takes no site"
    near = nearest_misses(miss for miss in misses if miss.rule == rule)
    if not near:
        return f"{head}: {why_nothing(selected, anatomy)}"
    lines = [f"  {write_path(miss.path)}: {miss.reason}" for miss in near]
    return "\n".join([f"{head}. The nearest misses:", *lines, *advise(selected, anatomy)])


def why_nothing(rule: Rule, anatomy: Anatomy) -> str:
    """Why a rule did not even touch a site: nothing has the class or the path that it selects."""
    if rule.structure:
        unseen = "".join(
            f" {write_path(path)} could not be seen inside: {why}." for path, why in anatomy.opaque.items()
        )
        return f"no block of this model is {' or '.join(rule.structure)}.{unseen}"
    if rule.block:
        return _explain_classes(rule.block, anatomy, hint_class(rule, anatomy))
    return _explain_paths(rule.path, anatomy)


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


def _explain_classes(globs: Sequence[Glob], anatomy: Anatomy, hint: str) -> str:
    blocks = [site.class_name for site in anatomy.blocks() if site.class_name is not None]
    leaves = [site.class_name for site in anatomy.sites if site.kind != "block" and site.class_name is not None]
    wanted = " or ".join(repr(glob.text) for glob in globs)
    if not blocks:
        only = f", only {write_counts(leaves)}" if leaves else ""
        return f"this model has no block named {wanted}; it has no blocks at all{only}.{hint}"
    counts = Counter(blocks) + Counter({name: count for name, count in Counter(leaves).items() if name not in blocks})
    near = dict.fromkeys(name for glob in globs for name in nearest(glob.text, counts))
    meant = f" Did you mean {' or '.join(f'{name} ({counts[name]})' for name in near)}?" if near else ""
    return f"this model has no block named {wanted}.{hint or meant} Its blocks: {write_counts(blocks)}."


def _explain_paths(globs: Sequence[Glob], anatomy: Anatomy) -> str:
    wanted = " or ".join(repr(glob.text) for glob in globs)
    hints = dict.fromkeys(hint_path(glob, anatomy.site_by_path) for glob in globs)
    return f"this model has no value at {wanted}.{''.join(hints)}"
