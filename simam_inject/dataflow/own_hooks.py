"""Which of a module's own hooks run at the moment: their operations do not belong to the forward that calls it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from simam_inject.dataflow.values import Frame


class OwnHooks:
    """Marks the start and the end of the own hooks of modules: those of pruning, and the user's.

    Args:
        caller: returns the frame of the forward that calls a module now.
    """

    def __init__(self, caller: Callable[[], Frame | None]) -> None:
        self.caller = caller
        self.running: list[tuple[nn.Module, Frame | None]] = []
        self.marked: set[int] = set()

    def around(self, module: nn.Module, enter: Callable[..., Any], leave: Callable[..., Any]) -> list[RemovableHandle]:
        """Register two hooks, behind the module's own pre-hooks and before its own hooks; and the marks around all."""
        has_own = bool(module._forward_hooks or module._forward_pre_hooks)
        handles = [
            module.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(leave, prepend=True, with_kwargs=True, always_call=True),
        ]
        if has_own:
            self.marked.add(id(module))
            handles += [
                module.register_forward_pre_hook(lambda called, _args: self.start(called), prepend=True),
                module.register_forward_hook(lambda called, _args, _output: self.end(called), always_call=True),
            ]
        return handles

    def start(self, module: nn.Module) -> None:
        """Own hooks of the module run from now on, if it has marks for their end."""
        if id(module) in self.marked:
            self.running.append((module, self.caller()))

    def end(self, module: nn.Module) -> None:
        """They have run."""
        if self.running and self.running[-1][0] is module:
            self.running.pop()

    def run_for(self, frame: Frame) -> bool:
        """Own hooks of a child of this frame run now."""
        return bool(self.running) and self.running[-1][1] is frame
