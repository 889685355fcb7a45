"""Names of modules as their callers know them, and of the parameters of a forward."""

from __future__ import annotations

import inspect

from torch import nn

from simam_inject.dataflow.values import Frame


class Names:
    """Looks names up, once each.

    Args:
        path_of: first dotted path of each module, by `id`.
    """

    def __init__(self, path_of: dict[int, str]) -> None:
        self.path_of = path_of
        self._relative: dict[int, dict[int, str]] = {}
        self._parameters: dict[type, tuple[str, ...]] = {}

    def inside(self, parent: Frame, module: nn.Module) -> str:
        """The module's path inside its caller; its full path where the caller does not hold it."""
        path = self.path_of[id(module)]
        if not parent.path or path.startswith(parent.path + "."):
            return path[len(parent.path) + 1 :] if parent.path else path
        names = self._relative.get(id(parent.module))
        if names is None:
            names = self._relative[id(parent.module)] = {id(m): name for name, m in parent.module.named_modules()}
        return names.get(id(module), path)

    def parameters(self, kind: type[nn.Module]) -> tuple[str, ...]:
        """Parameters of a class's forward, without `self`."""
        if kind not in self._parameters:
            try:
                names = list(inspect.signature(kind.forward).parameters)[1:]
            except (TypeError, ValueError):
                names = ["input"]
            self._parameters[kind] = tuple(names)
        return self._parameters[kind]
