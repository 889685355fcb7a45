"""Proxies that carry the value the example forward saw: structural Python traces, and decisions on data do not."""

from __future__ import annotations

import dis
import operator
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from torch import fx
from torch.fx.proxy import Attribute

from simam_inject.tracing.values import UNKNOWN

RANK_ATTRIBUTES = frozenset({"ndim"})
"""Attributes read as plain values, which the generated forward checks."""


class Refusal(Exception):
    """A forward does something that no graph can stand for; the message says what."""


class ValueProxy(fx.Proxy):
    """A proxy with `value`: a meta tensor, an int from a shape, some object, or `UNKNOWN`."""

    tracer: Any
    value: Any = UNKNOWN

    def __getattr__(self, name: str) -> Any:
        value = self.value
        if value is UNKNOWN:
            return ValueAttribute(self, name)
        if not hasattr(value, name):
            raise AttributeError(f"{type(value).__name__!r} object has no attribute {name!r}")
        if isinstance(value, torch.Tensor) and name in RANK_ATTRIBUTES:
            self.tracer.note_rank(self)
            return getattr(value, name)
        attribute = ValueAttribute(self, name)
        found = getattr(value, name)
        if isinstance(found, (tuple, list, dict)):
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        attribute.__dict__["value"] = found
        return attribute

    def __iter__(self) -> Iterator[Any]:
        value = self.value
        if isinstance(value, (tuple, list)):  # structseqs such as torch.max(x, 1)
            return iter([self[index] for index in range(len(value))])  # type: ignore[index]
        if isinstance(value, torch.Tensor):
            raise Refusal("iterates over a tensor, as often as its size says")
        raise Refusal("iterates over a value that the example forward never computed")

    def __len__(self) -> int:
        value = self.value
        if isinstance(value, (tuple, list, dict)):
            return len(value)
        if isinstance(value, torch.Tensor):
            raise Refusal("takes len() of a tensor, which is its size")
        # What a value without a length raises; torch asks every argument list for its length.
        raise TypeError(f"object of type {type(value).__name__!r} has no len()")

    def __bool__(self) -> bool:
        frame = sys._getframe(1)
        if _is_assertion(frame):
            self.tracer.create_proxy("call_function", torch._assert, (self, "an assertion of the traced forward"), {})
            return True
        raise Refusal(f"branches on {self._told()}")

    def __int__(self) -> int:
        raise Refusal(f"turns {self._told()} into a Python number")

    __index__ = __int__

    def __float__(self) -> float:
        raise Refusal(f"turns {self._told()} into a Python number")

    def __contains__(self, item: object) -> bool:
        if isinstance(self.value, (tuple, list, dict)):
            return item in self.value
        raise Refusal(f"asks whether something is in {self._told()}")

    def __setitem__(self, index: Any, item: Any) -> None:
        self.tracer.create_proxy("call_function", _setitem, (self, index, item), {})

    def __hash__(self) -> int:
        return id(self)

    def _told(self) -> str:
        value = self.value
        if isinstance(value, torch.Tensor):
            return "a tensor's content"
        if isinstance(value, (int, float)):
            return "a shape or another value of the input"
        return "a value that depends on the input"


class ValueAttribute(ValueProxy, Attribute):
    """An attribute of a proxied value; becomes a node only when it is used as a value rather than called."""

    def __init__(self, root: fx.Proxy, attr: str) -> None:
        Attribute.__init__(self, root, attr)

    @property
    def node(self) -> fx.Node:  # type: ignore[override]
        """The node of the attribute, made when first asked for."""
        if self._node is None:
            self._node = self.tracer.create_proxy("call_function", getattr, (self.root, self.attr), {}).node
        return self._node

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Record a call of the attribute as a method."""
        value: Any = self.root.value
        if isinstance(value, torch.Tensor) and self.attr in ("dim", "ndimension") and not args:
            self.tracer.note_rank(self)
            return value.dim()
        return self.tracer.create_proxy("call_method", self.attr, (self.root, *args), kwargs)


PROXIES = frozenset({ValueProxy, ValueAttribute})
"""The very types of every proxy of a trace."""


def _record_in_place(name: str) -> None:
    """Make `x += y` an in-place node. Plain fx records `x = x + y`, which others who hold x would not see."""
    operation = getattr(operator, name)

    def method(self: ValueProxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operation, (self, other), {})

    setattr(ValueProxy, f"__{name}__", method)


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor", "imatmul"):
    _record_in_place(_name)


def _setitem(target: Any, index: Any, item: Any) -> None:
    """`target[index] = item` as a function: it changes `target` and stays in the graph in its place."""
    target[index] = item


def _is_assertion(frame: FrameType) -> bool:
    """Is the truth value that `frame` asks for now the condition of an `assert`?"""
    instructions = [i for i in dis.get_instructions(frame.f_code) if i.opname not in ("CACHE", "TO_BOOL", "COPY")]
    following = [i for i in instructions if i.offset >= frame.f_lasti][:4]
    names = [i.opname for i in following]
    for position, name in enumerate(names[:3]):
        if "JUMP" in name:
            return "TRUE" in name and position + 1 < len(names) and names[position + 1] == "LOAD_ASSERTION_ERROR"
    return False
