"""Base class of the recipe models: frozen, without unknown keys, and every mistake raises a `RecipeError`.

The message starts with the path of the offending key: `rules[1].where.channels: found 'big'; expected ...`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetPydanticSchema,
    StringConstraints,
    Tag,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from typing_extensions import TypeAliasType

from simam_inject.errors import RecipeError, describe, did_you_mean

Text = Annotated[str, StringConstraints(strict=True, strip_whitespace=True, max_length=4000)]
Name = Annotated[Text, Field(min_length=1)]
_TAGS = ("<simple>", "<composed>")
"""Tags of unions. pydantic writes them into the location of a problem; no key of a recipe looks like them."""
_WORDS = {
    "a valid tuple": "a list",
    "a valid string": "a string",
    "a valid boolean": "true or false",
    "a valid number": "a number",
    "a valid integer": "a whole number",
    " after validation": "",
}
"""Words of pydantic's messages, and ours."""


def read_as(kind: Any) -> GetPydanticSchema:
    """Marks a type that callers may write, for mypy, with the type that pydantic checks and stores."""
    return GetPydanticSchema(lambda _written, handler: handler.generate_schema(kind))


def allow(what: str) -> WrapValidator:
    """Replace any error of a type by one sentence: what was found, and what is expected."""

    def check(value: object, check_type: ValidatorFunctionWrapHandler) -> Any:
        try:
            return check_type(value)
        except ValidationError:
            raise ValueError(f"found {describe(value)}; expected {what}") from None

    return WrapValidator(check)


def either(simple: Any, composed: Any, types: Any) -> Any:
    """The type of a field that has the type `composed` for instances of `types`, and `simple` for any other value."""
    tag = Discriminator(lambda value: _TAGS[isinstance(value, types)])
    return Annotated[Annotated[simple, Tag(_TAGS[0])] | Annotated[composed, Tag(_TAGS[1])], tag]


def one_or_many(name: str, entry: Any, most: int) -> Any:
    """The type of a field that holds one entry, or a list of them as a tuple; `name` is that of its schema."""
    unwrap = AfterValidator(lambda entries: entries[0] if len(entries) == 1 else entries)
    many = Annotated[tuple[entry, ...], Field(min_length=1, max_length=most), unwrap]
    return TypeAliasType(name, either(entry, many, list | tuple))


def as_tuple(value: Any) -> tuple[Any, ...]:
    """The value of a field of `one_or_many` as a tuple."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


class KeyedError(ValueError):
    """An error at one key of a mapping."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(problem)
        self.key = key


class RecipeModel(BaseModel):
    """Base class of the recipe models. Fields contain JSON types as written, lists as tuples."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    homes: ClassVar[Mapping[str, str]] = {}
    """Keys of other models, and where they belong."""

    def __init__(self, /, **keys: Any) -> None:
        with as_recipe_error(type(self).__name__.lower()):
            super().__init__(**keys)

    # pydantic then builds nested models without this constructor, so that their errors have the whole path.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, data: Any) -> Any:
        """Refuse what is not a mapping of known keys, and drop keys without a value."""
        fields = ", ".join(cls.model_fields)
        if not isinstance(data, Mapping):
            raise ValueError(f"found {describe(data)}; expected a mapping with the keys {fields}")
        for key in data:
            if key not in cls.model_fields:
                near = did_you_mean(key, cls.model_fields)
                hint = f"; {key!r} belongs {cls.homes[key]}" if key in cls.homes else near
                name = key if isinstance(key, str) else describe(key)
                raise KeyedError(name, f"unknown key; expected one of {fields}{hint}")
        return {key: value for key, value in data.items() if value is not None}

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Read JSON types, the inverse of `to_dict`.

        Raises:
            RecipeError: the message starts with the path of the offending key.
        """
        with as_recipe_error(cls.__name__.lower()):
            return cls.model_validate(data)

    def to_dict(self) -> dict[str, Any]:
        """What was set, as JSON types; defaults are left out."""
        return self.model_dump(mode="json", exclude_defaults=True)


@contextmanager
def as_recipe_error(whole: str) -> Iterator[None]:
    """Turn a pydantic error into a `RecipeError`: the path of its first problem, else `whole`, and a sentence."""
    try:
        yield
    except ValidationError as error:
        raise RecipeError(_explain(error.errors(include_url=False)[0], whole)) from None


def _explain(problem: Any, whole: str) -> str:
    kind, found = problem["type"], problem["input"]
    location = [part for part in problem["loc"] if part not in _TAGS]
    if kind == "value_error":
        reason = problem["ctx"]["error"]
        location += [reason.key] if isinstance(reason, KeyedError) else []
        sentence = str(reason)
    elif kind == "missing":
        sentence = "is missing"
    else:
        message = re.sub("^(Input|String|Tuple) should", "it should", problem["msg"])
        for theirs, ours in _WORDS.items():
            message = message.replace(theirs, ours)
        sentence = f"found {describe(found)}; {message}"
        if kind == "literal_error":
            sentence += did_you_mean(found, re.findall(r"'(\w+)'", message))
        elif kind == "string_type" and isinstance(found, dict | list):
            sentence += ", in quotes if it begins with { or ["
    return f"{write_location(location) or whole}: {sentence}"


def write_location(location: Sequence[int | str]) -> str:
    """`rules[1].where.channels`; a key that is not a plain word is quoted."""
    keys = [
        f"[{key}]" if isinstance(key, int) else f".{key:.64}" if re.fullmatch(r"\w+", key) else f".{describe(key)}"
        for key in location
    ]
    return "".join(keys).lstrip(".")
