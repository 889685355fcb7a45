"""SimAM by plain forward hooks and its formula in float64: the answer computed another way than the package does.

Imports nothing from simam_inject. A place is written by hand: the dotted path of a module whose result is attended,
with the channel axis of that result; `path:key` is one map of a list, tuple or dict; `>path` is what a module is given
as its first argument.
"""

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass

import torch

E_LAMBDA = 0.03


def attend(x, e_lambda=E_LAMBDA, channel_dim=1, strength=1.0, gain=1.0):
    """y = x ((1 - strength) + strength gain sigmoid((x - mu)^2 / (4 (v + lambda)) + 1/2)); mu and v of each channel."""
    if channel_dim == -1:
        return attend(x.movedim(-1, 1), e_lambda, 1, strength, gain).movedim(1, -1)
    flat = x.double().flatten(2)
    squares = (flat - flat.mean(2, keepdim=True)) ** 2
    variance = squares.sum(2, keepdim=True) / max(flat.shape[2] - 1, 1)
    gate = 1 / (1 + torch.exp(-squares / (4 * (variance + e_lambda)) - 0.5))
    return (flat * ((1 - strength) + strength * gain * gate)).reshape(x.shape).to(x.dtype)


def _attend_entry(output, key, change):
    if key is None:
        return change(output)
    if isinstance(output, Mapping):
        return type(output)((name, change(item) if str(name) == key else item) for name, item in output.items())
    items = [change(item) if str(index) == key else item for index, item in enumerate(output)]
    return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)


@contextmanager
def hooked(model, places, e_lambda=E_LAMBDA, operator=attend):
    """Inside, the places of the stock model are attended.

    Args:
        places: paths (their channel axis is 1), or a mapping from path to axis.
        operator: called as `operator(x, e_lambda, channel_dim=axis)`, like `simam`.
    """
    axes = dict(places) if isinstance(places, Mapping) else dict.fromkeys(places, 1)
    handles = [_hook(model, place, axis, e_lambda, operator) for place, axis in axes.items()]
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


def _hook(model, place, axis, e_lambda, operator):
    def change(x):
        return operator(x, e_lambda, channel_dim=axis)

    path, _, key = place.removeprefix(">").partition(":")
    module = model.get_submodule(path)
    if place.startswith(">"):
        return module.register_forward_pre_hook(
            lambda _module, args: (_attend_entry(args[0], key or None, change), *args[1:])
        )
    return module.register_forward_hook(lambda _module, _args, output: _attend_entry(output, key or None, change))


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
    """Equal in number, shape, type and bits; there is at least one tensor. NaN equals NaN."""
    ours, theirs = tensors(one), tensors(other)
    return bool(ours) and len(ours) == len(theirs) and all(map(_same, ours, theirs))


def _same(one, other):
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def distance(one, other):
    """Largest relative distance |a - b| / |b| (Euclidean norms) among the tensors of two outputs."""
    pairs = list(zip(tensors(one), tensors(other), strict=True))
    assert pairs
    found = [
        ((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30)).item()
        for a, b in pairs
        if a.is_floating_point()
    ]
    assert all(map(torch.isfinite, map(torch.tensor, found))), "not finite"
    return max(found)


NEAR, FAR = 1e-8, 1e-4
"""In float64 rounding stays below the one, and attention moves every network of these tests by more than the other."""


def assert_right(found, expected, plain):
    """What was found is the oracle's output, which is not the plain model's."""
    assert distance(expected, plain) > FAR, "the oracle does not differ from the plain model: the test shows nothing"
    assert distance(found, expected) < NEAR


def assert_attended(found, stock, places, *args, **options):
    """What was found is what the stock model computes of the arguments with SimAM at the places, and not without."""
    with torch.no_grad():
        plain = stock(*args)
        with hooked(stock, places, **options):
            expected = stock(*args)
    assert_right(found, expected, plain)
