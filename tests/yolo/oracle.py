"""What an injected YOLOv8n must compute, said without the package: hooks on a stock network that is never fused.

Every comparison is a pair: close to the oracle, and more than a thousand times further from the same network without
SimAM. Without the second half a network that lost its attention would pass, since an untrained YOLO barely reacts to
its early layers; so BatchNorm gets real statistics first.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import nn
from ultralytics.nn import tasks

from tests.oracle import attend

RECIPE = {
    "version": 1,
    "name": "everywhere",
    "e_lambda": 0.05,
    "rules": [
        {"path": ["model.2", "model.4", "model.21"], "after": "output"},
        {"path": "model.15", "after": "cv1"},  # inside a C2f, before the split
        {"path": "model.1", "after": "bn"},  # inside a Conv, between norm and activation
        {"path": ["model.0", "model.3"], "after": "conv", "e_lambda": 0.001},  # between conv and norm: it may not
        {"path": "model.22.cv3.0.0", "after": "output"},  # in the part of the head that a new class count replaces
    ],
}
SITES = {
    "model.0.conv": 0.001,
    "model.1.bn": 0.05,
    "model.2": 0.05,
    "model.3.conv": 0.001,
    "model.4": 0.05,
    "model.15.cv1": 0.05,
    "model.21": 0.05,
    "model.22.cv3.0.0": 0.05,
}
KEPT_NORMS = {"model.0.bn", "model.1.bn", "model.3.bn"}
FACTOR = 1000


def stock_twin(network: nn.Module) -> nn.Module:
    """The same network without SimAM: the same architecture and weights, never fused."""
    table = {key: value for key, value in deepcopy(network.yaml).items() if key != "simam"}
    twin = tasks.DetectionModel(table, ch=3, nc=table["nc"], verbose=False)
    state = network.float().state_dict()
    assert list(state) == list(twin.state_dict())
    for key, tensor in state.items():  # not load_state_dict: a head for two classes keeps the width it had for eighty
        owner, _, name = key.rpartition(".")
        module = twin.get_submodule(owner)
        if name in module._parameters:
            module._parameters[name] = nn.Parameter(tensor.clone())
        else:
            module._buffers[name] = tensor.clone()
    return twin.eval()


def output(result: object) -> torch.Tensor:
    """The predictions, whatever comes beside them."""
    while isinstance(result, (list, tuple)):
        result = result[0]
    return torch.as_tensor(result).detach().double()


@torch.no_grad()
def check_pair(found: object, network: nn.Module, image: torch.Tensor, *, sites: dict[str, float] = SITES) -> dict:
    """Raise unless `found` is what the injected `network` (unfused, for its weights) must give for `image`."""
    twin = stock_twin(network)
    plain = output(twin(image))
    modules = dict(twin.named_modules())
    handles = [
        modules[path].register_forward_hook(lambda _m, _a, out, lam=lam: attend(out, lam))
        for path, lam in sites.items()
    ]
    expected = output(twin(image))
    for handle in handles:
        handle.remove()
    near = (output(found) - expected).abs().max().item()
    far = (plain - expected).abs().max().item()
    pair = {"near": near, "far": far}
    assert far > 0.05, f"the network does not react to SimAM: {pair}"
    assert far > FACTOR * near, f"not the oracle's output: {pair}"
    return pair


@torch.no_grad()
def give_statistics(network: nn.Module, images: torch.Tensor) -> None:
    """Estimate every BatchNorm's statistics on these images."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    network.train()
    network(images)
    network.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


class Counter:
    """How many SimAMs and how many networks ran, and what `AutoBackend` was given and gave."""

    def __init__(self) -> None:
        self.attentions = 0
        self.networks = 0
        self.calls: list[tuple[torch.Tensor, object]] = []
        self.norms: set[str] = set()

    def restart(self, *_: object) -> None:
        """Forget what ran so far."""
        self.attentions = self.networks = 0


@contextmanager
def counting() -> Iterator[Counter]:
    """Count in the whole process, whichever object the library runs."""
    counter = Counter()

    def note(module: nn.Module, args: tuple, result: object) -> None:
        name = type(module).__name__
        if args and isinstance(args[0], torch.Tensor) and args[0].is_meta:
            return  # a forward that only finds shapes out
        counter.attentions += name == "SimAM"
        counter.networks += name == "DetectionModel"
        if name == "AutoBackend":
            counter.calls.append((args[0].detach().clone(), deepcopy(output(result))))
            counter.norms = {
                path.removeprefix("model.").removeprefix("backend.model.")
                for path, part in module.model.named_modules()
                if isinstance(part, nn.BatchNorm2d)
            }

    handle = nn.modules.module.register_module_forward_hook(note)
    try:
        yield counter
    finally:
        handle.remove()


@contextmanager
def library_as_it_is(*more: type) -> Iterator[None]:
    """Inside, ultralytics' networks have their own functions, and so has whatever else is given."""
    classes = [kind for kind in vars(tasks).values() if isinstance(kind, type) and issubclass(kind, tasks.BaseModel)]
    wrapped = [
        (owner, name, function)
        for owner in (tasks, *classes, *more)
        for name, function in vars(owner).items()
        if hasattr(function, "_simam_original")
    ]
    for owner, name, function in wrapped:
        setattr(owner, name, function._simam_original)
    try:
        yield
    finally:
        for owner, name, function in wrapped:
            setattr(owner, name, function)


def live_sites(network: nn.Module) -> set[str]:
    """Paths of the SimAM modules."""
    return {path for path, module in network.named_modules() if type(module).__name__ == "SimAM"}
