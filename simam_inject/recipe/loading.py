"""Whatever names a recipe -> `Recipe`: a record, a mapping, a shipped name, a YAML file, a one-line selector.

Selectors:
    after bottleneck                what the block returns
    after bottleneck.conv2          what its child conv2 returns
    after bottleneck.relu[2]        what its child relu returns at its second call
    before detect                   what the block is given, for the block alone
    before basicblock.bn2           what its child bn2 reads, for bn2 alone
    before basicblock.residual      the branch just before it joins the skip
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simam_inject.errors import RecipeError
from simam_inject.recipe.recipe import Recipe, load_shipped, load_text
from simam_inject.recipe.rule import Rule
from simam_inject.recipe.texts import read_file, shipped_recipes
from simam_inject.recipe.wording import describe, did_you_mean

RecipeLike = Recipe | Mapping[str, Any] | str | os.PathLike[str]
"""What names a recipe."""
_SELECTOR = re.compile(r"\s*(after|before)\s+(.+?)\s*", re.DOTALL | re.IGNORECASE)
_WHOLE = {"after": "output", "before": "input"}


def load_recipe(source: RecipeLike) -> Recipe:
    """Read a recipe.

    Args:
        source: a `Recipe`; a mapping of JSON types; the name of a shipped recipe; a path to a YAML file; or a one-line
            selector.

    Returns:
        The validated, frozen recipe; the same object if it was one.

    Raises:
        RecipeError: there is no such recipe, or it is not valid.

    >>> load_recipe("after bottleneck.conv2").rules[0].selector
    'block bottleneck, after conv2'
    """
    if isinstance(source, Recipe):
        return source
    if isinstance(source, Mapping):
        return Recipe.from_dict(source)
    if isinstance(source, os.PathLike):
        return _load_file(Path(source))
    if not isinstance(source, str):
        raise RecipeError(
            f"recipe: found {describe(source)}; expected a Recipe, a mapping, the name of a shipped recipe, a path "
            "to a YAML file, or a selector such as 'after bottleneck.conv2'"
        )
    if (word := source.strip().lower()) in _WHOLE:
        raise RecipeError(f"recipe: found {describe(source)}; write {word} BLOCK.CHILD, e.g. '{word} bottleneck.conv2'")
    if found := _SELECTOR.fullmatch(source):
        position = found[1].lower()
        return Recipe(name=f"{position} {found[2]}", rules=[selector(position, found[2])])
    return load_shipped(source) if source in shipped_recipes() else _load_named_file(source)


def selector(position: str, text: str, e_lambda: float | None = None) -> Rule:
    """The rule that `--after TEXT` or `--before TEXT` stands for.

    Args:
        position: `after` or `before`.
        text: a block class, or a block class, a dot and a child: `bottleneck`, `bottleneck.conv2`,
            `bottleneck.relu[2]`.
        e_lambda: lambda of the rule; None for the recipe's.

    Raises:
        RecipeError: the text is not of this form.
    """
    written = describe(f"{position} {text}")
    if position not in _WHOLE:
        raise RecipeError(f"selector: found {describe(position)}; a selector starts with 'after' or 'before'")
    words = text.split()
    if len(words) > 1 and words[0].lower() in _WHOLE:
        raise RecipeError(f"selector: found {written}; keep one of {position!r} and {words[0]!r}")
    block, child = _split_selector(text.strip())
    if not block or child == "":
        raise RecipeError(
            f"selector: found {written}; write {position} BLOCK.CHILD, e.g. '{position} bottleneck.conv2'"
        )
    place: Any = {position: child or _WHOLE[position]}
    try:
        return Rule(block=block, e_lambda=e_lambda, **place)
    except RecipeError as error:
        raise RecipeError(f"{error} (in the selector {written})") from None


def _split_selector(text: str) -> tuple[str, str | None]:
    """Block and child, parted at the first dot outside of brackets and braces."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character in "[{") - (character in "]}")
        if character == "." and depth == 0:
            return text[:index].strip(), text[index + 1 :].strip()
    return text, None


def _load_named_file(source: str) -> Recipe:
    is_path = source.endswith((".yaml", ".yml")) or os.sep in source or "/" in source
    try:
        path = Path(source)
        if is_path or path.is_file():
            return _load_file(path)
    except (OSError, ValueError):
        pass  # too long, or with a NUL in it: no file has that name
    names = shipped_recipes()
    raise RecipeError(
        f"recipe: {describe(source)} is neither a shipped recipe ({', '.join(names)}), a YAML file, nor a selector "
        f"such as 'after bottleneck.conv2'{did_you_mean(source, names)}"
    )


def _load_file(path: Path) -> Recipe:
    data = read_file(path)
    try:
        return load_text(data, path.stem)
    except RecipeError as error:
        raise RecipeError(f"{error} (in {path})") from None
