"""A small network in a file of the working directory, and the program as a function."""

import pytest
from typer.testing import CliRunner

from simam_inject.cli.app import app
from simam_inject.zoo import build

NETS = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return x + self.conv2(torch.relu(self.bn1(self.conv1(x))))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(Block(8), Block(8))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.pool(self.blocks(self.stem(x))).flatten(1))


class Deep(Net):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Block(8), Block(8), nn.Conv2d(8, 8, 3, 2, 1), Block(8))


class Broken(Net):
    def forward(self, x):
        raise RuntimeError("the user's own mistake")


def make_wrapped():
    return nn.DataParallel(Net())


def make_part():
    from simam_inject import inject

    model, rule = Net(), {"path": "conv1", "after": "output"}
    inject(model.blocks[0], {"rules": [rule]}, example_inputs=torch.rand(1, 8, 8, 8), strength=0.3)
    return model


def make_fixed():
    net = Net()
    net.pool, net.head = nn.Identity(), nn.Linear(8 * 16 * 16, 5)
    return net


def make_compiled():
    return torch.compile(Net())


def make_scripted():
    return torch.jit.script(nn.ReLU())


def make_meta():
    with torch.device("meta"):
        return Net()


def make_wide(num_classes=5):
    net = Net()
    net.head = nn.Linear(8, num_classes)
    return net


def make_deep():
    torch.manual_seed(0)
    return Deep()


def make_noisy():
    print("a factory that talks")
    return Net()
"""


@pytest.fixture
def folder(project, monkeypatch):
    """The working directory, with `nets.py` in it."""
    (project / "nets.py").write_text(NETS)
    monkeypatch.setenv("COLUMNS", "160")
    return project


@pytest.fixture
def built(monkeypatch):
    """The models that commands build."""
    made = []
    monkeypatch.setattr(
        "simam_inject.cli.preparing.build", lambda *args, **options: made.append(build(*args, **options)) or made[-1]
    )
    return made


@pytest.fixture
def run(folder):
    """`run("nets.py:Net", "--after", "block")` -> result with exit_code, stdout, stderr."""

    def invoke(*arguments: str):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="simam-inject")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke
