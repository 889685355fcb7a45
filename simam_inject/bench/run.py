"""The benchmark of one model and one recipe: inference and a training step, all variants interleaved in one run."""

from __future__ import annotations

import copy
import math
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import nn

from simam_inject.adapters import network_of
from simam_inject.api import eject, inject, injected
from simam_inject.bench.measuring import Quartiles, bytes_kept, peak_bytes, ratios, time_rounds
from simam_inject.dataflow.example import Example, example_of
from simam_inject.errors import ModelError, describe_exception
from simam_inject.nested import tensors_in
from simam_inject.zoo.names import PEERS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PLAIN, SIMAM = "plain", "SimAM"


@dataclass(frozen=True, slots=True)
class Conditions:
    """Under what circumstances to measure."""

    device: str = "cpu"
    batch: int = 1
    dtype: str = "fp32"
    channels_last: bool = False
    compile: bool = False
    rounds: int = 15
    warmups: int = 3


@dataclass(frozen=True, slots=True)
class Row:
    """One variant in one mode."""

    mode: str
    """`inference` (one forward in eval mode) or `training` (forward and backward in train mode)."""
    variant: str
    seconds: Quartiles
    """See `time_rounds`: on a CPU, processor time divided by the number of threads."""
    ratio: Quartiles
    """To the plain model, round by round."""
    images_per_second: float
    kept_bytes: int | None
    """Bytes that autograd saves for the backward pass, without parameters; in training only."""
    peak_bytes: int | None


@dataclass(frozen=True, slots=True)
class Bench:
    """What was measured, where and how."""

    rows: tuple[Row, ...]
    sites: int
    floor_bytes: int
    """Bytes of one read and one write of every attended map of the batch: the least that SimAM must move."""
    conditions: Conditions
    machine: dict[str, str]
    not_run: tuple[tuple[str, str], ...]
    """Modes the model does not run in, with the reason."""


def bench(
    model: nn.Module,
    recipe: Any,
    conditions: Conditions,
    *,
    against: tuple[str, ...] = (),
    example_inputs: Any = None,
    step: Callable[[str], None] = lambda _: None,
) -> Bench:
    """Measure what a recipe costs in this model. The model itself is not changed.

    Args:
        model: any network that `inject` takes.
        recipe: as for `inject`.
        conditions: device, batch, dtype, memory format, compiled or not.
        against: names of `PEERS` to insert at the sites of SimAM.
        example_inputs: as for `inject`, for one image.
        step: called with a description when a step starts: inserting, and each of the two modes.

    Raises:
        InjectError: the recipe, the model or a peer cannot be used, or no CUDA device is available.
    """
    if conditions.device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError("no CUDA device is available here; measure on the CPU with --device cpu")
    if conditions.dtype not in DTYPES:
        raise ModelError(f"unknown dtype {conditions.dtype!r}; choose from {', '.join(DTYPES)}")
    network = network_of(model)
    example = example_of(network, example_inputs)
    batch = example if conditions.batch == 1 else example.with_batch(conditions.batch - 1)
    if batch is None:
        raise ModelError("the example input has no batch dimension; measure with --batch 1")
    batch = Example(*batch.fresh(partial(_moved, conditions=conditions)))
    step("inserting")
    variants = make_variants(network, recipe, example_inputs, against)
    sites = injected(variants[SIMAM])
    models = {name: _ready(variant, conditions) for name, variant in variants.items()}
    rows: list[Row] = []
    not_run: list[tuple[str, str]] = []
    for mode, run in (("inference", _inference), ("training", _training)):
        step(f"timing {mode}")
        try:
            for variant in models.values():
                run(variant.train(mode == "training"), batch)
        except Exception as error:
            not_run.append((mode, describe_exception(error)))
        else:
            rows += _measure(mode, run, models, batch, conditions)
    values = conditions.batch * sum(math.prod(site.shape[1:]) * site.runs for site in sites)
    floor = 2 * DTYPES[conditions.dtype].itemsize * values
    return Bench(tuple(rows), len(sites), floor, conditions, _machine(conditions.device), tuple(not_run))


