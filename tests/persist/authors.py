"""ResNet and MobileNetV2 with SimAM, in the module order of the authors. Written from the description in the paper.

Independent of the package: its own formula, its own blocks. The attended convolution and the attention stand in one
Sequential, so that its weights are called `conv2.0.weight`.
"""

import torch
from torch import nn


class Attention(nn.Module):
    """E_inv = (x - mu)^2 / (4 (v + lambda)) + 0.5;  y = x * sigmoid(E_inv)."""

    def __init__(self, e_lambda=0.1):
        super().__init__()
        self.e_lambda = e_lambda
        self.gate = nn.Sigmoid()

    def forward(self, x):
        count = x.shape[2] * x.shape[3] - 1
        square = (x - x.mean((2, 3), keepdim=True)) ** 2
        variance = square.sum((2, 3), keepdim=True) / count
        return x * self.gate(square / (4 * (variance + self.e_lambda)) + 0.5)


def attended(conv):
    return nn.Sequential(conv, Attention())


def shortcut(inside, outside, stride):
    if stride == 1 and inside == outside:
        return None
    return nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))


class Basic(nn.Module):
    growth = 1

    def __init__(self, inside, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = attended(nn.Conv2d(width, width, 3, 1, 1, bias=False))
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(inside, width, stride)

    def forward(self, x):
        skip = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + skip)


class Narrow(nn.Module):
    """The bottleneck."""

    growth = 4

    def __init__(self, inside, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = attended(nn.Conv2d(width, width, 3, stride, 1, bias=False))
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * 4)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(inside, width * 4, stride)

    def forward(self, x):
        skip = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + skip)


class ResNet(nn.Module):
    def __init__(self, block, depths, classes=10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inside = 64
        for stage, depth in enumerate(depths):
            blocks = []
            for index in range(depth):
                blocks.append(block(inside, 64 * 2**stage, 2 if stage and not index else 1))
                inside = 64 * 2**stage * block.growth
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inside, classes)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


def conv_norm(inside, outside, kernel, stride=1, groups=1, layout=None):
    conv = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False)
    tail = [nn.BatchNorm2d(outside), nn.ReLU6(inplace=True)]
    if layout == "wrapped":
        return nn.Sequential(attended(conv), *tail)
    return nn.Sequential(conv, *([Attention()] if layout else []), *tail)


class Inverted(nn.Module):
    def __init__(self, inside, outside, stride, growth, layout):
        super().__init__()
        width = inside * growth
        expand = [conv_norm(inside, width, 1)] if growth != 1 else []
        depthwise = conv_norm(width, width, 3, stride, width, "member" if layout == "flat" else layout)
        parts = [*expand, depthwise, nn.Conv2d(width, outside, 1, bias=False), nn.BatchNorm2d(outside)]
        if layout == "flat":
            parts = [child for part in parts for child in (part if isinstance(part, nn.Sequential) else [part])]
        self.conv = nn.Sequential(*parts)
        self.adds = stride == 1 and inside == outside

    def forward(self, x):
        return x + self.conv(x) if self.adds else self.conv(x)


class MobileNetV2(nn.Module):
    """`layout`: the attention wrapped with its convolution, a member of the depthwise Sequential, or all in one row."""

    def __init__(self, layout, classes=10):
        super().__init__()
        plan = (
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        )
        inside, features = 32, [conv_norm(3, 32, 3, 2)]
        for growth, outside, repeats, stride in plan:
            for index in range(repeats):
                features.append(Inverted(inside, outside, 1 if index else stride, growth, layout))
                inside = outside
        self.features = nn.Sequential(*features, conv_norm(inside, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


def trained(model, seed=0):
    """The model with statistics of its own, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            module.num_batches_tracked.fill_(7)
    return model.eval()
