"""JSON Schema of the recipe language, generated from its models, so that editors complete and check a recipe."""

from __future__ import annotations

import json
from typing import Any

from simam_inject.kinds import FAMILIES, KINDS
from simam_inject.recipe.operations import Operation
from simam_inject.recipe.recipe import Recipe


def recipe_schema() -> dict[str, Any]:
    """The schema (draft 2020-12) as JSON types."""
    schema = Recipe.model_json_schema()
    definitions = schema.pop("$defs")
    operation = Operation.model_json_schema()
    definitions |= operation.pop("$defs") | {"Operation": operation}
    definitions["KindNames"]["anyOf"].insert(0, {"enum": sorted(FAMILIES | dict.fromkeys(KINDS))})
    definitions["Target"] = {"anyOf": [{"type": "string", "minLength": 1}, {"$ref": "#/$defs/Operation"}]}
    modes: list[dict[str, Any]] = [{"required": [mode]} for mode in ("first", "last", "every")]
    definitions["Pick"] = {"anyOf": [{"enum": ["all", "first", "last"]}, definitions["Pick"] | {"oneOf": modes}]}
    selects = ("structure", "block", "pattern")
    definitions["Rule"] |= {
        "anyOf": [{"required": [key]} for key in (*selects, "path")],
        "allOf": [
            *({"not": {"required": list(pair)}} for pair in zip(selects, selects[1:] + selects[:1], strict=True)),
            {"not": {"required": ["after", "before"]}},
            {"anyOf": [{"required": [key]} for key in ("pattern", "after", "before")]},
        ],
    }
    schema["anyOf"] = [{"required": ["rules"]}, {"required": ["extends"]}]
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "simam_inject recipe"}
    return {**head, **_tidy(schema), "$defs": _tidy(dict(sorted(definitions.items())))}


def write_schema() -> str:
    """The text of `docs/recipe.schema.json`."""
    return json.dumps(recipe_schema(), indent=2) + "\n"


def _tidy(part: Any) -> Any:
    """Without titles, null, and the sentences of a docstring after its first."""
    if isinstance(part, list):
        return [_tidy(entry) for entry in part if entry != {"type": "null"}]
    if not isinstance(part, dict):
        return part
    tidy = {key: _tidy(value) for key, value in part.items() if key != "title" or isinstance(value, dict)}
    if isinstance(tidy.get("description"), str):
        tidy["description"] = tidy["description"].split(". ")[0].splitlines()[0].rstrip(".") + "."
    if tidy.get("default", 0) in (None, [], "", {}):
        del tidy["default"]
    if len(tidy.get("anyOf", ())) == 1 and "description" in tidy:
        tidy |= tidy.pop("anyOf")[0]
    return tidy
