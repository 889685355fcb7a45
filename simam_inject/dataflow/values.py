"""What a recording consists of: tensor values, calls of modules, and the steps of each call."""

from __future__ import annotations

import operator
import types
from collections import Counter
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from simam_inject.dataflow.twin import reachable
from simam_inject.kinds import TRANSPARENT
from simam_inject.nested import Key

Shape = tuple[int, ...]
Layout = frozenset[int]
"""Dimensions that hold channels: {1} for N, C, spatial; two after a channel shuffle has split them; none if unknown."""
NOWHERE: Layout = frozenset()
NEVER = -1


def join(scope: str, name: str) -> str:
    """Dotted path of a value named `name` in the scope at path `scope`."""
    return f"{scope}.{name}" if scope and name else scope or name


def keyed(path: str, keys: tuple[Key, ...]) -> str:
    """Path of an entry of a list, tuple or dict."""
    return path + "".join(f":{key}" for key in keys) if keys else path


def covers(paths: Set[str], path: str) -> bool:
    """One of the paths is this one, or contains it."""
    if not paths or path in paths:
        return bool(paths)
    return any(path[:at] in paths for at, letter in enumerate(path) if letter in ".:")


class Read(NamedTuple):
    """An operation, or a leaf module, that looks at a value's content."""

    tick: int
    path: str
    """Path of what it computes; empty if it computes no tensor."""


@dataclass(eq=False, slots=True, repr=False)
class Value:
    """One tensor of a forward."""

    shape: Shape
    dtype: torch.dtype
    storage: int
    """Identity of its memory; 0 if unknown."""
    layout: Layout
    made: int = NEVER
    """Time at which it was computed; NEVER for parameters, buffers and everything else from before the forward."""
    origin: Step | None = None
    """The operation or leaf module that computed it."""
    is_constant: bool = False
    """The forward computes it from constants or random numbers alone, perhaps of the size of another map."""
    alias_of: Value | None = None
    """The argument that a module returned as it is: the result counts as another value."""
    readings: list[Read] = field(default_factory=list)
    """Where and when it is read; `Site.reads` is the other way round: what an operation reads."""
    returns: list[tuple[Frame, tuple[Key, ...]]] = field(default_factory=list)
    """Module calls that return it, innermost first."""
    arguments: list[tuple[Frame, Key, tuple[Key, ...]]] = field(default_factory=list)
    """Module calls that it was given to, with the argument's position or keyword and the keys inside it."""

    def passed_from(self) -> list[Value]:
        """The value, and those of its shape before it that identities, dropouts, casts and the like pass on."""
        found = [self]
        for value in found:
            step = value.origin.passed if value.origin else None
            source = step.value if step else value.alias_of
            found += [source] if source is not None and source.shape == value.shape else []
        return found


Entries = list[tuple[tuple[Key, ...], Value]]
"""Tensors of one result, with the keys that lead to each; a bare tensor has none."""


