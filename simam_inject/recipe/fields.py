"""The types of a recipe's fields: how each is read, written back as JSON types, and described to an editor."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from simam_inject.kinds import FAMILIES, KINDS
from simam_inject.recipe.bounds import MAX_ENTRIES, MAX_NUMBER, TEST_PATTERN, Bounds, parse_bounds
from simam_inject.recipe.chains import Chain, parse_chain
from simam_inject.recipe.globs import Glob, parse_glob
from simam_inject.recipe.picks import GROUPS, MAX_COUNT, Pick, parse_pick
from simam_inject.recipe.targets import OPERATION_FACTS, WHICH, Operation, Target, parse_target
from simam_inject.recipe.wording import describe, did_you_mean, join_names

MAX_GLOBS = 100
MAX_TEXT = 4000
STRUCTURES = ("residual", "main", "decoder")
"""What `structure` can say: the words that a site's own `structure` may hold."""
DEFAULT_E_LAMBDA = 1e-4
"""The class default of every SimAM in circulation."""


def _parse_globs(value: object) -> tuple[Glob, ...]:
    entries = value if isinstance(value, list | tuple) else (value,)
    if len(entries) > MAX_GLOBS:
        raise ValueError(f"found a list of {len(entries)} entries; at most {MAX_GLOBS} are allowed")
    return tuple(entry if isinstance(entry, Glob) else parse_glob(entry) for entry in entries)


def _parse_structures(value: object) -> tuple[str, ...]:
    entries = () if value is None else tuple(value) if isinstance(value, list | tuple) else (value,)
    for entry in entries:
        if not isinstance(entry, str) or entry not in STRUCTURES:
            near = did_you_mean(entry, STRUCTURES) if isinstance(entry, str) else ""
            raise ValueError(f"found {describe(entry)}; allowed is {join_names(STRUCTURES)}, or a list of these{near}")
    return tuple(dict.fromkeys(entries))


def _write_structures(structures: tuple[str, ...]) -> str | list[str]:
    return structures[0] if len(structures) == 1 else list(structures)


def _write_globs(globs: tuple[Glob, ...]) -> str | list[str]:
    return globs[0].text if len(globs) == 1 else [glob.text for glob in globs]


def _parse_e_lambda(value: object) -> float:
    number = _to_float(value)
    if not (math.isfinite(number) and number > 0):
        quoted = "; write the number without quotes" if isinstance(value, str) and _is_number(value) else ""
        raise ValueError(f"found {describe(value)}; allowed is a finite number above 0, e.g. 0.1 or 1e-4{quoted}")
    if isinstance(value, int) and value > 1:
        warnings.warn(
            f"e_lambda: {value} is probably a channel count, and makes the gate a constant. SimAM needs no channel "
            f"count: leave e_lambda out, or write {value}.0 if the value is meant.",
            stacklevel=2,
        )
    return number


def _to_float(value: object) -> float:
    """The number as a float; `nan` for what is not a number, or too large for one."""
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return math.nan


def _is_number(text: str) -> bool:
    try:
        return len(text) < 40 and math.isfinite(float(text))
    except ValueError:
        return False


def _parse_text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"found {describe(value)}; allowed is a text")
    if len(value) > MAX_TEXT:
        raise ValueError(f"found a text of {len(value)} characters; at most {MAX_TEXT} are allowed")
    return value.strip()


def _parse_flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"found {describe(value)}; allowed is true or false")
    return value


def _parse_version(value: object) -> int:
    if isinstance(value, bool) or value != 1:
        raise ValueError(f"found {describe(value)}; this program reads version 1 of the recipe language")
    return 1


def _parse_groups(value: object) -> Bounds:
    return parse_bounds(value, depthwise=True)


def _write_bounds(bounds: Bounds) -> int | str | list[int | str]:
    return list(bounds.source) if isinstance(bounds.source, tuple) else bounds.source


def _write_target(target: Target) -> str | dict[str, Any]:
    if not isinstance(target, Operation):
        return str(target)
    kinds = [kinds.text for kinds in target.kinds]
    facts = {name: _write_bounds(bounds) for name, bounds in target.facts}
    which = {} if target.which == "all" else {"which": target.which}
    return {"op": kinds[0] if len(kinds) == 1 else kinds, **facts, **which}


def _write_pick(pick: Pick) -> str | dict[str, Any]:
    if pick.mode == "all":
        return "all"
    return {pick.mode: pick.count} | ({} if pick.per == "model" else {"per": pick.per})


