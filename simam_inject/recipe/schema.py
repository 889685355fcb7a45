"""JSON Schema of the recipe language, generated from its models, so that editors complete and check a recipe."""

from __future__ import annotations

import json
from typing import Any

from simam_inject.recipe.fields import SHARED_SCHEMAS
from simam_inject.recipe.recipe import Recipe

_ANNOTATIONS = ("title", "description", "default")


def recipe_schema() -> dict[str, Any]:
    """The schema (draft 2020-12) as JSON types."""
    generated = Recipe.model_json_schema()
    models = generated.pop("$defs")
    schema = _shorten(generated)
    schema["anyOf"] = [{"required": ["rules"]}, {"required": ["extends"]}]
    definitions = {name: _shorten(model) for name, model in models.items()}
    definitions["Rule"]["anyOf"] = [{"required": [key]} for key in ("structure", "block", "pattern", "path")]
    definitions["Rule"]["allOf"] = [
        {"not": {"required": ["block", "pattern"]}},
        {"not": {"required": ["block", "structure"]}},
        {"not": {"required": ["pattern", "structure"]}},
        {"not": {"required": ["after", "before"]}},
        {"anyOf": [{"required": [key]} for key in ("pattern", "after", "before")]},
    ]
    for name, shared in SHARED_SCHEMAS.items():
        definitions[name] = _refer(shared, besides=name)
    draft = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "simam_inject recipe"}
    return draft | schema | {"$defs": dict(sorted(definitions.items()))}


def write_schema() -> str:
    """The text of `docs/recipe.schema.json`."""
    return json.dumps(recipe_schema(), indent=2) + "\n"


def _shorten(model: dict[str, Any]) -> dict[str, Any]:
    """A model's schema with the first sentence of its description, and each property as the recipe writes it."""
    short = {key: value for key, value in model.items() if key != "title"}
    short["description"] = model["description"].split(". ")[0].splitlines()[0].rstrip(".") + "."
    short["properties"] = {name: _shorten_property(value) for name, value in model["properties"].items()}
    return short


def _shorten_property(value: dict[str, Any]) -> dict[str, Any]:
    kind = {key: part for key, part in value.items() if key not in _ANNOTATIONS}
    if kind.get("anyOf", [None])[-1] == {"type": "null"}:
        kind = {"anyOf": kind["anyOf"][:-1]} if len(kind["anyOf"]) > 2 else kind["anyOf"][0]
    default = {"default": value["default"]} if value.get("default") not in (None, [], "") else {}
    return {"description": value["description"], **_refer(kind), **default}


def _refer(schema: Any, besides: str = "") -> Any:
    """The schema with a reference in place of every part that is a shared one."""
    for name, shared in SHARED_SCHEMAS.items():
        if schema == shared and name != besides:
            return {"$ref": f"#/$defs/{name}"}
    if isinstance(schema, dict):
        return {key: _refer(part) for key, part in schema.items()}
    return [_refer(part) for part in schema] if isinstance(schema, list) else schema
