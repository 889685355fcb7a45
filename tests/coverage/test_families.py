"""One model of every family that has a spatial conv map, small: every block and convolution attended, in and out again.

The default run takes the models of `families.txt` above the line. All of them, with every check of `verify`:
`pytest -m zoo tests/coverage`.
"""

import re
from pathlib import Path

import pytest
import torch

from simam_inject import eject, injected, plan, verify
from tests.goldens.freeze import build, example
from tests.oracle import E_LAMBDA, distance, hooked, same_bits, tensors

pytestmark = pytest.mark.filterwarnings("ignore")  # each library's own

DAILY, OTHERS = (
    part.split() for part in Path(__file__).with_name("families.txt").read_text(encoding="utf-8").split("---")
)
EVERYTHING = {
    "e_lambda": E_LAMBDA,
    "rules": [
        {"path": "*", "after": {"op": "conv"}, "optional": True},
        {"block": "*", "after": "output", "optional": True},
    ],
}
WHOLE = ("timm:coat", "timm:levit", "timm:tiny_vit", "timm:efficientvit_m", "timm:hiera", "timm:nest", "timm:xcit")
"""Families that take images of the declared size only, or whose last map is a single pixel in a small image."""
SINGLE = ("torchvision:quantized", "torchvision:raft")
"""Networks that make float32 tensors of their own."""
TWICE = {"timm:selecsls42": {"features.0:1": 1, "features.2:1": 1}}
"""Entries of a list that are the very tensor of a site, at another place in it."""
RANKING = ("rcnn", "ssd", "fcos", "retinanet")
"""Detectors that order their boxes by score: `verify` alone compares them."""
NEAR, FAR = 1e-6, 1e-5
"""In float64. Rounding grows through a hundred attended maps, and some heads average most of the change away."""


def awake(model):
    """In float64, with no parameter at zero: what a zero multiplies would be hidden."""
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.numel() and not parameter.any():
                parameter.copy_(torch.rand(parameter.shape, generator=noise) * 0.2 + 0.1)
    for module in (model, getattr(model, "roi_heads", model)):
        if hasattr(module, "score_thresh"):
            module.score_thresh = -1.0  # with random weights, all scores are low
    return model.double()


def run(model, inputs):
    torch.manual_seed(0)
    with torch.no_grad():
        return model(*inputs)


def inputs_for(key, model):
    """Images of 64 pixels where the model takes them, else of the declared size."""
    dtype = next(model.parameters()).dtype
    inputs = example(key, model)
    whole = tuple([i.to(dtype) for i in one] if isinstance(one, list) else one.to(dtype) for one in inputs)
    if isinstance(whole[0], list) or key.startswith(WHOLE):
        return whole
    small = tuple(tensor[..., :64, :64] for tensor in whole)
    try:
        run(model, small)
    except Exception:
        return whole
    return small


def differ(one, other):
    ours, theirs = tensors(one), tensors(other)
    return [t.shape for t in ours] != [t.shape for t in theirs] or distance(one, other) > FAR


def check(key):
    model = awake(build(key))
    model = model.float() if key.startswith(SINGLE) else model
    yield from check_model(key, model, inputs_for(key, model))


def check_model(key, model, inputs):
    """Attend everything, yield the injected model with its inputs, and take all out again."""
    plain, keys = run(model, inputs), list(model.state_dict())
    modules = dict(model.named_modules())
    planned = plan(model, EVERYTHING, example_inputs=inputs)
    planned.apply()
    there = injected(model)
    assert set(there) == set(planned.insertions)
    assert there
    assert all(skip.reason for skip in planned.skips)
    found = run(model, inputs)
    assert list(model.state_dict()) == keys
    assert differ(found, plain)
    yield model, inputs
    eject(model)
    assert {path: type(module) for path, module in model.named_modules()} == {p: type(m) for p, m in modules.items()}
    assert all(modules[path] is module for path, module in model.named_modules())
    assert same_bits(run(model, inputs), plain)
    if any(name in key for name in RANKING):
        return
    if all(re.sub(r":.*", "", one.path) in modules and one.runs == 1 for one in there):
        with hooked(model, {one.path: one.channel_dim for one in there} | TWICE.get(key, {})):
            expected = run(model, inputs)
        assert differ(expected, plain)
        assert distance(found, expected) < (1e-2 if key.startswith(SINGLE) else NEAR)


@pytest.mark.parametrize("key", DAILY)
def test_every_family_is_attended_like_hooks_and_ejected(key):
    for _ in check(key):
        pass


@pytest.mark.zoo
@pytest.mark.parametrize("key", DAILY + OTHERS)
def test_every_family_is_verified(key):
    for model, inputs in check(key):
        found = verify(model, example_inputs=inputs)
        assert found.ok, str(found)
