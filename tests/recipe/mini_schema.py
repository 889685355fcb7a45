"""Enough of JSON Schema to check a recipe against its published schema."""

import re

TYPES = {
    "object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool,
    "null": type(None),
}  # fmt: skip


def problems(value, schema, root, place="recipe"):
    """Sentences about what does not conform; empty if all does."""
    if "$ref" in schema:
        referred = root["$defs"][schema["$ref"].rpartition("/")[2]]
        return problems(value, referred, root, place)
    if "type" in schema and not _is(value, schema["type"]):
        return [f"{place}: {value!r} is no {schema['type']}"]
    found = _check_scalar(value, schema, place)
    if isinstance(value, dict):
        found += _check_object(value, schema, root, place)
    if isinstance(value, list):
        found += _check_array(value, schema, root, place)
    if "anyOf" in schema:
        choices = [problems(value, choice, root, place) for choice in schema["anyOf"]]
        found += min(choices, key=len) if all(choices) else []
    conforming = [choice for choice in schema.get("oneOf", ()) if not problems(value, choice, root, place)]
    if "oneOf" in schema and len(conforming) != 1:
        found.append(f"{place}: conforms to {len(conforming)} of the schemas of which it must to one")
    found += [line for part in schema.get("allOf", ()) for line in problems(value, part, root, place)]
    if "not" in schema and not problems(value, schema["not"], root, place):
        found.append(f"{place}: {value!r} is not allowed")
    return found


def _is(value, kind):
    return isinstance(value, TYPES[kind]) and isinstance(value, bool) == (kind == "boolean")


def _check_scalar(value, schema, place):
    ok = {
        "const": lambda wanted: value == wanted,
        "enum": lambda wanted: value in wanted,
        "pattern": lambda wanted: not isinstance(value, str) or re.search(wanted, value),
        "minimum": lambda wanted: value >= wanted,
        "maximum": lambda wanted: value <= wanted,
        "exclusiveMinimum": lambda wanted: value > wanted,
        "minLength": lambda wanted: not isinstance(value, str) or len(value) >= wanted,
    }
    return [
        f"{place}: {value!r} has not {key} {schema[key]}" for key in ok if key in schema and not ok[key](schema[key])
    ]


def _check_object(value, schema, root, place):
    found = [f"{place}: {key} is missing" for key in schema.get("required", ()) if key not in value]
    properties = schema.get("properties", {})
    for key, part in value.items():
        if key in properties:
            found += problems(part, properties[key], root, f"{place}.{key}")
        elif schema.get("additionalProperties") is False:
            found.append(f"{place}: {key} is unknown")
    return found


def _check_array(value, schema, root, place):
    found = [] if len(value) >= schema.get("minItems", 0) else [f"{place}: too few entries"]
    for index, part in enumerate(value if "items" in schema else ()):
        found += problems(part, schema["items"], root, f"{place}[{index}]")
    return found
