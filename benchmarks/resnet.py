"""ResNet-50 with SimAM where the authors put it, and its peers both there and where they are usually put."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models import resnet50

from benchmarks.popular import PopularSimAM
from simam_inject import SimAM
from simam_inject.bench.run import peer_factory
from simam_inject.zoo.names import PEERS

RECIPE = "paper"
USUAL = "bn3"
"""Squeeze-and-excite and its kin follow the block's last norm: four times the channels of SimAM's place, `conv2`."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One input and memory format."""

    batch: int
    pixels: int
    layout: torch.memory_format
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        layout = "channels last" if self.layout == torch.channels_last else "nchw"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"batch {self.batch}, {self.pixels} px, {layout}, {dtype}"

    def image(self, device: torch.device) -> Tensor:
        x = torch.randn(self.batch, 3, self.pixels, self.pixels, device=device, dtype=self.dtype)
        return x.contiguous(memory_format=self.layout)

    def place(self, model: nn.Module, device: torch.device) -> nn.Module:
        return model.to(device, self.dtype).to(memory_format=self.layout)


def settings(device: torch.device, *, is_quick: bool) -> tuple[Setting, ...]:
    if device.type == "cuda":
        return (Setting(64 if is_quick else 256, 224, torch.channels_last, torch.bfloat16),)
    small = (Setting(4, 128, torch.contiguous_format), Setting(4, 128, torch.channels_last))
    return small[:1] if is_quick else (*small, Setting(1, 224, torch.contiguous_format))


def plain() -> nn.Module:
    torch.manual_seed(0)
    return resnet50(weights=None)


def attentions() -> Iterator[tuple[str, str, Callable[[int], nn.Module]]]:
    """Name, place and maker of every attention that is compared."""
    yield "SimAM", "conv2", lambda _: SimAM(0.1)
    yield "SimAM, popular form", "conv2", lambda _: PopularSimAM(0.1)
    for place in (USUAL, "conv2"):
        for name in PEERS:
            yield f"{name.upper()} after {place}", place, peer_factory(name)


def sites(place: str) -> list[str]:
    """Paths of one child in each of the 16 blocks; `conv2` is where the recipe `paper` attends."""
    return [f"layer{stage}.{block}.{place}" for stage, blocks in enumerate((3, 4, 6, 3), 1) for block in range(blocks)]


def attended(model: nn.Module, paths: list[str], make: Callable[[int], nn.Module]) -> nn.Module:
    """A copy of `model` with an attention after each module, put in by a Sequential: no surgery of ours takes part."""
    twin = copy.deepcopy(model)
    for path in paths:
        child = twin.get_submodule(path)
        channels = child.out_channels if isinstance(child, nn.Conv2d) else child.num_features
        twin.set_submodule(path, nn.Sequential(child, make(channels)))
    return twin


def make_step(model: nn.Module, image: Tensor, *, is_training: bool) -> Callable[[], object]:
    """What is timed of a network: a forward, or a step of SGD."""
    if not is_training:

        def infer() -> object:
            with torch.no_grad():
                return model(image)

        return infer
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

    def train() -> None:
        optimizer.zero_grad()
        model(image).float().mean().backward()
        optimizer.step()

    return train
