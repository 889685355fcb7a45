"""Twelve placements in nine real networks: bit-equal to plain hooks that run the operator, and near the formula."""

import copy
import re

import pytest
import torch

from simam_inject import SimAM, inject, injected, simam
from simam_inject.adapters import network_of
from simam_inject.zoo import build
from tests.oracle import E_LAMBDA, distance, hooked, same_bits

DEPTHWISE = {"op": "conv2d", "groups": "depthwise"}
NETWORKS = [
    # name, block, place, modules whose result is attended (by their paths alone), how many
    ("torchvision:resnet18", "basicblock", "conv2", r"layer\d\.\d+\.conv2", 8),
    ("torchvision:resnet18", "basicblock", "output", r"layer\d\.\d+", 8),
    ("torchvision:resnet50", "bottleneck", "conv2", r"layer\d\.\d+\.conv2", 16),
    ("torchvision:resnext50_32x4d", "bottleneck", "conv2", r"layer\d\.\d+\.conv2", 16),
    (
        "torchvision:mobilenet_v2",
        "invertedresidual",
        DEPTHWISE,
        r"features\.(1\.conv\.0|([2-9]|1[0-7])\.conv\.1)\.0",
        17,
    ),
    ("timm:resnetv2_50", "preactbottleneck", "conv2", r"stages\.\d\.blocks\.\d+\.conv2", 16),
    ("timm:convnext_atto", "convnextblock", "output", r"stages\.\d\.blocks\.\d+", 12),
    ("timm:convnext_atto", "convnextblock", "conv_dw", r".*\.conv_dw", 12),
    ("timm:densenet121", "denselayer", "conv2", r".*\.denselayer\d+\.conv2", 58),
    ("timm:hrnet_w18_small", "basicblock", "conv2", r"stage\d\..*\.conv2", 18),
    ("ultralytics:yolov8n", "c2f", "output", r"model\.(2|4|6|8|12|15|18|21)", 8),
    ("ultralytics:yolov8n", "bottleneck", "cv2", r"model\.\d+\.m\.\d+\.cv2", 10),
]


def give_statistics(model):
    """Make every norm and layer scale matter, so that no two orders of operations agree."""
    noise = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for module in model.modules():
            is_norm = "norm" in type(module).__name__.lower()
            ranges = {"running_mean": (-0.3, 0.3), "running_var": (0.5, 1.5), "gamma": (0.2, 0.5)}
            ranges |= {"weight": (0.6, 1.4), "bias": (-0.2, 0.2)} if is_norm else {}
            for name, (low, high) in ranges.items():
                tensor = getattr(module, name, None)
                if isinstance(tensor, torch.Tensor):
                    tensor.copy_(torch.rand(tensor.shape, generator=noise) * (high - low) + low)
    return model


@pytest.mark.parametrize(("name", "block", "place", "pattern", "count"), NETWORKS)
def test_a_real_network_is_the_stock_one_with_hooks(name, block, place, pattern, count):
    torch.manual_seed(3)
    stock = give_statistics(network_of(build(name).model)).eval()
    x = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(11))
    paths = [path for path, _ in stock.named_modules() if re.fullmatch(pattern, path)]
    recipe = {"rules": [{"block": block, "after": place}], "e_lambda": E_LAMBDA}
    model = inject(copy.deepcopy(stock), recipe, example_inputs=x, verify=False)
    assert sorted(site.path for site in injected(model)) == sorted(paths)
    assert sum(isinstance(module, SimAM) for module in model.modules()) == len(paths) == count
    with torch.no_grad():
        with hooked(stock, paths, operator=simam):
            expected = stock(x)
        assert same_bits(model(x), expected)
        stock, model, x = stock.double(), model.double(), x.double()
        with hooked(stock, paths):
            expected = stock(x)
        assert distance(model(x), expected) < 1e-6
        assert distance(stock(x), expected) > 1e-3
