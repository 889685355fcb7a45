"""The maps that are timed: shapes of real networks, two memory formats, two or three dtypes."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

CPU_SHAPES = ((8, 64, 56, 56), (8, 256, 56, 56), (8, 512, 14, 14), (8, 2048, 7, 7), (1, 64, 160, 160))
QUICK_CPU_SHAPES = (CPU_SHAPES[0], CPU_SHAPES[2])
GPU_SHAPES = (
    (256, 64, 56, 56),
    (256, 128, 28, 28),
    (256, 256, 14, 14),
    (256, 512, 7, 7),
    (8, 64, 56, 56),
    (1, 64, 160, 160),
    (32, 256, 56, 56),
)
OTHER_DTYPES_ON_GPU = (GPU_SHAPES[0], GPU_SHAPES[2])
COMPILED_ON_GPU = (GPU_SHAPES[0], GPU_SHAPES[2], GPU_SHAPES[5])
QUICK_GPU_SHAPES = (GPU_SHAPES[0], GPU_SHAPES[3])
LAYOUTS = {"nchw": torch.contiguous_format, "channels last": torch.channels_last}


@dataclass(frozen=True, slots=True)
class Case:
    """One map."""

    shape: tuple[int, ...]
    layout: str
    dtype: torch.dtype
    is_compiled: bool
    """Whether compiled forms are timed too: a GPU has time for some cases only."""

    @property
    def name(self) -> str:
        return f"{'x'.join(map(str, self.shape))} {self.layout} {self.dtype_name}"

    @property
    def dtype_name(self) -> str:
        return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[self.dtype]

    def make(self, device: torch.device, requires_grad: bool = False) -> torch.Tensor:
        x = torch.randn(self.shape, device=device).to(self.dtype)
        return x.contiguous(memory_format=LAYOUTS[self.layout]).requires_grad_(requires_grad)


def cases(device: torch.device, *, is_quick: bool, is_compiled: bool) -> Iterator[Case]:
    """All cases for a device."""
    if device.type == "cuda":
        for shape in QUICK_GPU_SHAPES if is_quick else GPU_SHAPES:
            more = shape in OTHER_DTYPES_ON_GPU and not is_quick
            for dtype in (torch.bfloat16, torch.float32, torch.float16) if more else (torch.bfloat16,):
                for layout in LAYOUTS:
                    compiled = is_compiled and shape in COMPILED_ON_GPU and dtype == torch.bfloat16
                    yield Case(shape, layout, dtype, compiled)
        return
    for dtype in (torch.float32, torch.bfloat16):
        for layout in LAYOUTS:
            for shape in QUICK_CPU_SHAPES if is_quick else CPU_SHAPES:
                yield Case(shape, layout, dtype, is_compiled)