def _or_none(parse: Callable[[object], Any]) -> PlainValidator:
    """`null` means that the key was not given."""
    return PlainValidator(lambda value: None if value is None else parse(value))


def _or_empty(value: object) -> tuple[Glob, ...]:
    return () if value is None else _parse_globs(value)


def _one_or_list(entry: dict[str, Any], most: int) -> dict[str, Any]:
    return {"anyOf": [entry, {"type": "array", "items": entry, "minItems": 1, "maxItems": most}]}


_NUMBER = {"type": "integer", "minimum": 0, "maximum": MAX_NUMBER}
_TEST = f"\\s*{TEST_PATTERN}\\s*"
_TESTS = {"type": "string", "pattern": f"^{_TEST}(,{_TEST})*$"}
_BOUNDS = _one_or_list({"anyOf": [_NUMBER, _TESTS]}, MAX_ENTRIES)
_GROUPS = _one_or_list({"anyOf": [{"const": "depthwise"}, _NUMBER, _TESTS]}, MAX_ENTRIES)
_GLOBS = _one_or_list({"type": "string", "minLength": 1}, MAX_GLOBS)
_STRUCTURES = _one_or_list({"enum": list(STRUCTURES)}, len(STRUCTURES))
_KIND = {"anyOf": [{"enum": sorted(FAMILIES | dict.fromkeys(KINDS))}, {"type": "string", "minLength": 1}]}
_OPERATION = {
    "type": "object",
    "properties": {"op": _one_or_list(_KIND, 16)}
    | {name: _GROUPS if name == "groups" else _BOUNDS for name in OPERATION_FACTS}
    | {"which": {"enum": list(WHICH)}},
    "required": ["op"],
    "additionalProperties": False,
}
_TARGET = {"anyOf": [{"enum": ["output", "input", "residual"]}, {"type": "string", "minLength": 1}, _OPERATION]}
_COUNT = {"type": "integer", "minimum": 1, "maximum": MAX_COUNT}
_PICK = {
    "anyOf": [
        {"enum": ["all", "first", "last"]},
        *(
            {
                "type": "object",
                "properties": {mode: _COUNT, "per": {"enum": list(GROUPS)}},
                "required": [mode],
                "additionalProperties": False,
            }
            for mode in ("first", "last", "every")
        ),
    ]
}
SHARED_SCHEMAS = {
    "Bounds": _BOUNDS,
    "Globs": _GLOBS,
    "Groups": _GROUPS,
    "Kind": _KIND,
    "Number": _NUMBER,
    "Pick": _PICK,
    "Target": _TARGET,
    "Tests": _TESTS,
}
"""Schemas that stand in more than one place, by the name of their definition."""

Text = Annotated[str, PlainValidator(_parse_text), WithJsonSchema({"type": "string", "maxLength": MAX_TEXT})]
Flag = Annotated[bool, PlainValidator(_parse_flag), WithJsonSchema({"type": "boolean"})]
Version = Annotated[int, PlainValidator(_parse_version), WithJsonSchema({"const": 1})]
Globs = Annotated[tuple[Glob, ...], PlainValidator(_or_empty), PlainSerializer(_write_globs), WithJsonSchema(_GLOBS)]
Structures = Annotated[
    tuple[str, ...],
    PlainValidator(_parse_structures),
    PlainSerializer(_write_structures),
    WithJsonSchema(_STRUCTURES),
]
ChainField = Annotated[
    Chain | None, _or_none(parse_chain), PlainSerializer(str), WithJsonSchema({"type": "string", "minLength": 1})
]
TargetField = Annotated[Target | None, _or_none(parse_target), PlainSerializer(_write_target), WithJsonSchema(_TARGET)]
BoundsField = Annotated[Bounds | None, _or_none(parse_bounds), PlainSerializer(_write_bounds), WithJsonSchema(_BOUNDS)]
GroupsField = Annotated[Bounds | None, _or_none(_parse_groups), PlainSerializer(_write_bounds), WithJsonSchema(_GROUPS)]
PickField = Annotated[Pick, PlainValidator(parse_pick), PlainSerializer(_write_pick), WithJsonSchema(_PICK)]
_LAMBDA = WithJsonSchema({"type": "number", "exclusiveMinimum": 0})
Lambda = Annotated[float | None, _or_none(_parse_e_lambda), _LAMBDA]
DefaultLambda = Annotated[
    float, PlainValidator(lambda value: DEFAULT_E_LAMBDA if value is None else _parse_e_lambda(value)), _LAMBDA
]
