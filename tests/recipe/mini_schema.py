"""Enough of JSON Schema to check a recipe against its published schema."""

import re


def problems(value, schema, root, place="recipe"):
    """Sentences about what does not conform; empty if all does."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]] | {k: v for k, v in schema.items() if k != "$ref"}
    found = []
    types = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
    if "type" in schema and (
        not isinstance(value, types[schema["type"]]) or (isinstance(value, bool) != (schema["type"] == "boolean"))
    ):
        return [f"{place}: {value!r} is no {schema['type']}"]
    if "const" in schema and value != schema["const"]:
        found.append(f"{place}: {value!r} is not {schema['const']!r}")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{place}: {value!r} is not one of {schema['enum']}")
    if "pattern" in schema and isinstance(value, str) and not re.search(schema["pattern"], value):
        found.append(f"{place}: {value!r} does not match {schema['pattern']}")
    if "minimum" in schema and value < schema["minimum"]:
        found.append(f"{place}: {value!r} is too small")
    if "exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"]:
        found.append(f"{place}: {value!r} is too small")
    if "minLength" in schema and isinstance(value, str) and len(value) < schema["minLength"]:
        found.append(f"{place}: {value!r} is too short")
    if "minItems" in schema and isinstance(value, list) and len(value) < schema["minItems"]:
        found.append(f"{place}: too few entries")
    if isinstance(value, dict):
        found += [f"{place}: {key} is missing" for key in schema.get("required", ()) if key not in value]
        for key, part in value.items():
            if key in schema.get("properties", {}):
                found += problems(part, schema["properties"][key], root, f"{place}.{key}")
            elif schema.get("additionalProperties") is False:
                found.append(f"{place}: {key} is unknown")
    if isinstance(value, list) and "items" in schema:
        found += [
            line
            for index, part in enumerate(value)
            for line in problems(part, schema["items"], root, f"{place}[{index}]")
        ]
    if "anyOf" in schema:
        choices = [problems(value, choice, root, place) for choice in schema["anyOf"]]
        found += min(choices, key=len) if all(choices) else []
    found += [line for part in schema.get("allOf", ()) for line in problems(value, part, root, place)]
    if "not" in schema and not problems(value, schema["not"], root, place):
        found.append(f"{place}: {value!r} is not allowed")
    return found
