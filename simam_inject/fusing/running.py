"""What a fused forward calls in place of SimAM and its neighbours."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from torch import Tensor, nn

from simam_inject.attention import SimAM, chained

_OUT_OF_PLACE = {"relu": F.relu, "relu6": F.relu6, "silu": F.silu, "hardswish": F.hardswish}


def run_chain(
    x: Tensor,
    attention: SimAM,
    norm: nn.Module,
    norm_first: bool,
    residual: Tensor | None,
    in_place: bool,
    activation: str | None,
) -> Tensor:
    """Norm, attention, residual and activation of `x`, in one pass where its device, layout and dtypes allow.

    Args:
        x: (N, C, spatial).
        attention: an injected SimAM.
        norm: a batch norm in eval mode.
        norm_first: the norm comes before the attention, not after it.
        residual: what is added before the activation.
        in_place: the residual is added in place, so the sum has the dtype of the chain.
        activation: a key of `attention.chained.ACTIVATIONS`.
    """
    is_one_pass = (
        not attention.bypassed
        and not norm.training
        and not has_hooks(attention)
        and not has_hooks(norm)
        and chained.fits(x)
        # Another dtype (a float32 skip under autocast) decides that of the sum, as another shape does.
        and (residual is None or (residual.shape, residual.dtype) == (x.shape, x.dtype))
    )
    if is_one_pass:
        scale, shift = _folded(norm)
        return chained.forward(x, attention.e_lambda, chained.Chain(scale, shift, norm_first, residual, activation))
    y: Tensor = attention(norm(x)) if norm_first else norm(attention(x))
    if residual is not None:
        y = y.add_(residual) if in_place else y + residual
    return y if activation is None else _OUT_OF_PLACE[activation](y)


def has_hooks(module: nn.Module) -> bool:
    """Somebody watches or changes what the module computes."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _folded(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift that a batch norm in eval mode is, in float32 or wider."""
    mean, variance, weight, bias = norm.running_mean, norm.running_var, norm.weight, norm.bias
    assert isinstance(mean, Tensor)
    assert isinstance(variance, Tensor)
    scale = torch.rsqrt(variance.to(torch.promote_types(variance.dtype, torch.float32)) + float(norm.eps))  # type: ignore[arg-type]
    if isinstance(weight, Tensor):
        scale = scale * weight
    shift = -mean * scale
    return scale, shift + bias if isinstance(bias, Tensor) else shift
