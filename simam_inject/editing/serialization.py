"""Write and read what pickles and files hold of SimAM. They are untrusted, and contain data only.

An `Insertion` is written in the same way in pickles of hooks, in safetensors files and in the YAML of a YOLO.
"""

from __future__ import annotations

import math
import re
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, JsonValue, TypeAdapter, ValidationError, with_config
from typing_extensions import TypeAliasType, TypedDict  # those of `typing` need Python 3.12

from simam_inject.errors import FileError
from simam_inject.planning.insertions import Insertion
from simam_inject.source import STRICT

_TENSOR = re.compile(r"tensor (u?int\d{1,2}|b?float\d{1,2}|complex\d{2,3}|bool)( \d{1,8}){0,8}")
_LARGEST = 2**31
"""Elements of one recorded example tensor: a file must not make anybody allocate more."""


def _small(text: str) -> str:
    is_valid = _TENSOR.fullmatch(text) and math.prod(map(int, text.split()[2:])) <= _LARGEST
    if text.startswith("tensor ") and not is_valid:
        raise ValueError(f"{text!r:.60} is not the dtype and shape of an example tensor")
    return text


_Argument = TypeAliasType(
    "_Argument",
    "Annotated[str, AfterValidator(_small)] | bool | int | float | list[_Argument] | tuple[_Argument, ...] "
    "| dict[str | int, _Argument] | None",
)


@with_config(STRICT)
class _Example(TypedDict):
    """The example that was given to `inject`, as `shapes_of` writes it: tensors by dtype and shape."""

    args: list[_Argument]
    kwargs: dict[str, _Argument]


if TYPE_CHECKING:
    ExampleRecord = dict[str, Any]
else:
    ExampleRecord = _Example


def _consistent(site: Insertion) -> Insertion:
    holder = site.edit.module
    if not re.fullmatch(r"simam(_\w+)?", site.child) or site.module != f"{holder}.{site.child}".lstrip("."):
        raise ValueError(f"{site.module!r:.60} is not the name of a SimAM in {holder!r:.60}")
    if (site.edit.kind == "rewritten") != (site.expression is not None) or site.channel_dim not in (1, -1):
        raise ValueError(f"{site.path} is not attended by {site.edit.kind} with channel_dim {site.channel_dim}")
    return site


ValidInsertion = Annotated[Insertion, AfterValidator(_consistent)]
Recipes = list[dict[str, JsonValue]]
"""Recipes as plain data."""


@cache
def _checks_of(kind: Any) -> TypeAdapter[Any]:
    """The checks for a type, made when they are first needed: they take longer to build than this file to import."""
    return TypeAdapter(kind)


def checked(kind: Any, value: object, what: str) -> Any:
    """A value of this type as its checks read it: a copy, so that nothing can be added afterwards.

    Args:
        value: plain data; a `str` is a text of JSON.

    Raises:
        FileError: it is not valid; the message says where and why.
    """
    checks = _checks_of(kind)
    try:
        return checks.validate_json(value) if isinstance(value, str) else checks.validate_python(value, strict=True)
    except ValidationError as error:
        raise FileError(f"{what} is not valid: {first_problem(error)}") from None


def first_problem(error: ValidationError) -> str:
    """Where the first problem is, and what it is."""
    problem = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in problem["loc"] if "[" not in str(part))  # types, as in list[str]
    reason = problem["msg"].removeprefix("Value error, ")
    return f"{place}: {reason}" if place else reason


def write_sites(sites: list[Insertion]) -> str:
    """The sites as JSON."""
    return _checks_of(list[ValidInsertion]).dump_json(sites).decode()


def read_sites(text: object, kind: str) -> list[Insertion]:
    """Sites of this kind of edit.

    Raises:
        FileError: it is not what `write_sites` writes.
    """
    sites: list[Insertion] = checked(list[ValidInsertion], text, "a record of SimAM sites")
    if any(site.edit.kind != kind for site in sites):
        raise FileError(f"a record of SimAM sites is not valid: {sites[0].path} is not attended by {kind}")
    return sites
