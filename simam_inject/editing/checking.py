"""The record of a site, and its validation: copies and files are untrusted, and contain data only.

The same record stands in the hooks of a model, in its pickles, in safetensors files and in the YAML of a YOLO.
"""

from __future__ import annotations

import math
import re
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError, with_config
from typing_extensions import TypeAliasType, TypedDict  # those of `typing` need Python 3.12

from simam_inject.attention.arguments import check_channel_dim
from simam_inject.errors import FileError

T = TypeVar("T")
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
_TENSOR = re.compile(r"tensor (u?int\d{1,2}|b?float\d{1,2}|complex\d{2,3}|bool)( \d{1,8}){0,8}")
_LARGEST = 2**31
"""Elements of one recorded example tensor: a file must not make anybody allocate more."""


def _child(name: str) -> str:
    if not re.fullmatch(r"simam(_\w+)?", name):
        raise ValueError(f"{name!r:.60} is not the name of a SimAM")
    return name


def _small(text: str) -> str:
    is_valid = _TENSOR.fullmatch(text) and math.prod(map(int, text.split()[2:])) <= _LARGEST
    if text.startswith("tensor ") and not is_valid:
        raise ValueError(f"{text!r:.60} is not the dtype and shape of an example tensor")
    return text


Line = Annotated[str, Field(max_length=1000, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""Text without line breaks and other control characters."""
Path = Line
"""A dotted path: compared and shown, never run."""
Name = Annotated[str, Field(max_length=200, pattern=r"^[^\W\d]\w*$")]
Count = Annotated[int, Field(ge=0, le=2**40)]
_Key = Annotated[int, Field(ge=-1000, le=1000)] | Path | None


class _OutputEdit(TypedDict):
    kind: Literal["output"]
    module: Path
    key: _Key


class _InputEdit(TypedDict):
    kind: Literal["input"]
    module: Path
    argument: Annotated[int, Field(ge=0, le=1000)] | Name
    key: _Key


class _RewrittenEdit(TypedDict):
    kind: Literal["rewritten"]
    module: Path
    value: Path


class _Expression(TypedDict):
    method: Name
    digest: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    span: Annotated[list[Count] | tuple[Count, ...], Field(min_length=4, max_length=4)]


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
    EditRecord = dict[str, Any]
    ExpressionRecord = dict[str, Any]
    ExampleRecord = dict[str, Any]
else:
    EditRecord = Annotated[_OutputEdit | _InputEdit | _RewrittenEdit, Field(discriminator="kind")]
    ExpressionRecord = _Expression
    ExampleRecord = _Example


@with_config(STRICT)
class SiteRecord(TypedDict):
    """One attended site. Plain values only."""

    child: Annotated[str, Field(max_length=300), AfterValidator(_child)]
    """Name of the SimAM among the children of the module that holds it."""
    edit: EditRecord
    """`{"kind": "output", "module": ..., "key": ...}` and its like."""
    path: Path
    position: Literal["after", "before"]
    reader: Path | None
    rule: Annotated[int, Field(ge=0, le=10**6)]
    e_lambda: Annotated[float, Field(gt=0)]
    shape: Annotated[list[Count], Field(min_length=3, max_length=5)]
    channel_dim: Annotated[int, AfterValidator(check_channel_dim)]
    axes: Annotated[str, Field(max_length=10)]
    axes_measured: bool
    dtype: Annotated[str, Field(max_length=20, pattern=r"^\w*$")]
    reduction: Count | None
    runs: Count
    note: Line
    witness: Path | None
    """Path of the norm that alone reads the site."""
    expression: ExpressionRecord | None
    """For a rewritten forward: method, digest and span of the wrapped expression."""


def _consistent(site: SiteRecord) -> SiteRecord:
    if (site["edit"]["kind"] == "rewritten") != (site["expression"] is not None):
        raise ValueError(f"{site['path']} is not attended by {site['edit']['kind']}")
    return site


Site = Annotated[SiteRecord, AfterValidator(_consistent)]
Recipes = list[dict[str, JsonValue]]
"""Recipes as plain data."""


@cache
def checks_of(kind: Any) -> TypeAdapter[Any]:
    """The checks for a type, made when they are first needed: they take longer to build than this file to import."""
    return TypeAdapter(kind)


def checked(checks: TypeAdapter[T], value: object, what: str) -> T:
    """The value as the checks read it: a copy, so that nothing can be added afterwards.

    Raises:
        FileError: it is not valid; the message says where and why.
    """
    try:
        return checks.validate_python(value, strict=True)
    except ValidationError as error:
        raise FileError(f"{what} is not valid: {first_problem(error)}") from None


def first_problem(error: ValidationError) -> str:
    """Where the first problem is, and what it is."""
    problem = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in problem["loc"] if "[" not in str(part))  # types, as in list[str]
    reason = problem["msg"].removeprefix("Value error, ")
    return f"{place}: {reason}" if place else reason


def checked_sites(value: object, *kinds: str) -> list[SiteRecord]:
    """Sites of these kinds of edit, of all kinds without.

    Raises:
        FileError: it is not a list of site records.
    """
    sites: list[SiteRecord] = checked(checks_of(list[Site]), value, "a record of SimAM sites")
    for site in sites:
        if kinds and site["edit"]["kind"] not in kinds:
            raise FileError(f"a record of SimAM sites is not valid: {site['path']} is not attended by {kinds[0]}")
    return sites


def checked_recipes(value: object) -> list[dict[str, Any]]:
    """Recipes as plain data, or a FileError; their content is checked where it is used."""
    return checked(checks_of(Recipes), value, "a record of SimAM recipes")


def checked_example(value: object) -> dict[str, Any] | None:
    """The shapes that `shapes_of` wrote down, or a FileError; none asks for a huge tensor."""
    shapes: dict[str, Any] | None = checked(checks_of(ExampleRecord | None), value, "a record of SimAM example inputs")
    return shapes
