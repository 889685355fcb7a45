"""Wrapping functions of a library that has no point of extension where one is needed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

_MARK = "_simam_original"


def wrap(owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace a function of a class or module by what `make` makes of it; once for the process."""
    original = vars(owner)[name]
    if not hasattr(original, _MARK):
        wrapped = functools.wraps(original)(make(original))
        setattr(wrapped, _MARK, original)
        setattr(owner, name, wrapped)


def unwrap(owner: Any) -> None:
    """Give a class or module its own functions back."""
    for name, value in list(vars(owner).items()):
        if hasattr(value, _MARK):
            setattr(owner, name, getattr(value, _MARK))
