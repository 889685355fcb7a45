"""What a recording consists of: values, the module calls that take and return them, and one graph per module."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from simam_inject.nested import Key

Shape = tuple[int, ...]
Layout = frozenset[int]
"""Dimensions that hold channels: {1} for N, C, spatial; two while a channel shuffle has split them; none if unknown."""
NOWHERE: Layout = frozenset()
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
    readings: list[Read] = field(default_factory=list)
    """Where and when it is read; `Site.reads` is the other way round: what an operation reads."""
    returns: list[tuple[Frame, tuple[Key, ...]]] = field(default_factory=list)
    """Module calls that return it, innermost first."""
    arguments: list[tuple[Frame, Key, tuple[Key, ...]]] = field(default_factory=list)
    """Module calls that it was given to, with the argument's position or keyword and the keys inside it."""


Entries = list[tuple[tuple[Key, ...], Value]]
"""Tensors of one result, with the keys that lead to each; a bare tensor has none."""


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
    is_scope: bool
    """It has children, or is the root: what its own forward computes are values that can be named."""
    taken: frozenset[str] = frozenset()
    """Names that operations cannot have: those of children and parameters."""
    names: Counter[str] = field(default_factory=Counter)
    start: int = 0
    end: int = 0
    graph: fx.Graph | None = None
    """Only for the first call of a scope."""
    nodes: dict[int, fx.Node] = field(default_factory=dict)
    """Node of each value that this forward holds, by `id(Value)`."""
    given: tuple[Any, Any] = ((), {})
    """The arguments with containers copied: a forward may write into a list that it is given."""
    inputs: tuple[Value, ...] = ()
    outputs: Entries = field(default_factory=list)

    def spans(self, tick: int) -> bool:
        """The tick lies inside this call."""
        return self.start <= tick <= self.end

    def next_path(self, name: str) -> str:
        """Path of the next value of this name: `add`, `add[2]`, ..."""
        self.names[name] += 1
        return join(self.path, name if self.names[name] == 1 else f"{name}[{self.names[name]}]")


@dataclass(eq=False, slots=True, repr=False)
class Recording:
    """What one forward did."""

    modules: dict[str, nn.Module] = field(default_factory=dict)
    first_calls: dict[str, Frame] = field(default_factory=dict)
    """First call of every module that ran."""
    calls: Counter[str] = field(default_factory=Counter)
    """How often each module ran, by path."""
    runs: Counter[str] = field(default_factory=Counter)
    """How often each named value was computed, in the order in which their first computation ended."""
    values: dict[str, Value] = field(default_factory=dict)
    """Tensor values by path, as first computed; those of lists are `path:key`."""
    graphs: dict[str, fx.Graph] = field(default_factory=dict)
    """Of the first call of each module with children, by path."""
    nodes: dict[str, fx.Node] = field(default_factory=dict)
    """Node of each named value, in the graph of its scope; `meta` holds kind, scope, values and source position."""
    writes: dict[int, list[int]] = field(default_factory=dict)
    """Ticks at which memory was written in place, by storage."""
    by_storage: dict[int, list[Value]] = field(default_factory=dict)
    results: list[Value] = field(default_factory=list)
    """What the model returns, or keeps in a list or an attribute."""

    def count(self, path: str, entries: Entries) -> None:
        """One more computation of what has a path."""
        for keys, value in entries:
            at = keyed(path, keys)
            self.runs[at] += 1
            self.values.setdefault(at, value)
        if not (len(entries) == 1 and entries[0][0] == ()):
            self.runs[path] += 1
