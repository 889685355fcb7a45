"""What a recording consists of: values, the module calls that take and return them, and one graph per module."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from simam_inject.nested import Key

Layout = frozenset[int]
"""Dimensions that hold channels: {1} for N, C, spatial; two while a channel shuffle has split them; none if unknown."""
NEVER = -1


def join(scope: str, name: str) -> str:
    """Dotted path of a value named `name` in the scope at path `scope`."""
    return f"{scope}.{name}" if scope and name else scope or name


def keyed(path: str, keys: tuple[Key, ...]) -> str:
    """Path of an entry of a list, tuple or dict."""
    return path + "".join(f":{key}" for key in keys)


@dataclass(eq=False, slots=True, repr=False)
class Value:
    """One tensor that the forward held."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    storage: int
    layout: Layout
    made: int = NEVER
    """Tick at which it came to be; NEVER for parameters, buffers and whatever was there before."""
    path: str | None = None
    """Path of the operation or leaf module that computed it."""
    kind: str = ""
    """Kind of that operation; `alias` for an input that a block returns as it is."""
    inputs: tuple[Value, ...] = ()
    """What that operation reads."""
    reads: list[Read] = field(default_factory=list)
    returns: list[tuple[Frame, tuple[Key, ...]]] = field(default_factory=list)
    """Module calls that return it, innermost first."""
    arguments: list[tuple[Frame, Key, tuple[Key, ...]]] = field(default_factory=list)
    """Module calls that it was given to, with the argument's position or keyword and the keys inside it."""


@dataclass(frozen=True, eq=False, slots=True, repr=False)
class Read:
    """An operation, or a leaf module, that looks at a value's content."""

    tick: int
    path: str
    """Path of what it computes; empty if it computes no tensor."""


@dataclass(eq=False, slots=True, repr=False)
class Frame:
    """One call of one module."""

    path: str
    module: nn.Module
    parent: Frame | None
    start: int
    is_scope: bool
    """It has children: what its own forward computes are values that can be named."""
    graph: fx.Graph | None = None
    """Only for the first call of a scope."""
    end: int = 0
    nodes: dict[int, fx.Node] = field(default_factory=dict)
    """Node of each value that this forward holds, by `id(Value)`."""
    names: Counter[str] = field(default_factory=Counter)
    taken: frozenset[str] = frozenset()
    """Names that operations cannot have: those of children and parameters."""
    inputs: tuple[Value, ...] = ()
    name: str = ""
    """What its caller's graph calls the result."""
    outputs: list[tuple[tuple[Key, ...], Value]] = field(default_factory=list)
    given: tuple[Any, Any] = ((), {})
    """The arguments with containers copied: a forward may write into a list that it is given."""

    def spans(self, tick: int) -> bool:
        """The tick lies inside this call."""
        return self.start <= tick <= self.end


@dataclass(eq=False, slots=True, repr=False)
class Recording:
    """What one forward did."""

    graphs: dict[str, Frame] = field(default_factory=dict)
    """First call of each module with children, by path."""
    first_calls: dict[str, Frame] = field(default_factory=dict)
    """First call of every module."""
    calls: Counter[str] = field(default_factory=Counter)
    """How often each module ran, by path."""
    runs: Counter[str] = field(default_factory=Counter)
    """How often each named value was computed."""
    values: dict[str, Value] = field(default_factory=dict)
    """Tensor values by path, as first computed; those of lists are `path:key`."""
    nodes: dict[str, fx.Node] = field(default_factory=dict)
    """Node of each named value, in the graph of its scope; `meta` holds kind, scope, operands and source position."""
    writes: dict[int, list[int]] = field(default_factory=dict)
    """Ticks at which memory was written in place, by storage."""
    by_storage: dict[int, list[Value]] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    """Paths in the order in which their first computation ended."""
    modules: dict[str, nn.Module] = field(default_factory=dict)
    results: list[Value] = field(default_factory=list)
    """What the model returns."""

    def count(self, path: str, value: Value | None = None) -> None:
        """One more computation of a named value; None for a list, tuple or dict of several."""
        self.runs[path] += 1
        if value is not None:
            self.values.setdefault(path, value)
        if self.runs[path] == 1:
            self.order.append(path)
