"""The record of a site, and its validation: copies and files are untrusted, and contain data only.

The same record stands in the hooks of a model, in its pickles, in safetensors files and in the YAML of a YOLO.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # `typing.TypedDict` carries what pydantic needs from Python 3.12 on only

from simam_inject.attention.arguments import check_channel_dim
from simam_inject.errors import FileError

T = TypeVar("T")
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
_TENSOR = re.compile(r"tensor (u?int\d{1,2}|b?float\d{1,2}|complex\d{2,3}|bool)( \d{1,8}){0,8}")
_LARGEST = 2**31
"""Elements of one recorded example tensor: a file must not make anybody allocate more."""


def _identifier(name: str) -> str:
    if not name.isidentifier():
        raise ValueError(f"{name!r:.60} is not an identifier")
    return name


def _child(name: str) -> str:
    if not re.fullmatch(r"simam(_\w+)?", name):
        raise ValueError(f"{name!r:.60} is not the name of a SimAM")
    return name


Path = Annotated[str, Field(max_length=1000, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""A dotted path: compared and shown, never run."""
Name = Annotated[str, Field(max_length=200), AfterValidator(_identifier)]
Count = Annotated[int, Field(ge=0, le=2**40)]
_Key = Annotated[int, Field(ge=-1000, le=1000)] | Path | None


@with_config(STRICT)
class _OutputEdit(TypedDict):
    kind: Literal["output"]
    module: Path
    key: _Key


@with_config(STRICT)
class _InputEdit(TypedDict):
    kind: Literal["input"]
    module: Path
    argument: Annotated[int, Field(ge=0, le=1000)] | Name
    key: _Key


@with_config(STRICT)
class _RewrittenEdit(TypedDict):
    kind: Literal["rewritten"]
    module: Path
    value: Path


@with_config(STRICT)
class _Expression(TypedDict):
    method: Name
    digest: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    span: Annotated[list[Count] | tuple[Count, ...], Field(min_length=4, max_length=4)]


@cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    """The checks for a type, made at the first question: they take longer to build than this file to import."""
    return TypeAdapter(kind)


def _edit(edit: dict[str, Any]) -> Any:
    return adapter(Annotated[_OutputEdit | _InputEdit | _RewrittenEdit, Field(discriminator="kind")]).validate_python(
        edit
    )


def _expression(data: dict[str, Any] | None) -> Any:
    return None if data is None else adapter(_Expression).validate_python(data)


@with_config(STRICT)
class SiteRecord(TypedDict):
    """One attended site. Plain values only."""

    child: Annotated[str, Field(max_length=300), AfterValidator(_child)]
    """Name of the SimAM among the children of the module that holds it."""
    edit: Annotated[dict[str, Any], AfterValidator(_edit)]
    """`{"kind": "output", "module": ..., "key": ...}` and its like."""
    path: Path
    position: Annotated[str, Field(pattern=r"^(after|before)$")]
    reader: Path | None
    rule: Annotated[int, Field(ge=-1, le=10**6)]
    e_lambda: Annotated[float, Field(gt=0)]
    shape: Annotated[list[Count], Field(min_length=3, max_length=5)]
    channel_dim: Annotated[int, AfterValidator(check_channel_dim)]
    axes: Annotated[str, Field(max_length=10)]
    axes_measured: bool
    dtype: Annotated[str, Field(max_length=20, pattern=r"^\w*$")]
    reduction: Count | None
    runs: Count
    note: Path
    witness: Path | None
    """Path of the norm that alone reads the site."""
    expression: Annotated[dict[str, Any] | None, AfterValidator(_expression)]
    """For a rewritten forward: method, digest and span of the wrapped expression."""


def checked(checks: TypeAdapter[T], value: object, what: str) -> T:
    """The value as the adapter reads it: a copy, so that nothing can be added afterwards.

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
    place = ".".join(str(part) for part in problem["loc"])
    reason = problem["msg"].removeprefix("Value error, ")
    return f"{place}: {reason}" if place else reason


def checked_sites(value: object, *kinds: str) -> list[SiteRecord]:
    """Sites of these kinds of edit, of all kinds without.

    Raises:
        FileError: it is not a list of site records.
    """
    sites: list[SiteRecord] = checked(adapter(list[SiteRecord]), value, "a record of SimAM sites")
    for site in sites:
        kind = site["edit"]["kind"]
        if (kind == "rewritten") != (site["expression"] is not None) or (kinds and kind not in kinds):
            raise FileError(f"a record of SimAM sites is not valid: {site['path']} is not attended by {kind}")
    return sites


def checked_recipes(value: object) -> list[dict[str, Any]]:
    """Recipes as plain data; their content is checked where it is used.

    Raises:
        FileError: it is not a list of dicts of plain values.
    """
    return checked(adapter(list[dict[str, JsonValue]]), value, "a record of SimAM recipes")


def checked_example(value: object) -> dict[str, Any] | None:
    """The shapes that `shapes_of` wrote down.

    Raises:
        FileError: it is something else, or asks for a huge tensor.
    """
    if value is None:
        return None
    if not isinstance(value, dict) or set(value) != {"args", "kwargs"} or not isinstance(value["kwargs"], dict):
        raise FileError("a record of SimAM example inputs is not valid")
    if not isinstance(value["args"], list):
        raise FileError("a record of SimAM example inputs is not valid")
    return {"args": _argument(value["args"], 0), "kwargs": _argument(value["kwargs"], 0)}


def _argument(value: Any, depth: int) -> Any:
    if depth < 8 and isinstance(value, dict) and all(isinstance(key, (str, int)) for key in value):
        return {key: _argument(item, depth + 1) for key, item in value.items()}
    if depth < 8 and type(value) in (list, tuple):
        return type(value)(_argument(item, depth + 1) for item in value)
    if isinstance(value, str) and value.startswith("tensor "):
        elements = 1
        for length in value.split()[2:] if _TENSOR.fullmatch(value) else [str(_LARGEST + 1)]:
            elements *= int(length)
        if elements <= _LARGEST:
            return value
    elif isinstance(value, (bool, int, float, str, type(None))):
        return value
    raise FileError(f"a record of SimAM example inputs is not valid: {value!r:.60}")
