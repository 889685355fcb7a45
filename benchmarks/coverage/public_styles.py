"""Networks in the styles of public repositories, with names that no list can know: those of `tests/nets`."""

from __future__ import annotations

import importlib

import torch

from simam_inject.zoo import ZooModel

FILES = ("classifiers", "restoring", "scales", "unets")


def list_nets() -> tuple[str, ...]:
    """Names of all networks; the repository's top folder is the working directory."""
    for name in FILES:
        importlib.import_module(f"tests.nets.{name}")
    return tuple(importlib.import_module("tests.nets.parts").NETS)


def build(name: str) -> ZooModel:
    """One network as the zoo would give it."""
    list_nets()
    net = importlib.import_module("tests.nets.parts").NETS[name]
    torch.manual_seed(0)
    shapes = tuple((1, *shape[1:]) for shape in net.shapes)
    return ZooModel(name, net.factory().eval(), "public styles", "random weights", shapes)
