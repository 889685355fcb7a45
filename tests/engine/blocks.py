"""Small blocks with one difficulty each, at module level so that they pickle. In each one `a` is attended."""

import random

import torch
from torch import nn


def conv(c_in=4, c_out=4, **options):
    return nn.Conv2d(c_in, c_out, 3, padding=1, **options)


class Block(nn.Module):
    """b(a(x)); the others change one thing."""

    def __init__(self):
        super().__init__()
        self.a, self.b = conv(), conv()

    def forward(self, x):
        return self.b(self.a(x))


class Net(nn.Module):
    """A network around one block."""

    def __init__(self, block):
        super().__init__()
        self.stem = conv(3, 4)
        self.block = block

    def forward(self, x):
        return self.block(self.stem(x))


# What a graph cannot hold: the block is left as it is, and `a` itself is wrapped.


class BranchesOnShape(Block):
    def forward(self, x):
        y = self.a(x)
        return self.b(y) if y.shape[-1] > 4 else y


class BranchesOnBatch(Block):
    def forward(self, x):
        y = self.a(x)
        return self.b(y) if len(x) == 1 else y


class BranchesOnData(Block):
    def forward(self, x):
        y = self.a(x)
        return self.b(y) if y.mean() > 0 else y


class BranchesOnBuffer(Block):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.tensor(0.0))

    def forward(self, x):
        y = self.a(x)
        return self.b(y) if self.count > 3 else y


class BranchesOnTensorAttribute(BranchesOnBuffer):
    def __init__(self):
        super().__init__()
        del self.count
        self.count = torch.tensor(0.0)


class BranchesOnDataInTraining(Block):
    def forward(self, x):
        y = self.a(x)
        return y if self.training and y.mean() > 0 else self.b(y)


class LoopsOverBatch(Block):
    def forward(self, x):
        return torch.stack([self.b(part[None])[0] for part in self.a(x)])


class RepeatsBySize(Block):
    def forward(self, x):
        y = self.a(x)
        for _ in range(x.shape[-1] // 4):
            y = self.b(y)
        return y


class DrawsInPython(Block):
    def forward(self, x):
        y = self.a(x)
        return self.b(y) if random.random() < 0.5 else y


class DrawsInTorch(Block):
    def forward(self, x):
        y = self.a(x)
        return self.b(y) if torch.rand(1).item() < 0.5 else y


class SetsAttribute(Block):
    last = None

    def forward(self, x):
        self.last = self.a(x)
        return self.b(self.last)


class CountsCalls(Block):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.b(self.a(x))


class FillsList(Block):
    def __init__(self):
        super().__init__()
        self.log = []

    def forward(self, x):
        y = self.a(x)
        self.log.append(y)
        return self.b(y)


class SwitchesGradients(Block):
    def forward(self, x):
        with torch.no_grad():
            y = self.a(x)
        return self.b(y)


class DecoratedNoGrad(Block):
    @torch.no_grad()
    def forward(self, x):
        return self.b(self.a(x))


class SwitchesAutocast(Block):
    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            y = self.a(x.float())
        return self.b(y)


class AsksForGradients(Block):
    def forward(self, x):
        y = self.a(x)
        return self.b(y) if torch.is_grad_enabled() else y


# What a graph holds as a constant and the generated forward checks.


class HasFlag(Block):
    def __init__(self):
        super().__init__()
        self.flag = False

    def forward(self, x):
        y = self.a(x)
        return y if self.flag else self.b(y)


class HasScales(Block):
    def __init__(self):
        super().__init__()
        self.scales = [1.0, 2.0]

    def forward(self, x):
        return self.b(self.a(x)) * self.scales[1]


class ReadsChild(Block):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([nn.Dropout(0.5)])

    def forward(self, x):
        return nn.functional.dropout(self.b(self.a(x)), self.parts[0].p, self.parts[0].training)


class HasLoop(Block):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([conv(), conv()])

    def forward(self, x):
        x = self.a(x)
        for part in self.parts:
            x = part(x)
        return x


class HasOptional(Block):
    def forward(self, x, skip=None):
        y = self.a(x)
        return self.b(y) if skip is None else self.b(y) + skip


class TakesKeywords(Block):
    def forward(self, x, **options):
        return self.b(self.a(x)) * options.get("scale", 1.0)


class TakesExtras(Block):
    def forward(self, x, *more):
        y = self.a(x)
        return self.b(y + more[0]) if more else self.b(y)


class TakesKeywordOnly(Block):
    def forward(self, x, *, scale=1.0, skip=None):
        y = self.b(self.a(x)) * scale
        return y if skip is None else y + skip


class TakesDict(Block):
    def forward(self, batch):
        y = self.a(batch["x"])
        return self.b(y * batch["mask"]) if "mask" in batch else self.b(y)


class TakesList(Block):
    def forward(self, parts):
        y = self.a(parts[0])
        for part in parts[1:]:
            if part is not None:
                y = y + part
        return self.b(y)


class TakesMode(Block):
    def forward(self, x, mode):
        y = self.a(x)
        return self.b(y) if mode == "full" else y


class HasHoles(Block):
    def __init__(self):
        super().__init__()
        self.register_module("extra", None)
        self.register_parameter("scale", None)

    def forward(self, x):
        y = self.b(self.a(x))
        y = y if self.extra is None else self.extra(y)
        y = y if self.scale is None else y * self.scale
        return self.later(y) if hasattr(self, "later") else y
