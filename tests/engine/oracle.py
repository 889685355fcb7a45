"""The independent oracle: SimAM's formula in float64, put into a stock model by forward hooks.

Imports nothing from simam_inject: whatever the surgery does, the answer is computed another way here.
"""

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass

import torch
from torch import nn


def simam_in_float64(x, e_lambda, channel_dim=1):
    """y = x sigmoid((x - mu)^2 / (4 (v + lambda)) + 1/2), computed in float64, returned in the dtype of x."""
    if channel_dim == -1:
        return simam_in_float64(x.movedim(-1, 1), e_lambda).movedim(1, -1)
    wide = x.double()
    flat = wide.flatten(2)
    positions = flat.shape[2]
    mean = flat.sum(2, keepdim=True) / positions
    squares = (flat - mean) ** 2
    variance = squares.sum(2, keepdim=True) / max(positions - 1, 1)
    energy = squares / (4 * (variance + e_lambda)) + 0.5
    return (flat / (1 + torch.exp(-energy))).view_as(wide).to(x.dtype)


@contextmanager
def hooked(model, paths, e_lambda, operator=simam_in_float64):
    """Inside, what each module at `paths` returns is attended by `operator(x, e_lambda)`."""
    handles = [
        model.get_submodule(path).register_forward_hook(lambda _module, _args, output: operator(output, e_lambda))
        for path in paths
    ]
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


def give_statistics(model, seed=7):
    """Make every norm's statistics and affine parameters non-trivial, so that no two orders of operations agree."""
    noise = torch.Generator().manual_seed(seed)

    def uniform(like, low, high):
        return torch.rand(like.shape, generator=noise) * (high - low) + low

    with torch.no_grad():
        for module in model.modules():
            if isinstance(getattr(module, "running_mean", None), torch.Tensor):
                module.running_mean.copy_(uniform(module.running_mean, -0.3, 0.3))
                module.running_var.copy_(uniform(module.running_var, 0.5, 1.5))
            ranges = {"gamma": (0.2, 0.5)}  # ConvNeXt's layer scale starts at 1e-6, which hides the whole branch
            if "norm" in type(module).__name__.lower():
                ranges |= {"weight": (0.6, 1.4), "bias": (-0.2, 0.2)}
            for name, bounds in ranges.items():
                parameter = getattr(module, name, None)
                if isinstance(parameter, nn.Parameter):
                    parameter.copy_(uniform(parameter, *bounds))
    return model


def tensors(output):
    """All tensors of a nested output, in order."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    elif is_dataclass(output):
        output = [getattr(output, field.name) for field in fields(output)]
    if isinstance(output, (list, tuple)):
        return [tensor for item in output for tensor in tensors(item)]
    return []


def same_bits(one, other):
    """Equal structure, dtype and bits; there is at least one tensor."""
    ours, theirs = tensors(one), tensors(other)
    return bool(ours) and len(ours) == len(theirs) and all(map(_same, ours, theirs))


def _same(one, other):
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)


def distance(one, other):
    """Largest relative distance |a - b| / |b| (Euclidean norms) of two outputs' tensors."""
    pairs = list(zip(tensors(one), tensors(other), strict=True))
    assert pairs
    found = [
        ((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30)).item()
        for a, b in pairs
        if a.is_floating_point()
    ]
    assert all(value == value for value in found), "NaN"
    return max(found)


def snapshot(model):
    """Everything a failed or a mere inspection must leave as it was, in a form that compares with ==."""
    state = []
    for path, module in model.named_modules():
        plain = {
            name: _frozen(value)
            for name, value in module.__dict__.items()
            if name not in ("_parameters", "_buffers", "_modules")
        }
        tables = {
            name: [(key, id(value)) for key, value in module.__dict__[name].items()]
            for name in ("_parameters", "_buffers", "_modules")
        }
        state.append((path, id(module), type(module), list(module.__dict__), plain, tables))
    contents = [(name, _content(tensor)) for name, tensor in (*model.named_parameters(), *model.named_buffers())]
    return state, contents, torch.get_rng_state().tolist()


def _frozen(value):
    if isinstance(value, torch.Tensor):
        return _content(value)
    if isinstance(value, Mapping):
        return [(key, id(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple, set)):
        return type(value), [id(item) for item in value]
    return (type(value), value) if isinstance(value, (bool, int, float, str, type(None))) else id(value)


def _content(tensor):
    grad = None if tensor.grad is None else (id(tensor.grad), tensor.grad.tolist())
    data = None if tensor.is_meta else tensor.detach().flatten().tolist()
    return id(tensor), tensor.requires_grad, str(tensor.dtype), data, grad
