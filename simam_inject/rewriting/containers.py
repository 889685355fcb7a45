"""Containers hide the SimAM children that were put into them, since callers list, count and slice them.

What a container's class does in a way of its own it goes on doing, on a twin that has no SimAM among its children.
"""

from __future__ import annotations

import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from simam_inject.errors import InjectError
from simam_inject.rewriting.marks import specification_of, stock_class


def hiding_of(base: type[nn.Module]) -> dict[str, Any]:
    """The methods that a rewritten class of this kind has in place of its own; none for what is no container."""
    found: dict[str, Any] = {}
    for container, hiding in _HIDING.items():
        if issubclass(base, container):
            for name, method in hiding.items():
                own = inspect.getattr_static(base, name, None)
                is_torch_own = own is inspect.getattr_static(container, name, None)
                found[name] = method if is_torch_own or not inspect.isfunction(own) else _around(name, own)
    return found


def _around(name: str, own: Callable[..., Any]) -> Callable[..., Any]:
    return _kept(name, own) if name in _CHANGING else _on_twin(own)


def _on_twin(own: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(own)
    def look(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        stock = stock_class(self)
        twin = stock.__new__(stock)
        twin.__dict__.update(self.__dict__)
        twin.__dict__["_modules"] = _visible(self)
        return own(twin, *args, **kwargs)

    return look


def _kept(name: str, own: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(own)
    def change(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        before = dict(self._modules)
        try:
            result = own(self, *args, **kwargs)
        finally:
            is_changed = list(before) != list(self._modules)
            if is_changed:
                self._modules.clear()
                self._modules.update(before)
        if is_changed:
            _refused(name)(self)
        return result

    return change


def _visible(module: nn.Module) -> OrderedDict[str, nn.Module]:
    """Children of a container without the SimAM modules that were put into it."""
    hidden = {edit.child for edit in specification_of(module).edits}
    return OrderedDict(
        (name, child) for name, child in module._modules.items() if child is not None and name not in hidden
    )


def _len(self: nn.Module) -> int:
    return len(_visible(self))


def _iter(self: nn.Module) -> Iterator[nn.Module]:
    return iter(_visible(self).values())


def _getitem(self: nn.Module, index: Any) -> nn.Module:
    children = _visible(self)
    if not isinstance(index, slice):
        child: nn.Module = list(children.values())[index]
        return child
    part = OrderedDict(list(children.items())[index])
    with_attention: OrderedDict[str, nn.Module] = OrderedDict()
    for name, child in part.items():
        with_attention[name] = child
        for edit in specification_of(self).edits:
            if edit.value == name:
                with_attention[edit.child] = self._modules[edit.child]  # type: ignore[assignment]
    return nn.Sequential(with_attention)


def _refused(name: str) -> Callable[..., Any]:
    def refuse(self: nn.Module, *_args: Any, **_kwargs: Any) -> Any:
        raise InjectError(
            f"{type(self).__name__}.{name}: SimAM was injected between this container's children, and its rewritten "
            "forward names them one by one. Call simam_inject.eject(model), change the container, and inject again."
        )

    return refuse


_CHANGING = frozenset(
    ("__delitem__", "__iadd__", "__imul__", "__setitem__", "append", "clear", "extend", "insert", "pop", "update")
)
_SEQUENCE_HIDING: dict[str, Any] = {
    "__len__": _len,
    "__iter__": _iter,
    "__getitem__": _getitem,
    **{name: _refused(name) for name in ("__delitem__", "__iadd__", "__imul__", "append", "extend", "insert", "pop")},
}
_HIDING: dict[type[nn.Module], dict[str, Any]] = {
    nn.Sequential: _SEQUENCE_HIDING,
    nn.ModuleList: {
        **_SEQUENCE_HIDING,
        "__getitem__": lambda self, index: nn.ModuleList(_visible(self).values())[index],
    },
    nn.ModuleDict: {
        "__len__": _len,
        "__iter__": lambda self: iter(_visible(self)),
        "__contains__": lambda self, key: key in _visible(self),
        "keys": lambda self: _visible(self).keys(),
        "items": lambda self: _visible(self).items(),
        "values": lambda self: _visible(self).values(),
        **{name: _refused(name) for name in ("__setitem__", "__delitem__", "clear", "pop", "update")},
    },
}
"""What hides SimAM children, by kind of container: a list or dict of modules may have a forward of its own too."""
