"""The signature of a traced forward: what the caller passes, and what keeps a value that the graph bakes in."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from simam_inject.tracing.proxies import Refusal
from simam_inject.tracing.values import PLAIN_TYPES, leaves


@dataclass(frozen=True, slots=True)
class Argument:
    """One parameter of a forward, as the example forward used it."""

    name: str
    kind: inspect._ParameterKind
    default: Any
    value: Any
    is_passed: bool
    is_proxied: bool
    """False: the graph holds `value` as a constant, and the generated forward refuses another one."""


def call_parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """What a method is called with, self aside: a decorator that hands on all it is given is called as what it wraps.

    Raises:
        TypeError, ValueError: it has no signature.
    """
    parameters = list(inspect.signature(function, follow_wrapped=False).parameters.values())
    wrapped = getattr(function, "__wrapped__", None)
    handed_on = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if wrapped is not None and all(parameter.kind in handed_on for parameter in parameters[-2:]):
        return call_parameters(wrapped)
    is_without_self = bool(parameters) and parameters[0].kind is inspect.Parameter.VAR_POSITIONAL
    return parameters if is_without_self else parameters[1:]


def bind(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, fix_numbers: bool = False
) -> tuple[Argument, ...]:
    """Match one recorded call against the signature of `function` (a plain function whose first parameter is self).

    Args:
        fix_numbers: whole numbers that the caller passes, often sizes of its map, are constants of the graph.

    Raises:
        Refusal: no graph can have this signature.
    """
    parameters = call_parameters(function)
    try:
        bound = inspect.Signature(parameters).bind(*args, **kwargs).arguments
    except TypeError as error:
        raise Refusal(f"cannot be called as recorded ({error})") from None
    return tuple(_argument(parameter, bound, fix_numbers=fix_numbers) for parameter in parameters)


def has_numbers(arguments: tuple[Argument, ...]) -> bool:
    """Did the caller pass whole numbers that `fix_numbers` would have made constants?"""
    return any(argument.is_proxied and _is_numbers(argument.value) for argument in arguments)


def _argument(parameter: inspect.Parameter, bound: dict[str, Any], *, fix_numbers: bool) -> Argument:
    is_passed = parameter.name in bound
    if parameter.kind is parameter.VAR_POSITIONAL:
        value = bound.get(parameter.name, ())
    elif parameter.kind is parameter.VAR_KEYWORD:
        value = bound.get(parameter.name, {})
    else:
        value = bound.get(parameter.name, parameter.default)
    is_proxied = is_passed and _holds_tensors(value)
    constant_types = all(isinstance(leaf, (*PLAIN_TYPES, torch.dtype, torch.device)) for leaf in leaves(value))
    if is_passed and not fix_numbers and _is_numbers(value):
        is_proxied = True
    if is_passed and not is_proxied and not constant_types:
        is_proxied = True  # an object of the caller's own: carry it through
    return Argument(parameter.name, parameter.kind, parameter.default, value, is_passed, is_proxied)


def _is_numbers(value: Any) -> bool:
    """A whole number, or a structure of nothing else."""
    found = leaves(value)
    return bool(found) and all(isinstance(leaf, int) and not isinstance(leaf, bool) for leaf in found)


def _holds_tensors(value: Any) -> bool:
    return any(isinstance(leaf, torch.Tensor) for leaf in leaves(value))
