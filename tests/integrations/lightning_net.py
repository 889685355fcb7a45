"""A LightningModule whose checkpoint is loaded in other processes too."""

import torch
from lightning.pytorch import LightningModule
from torch import nn


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)) + x)


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.blocks = nn.Sequential(Block(8), Block(8))

    def forward(self, x):
        return self.blocks(self.stem(x))


class Net(LightningModule):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.example_input_array = torch.zeros(1, 3, 16, 16)
        self.net = Inner()
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        return self.head(self.net(x).mean((2, 3)))

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        data = torch.utils.data.TensorDataset(torch.rand(16, 3, 16, 16), torch.arange(16) % 2)
        return torch.utils.data.DataLoader(data, batch_size=4)


RECIPE = "after block.conv"
SITES = ["net.blocks.0.conv", "net.blocks.1.conv"]
