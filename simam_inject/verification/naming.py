"""Values in the middle of a forward, found by their names (`add[2]` of a module) while a stock network runs.

Nothing of `editing` is used: no source, no wrapped expression. Names are counted as `dataflow` does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from simam_inject.dataflow.naming import Namer
from simam_inject.nested import Key, entry_at, replace_entry


class NamedValues(Namer):
    """Inside, forwards of a network give other tensors for some of its named values.

    Args:
        model: a stock twin.
        functions: what becomes of a value, by its path; entries of lists, tuples and dicts have a path with a key.
    """

    def __init__(self, model: nn.Module, functions: Mapping[str, Callable[[Tensor], Tensor]]) -> None:
        super().__init__(model)
        self.functions: dict[str, dict[Key | None, Callable[[Tensor], Tensor]]] = {}
        for at, function in functions.items():
            path, _, key = at.partition(":")
            found: Key | None = int(key) if key.isdigit() else key or None
            self.functions.setdefault(path, {})[found] = function

    @contextmanager
    def attending(self) -> Iterator[None]:
        """Watch the network."""
        self.start()
        with self.watching(), self:
            yield

    def names_in(self, scope: str) -> Counter[str]:
        """How many values of each name the first call of a module computed."""
        frame = self.first_calls.get(scope)
        return Counter() if frame is None else Counter(frame.names)

    def named(self, path: str, result: Any) -> Any:
        """What the forward gets in the place of a named value."""
        for key, function in self.functions.get(path, {}).items():
            result = function(result) if key is None else replace_entry(result, key, function(entry_at(result, key)))
        return result
