"""Values in the middle of a forward, found by their names (`add[2]` of a module) while a stock network runs.

Nothing of `editing` is used: no source, no wrapped expression. Names are counted as the recorder of `dataflow` does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from simam_inject.dataflow.recorder import Recorder
from simam_inject.nested import Key, entry_at, replace_entry


class NamedValues(Recorder):
    """Inside, forwards of a network give other tensors for some of its named values.

    Args:
        model: a stock twin.
        functions: what becomes of a value, by its path; entries of lists, tuples and dicts have a path with a key.
    """

    def __init__(self, model: nn.Module, functions: Mapping[str, Callable[[Tensor], Tensor]]) -> None:
        super().__init__(model)
        self.functions: dict[str | None, dict[Key | None, Callable[[Tensor], Tensor]]] = {}
        for at, function in functions.items():
            path, _, key = at.partition(":")
            found: Key | None = int(key) if key.isdigit() else key or None
            self.functions.setdefault(path, {})[found] = function
        self._named: str | None = None

    @contextmanager
    def attending(self) -> Iterator[None]:
        """Watch the network."""
        self._start(with_graphs=False)
        with self.watching(), self:
            yield

    def names_in(self, scope: str) -> Counter[str]:
        """How many values of each name the first call of a module computed."""
        frame = self.recording.first_calls.get(scope)
        return Counter() if frame is None else Counter(frame.names)

    def leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """After a module's forward: its result is a named value of its caller."""
        if id(module) not in self.path_of:
            return output
        self._named = None
        frame = self.frame
        output = super().leave(module, args, kwargs, output)
        if frame is not None and frame.is_scope:
            self._named = frame.path
        with torch._C.DisableTorchFunction():
            return self._changed(output)

    def _operation(self, *args: Any, **kwargs: Any) -> Any:
        self._named = None
        return self._changed(super()._operation(*args, **kwargs))

    def _enter_values(self, path: str, *args: Any, **kwargs: Any) -> None:
        self._named = path.partition(":")[0]
        super()._enter_values(path, *args, **kwargs)

    def _changed(self, result: Any) -> Any:
        for key, function in self.functions.get(self._named, {}).items():
            result = function(result) if key is None else replace_entry(result, key, function(entry_at(result, key)))
        return result
