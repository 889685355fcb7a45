"""Whatever names a recipe -> `Recipe`: a record, a dict, a shipped name, a YAML file, a one-line selector.

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
from simam_inject.recipe.reading import MAX_BYTES, read_yaml
from simam_inject.recipe.recipe import Recipe
from simam_inject.recipe.rule import Rule
from simam_inject.recipe.shelf import read_shipped, shipped_recipes
from simam_inject.recipe.wording import describe, did_you_mean

_SELECTOR = re.compile(r"\s*(after|before)\s+(.+?)\s*", re.DOTALL | re.IGNORECASE)
_FORMS = (
    "a Recipe, a mapping, the name of a shipped recipe, a path to a YAML file, "
    "or a selector such as 'after bottleneck.conv2'"
)
_WHOLE = {"after": "output", "before": "input"}
_KEYS = f"a mapping with the keys {', '.join(Recipe.model_fields)}"


def load_recipe(source: Recipe | Mapping[str, Any] | str | os.PathLike[str]) -> Recipe:
    """Read a recipe.

    Args:
        source: a `Recipe`; a mapping of JSON types; the name of a shipped recipe; a path to a YAML file; or a one-line
            selector.

    Returns:
        The validated, frozen recipe; the same object if it was one.

    Raises:
        RecipeError: there is no such recipe, or it is not valid.
    """
    if isinstance(source, Recipe):
        return source
    if isinstance(source, Mapping):
        return Recipe.from_dict(source)
    if isinstance(source, os.PathLike):
        return _load_file(Path(source))
    if not isinstance(source, str):
        raise RecipeError(f"recipe: found {describe(source)}; allowed is {_FORMS}")
    if found := _SELECTOR.fullmatch(source):
        position = found[1].lower()
        return Recipe(name=f"{position} {found[2]}", rules=[selector(position, found[2])])
    if source in shipped_recipes():
        return _load_text(read_shipped(source), name=source)
    return _load_named_file(source)


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
    if position not in ("after", "before"):
        raise RecipeError(f"selector: found {describe(position)}; a selector starts with 'after' or 'before'")
    words = text.split()
    if len(words) > 1 and words[0].lower() in _WHOLE:
        which = f"the second {position!r}" if words[0] == position else f"one of {position!r} and {words[0]!r}"
        raise RecipeError(f"selector: found {describe(f'{position} {text}')}; leave out {which}")
    block, child = _split_selector(text.strip())
    if not block or child == "":
        raise RecipeError(
            f"selector: found {describe(f'{position} {text}')}; write {position} BLOCK.CHILD, "
            f"e.g. '{position} bottleneck.conv2'"
        )
    keys: dict[str, Any] = {"block": block, position: child or _WHOLE[position], "e_lambda": e_lambda}
    try:
        return Rule(**keys)
    except RecipeError as error:
        raise RecipeError(f"{error} (in the selector {describe(f'{position} {text}')})") from None


def load_base(name: object) -> Recipe:
    """The shipped recipe that `extends` names.

    Raises:
        RecipeError: there is none of that name, or it extends itself.
    """
    return _load_text(read_shipped(name, "extends"), name=str(name))


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


def read_file(path: Path) -> bytes:
    """The bytes of a file, one more than a recipe may have at most.

    Raises:
        RecipeError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise RecipeError(f"recipe: cannot read {str(path)[:400]}: {reason or error}") from None


def _load_file(path: Path) -> Recipe:
    data = read_file(path)
    try:
        return _load_text(data, name=path.stem)
    except RecipeError as error:
        raise RecipeError(f"{error} (in {path})") from None


def _load_text(text: str | bytes, name: str) -> Recipe:
    data = read_yaml(text)
    if not isinstance(data, dict):
        raise RecipeError(f"recipe: found {describe(data)}; allowed is {_KEYS}")
    return Recipe.from_dict({"name": name} | data)
