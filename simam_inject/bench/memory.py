"""Memory: bytes that autograd keeps for the backward pass, and the peak on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def bytes_kept(model: nn.Module, run: Callable[[], object]) -> int:
    """Bytes of the distinct storages that `run` saves for backward, parameters and buffers aside."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    del result
    return sum(kept.values())


def peak_bytes(run: Callable[[], object], device: torch.device) -> int | None:
    """Most bytes allocated on the GPU while `run` runs; None on a CPU, whose allocator does not count."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device))
