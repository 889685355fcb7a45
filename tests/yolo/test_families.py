"""Every family and task of ultralytics: inject, verify, build anew from the yaml, fuse, eject."""

import copy

import pytest
import torch
from torch import nn
from ultralytics import RTDETR, YOLO

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
    """Real statistics in every BatchNorm, so that the output reacts to what is inside."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
            module.train()
    network(image)
    network.eval()


@torch.no_grad()
def maps(network, image) -> torch.Tensor:
    """What the head is given: its own output may be the best few boxes, whose order rounding can change."""
    kept = []
    handle = network.model[-1].register_forward_pre_hook(
        lambda _, args: kept.extend(tensor for _, tensor in tensors_in(args))
    )
    network(image)
    handle.remove()
    return torch.cat([tensor.flatten().double() for tensor in kept])


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.zoo) for n in FAMILIES])
def test_family(name):
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

    spread(network, image)
    expected = maps(network, image)
    with bypass(yolo):
        plain = maps(network, image)
    fused = maps(copy.deepcopy(network).fuse(verbose=False), image)
    near, far = (fused - expected).abs().max(), (plain - expected).abs().max()
    assert far > 1000 * near, (near, far)

    eject(yolo)
    assert not injected(yolo)
    assert "simam" not in network.yaml
    assert [type(module) for module in network.modules()] == [type(module) for module in build(name).model.modules()]
    assert torch.equal(maps(network, image), plain)
