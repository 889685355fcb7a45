"""Checks of the operator's arguments, with their error messages.

They depend on metadata only (rank, dtype, a Python number), so compiled and exported graphs do not contain them.
"""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor

from simam_inject.errors import InjectError

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SMALLEST, _LARGEST = math.nextafter(0.0, 1.0), math.nextafter(math.inf, 0.0)
_RANGES = {
    "e_lambda": ((_SMALLEST, _LARGEST), "a finite number above 0, e.g. 1e-4 (the default) or 0.1 (on ImageNet)"),
    "strength": ((0.0, 1.0), "a number from 0 (the identity) to 1 (SimAM)"),
    "start": ((0.0, 1.0), "a number from 0 (the identity) to 1 (SimAM)"),
    "gain": ((_SMALLEST, _LARGEST), "a finite number above 0, e.g. 1.0 or 1.3"),
    "tolerance": ((0.0, math.inf), "None or a number from 0"),
    "epochs": ((_SMALLEST, _LARGEST), "a finite number above 0"),
}
"""Least and largest value of each argument, and how to say so."""


class ArgumentError(InjectError, ValueError):
    """An invalid argument of `simam` or `SimAM`: a number out of range, or an unsupported rank, layout or dtype."""


def check_number(name: str, value: Any, error: type[InjectError] = ArgumentError) -> float:
    """Return `value` as a float, or raise an error unless it is a real number in the range of the argument."""
    is_real = type(value) is float or (isinstance(value, numbers.Real) and not isinstance(value, bool))
    try:
        number = float(value) if is_real else math.nan
    except OverflowError:  # an int beyond the floats
        number = math.inf
    (least, most), words = _RANGES[name]
    if not least <= number <= most:
        raise error(f"{name} must be {words}; found {value!r:.40} ({type(value).__name__})")
    return number


def check_count(name: str, value: Any, least: int = 0, error: type[InjectError] = ArgumentError) -> int:
    """Return `value` as an int, or raise an error unless it is a whole number, of NumPy too, from `least`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or int(value) < least:
        raise error(f"{name} must be a whole number from {least}; found {value!r:.40} ({type(value).__name__})")
    return int(value)


def check_channel_dim(channel_dim: object) -> int:
    """Return `channel_dim`, or raise `ArgumentError` unless it is 1 (N, C, spatial) or -1 (N, spatial, C)."""
    if type(channel_dim) is not int or channel_dim not in (1, -1):
        raise ArgumentError(f"channel_dim must be 1 (N, C, spatial) or -1 (N, spatial, C); found {channel_dim!r}")
    return channel_dim


def check_input(x: object) -> Tensor:
    """Return `x`, or raise `ArgumentError` unless it is a dense tensor of rank 3 to 5 and of one of `DTYPES`."""
    if not isinstance(x, Tensor):
        raise ArgumentError(f"simam expects a torch.Tensor; found {type(x).__name__}")
    if x.is_nested or x.layout != torch.strided:
        found = f"layout {x.layout}; convert it first, with x.to_dense()"
        found = "a nested tensor; apply it to each entry of x.unbind()" if x.is_nested else found
        raise ArgumentError(f"simam expects a dense feature map; found {found}")
    if x.dtype not in DTYPES:
        remedy = "dequantize()" if x.is_quantized else "float()"
        raise ArgumentError(
            f"simam expects a real floating-point feature map (float16, bfloat16, float32, float64); found {x.dtype}"
            + ("" if x.dtype.is_complex else f"; convert it first, e.g. with x.{remedy}")
        )
    if not 3 <= x.dim() <= 5:
        raise ArgumentError(
            "simam expects a feature map of 3 to 5 dimensions (batch, channels and 1 to 3 spatial ones); "
            f"found shape {tuple(x.shape)}" + ("; add a batch dimension with x.unsqueeze(0)" if x.dim() == 2 else "")
        )
    return x
