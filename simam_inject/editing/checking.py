"""The record of a site, and its checks: what a copy or a file holds may have been written by anybody, and is data only.

The same record stands in the hooks of a model, in its pickles, in safetensors files and in the YAML of a YOLO.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # `typing.TypedDict` carries what pydantic needs from Python 3.12 on only

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


class _OutputEdit(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    kind: Literal["output"]
    module: Path
    key: _Key


class _InputEdit(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    kind: Literal["input"]
    module: Path
    argument: Annotated[int, Field(ge=0, le=1000)] | Name
    key: _Key


class _RewrittenEdit(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    kind: Literal["rewritten"]
    module: Path
    value: Path


class _Expression(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    method: Name
    digest: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    span: Annotated[list[Count] | tuple[Count, ...], Field(min_length=4, max_length=4)]


_EDIT: TypeAdapter[Any] = TypeAdapter(Annotated[_OutputEdit | _InputEdit | _RewrittenEdit, Field(discriminator="kind")])
_EXPRESSION: TypeAdapter[Any] = TypeAdapter(_Expression)


class SiteRecord(TypedDict):
    """One attended site. Plain values only."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    child: Annotated[str, Field(max_length=300), AfterValidator(_child)]
    """Name of the SimAM among the children of the module that holds it."""
    edit: Annotated[dict[str, Any], AfterValidator(lambda edit: _EDIT.validate_python(edit))]
    """`{"kind": "output", "module": ..., "key": ...}` and its like."""
    path: Path
    position: Literal["after", "before"]
    reader: Path | None
    rule: Annotated[int, Field(ge=-1, le=10**6)]
    e_lambda: Annotated[float, Field(gt=0)]
    shape: Annotated[list[Count], Field(min_length=3, max_length=5)]
    channel_dim: Literal[1, -1]
    axes: Annotated[str, Field(max_length=10)]
    axes_measured: bool
    dtype: Annotated[str, Field(max_length=20, pattern=r"^\w*$")]
    reduction: Count | None
    runs: Count
    note: Path
    witness: Path | None
    """Path of the norm that alone reads the site."""
    expression: Annotated[
        dict[str, Any] | None, AfterValidator(lambda data: None if data is None else _EXPRESSION.validate_python(data))
    ]
    """For a rewritten forward: method, digest and span of the wrapped expression."""


_SITES: TypeAdapter[list[SiteRecord]] = TypeAdapter(list[SiteRecord])
_RECIPES: TypeAdapter[list[dict[str, JsonValue]]] = TypeAdapter(list[dict[str, JsonValue]])


def checked(adapter: TypeAdapter[T], value: object, what: str) -> T:
    """The value as the adapter reads it: a copy, so that nothing can be added afterwards.

    Raises:
        FileError: it is not valid; the message says where and why.
    """
    try:
        return adapter.validate_python(value, strict=True)
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
    sites = checked(_SITES, value, "a record of SimAM sites")
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
    return checked(_RECIPES, value, "a record of SimAM recipes")


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
