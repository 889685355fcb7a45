"""Texts of recipes: the shipped ones, and YAML from any source, which becomes plain JSON types.

`yaml.SafeLoader` is restricted further: no tags, no aliases, no duplicate keys, at most 64 KiB. Scalars are those of
YAML 1.2: `1e-4` is a number, `on` and `12:30` are texts.
"""

from __future__ import annotations

import re
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from simam_inject.errors import RecipeError, describe, did_you_mean

MAX_BYTES = 64 * 1024
MAX_DEPTH = 12
_SUFFIX = ".yaml"
_PLAIN = {
    "null": r"(?:~|null|Null|NULL|)\Z",
    "bool": r"(?:true|True|TRUE|false|False|FALSE)\Z",
    "int": r"[-+]?(?:0|[1-9][0-9]{0,39})\Z",
    "float": r"(?:[-+]?(?:\.[0-9]{1,40}|[0-9]{1,40}(?:\.[0-9]{0,40})?)(?:[eE][-+]?[0-9]{1,4})?|-?\.inf|\.nan)\Z",
}
"""Types of plain scalars other than text."""
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_GLOB = re.compile(r"(?:^|[-:,\[{] *)\*|[\]}][\w.*:]")
"""A text without quotes that begins with `*`, or goes on behind a bracket, as `[34].conv` does."""
_COMPARISON = re.compile(r"(?:(\w+: +)|- +|[\[,] *)((?:[<>]=?|!=?) *[0-9x]+(?:, *[<>]=? *\d+)*)")
"""A comparison without quotes: in YAML `>` begins a block of text, and `!` a tag."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012  (of the base class, so a type would be another declaration)
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _error(f"found *{event.anchor:.40}, an alias; recipes do not support aliases", event)
        if getattr(event, "tag", None) is not None:
            raise _error(f"found the tag {describe(event.tag)}; recipes do not support tags", event)
        if self.depth == MAX_DEPTH:
            raise _error(f"nested more than {MAX_DEPTH} levels deep", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _error("found a key that is not a string", key)
            if key.value in keys:
                raise _error(f"duplicate key {describe(key.value)}", key)
            keys.add(key.value)
            key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)


for _name, _pattern in _PLAIN.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(_pattern), None)


def _error(problem: str, where: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)


def read_yaml(data: bytes | str) -> Any:
    """The one document of a YAML text, as dicts, lists, texts, numbers, booleans and None; or a `RecipeError`."""
    try:
        encoded = data.encode() if isinstance(data, str) else data
        if len(encoded) > MAX_BYTES:
            raise RecipeError(f"recipe: larger than {MAX_BYTES // 1024} KiB, the maximum size of a recipe")
        text = encoded.decode("utf-8-sig")
    except (UnicodeEncodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe: not UTF-8 text ({error.reason}); save the file as UTF-8") from None
    if text.lstrip().startswith("{"):  # JSON, which may be indented with tabs
        text = text.replace("\t", " ")
    try:
        found = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        line = (text.splitlines() or [""])[mark.line : mark.line + 1] if mark else []
        problem = str(error.problem).removeprefix("but ")
        raise RecipeError(f"recipe: not valid{place}: {problem}{_hint(''.join(line))}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe: not valid YAML: {str(error).splitlines()[0]:.200}") from None
    if found is None:
        raise RecipeError("recipe: empty; a recipe is a mapping with 'rules'")
    return found


def read_file(path: Path) -> bytes:
    """The bytes of a file, at most one more than a recipe may have; or a `RecipeError`."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise RecipeError(f"recipe: cannot read {str(path)[:400]}: {reason or error}") from None


def _hint(line: str) -> str:
    """Advice on the line in which the YAML is not valid."""
    line = _QUOTED.sub("", line)
    if "\t" in line:
        return "; YAML indents with spaces, not tabs"
    if comparison := _COMPARISON.search(line):
        return f'; put comparisons in quotes: {comparison[1] or ""}"{comparison[2]}"'
    if _GLOB.search(line):
        return "; put globs and patterns in quotes: path: '*.conv2'"
    return ""


def _recipe_folder() -> Traversable:
    """The folder of the shipped recipes: in the wheel beside the package's modules, in a checkout at its top."""
    for folder in (files("simam_inject") / "recipes", Path(__file__).resolve().parents[2] / "recipes"):
        if (folder / f"paper{_SUFFIX}").is_file():
            return folder
    raise RecipeError("recipe: the shipped recipes are missing from this installation; reinstall simam_inject")


def shipped_recipes() -> tuple[str, ...]:
    """Names of the shipped recipes, sorted."""
    entries = (entry.name for entry in _recipe_folder().iterdir())
    return tuple(sorted(name.removesuffix(_SUFFIX) for name in entries if name.endswith(_SUFFIX)))


def read_shipped(name: object, place: str = "recipe") -> str:
    """The text of a shipped recipe; or a `RecipeError`, which starts with `place`."""
    names = shipped_recipes()
    if name not in names:
        near = did_you_mean(name, names)
        raise RecipeError(f"{place}: no shipped recipe is named {describe(name)}; available: {', '.join(names)}{near}")
    return (_recipe_folder() / f"{name}{_SUFFIX}").read_text(encoding="utf-8")
