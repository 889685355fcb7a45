"""Every family and task of ultralytics: inject, verify, build anew from the yaml, fuse, eject."""

import copy

import pytest
import torch
from torch import nn
from ultralytics import RTDETR, YOLO
from ultralytics.utils.torch_utils import fuse_conv_and_bn

from simam_inject import bypass, eject, inject, injected, verify
from simam_inject.nested import tensors_in

RECIPE = "yolo-neck"
FAMILIES = {
    "yolov8n": RECIPE,
    "yolov8n-cls": "yolo-backbone",
    "yolo26n-pose": RECIPE,
    "yolov3-tiny": {"version": 1, "rules": [{"path": "model.*", "block": "Conv", "after": "output"}]},
    "yolov5n": RECIPE,
    "yolov6n": RECIPE,
    "yolov8n-seg": RECIPE,
    "yolov8n-pose": RECIPE,
    "yolov8n-obb": RECIPE,
    "yolov8s-world": RECIPE,
    "yolov8s-worldv2": RECIPE,
    "yoloe-v8s": RECIPE,
    "yoloe-11s-seg": RECIPE,
    "yolov9t": RECIPE,
    "yolov10n": RECIPE,
    "yolo11n": RECIPE,
    "yolo11n-seg": RECIPE,
    "yolo11n-pose": RECIPE,
    "yolo11n-obb": RECIPE,
    "yolo11n-cls": "yolo-backbone",
    "yolo12n": RECIPE,
    "yolo26n": RECIPE,
    "yolo26n-seg": RECIPE,
    "yolo26n-obb": RECIPE,
    "yolo26n-cls": "yolo-backbone",
    "rtdetr-l": RECIPE,
    "yolov8-rtdetr": RECIPE,
}
QUICK = ("yolov8n-cls", "yolov9t")
SIDE = 128


def build(name):
    return (RTDETR if "rtdetr" in name else YOLO)(f"{name}.yaml")


@torch.no_grad()
def spread(network, image) -> None:
    """Real statistics and uneven weights in every BatchNorm: else folding a norm looks exact where it is not."""
    random = torch.Generator().manual_seed(2)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.weight.copy_(1 + 0.3 * torch.randn(norm.weight.shape, generator=random))
        norm.bias.copy_(0.3 * torch.randn(norm.bias.shape, generator=random))
        norm.momentum = None
        norm.reset_running_stats()
        norm.train()
    network(image)
    network.eval()


@torch.no_grad()
def maps(network, image) -> list[torch.Tensor]:
    """What every layer but the head returns: the head's own output may be the best few boxes, in an order that rounding
    can change, and its inputs alone would hide an error in an early layer.
    """
    kept = {}
    handles = [
        layer.register_forward_hook(lambda _m, _a, out, index=index: kept.update({index: out}))
        for index, layer in enumerate(network.model[:-1])
    ]
    network(image)
    for handle in handles:
        handle.remove()
    return [tensor.double() for _, out in sorted(kept.items()) for _, tensor in tensors_in(out)]


def difference(found, expected) -> list[float]:
    """Of each layer, relative to its largest value."""
    pairs = zip(found, expected, strict=True)
    return [((one - other).abs().max() / other.abs().max()).item() for one, other in pairs]


def folds_doubles() -> bool:
    """Rounding differs from errors in double precision, and 8.4.0 folds norms in single precision only."""
    try:
        fuse_conv_and_bn(nn.Conv2d(1, 1, 1, bias=False).double(), nn.BatchNorm2d(1).double())
    except RuntimeError:
        return False
    return True


@pytest.mark.skipif(not folds_doubles(), reason="this release cannot fuse a network in double precision")
@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.zoo) for n in FAMILIES])
def test_every_family_is_injected_rebuilt_fused_and_ejected(name):
    try:
        yolo = build(name)
    except FileNotFoundError:
        pytest.skip(f"this release has no {name}.yaml")
    image = torch.rand(2, 3, SIDE, SIDE)
    network = yolo.model.eval()
    keys = list(network.state_dict())
    inject(yolo, FAMILIES[name], example_inputs=image[:1], verify=False)
    sites = injected(yolo)
    assert len(sites) >= 2
    assert list(network.state_dict()) == keys
    found = verify(yolo, example_inputs=image[:1])
    assert found.ok, [check for check in found.checks if not check.ok]

    again = type(network)(copy.deepcopy(network.yaml), verbose=False)
    assert [(site.path, site.reader) for site in injected(again)] == [(site.path, site.reader) for site in sites]

    network.double()  # rounding in a deep network of random weights can reach 1e-3 in single precision
    image = image.double()
    spread(network, image)
    expected = maps(network, image)
    with bypass(yolo):
        plain = maps(network, image)
    fused = copy.deepcopy(network).fuse(verbose=False)
    near, far = difference(maps(fused, image), expected), difference(plain, expected)
    assert max(near) < 1e-9, near
    assert max(far) > 1e-3, (near, far)
    for module in fused.modules():  # what the exporter does
        if hasattr(module, "forward_split"):
            module.forward = module.forward_split
    assert max(difference(maps(fused, image), expected)) < 1e-9

    eject(yolo)
    assert not injected(yolo)
    assert "simam" not in network.yaml
    assert [type(module) for module in network.modules()] == [type(module) for module in build(name).model.modules()]
    assert all(map(torch.equal, maps(network, image), plain))


@pytest.mark.parametrize(
    "name",
    [
        "yolov8n",
        *(pytest.param(n, marks=pytest.mark.zoo) for n in ("yolov8n-seg", "yolov8s-world", "yolov10n", "yolo26n")),
    ],
)
def test_the_maps_that_a_head_is_given(name):
    """Heads write into the list of maps that they are given, and return it inside a tuple or dict in eval mode."""
    yolo = build(name)
    head = f"model.{len(yolo.model.model) - 1}"
    inject(yolo, {"rules": [{"path": head, "before": "input"}]}, example_inputs=torch.rand(1, 3, SIDE, SIDE))
    assert [site.edit.module for site in injected(yolo)] == [head] * 3
    found = verify(yolo)
    assert found.ok
    assert not [check for check in found.checks if check.ok is None]
