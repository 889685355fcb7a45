"""What code can name: globals, and those of the modules that it imports."""

from __future__ import annotations

import dis
import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from itertools import chain
from typing import Any

from simam_inject.source import codes_in

_LIBRARIES = frozenset({"torch", "numpy", "simam_inject", "lightning", "pydantic"})
FOREIGN = _LIBRARIES | {"logging", "threading", "typing", "re", "os", "sys", "builtins", "abc", "functools", "enum"}
"""Libraries whose objects no forward of a user's network is expected to change."""
FOREIGN_CODE = _LIBRARIES | sys.stdlib_module_names
"""Libraries whose modules, functions and classes refer to nothing of a user's network."""


def is_of(libraries: frozenset[str], module: Any) -> bool:
    """A module, given by its name, is of one of these libraries."""
    return str(module).partition(".")[0] in libraries


@lru_cache(4096)
def names_in(code: types.CodeType) -> frozenset[str]:
    """Every name, and every string, which may be a name: `globals()["CACHE"]`."""
    strings = (const for each in codes_in(code) for const in each.co_consts if isinstance(const, str))
    return frozenset(chain(strings, *(each.co_names for each in codes_in(code))))


@lru_cache(4096)
def _imports_in(code: types.CodeType) -> tuple[tuple[str, int, Any], ...]:
    """Name, number of dots, and what is imported from it, of each import statement."""
    importing = (each for each in codes_in(code) if dis.opmap["IMPORT_NAME"] in each.co_code[::2])
    return tuple(found for each in importing for found in dis._find_imports(each))  # type: ignore[attr-defined]


def _imported_by(function: types.FunctionType) -> Iterator[types.ModuleType]:
    """Modules that its code imports. Those of a forward are loaded now, so that they are known before it runs."""
    for name, level, names in _imports_in(function.__code__):
        with suppress(Exception):  # of another system, or not installed
            path = importlib.util.resolve_name("." * level + name, function.__globals__.get("__package__"))
            if function.__name__ == "forward":
                module = importlib.import_module(path)
                for each in names or ():
                    if not hasattr(module, each):
                        importlib.import_module(f"{path}.{each}")
            yield sys.modules[path]


def spaces_of(function: types.FunctionType, names: frozenset[str], others: list[Any]) -> list[dict[str, Any]]:
    """The globals of a function, and those of the modules that it can name: `pk.util.get` goes through two."""
    spaces = [function.__globals__]
    found = [*others, *_imported_by(function), *(sys.modules[name] for name in names & sys.modules.keys())]
    for space in spaces:
        for module in chain(found, [space[name] for name in names & space.keys()]):
            if issubclass(type(module), types.ModuleType) and not is_of(FOREIGN_CODE, module.__name__):
                spaces += [vars(module)] if all(vars(module) is not known for known in spaces) else []
    return spaces
