"""What a name may have meant that matches nothing in the model: a path, a class, an operation."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from simam_inject.dataflow.records import Anatomy
from simam_inject.recipe.globs import Glob, lineage
from simam_inject.recipe.recipe import Recipe
from simam_inject.recipe.rule import Rule
from simam_inject.recipe.targets import Child
from simam_inject.recipe.wording import nearest

_REGULAR = re.compile(r"[|\\^$()+]|\.\*(?!$)|^\.\*")
"""Signs of a regular expression. `layer3.*` is a glob as well."""


def idle_exclude(recipe: Recipe, anatomy: Anatomy) -> str | None:
    """The message for the first `exclude` that leaves nothing out because it matches nothing; None if there is none.

    That of an optional rule may match nothing, since the rule itself may: so one recipe can speak of many models.
    """
    for index, rule in enumerate(recipe.rules):
        if rule.optional or not rule.exclude:
            continue
        message = explain_idle(f"rules[{index}].exclude", rule.exclude, every_path(anatomy))
        if message is not None:
            return f"{message} (A rule for many models says optional: true.)"
    return None


def explain_idle(place: str, globs: Iterable[Glob], paths: frozenset[str]) -> str | None:
    """The message for the first of the globs at `place` that matches none of the paths; None if all match."""
    for glob in globs:
        if not any(map(glob.matches, paths)):
            return f"{place}: {glob.text!r} matches nothing in this model.{hint_path(glob, paths)}"
    return None


def every_path(anatomy: Anatomy) -> frozenset[str]:
    """Paths of all values and of all modules that contain one."""
    return frozenset(part for path in anatomy.site_by_path for part in lineage(path))


def hint_path(glob: Glob, paths: Iterable[str]) -> str:
    """A sentence on how a glob that matches none of the paths may have been meant; empty where nothing is near."""
    if _REGULAR.search(glob.text):
        return " Paths are globs, not regular expressions: * is any text, alternatives are {a,b}."
    paths = frozenset(paths)
    other_case = sorted(path for path in paths if glob.matches_any_case(path))
    if other_case:
        return f" Letter case counts; did you mean {other_case[0]}?"
    inside = Glob(f"*.{glob.text}")
    if any(map(inside.matches, paths)):
        return f" Did you mean {inside.text!r}? A glob is matched against the whole path."
    near = _nearest_globs(glob, paths)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def _nearest_globs(glob: Glob, paths: frozenset[str]) -> list[str]:
    """The glob with its literal part put right: `layr4.*` becomes `layer4.*`, `*.cnv2` becomes `*.conv2`."""
    if not glob.is_wild:
        return list(nearest(glob.text, paths))
    parts = glob.text.split(".")
    literal = [part for part in parts if not Glob(part).is_wild]
    if parts[: len(literal)] == literal:
        known = {".".join(path.split(".")[: len(literal)]) for path in paths}
    elif parts[-len(literal) :] == literal:
        known = {".".join(path.split(".")[-len(literal) :]) for path in paths}
    else:
        return []
    written = ".".join(literal)
    near = nearest(written, known, count=1) if literal else ()
    return [repr(glob.text.replace(written, name, 1)) for name in near]


def hint_class(rule: Rule, anatomy: Anatomy) -> str:
    """A sentence for names at `block` that are no class of the model but something else in it; may be empty."""
    classes = {site.class_name for site in anatomy.sites if site.class_name is not None}
    for glob in rule.block:
        whole = f"{glob}.{rule.target}" if isinstance(rule.target, Child) else glob.text
        if any(map(Glob(whole).matches, anatomy.site_by_path)):
            return f" {whole!r} is a module path: write {_as_path(whole, rule, anatomy)}."
        inner = next((part for part in whole.split(".")[1:] if part in classes), None)
        if inner is not None:
            return f" A class is named without its module: {inner}."
        if glob.text.casefold() == "residual" and (joining := _joining_class(anatomy)):
            return f" Did you mean 'before {joining.lower()}.residual'?"
    return ""


def _as_path(whole: str, rule: Rule, anatomy: Anatomy) -> str:
    """How a rule names that path: on its own, or as a child of the model's own class."""
    keys = f"path: {whole}, {rule.position}: {'output' if rule.position == 'after' else 'input'}"
    model = anatomy.site_by_path.get("")
    if model is None or model.class_name is None or Glob(whole).is_wild:
        return keys
    return f"{keys}, or --{rule.position} {model.class_name.lower()}.{whole}"


def _joining_class(anatomy: Anatomy) -> str | None:
    """The class that most residual adds are in."""
    sites = anatomy.site_by_path
    joins = {site.joins for site in anatomy.sites if site.joins in sites}
    owners = [sites[sites[join].scope].class_name for join in joins if join and sites[join].scope in sites]
    return next((name for name, _ in Counter(owners).most_common(1)), None)


def advise(rule: Rule, anatomy: Anatomy) -> list[str]:
    """Lines on parts of a rule that match nothing in the model: its `path` beside a selection, classes in a pattern."""
    lines = []
    if rule.block or rule.pattern is not None:
        idle = explain_idle("path", rule.path, every_path(anatomy))
        lines += [idle] if idle else []
    classes = {site.class_name.casefold(): site.class_name for site in anatomy.sites if site.class_name is not None}
    kinds = {site.kind for site in anatomy.sites}
    for link in rule.pattern.links if rule.pattern is not None else ():
        name = classes.get(link.name.casefold())
        if name is not None and not any(map(link.kinds.matches, kinds)):
            lines.append(f"{link.name} is a class, and a pattern names operations; write block: {name}")
    return lines