def peer_factory(name: str) -> Callable[[int], nn.Module]:
    """What makes the attention of that name for a number of channels.

    Raises:
        ModelError: the name is unknown.
    """
    if name not in PEERS:
        raise ModelError(f"unknown attention {name!r}; choose from {', '.join(PEERS)}")
    layers: Any = import_module("timm.layers")
    factory: Callable[[int], nn.Module] = layers.get_attn(name)
    return factory


def make_variants(model: nn.Module, recipe: Any, example: Any, against: tuple[str, ...]) -> dict[str, nn.Module]:
    """Copies of the model by name of variant, without the attention that it has. The model itself is not changed.

    Raises:
        ModelError: a peer is unknown, or a site is not two-dimensional, which the peers cannot attend.
    """
    factories = {name: peer_factory(name) for name in against}
    plain = eject(copy.deepcopy(model))
    variants = {PLAIN: plain, SIMAM: inject(copy.deepcopy(plain), recipe, example_inputs=example)}
    flat = next((site for site in injected(variants[SIMAM]) if len(site.shape) != 4), None)
    if flat is not None and factories:
        names = ", ".join(factories)
        raise ModelError(f"{names} need two-dimensional feature maps; the shape of {flat.path} is {flat.shape}")
    for name, factory in factories.items():
        twin = copy.deepcopy(plain)
        variants[name] = inject(twin, recipe, example_inputs=example, attention=factory, verify=False)
    return variants


def _measure(
    mode: str,
    run: Callable[[nn.Module, Example], None],
    models: dict[str, nn.Module],
    batch: Example,
    conditions: Conditions,
) -> list[Row]:
    device = torch.device(conditions.device)
    kept = {}
    if mode == "training":
        kept = {name: bytes_kept(model, partial(batch.run, model)) for name, model in models.items()}
    runs = {name: partial(run, model, batch) for name, model in models.items()}
    times = time_rounds(runs, rounds=conditions.rounds, warmups=conditions.warmups, device=device)
    rows = []
    for name, ratio in ratios(times, PLAIN).items():
        seconds = Quartiles.of(times[name])
        speed = conditions.batch / seconds.median if seconds.median else 0.0
        rows.append(Row(mode, name, seconds, ratio, speed, kept.get(name), peak_bytes(runs[name], device)))
    return rows


def _ready(model: nn.Module, conditions: Conditions) -> nn.Module:
    model.to(conditions.device, DTYPES[conditions.dtype])
    if conditions.channels_last:
        model.to(memory_format=torch.channels_last)
    return torch.compile(model) if conditions.compile else model  # type: ignore[return-value]


def _moved(tensor: torch.Tensor, conditions: Conditions) -> torch.Tensor:
    moved = tensor.to(conditions.device, DTYPES[conditions.dtype] if tensor.is_floating_point() else None, copy=True)
    return moved.to(memory_format=torch.channels_last) if conditions.channels_last and moved.dim() == 4 else moved


@torch.inference_mode()
def _inference(model: nn.Module, batch: Example) -> None:
    model(*batch.args, **batch.kwargs)


def _training(model: nn.Module, batch: Example) -> None:
    try:
        outputs = [tensor for _, tensor in tensors_in(model(*batch.args, **batch.kwargs))]
        torch.stack([tensor.float().mean() for tensor in outputs if tensor.requires_grad]).sum().backward()  # type: ignore[no-untyped-call]
    finally:
        model.zero_grad(set_to_none=True)


def _machine(device: str) -> dict[str, str]:
    is_gpu = device.startswith("cuda")
    name = torch.cuda.get_device_name(device) if is_gpu else platform.processor() or platform.machine()
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    return {"device": name, "threads": str(torch.get_num_threads()), **versions}
