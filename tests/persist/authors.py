"""torchvision's ResNet and MobileNetV2 with SimAM as a module, in the module order of the authors.

Independent of the package: its own formula, its own places. The attended convolution and the attention stand in one
Sequential, so that its weights are called `conv2.0.weight`.
"""

import torch
from torch import nn
from torchvision.models import mobilenet_v2
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import BasicBlock, Bottleneck


class Attention(nn.Module):
    """E_inv = (x - mu)^2 / (4 (v + lambda)) + 0.5;  y = x * sigmoid(E_inv)."""

    def __init__(self, e_lambda=0.1):
        super().__init__()
        self.e_lambda = e_lambda

    def forward(self, x):
        count = x.shape[2] * x.shape[3] - 1
        square = (x - x.mean((2, 3), keepdim=True)) ** 2
        variance = square.sum((2, 3), keepdim=True) / count
        return x * torch.sigmoid(square / (4 * (variance + self.e_lambda)) + 0.5)


def resnet(build):
    """Both blocks of torchvision attend their 3 x 3 convolution `conv2`."""
    model = build(num_classes=10)
    for module in model.modules():
        if isinstance(module, (BasicBlock, Bottleneck)):
            module.conv2 = nn.Sequential(module.conv2, Attention())
    return model


def mobilenet(layout):
    """`layout`: the attention wrapped with its convolution, a member of the depthwise Sequential, or all in one row."""
    model = mobilenet_v2(num_classes=10)
    for block in model.modules():
        if isinstance(block, InvertedResidual):
            *expand, depthwise, project, norm = block.conv
            conv, *tail = depthwise
            attended = [nn.Sequential(conv, Attention())] if layout == "wrapped" else [conv, Attention()]
            depthwise = nn.Sequential(*attended, *tail)
            parts = [*expand, depthwise, project, norm]
            if layout == "flat":
                parts = [child for part in parts for child in (part if isinstance(part, nn.Sequential) else [part])]
            block.conv = nn.Sequential(*parts)
    return model


def trained(model, seed=0):
    """The model with statistics of its own, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            module.num_batches_tracked.fill_(7)
    return model.eval()
