"""The networks of issue 2's "Done when": how to build each, where SimAM goes, and which module returns each value."""

import copy
import re
import warnings
from dataclasses import dataclass

import torch
from torch import nn

E_LAMBDA = 0.03


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


@dataclass(frozen=True)
class Network:
    library: str
    name: str
    rule: dict
    paths: str
    """Regular expression on the paths of the modules whose result is attended."""
    count: int

    def __str__(self):
        place = next(self.rule[key] for key in ("after", "before") if key in self.rule)
        return f"{self.name}-{place if isinstance(place, str) else place['op']}"

    def build(self):
        """With non-trivial norm statistics, in eval mode."""
        torch.manual_seed(3)
        return give_statistics(self._load()).eval()

    def _load(self):
        if self.library == "torchvision":
            import torchvision

            return torchvision.models.get_model(self.name, weights=None)
        if self.library == "timm":
            import timm

            return timm.create_model(self.name, pretrained=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from ultralytics import YOLO

            return YOLO(f"{self.name}.yaml", verbose=False).model

    @property
    def recipe(self):
        return {"rules": [self.rule], "e_lambda": E_LAMBDA}

    def attended(self, model):
        """Paths of the modules whose result is attended, from their names alone."""
        return [path for path, _ in model.named_modules() if re.fullmatch(self.paths, path)]


NETWORKS = (
    Network("torchvision", "resnet18", {"block": "basicblock", "after": "conv2"}, r"layer\d\.\d+\.conv2", 8),
    Network("torchvision", "resnet18", {"block": "basicblock", "after": "output"}, r"layer\d\.\d+", 8),
    Network("torchvision", "resnet50", {"block": "bottleneck", "after": "conv2"}, r"layer\d\.\d+\.conv2", 16),
    Network("torchvision", "resnext50_32x4d", {"block": "bottleneck", "after": "conv2"}, r"layer\d\.\d+\.conv2", 16),
    Network(
        "torchvision",
        "mobilenet_v2",
        {"block": "invertedresidual", "after": {"op": "conv2d", "groups": "depthwise"}},
        r"features\.1\.conv\.0\.0|features\.([2-9]|1[0-7])\.conv\.1\.0",
        17,
    ),
    Network(
        "timm", "resnetv2_50", {"block": "preactbottleneck", "after": "conv2"}, r"stages\.\d\.blocks\.\d+\.conv2", 16
    ),
    Network("timm", "convnext_atto", {"block": "convnextblock", "after": "output"}, r"stages\.\d\.blocks\.\d+", 12),
    Network("timm", "convnext_atto", {"block": "convnextblock", "after": "conv_dw"}, r".*\.conv_dw", 12),
    Network("timm", "densenet121", {"block": "denselayer", "after": "conv2"}, r".*\.denselayer\d+\.conv2", 58),
    Network("timm", "hrnet_w18_small", {"block": "basicblock", "after": "conv2"}, r"stage\d\..*\.conv2", 18),
    Network("ultralytics", "yolov8n", {"block": "c2f", "after": "output"}, r"model\.(2|4|6|8|12|15|18|21)", 8),
    Network("ultralytics", "yolov8n", {"block": "bottleneck", "after": "cv2"}, r"model\.\d+\.m\.\d+\.cv2", 10),
)


def image(batch=2, size=64, seed=11, dtype=torch.float32):
    return torch.rand((batch, 3, size, size), generator=torch.Generator().manual_seed(seed)).to(dtype)


def twin(model):
    return copy.deepcopy(model)
