"""The module inside DDP, DataParallel and `torch.compile`, whose prefixes have no place in a file."""

from __future__ import annotations

import torch
from torch import nn


def unwrapped(model: nn.Module) -> nn.Module:
    """The module that the wrappers hold; the model itself if there are none."""
    while True:
        inner = None
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        elif isinstance(model, torch._dynamo.eval_frame.OptimizedModule):
            inner = model._orig_mod
        if not isinstance(inner, nn.Module):
            return model
        model = inner
