"""The base of the recipe's models: frozen, closed, and every mistake one `RecipeError`.

The message starts with the path of the offending key: `rules[1].where.channels: found 'big'; expected ...`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from simam_inject.errors import RecipeError
from simam_inject.recipe.wording import describe, did_you_mean

Location = tuple[int | str, ...]
_NAMES = {
    "a valid tuple": "a list",
    "a valid string": "a string",
    "a valid boolean": "true or false",
    "a valid number": "a number",
    "a valid integer": "a whole number",
}
"""What pydantic calls a JSON type, and what YAML's readers do."""


class KeyedError(ValueError):
    """A mapping that is wrong at one of its keys."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(problem)
        self.key = key


class Grammar(BaseModel):
    """Base of the recipe's models. Fields hold JSON types as they were written, lists as tuples."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    root: ClassVar[str] = "recipe"
    """What a message calls the whole of it."""
    homes: ClassVar[Mapping[str, str]] = {}
    """Keys that belong elsewhere, and where."""

    def __init__(self, /, **keys: Any) -> None:
        try:
            super().__init__(**keys)
        except ValidationError as error:
            raise RecipeError(explain_errors(error, self.root)) from None
        except RecursionError:
            raise RecipeError(f"{self.root}: nested too deeply to be a recipe") from None

    # Says to pydantic that a nested model may be built without this constructor: its errors then carry the whole path.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, data: Any) -> Any:
        """Refuse what is no mapping of known keys; a key without a value was not given."""
        fields = ", ".join(cls.model_fields)
        if isinstance(data, cls):
            return data
        if not isinstance(data, Mapping):
            raise ValueError(f"found {describe(data)}; expected a mapping with the keys {fields}")
        for key in data:
            if not isinstance(key, str) or key not in cls.model_fields:
                name = key if isinstance(key, str) else describe(key)
                home = f"; {name!r} belongs {cls.homes[name]}" if name in cls.homes else ""
                near = home or did_you_mean(name, cls.model_fields)
                raise KeyedError(name, f"unknown key; expected one of {fields}{near}")
        return {key: value for key, value in data.items() if value is not None}

    def to_dict(self) -> dict[str, Any]:
        """What was set, as JSON types; defaults are left out."""
        return self.model_dump(mode="json", exclude_defaults=True)


def explain_errors(error: ValidationError, root: str) -> str:
    """The first problem as a sentence behind its path."""
    location, sentence = _explain(error.errors(include_url=False)[0])
    return f"{write_location(location, root)}: {sentence}"


def write_location(location: Sequence[int | str], root: str) -> str:
    """`rules[1].where.channels`; `root` where the location is empty."""
    keys = (describe(part) if isinstance(part, str) and not part.isidentifier() else part for part in location)
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key:.64}" for key in keys)
    return path.lstrip(".") or root


def _explain(problem: Any) -> tuple[Location, str]:
    location: Location = problem["loc"]
    kind, context = problem["type"], problem.get("ctx", {})
    reason = context.get("error")
    if isinstance(reason, ValidationError):
        inner, sentence = _explain(reason.errors(include_url=False)[0])
        return (*location, *inner), sentence
    if kind == "value_error":
        return (*location, reason.key) if isinstance(reason, KeyedError) else location, str(reason)
    found = describe(problem["input"])
    if kind == "literal_error":
        written, allowed = problem["input"], context["expected"]
        near = did_you_mean(written, re.findall(r"'(\w+)'", allowed)) if isinstance(written, str) else ""
        return location, f"found {found}; expected {allowed}{near}"
    if kind == "too_long":
        length, most = context["actual_length"], context["max_length"]
        return location, f"found a list of {length} entries; at most {most} are allowed"
    message = str(problem["msg"]).replace("Input should", "it should")
    for pydantic_name, name in _NAMES.items():
        message = message.replace(pydantic_name, name)
    return location, f"found {found}; {message}"
