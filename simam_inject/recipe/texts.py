"""The texts of recipes: those that come with the program, and YAML -> JSON types for texts from anywhere.

YAML is read by `yaml.SafeLoader` with less: no tags, no aliases, no key twice, at most 64 KiB; only plain data comes
out. Numbers are YAML 1.2's: `1e-4` is a number, `on` and `12:30` are texts.
"""

from __future__ import annotations

import re
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from simam_inject.errors import RecipeError
from simam_inject.recipe.wording import describe, did_you_mean

MAX_BYTES = 64 * 1024
MAX_DEPTH = 12
_SUFFIX = ".yaml"
_INTEGER = re.compile(r"[-+]?[0-9]{1,40}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]{1,40}|[0-9]{1,40}(\.[0-9]{0,40})?)([eE][-+]?[0-9]{1,4})?")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    ".inf": float("inf"),
    "-.inf": float("-inf"),
    ".nan": float("nan"),
}
_COMPARISON = re.compile(r"(?:(\w+: +)|- +|[\[,] *)((?:[<>]=?|!=?) *[0-9x]+(?:, *[<>]=? *\d+)*)")
"""A comparison that stands without quotes: `>` begins a block of text for YAML, `!` a tag."""


class _Loader(yaml.SafeLoader):
    """Composes nodes; a plain scalar gets no type here."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  (of the base class, so a type would be another declaration)

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _error(f"found *{event.anchor:.40}, an alias; recipes do not support aliases", event.start_mark)
        if self.depth == MAX_DEPTH:
            raise _error(f"nested more than {MAX_DEPTH} levels deep", event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read_yaml(data: bytes | str) -> Any:
    """The one document of a YAML text, as dicts, lists, texts, numbers, booleans and None.

    Raises:
        RecipeError: not UTF-8, not YAML, too large or deep, a key twice, a tag, an alias, or not one document.
    """
    text = _decode(data)
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is None:
            raise RecipeError("recipe: empty; a recipe is a mapping with 'rules'")
        return _read_node(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        line = (text.splitlines() or [""])[mark.line : mark.line + 1] if mark else []
        raise RecipeError(f"recipe: not valid{place}: {error.problem}{_hint(''.join(line))}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe: not valid YAML: {str(error).splitlines()[0]:.200}") from None


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


def _decode(data: bytes | str) -> str:
    try:
        encoded = data.encode() if isinstance(data, str) else data
        if len(encoded) > MAX_BYTES:
            raise RecipeError(f"recipe: larger than {MAX_BYTES // 1024} KiB, the maximum size of a recipe")
        return encoded.decode("utf-8-sig")
    except UnicodeError as error:
        reason = getattr(error, "reason", "")
        raise RecipeError(f"recipe: not UTF-8 text ({reason}); save the file as UTF-8") from None


def _error(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _read_node(node: yaml.Node) -> Any:
    if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.rpartition(":")[2] not in ("str", "seq", "map"):
        raise _error(f"found the tag {describe(node.tag)}; recipes do not support tags", node.start_mark)
    if isinstance(node, yaml.ScalarNode):
        return _read_scalar(node.value) if node.style is None else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_read_node(entry) for entry in node.value]
    mapping: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _error("found a key that is not a string", key.start_mark)
        if key.value in mapping:
            raise _error(f"duplicate key {describe(key.value)}", key.start_mark)
        mapping[key.value] = _read_node(value)
    return mapping


def _read_scalar(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def _hint(line: str) -> str:
    """Advice from the line where reading stopped."""
    if "\t" in line:
        return "; YAML indents with spaces, not tabs"
    if comparison := _COMPARISON.search(line):
        return f'; put comparisons in quotes: {comparison[1] or ""}"{comparison[2]}"'
    if "*" in line or "{" in line or "[" in line:
        return "; put globs and patterns in quotes: path: '*.conv2'"
    return ""


def find_shelf() -> Traversable:
    """The folder of the shipped recipes: in the wheel beside the package's modules, in a checkout at its top.

    Raises:
        RecipeError: the installation has lost it.
    """
    for folder in (files("simam_inject") / "recipes", Path(__file__).resolve().parents[2] / "recipes"):
        if (folder / f"paper{_SUFFIX}").is_file():
            return folder
    raise RecipeError("recipe: the shipped recipes are missing from this installation; reinstall simam_inject")


def shipped_recipes() -> tuple[str, ...]:
    """Names of the shipped recipes, sorted."""
    entries = (entry.name for entry in find_shelf().iterdir())
    return tuple(sorted(name.removesuffix(_SUFFIX) for name in entries if name.endswith(_SUFFIX)))


def read_shipped(name: object, place: str = "recipe") -> str:
    """The text of a shipped recipe.

    Args:
        name: one of `shipped_recipes()`.
        place: what the message starts with.

    Raises:
        RecipeError: there is none of that name.
    """
    names = shipped_recipes()
    if not isinstance(name, str) or name not in names:
        near = did_you_mean(name, names) if isinstance(name, str) else ""
        raise RecipeError(f"{place}: no shipped recipe is named {describe(name)}; available: {', '.join(names)}{near}")
    return (find_shelf() / f"{name}{_SUFFIX}").read_text(encoding="utf-8")
