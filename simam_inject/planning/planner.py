"""From hits to a plan: which SimAM goes where and how, what is skipped, and why. Pure: it reads records only."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from simam_inject.discovery.records import Anatomy, Site
from simam_inject.errors import NoMatchError
from simam_inject.matching import Hit, Matches, idle_exclude, unmatched_message, why_not_attendable, why_nothing
from simam_inject.planning.records import PRESENT, Insertion, Skip
from simam_inject.recipe import Recipe


def decide(
    recipe: Recipe,
    anatomy: Anatomy,
    matches: Matches,
    present: tuple[Insertion, ...] = (),
    refused: Mapping[tuple[str, str | None], str] = MappingProxyType({}),
) -> tuple[tuple[Insertion, ...], tuple[Skip, ...]]:
    """Turn matches into insertions and skips.

    Args:
        present: what is in the model already; a value is not attended twice.
        refused: values, by (path, reader), around which the block that computes them cannot be rewritten, and why.

    Raises:
        NoMatchError: a rule that is not optional takes no site that can be attended, or excludes what is not there.
    """
    insertions, skipped, fulfilled = settle(anatomy, matches.hits, present, refused)
    skips = [*(Skip(miss.path, miss.reason, miss.rule, hit=False) for miss in matches.misses), *skipped]
    told = {skip.rule for skip in skips}
    for index, rule in enumerate(recipe.rules):
        if index not in fulfilled and not rule.optional:
            raise NoMatchError(_nothing(recipe, index, anatomy, matches, skips))
        if index not in fulfilled | told:
            skips.append(Skip("", why_nothing(rule, anatomy), index, hit=False))
    if idle := idle_exclude(recipe, anatomy):
        raise NoMatchError(idle)
    return insertions, tuple(skips)


def settle(
    anatomy: Anatomy,
    hits: tuple[Hit, ...],
    present: tuple[Insertion, ...] = (),
    refused: Mapping[tuple[str, str | None], str] = MappingProxyType({}),
) -> tuple[tuple[Insertion, ...], tuple[Skip, ...], frozenset[int]]:
    """Turn hits into insertions, skips with their reasons, and the rules that have their effect. See `decide`."""
    insertions: list[Insertion] = []
    skips: list[Skip] = []
    attended = {(_origin(anatomy, there.path), there.reader): there.path for there in present}
    fulfilled = set()
    for hit in hits:
        site = anatomy.site_by_path[hit.path]
        reason = why_not_attendable(site) or _repetition(anatomy, hit, attended, present)
        if reason is None:
            insertion, reason = _placed(anatomy, site, hit, refused.get((hit.path, hit.reader)))
            if insertion is not None:
                attended[_origin(anatomy, hit.path), hit.reader] = hit.path
                insertions.append(insertion)
        elif reason == PRESENT:
            fulfilled.add(hit.rule)
        if reason is not None:
            skips.append(Skip(hit.path, reason, hit.rule, hit=True))
    fulfilled.update(insertion.rule for insertion in insertions)
    return tuple(insertions), tuple(skips), frozenset(fulfilled)


def _repetition(
    anatomy: Anatomy, hit: Hit, attended: dict[tuple[str, str | None], str], present: tuple[Insertion, ...]
) -> str | None:
    origin = _origin(anatomy, hit.path)
    for (other, reader), path in attended.items():
        if other != origin or (hit.reader is not None and reader is not None and hit.reader != reader):
            continue
        there = next((there for there in present if there.path == path and there.reader == reader), None)
        if there is not None and there.e_lambda != hit.e_lambda:
            return f"{PRESENT}, with e_lambda {there.e_lambda:g} instead of {hit.e_lambda:g}; eject first to change it"
        if there is not None:
            return PRESENT
        return "is attended already" if path == hit.path else f"is the value of {path}, which is attended already"
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


def _placed(anatomy: Anatomy, site: Site, hit: Hit, refusal: str | None) -> tuple[Insertion | None, str | None]:
    """The insertion, or the reason why there is no way to make it."""
    facts = {
        "path": site.path,
        "position": hit.position,
        "shape": site.shape or (),
        "e_lambda": hit.e_lambda,
        "rule": hit.rule,
        "reader": hit.reader,
        "channel_dim": site.channel_dim,
        "dtype": site.dtype or "float32",
        "reduction": site.reduction,
        "runs": site.runs,
    }
    if hit.reader is not None:
        if refusal is not None:
            return None, refusal
        return Insertion(**facts, scope=anatomy.site_by_path[hit.reader].scope), None  # type: ignore[arg-type]
    if site.is_traced and refusal is None and (site.kind != "block" or not site.is_wrappable):
        return Insertion(**facts, scope=site.scope), None  # type: ignore[arg-type]
    if not site.is_wrappable:
        return None, refusal or "its forward cannot be wrapped, and the block that calls it cannot be rewritten"
    note = ""
    if site.kind != "block" and site.path:
        why = refusal or anatomy.opaque.get(site.scope, "it is not the one that calls it")
        note = f"the module itself is wrapped, since {site.scope or 'the model'} cannot be rewritten: {why}"
    return Insertion(**facts, scope=site.path, means="boundary", note=note), None  # type: ignore[arg-type]


def _nothing(recipe: Recipe, index: int, anatomy: Anatomy, matches: Matches, skips: list[Skip]) -> str:
    refused = [skip for skip in skips if skip.rule == index and skip.hit]
    if not refused:
        return unmatched_message(recipe, index, anatomy, matches.misses)
    count = "1 site" if len(refused) == 1 else f"{len(refused)} sites"
    head = f"rules[{index}] ({recipe.rules[index].selector}) takes {count}"
    lines = [f"{head}, and none of them can be attended:"]
    lines += [f"  {skip.path}: {skip.reason}" for skip in refused[:3]]
    if len(refused) > 3:
        lines.append(f"  ... and {len(refused) - 3} more")
    return "\n".join(lines)
