"""Where a rule puts the attention: what `after:` and `before:` can say.

Forms:
    output              what the block returns                     (after only)
    input               what the block is given, for the block alone   (before only)
    residual            the branch just before it joins the skip   (before only)
    conv2, m.*.cv2      a child of the block, by its path inside the block
    relu[2], relu[*]    the child's second call in one forward; every call
    {op: conv2d, ...}   every operation of a kind inside the block
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from simam_inject.recipe.bounds import Bounds, parse_bounds
from simam_inject.recipe.globs import Glob, parse_glob
from simam_inject.recipe.kinds import Kinds, parse_kinds
from simam_inject.recipe.wording import describe, did_you_mean, join_names

_CALL = re.compile(r"(?P<name>.+)\[(?P<call>\d{1,4}|\*)\]")
OPERATION_FACTS = ("kernel", "stride", "dilation", "groups")
MAX_KINDS = 16
WHICH = ("all", "first", "last")
T = TypeVar("T")

Facts = tuple[tuple[str, Bounds], ...]
"""Conditions on an operation: pairs of the fact's name and what it may be."""


@dataclass(frozen=True, slots=True)
class Output:
    """What the block returns."""

    def __str__(self) -> str:
        return "output"


@dataclass(frozen=True, slots=True)
class Input:
    """What the block is given, for the block alone."""

    def __str__(self) -> str:
        return "input"


@dataclass(frozen=True, slots=True)
class Residual:
    """The branch just before it joins the skip."""

    def __str__(self) -> str:
        return "residual"


@dataclass(frozen=True, slots=True)
class Child:
    """A child of the block, named by its path inside the block; or an operation of the block."""

    name: Glob
    call: int | None = None
    """Which call in one forward, from 1; 0 is every call; None is the only one."""

    def __str__(self) -> str:
        return str(self.name) if self.call is None else f"{self.name}[{self.call or '*'}]"


@dataclass(frozen=True, slots=True)
class Operation:
    """Every operation of some kinds inside the block."""

    kinds: tuple[Kinds, ...]
    facts: Facts = ()
    """Conditions on `kernel`, `stride`, `dilation` and `groups`."""
    which: str = "all"
    """`first` or `last`: only that one of each block's, in the order of computation."""

    def choose(self, named: Sequence[T]) -> Sequence[T]:
        """Those of one block's operations that are meant."""
        return {"all": named, "first": named[:1], "last": named[-1:]}[self.which]

    def __str__(self) -> str:
        kinds = str(self.kinds[0]) if len(self.kinds) == 1 else f"[{', '.join(map(str, self.kinds))}]"
        which = [] if self.which == "all" else [f"which: {self.which}"]
        return "{" + ", ".join([f"op: {kinds}", *(f"{name}: {bounds}" for name, bounds in self.facts), *which]) + "}"


Target = Output | Input | Residual | Child | Operation
_WORDS: dict[str, Target] = {"output": Output(), "input": Input(), "residual": Residual()}


def parse_target(value: object) -> Target:
    """Check what stands at `after` or `before`.

    Raises:
        ValueError: neither a name nor a mapping with `op`, or something in it is not allowed.
    """
    if isinstance(value, Output | Input | Residual | Child | Operation):
        return value
    if isinstance(value, Mapping):
        return _parse_operation(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            f"found {describe(value)}; allowed is 'output', 'input', 'residual', the name of a child such as conv2 "
            f"or relu[2], or an operation such as {{op: conv2d, kernel: 3}}{_hint(value)}"
        )
    name = value.strip()
    if name.lower() in _WORDS:
        return _WORDS[name.lower()]
    called = _CALL.fullmatch(name)
    if called is None:
        return Child(parse_glob(name))
    if called["call"] == "0":
        raise ValueError(f"found {describe(name)}; calls are counted from 1: {called['name']}[1] is the first")
    return Child(parse_glob(called["name"]), 0 if called["call"] == "*" else int(called["call"]))


def _hint(value: object) -> str:
    if isinstance(value, list | tuple):
        return "; for several children write '{conv1,conv2}'"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"; the name of a child is written in quotes: '{describe(value)}'"
    return ""


def _parse_operation(value: Mapping[object, object]) -> Operation:
    allowed = ("op", *OPERATION_FACTS, "which")
    for key in value:
        if key not in allowed:
            near = did_you_mean(key, allowed) if isinstance(key, str) else ""
            raise KeyedError(
                key if isinstance(key, str) else describe(key), f"unknown key; allowed are {', '.join(allowed)}{near}"
            )
    if "op" not in value:
        raise KeyedError("op", "is missing; it names the operation, e.g. {op: conv2d, kernel: 3}")
    names = value["op"] if isinstance(value["op"], list | tuple) else (value["op"],)
    if not 1 <= len(names) <= MAX_KINDS:
        raise KeyedError("op", f"found a list of {len(names)} entries; allowed are 1 to {MAX_KINDS}")
    try:
        kinds = tuple(parse_kinds(name) for name in names)
    except ValueError as problem:
        raise KeyedError("op", str(problem)) from None
    which = value.get("which", "all")
    if which not in WHICH:
        raise KeyedError("which", f"found {describe(which)}; allowed is {join_names(WHICH)}")
    return Operation(kinds, _parse_facts(value), str(which))


def _parse_facts(value: Mapping[object, object]) -> Facts:
    facts = []
    for name in OPERATION_FACTS:
        if name in value:
            try:
                facts.append((name, parse_bounds(value[name], depthwise=name == "groups")))
            except ValueError as problem:
                raise KeyedError(name, str(problem)) from None
    return tuple(facts)


class KeyedError(ValueError):
    """A value that is wrong at one of its own keys."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(problem)
        self.key = key
