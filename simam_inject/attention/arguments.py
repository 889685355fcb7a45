"""Checks of the operator's arguments, with their error messages.

Everything here looks at metadata only (rank, dtype, a Python number), so a compiled or exported graph holds none of it.
"""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Callable
from typing import SupportsFloat, cast

import torch
from torch import Tensor

from simam_inject.errors import InjectError

RANKS = (3, 4, 5)
CHANNEL_DIMS = (1, -1)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class ArgumentError(InjectError, ValueError):
    """An invalid argument of `simam` or `SimAM`: a number out of range, or an unsupported rank, layout or dtype."""


def check_e_lambda(value: object) -> float:
    """Return `value` as a float.

    Raises:
        ArgumentError: it is not a finite real number above zero; bool and str are not accepted.
    """
    meaning = (
        "e_lambda must be a finite number above 0, e.g. 1e-4 (the default) or 0.1 (the authors' value for ImageNet)"
    )
    return _check(value, lambda number: 0.0 < number < math.inf, meaning)


def check_strength(value: object) -> float:
    """Return `value` as a float.

    Raises:
        ArgumentError: it is not a number from 0 to 1.
    """
    meaning = "strength must be a number from 0 (the identity) to 1 (SimAM)"
    return _check(value, lambda number: 0.0 <= number <= 1.0, meaning)


def check_gain(value: object) -> float:
    """Return `value` as a float.

    Raises:
        ArgumentError: it is not a finite number above 0.
    """
    return _check(
        value, lambda number: 0.0 < number < math.inf, "gain must be a finite number above 0, e.g. 1.0 or 1.3"
    )


def _check(value: object, is_valid: Callable[[float], bool], meaning: str) -> float:
    if type(value) is float and is_valid(value):
        return value
    number = math.nan
    if not isinstance(value, bool) and isinstance(value, numbers.Real):
        try:
            number = float(cast(SupportsFloat, value))
        except OverflowError:  # an int beyond the floats
            number = math.inf
    if not is_valid(number):
        raise ArgumentError(f"{meaning}; found {value!r:.40} ({type(value).__name__})")
    return number


def warn_of_channel_count(e_lambda: object) -> None:
    """Warn when `e_lambda` looks like a channel count, as in `SimAM(1024)`: the gate would be a constant."""
    if isinstance(e_lambda, numbers.Integral) and int(e_lambda) > 1:
        warnings.warn(
            f"SimAM(e_lambda={e_lambda!r}): this is probably a channel count, and makes the gate a constant. SimAM "
            "does not take a channel count: write SimAM() or SimAM(e_lambda=0.1), or a float if the value is intended.",
            stacklevel=3,
        )


def check_channel_dim(channel_dim: object) -> int:
    """Return `channel_dim` as 1 (N, C, spatial) or -1 (N, spatial, C).

    Raises:
        ArgumentError: it is anything else.
    """
    if type(channel_dim) is not int or channel_dim not in CHANNEL_DIMS:
        raise ArgumentError(f"channel_dim must be 1 (N, C, spatial) or -1 (N, spatial, C); found {channel_dim!r}")
    return channel_dim


def check_input(x: object) -> Tensor:
    """Return `x`, if it has a spatial mean.

    Raises:
        ArgumentError: `x` is not a tensor, not dense, not of rank 3 to 5, or of a dtype that is none of `DTYPES`:
            float8 has no arithmetic.
    """
    if not isinstance(x, Tensor):
        raise ArgumentError(f"simam expects a torch.Tensor; found {type(x).__name__}")
    if x.is_nested:
        raise ArgumentError(
            "simam expects one dense feature map; found a nested tensor; apply it to each entry of x.unbind()"
        )
    if x.layout != torch.strided:
        raise ArgumentError(
            f"simam expects a dense feature map; found layout {x.layout}; convert it first, with x.to_dense()"
        )
    if x.dtype not in DTYPES:
        remedy = "dequantize()" if x.is_quantized else "float()"
        raise ArgumentError(
            f"simam expects a real floating-point feature map (float16, bfloat16, float32, float64); found {x.dtype}"
            + ("" if x.dtype.is_complex else f"; convert it first, e.g. with x.{remedy}")
        )
    if x.dim() not in RANKS:
        raise ArgumentError(
            "simam expects a feature map of 3 to 5 dimensions (batch, channels and 1 to 3 spatial ones); "
            f"found shape {tuple(x.shape)}" + ("; add a batch dimension with x.unsqueeze(0)" if x.dim() == 2 else "")
        )
    return x
