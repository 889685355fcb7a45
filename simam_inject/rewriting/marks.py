"""How a rewritten module is known: by what it holds, and by what its class stands for."""

from __future__ import annotations

from torch import nn

from simam_inject.rewriting.records import Specification

SPECIFICATION = "_simam_specification"
"""Instance attribute that holds the module's `Specification`."""


def is_injected(module: nn.Module) -> bool:
    """True if this module object itself was rewritten."""
    return isinstance(module.__dict__.get(SPECIFICATION), Specification)


def specification_of(module: nn.Module) -> Specification:
    """What was put into a module for which `is_injected` is true."""
    specification: Specification = module.__dict__[SPECIFICATION]
    return specification


def stock_class(module: nn.Module) -> type[nn.Module]:
    """The class the module had before it was rewritten."""
    base: type[nn.Module] = getattr(type(module), "_simam_stock_class", type(module))
    return base