@dataclass(eq=False, slots=True, repr=False)
class Step:
    """One step of a forward: a parameter, an operation, the call of a child, or an entry of a result."""

    path: str
    kind: str
    """As `Site.kind`; `entry` for an entry of a list, tuple or dict, and `outside` for a tensor that the forward finds
    in an attribute, a global or a closure."""
    frame: Frame | None
    """The call that it is a step of; None for the call of the model itself."""
    inputs: tuple[Step, ...]
    """Steps of the same forward whose results it reads."""
    values: Entries
    call: Frame | None = None
    """The call of a child."""
    function: Callable[..., Any] | None = None
    """The operation of torch that is called."""
    source: tuple[types.CodeType, int] | None = None
    """Code and instruction of the method that runs it, if that is a method of the module."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Kernel, stride and the like of a convolution that is called as a function."""
    runs: int = 0
    """How often the model's forward computed what has this path."""
    varies: bool = False
    """With several shapes, the first dimension (of samples) aside."""
    readers: list[Step] = field(default_factory=list)
    """Steps of the same forward that read its result."""
    later: list[Step] = field(default_factory=list)
    """Further steps with the same path; only of the first one."""

    def __post_init__(self) -> None:
        for step in dict.fromkeys(self.inputs):
            step.readers.append(self)

    @property
    def value(self) -> Value | None:
        """Its result, if that is one tensor."""
        return self.values[0][1] if len(self.values) == 1 and not self.values[0][0] else None

    @property
    def whole(self) -> Step:
        """The step whose result this is an entry of; of any other step, the step itself."""
        return self.inputs[0] if self.kind == "entry" else self

    @property
    def shape(self) -> Shape:
        """Shape of its result; () if that is not one tensor."""
        return () if self.value is None else self.value.shape

    @property
    def is_leaf(self) -> bool:
        """An operation, an entry of a result, or the call of a module without children."""
        return self.call is None or not self.call.is_scope

    @property
    def passed(self) -> Step | None:
        """The step whose result it passes on, if it is an identity, a dropout, a cast, a copy or the like."""
        source = None if self.value is None else self.value.alias_of
        same = next((one for one in self.inputs if source is not None and one.value is source), None)
        if same is None and self.inputs and self.kind in TRANSPARENT:
            return self.inputs[0]
        return same


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
    names: dict[str, int] = field(default_factory=dict)
    """How many values of each name it has computed."""
    start: int = 0
    end: int = 0
    steps: list[Step] = field(default_factory=list)
    """Of a scope that is recorded, in the order of execution."""
    step_of: dict[int, Step] = field(default_factory=dict)
    """The step of each value that the forward has used, by `id(Value)`."""
    computed: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Of a module without children: kind and facts of each operation of its forward."""
    given: list[torch.Tensor] = field(default_factory=list)
    """All tensors among the arguments, during the call."""
    inputs: list[Value] = field(default_factory=list)
    """Values of these, parameters and buffers excepted."""
    outputs: Entries = field(default_factory=list)

    def spans(self, tick: int) -> bool:
        """The time lies inside this call."""
        return self.start <= tick <= self.end

    def next_path(self, name: str) -> str:
        """Path of the next value of this name: `add`, `add[2]`, ..."""
        count = self.names[name] = self.names.get(name, 0) + 1
        return join(self.path, name if count == 1 else f"{name}[{count}]")

    def graph(self) -> fx.Graph:
        """The steps as a graph, to look at: `print(frame.graph())`. It describes one call, and does not run.

        `node.meta["step"]` is the step of a node. A tensor from outside the forward is a node `outside`.
        """
        graph, nodes = fx.Graph(), dict[Step, fx.Node]()

        def node_of(step: Step) -> fx.Node:
            if step not in nodes:
                args: tuple[Any, ...] = tuple(map(node_of, step.inputs))
                if step.kind == "input":
                    node = graph.placeholder(step.path.rpartition(".")[2])
                elif step.kind == "entry":
                    key = step.path.removeprefix(f"{step.inputs[0].path}:")
                    node = graph.call_function(operator.getitem, (*args, key))
                elif step.call is not None:
                    node = graph.create_node("call_module", step.call.path, args)
                elif step.function is not None:
                    node = graph.call_function(step.function, args)
                else:
                    node = graph.create_node("get_attr", "outside")
                node.meta["step"], nodes[step] = step, node
            return nodes[step]

        for step in self.steps:
            node_of(step)
        return graph


@dataclass(eq=False, slots=True, repr=False)
class Recording:
    """What one forward did. Times are counted in ticks, one for each operation, begin and end of a call."""

    modules: dict[str, nn.Module]
    first_calls: dict[str, Frame]
    """First call of every module that ran."""
    calls: Counter[str]
    """How often each module ran, by path."""
    steps: dict[str, Step] = field(default_factory=dict)
    """First step with each path, in the order in which they ended."""
    writes: dict[int, list[int]] = field(default_factory=dict)
    """Ticks at which memory was written in place, by storage."""
    by_storage: dict[int, list[Value]] = field(default_factory=dict)
    results: list[Value] = field(default_factory=list)
    """What the model returns, or stores in a list or an attribute."""
    _referenced: frozenset[types.CodeType] | None = None

    def value(self, path: str) -> Value | None:
        """The tensor that has a path, as first computed."""
        step = self.steps.get(path)
        return None if step is None else step.value

    def same_tensor(self, value: Value) -> list[Value]:
        """The value, and the results of modules that return it as it is, of which each counts as another value."""
        found = [value]
        for one in found:
            found += [other for other in self.by_storage.get(value.storage, ()) if other.alias_of is one]
        return found

    def refers_to(self, code: types.CodeType) -> bool:
        """Something in the model leads to a function of this code: an attribute, a closure, a table of the class.

        That it is a method of a class does not count.
        """
        if self._referenced is None:
            classes = {kind for module in self.modules.values() for kind in type(module).__mro__} - {nn.Module, object}
            attributes = [each for kind in classes for each in vars(kind).values()]
            others = [each for each in attributes if not isinstance(each, types.FunctionType)]
            found = reachable([vars(module) for module in self.modules.values()] + others)
            self._referenced = frozenset(each.__code__ for each in found if isinstance(each, types.FunctionType))
        return code in self._referenced
