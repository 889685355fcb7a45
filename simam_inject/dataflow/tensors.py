"""Questions about tensors and torch functions that a recording asks."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

NOT_READS = frozenset(
    [
        "shape",
        "dtype",
        "device",
        "ndim",
        "layout",
        "is_cuda",
        "is_cpu",
        "is_meta",
        "is_sparse",
        "is_quantized",
        "is_leaf",
        "requires_grad",
        "grad_fn",
        "grad",
        "names",
        "size",
        "dim",
        "stride",
        "numel",
        "nelement",
        "ndimension",
        "is_floating_point",
        "is_complex",
        "is_contiguous",
        "element_size",
        "get_device",
        "len",
        "storage_offset",
        "data_ptr",
        "untyped_storage",
        "storage",
        "type",
        "is_signed",
        "is_inference",
        "is_nested",
        "is_mps",
        "is_xla",
        "itemsize",
        "nbytes",
        "format",
        "repr",
        "str",
        "hash",
        "version",
        "retain_grad",
        "register_hook",
        "has_names",
        "is_mkldnn",
        "is_shared",
        "is_pinned",
        "requires_grad_",
        "sym_size",
        "output_nr",
    ]
)
"""Attributes and methods that do not look at a tensor's content."""


def is_method(func: Callable[..., Any]) -> bool:
    """It is a method of tensors, rather than a function."""
    return isinstance(func, (types.MethodDescriptorType, types.WrapperDescriptorType)) or (
        getattr(func, "__qualname__", "").startswith(("Tensor.", "TensorBase.", "_TensorBase."))
    )


def version_of(tensor: torch.Tensor) -> int | None:
    """How often the tensor's memory was written; None where torch does not count."""
    return None if tensor.is_inference() else tensor._version


def storage_of(tensor: torch.Tensor) -> int:
    """Identity of the memory behind a tensor; 0 where it has none of the usual kind."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):
        return 0


def with_aliases(result: Any, given: list[torch.Tensor]) -> Any:
    """The result with another tensor object in the place of every tensor that was an argument."""
    identities = {id(tensor) for tensor in given}

    def alias(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor) and id(leaf) in identities:
            try:
                return leaf.view_as(leaf)
            except (RuntimeError, NotImplementedError):  # sparse, nested
                return leaf
        return leaf

    return pytree.tree_map(alias, result)


def source_position(module: nn.Module) -> tuple[types.CodeType, int] | None:
    """Code and instruction of the method of this very module that runs the operation; None for any other place."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if not name.startswith(("torch.", "simam_inject.dataflow.")):
            owner = frame.f_locals.get(frame.f_code.co_varnames[0]) if frame.f_code.co_argcount else None
            return (frame.f_code, frame.f_lasti) if owner is module else None
        frame = frame.f_back
    return None
