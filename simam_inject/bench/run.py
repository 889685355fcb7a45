"""The benchmark of one model and one recipe: inference and a training step, all variants interleaved in one run."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from simam_inject.adapters import network_of
from simam_inject.api import injected
from simam_inject.bench.memory import bytes_kept, peak_bytes
from simam_inject.bench.timing import Quartiles, ratios, time_rounds
from simam_inject.bench.variants import PLAIN, SIMAM, make_variants
from simam_inject.dataflow.example import Example, example_of
from simam_inject.errors import ModelError
from simam_inject.nested import map_nested, tensors_in
from simam_inject.planning.records import Insertion

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
    ratio: Quartiles
    """To the plain model, round by round."""
    images_per_second: float
    kept_bytes: int | None
    """What autograd keeps for the backward pass, parameters aside."""
    peak_bytes: int | None


@dataclass(frozen=True, slots=True)
class Bench:
    """What was measured, where and how."""

    rows: tuple[Row, ...]
    sites: int
    floor_bytes: int
    """One read and one write of every attended map of the batch: the least that the attention must move."""
    conditions: Conditions
    machine: dict[str, str]
    not_run: tuple[tuple[str, str], ...]
    """Modes the model does not run in, with the reason."""

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return asdict(self)


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
        against: names of `variants.PEERS` to put in SimAM's places.
        example_inputs: as for `inject`, for one image.
        step: called with a description at the begin of each step: once for inserting, once for each round of each mode.

    Raises:
        InjectError: the recipe, the model or a peer is not fit; no CUDA device where one is asked for.
    """
    device = _device(conditions)
    model = network_of(model)
    example = example_of(model, example_inputs)
    step("inserting")
    variants = make_variants(model, recipe, example_inputs, against)
    sites = injected(variants[SIMAM])
    batch = _on(_batched(example, conditions.batch), device, conditions)
    ready = {name: _made_ready(variant, device, conditions) for name, variant in variants.items()}
    rows: list[Row] = []
    not_run: list[tuple[str, str]] = []
    for mode, training in (("inference", False), ("training", True)):
        runs = {name: _runner(variant, batch, training=training) for name, variant in ready.items()}
        try:
            for run in runs.values():
                run()
        except Exception as error:
            not_run.append((mode, f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"))
            continue
        times = time_rounds(
            runs,
            rounds=conditions.rounds,
            warmups=conditions.warmups,
            device=device,
            before_round=lambda mode=mode: step(f"timing {mode}"),  # type: ignore[misc]
        )
        relative = ratios(times, PLAIN)
        for name, variant in ready.items():
            seconds = Quartiles.of(times[name])
            kept = bytes_kept(variant, _forward(variant, batch)) if training else None
            peak = peak_bytes(runs[name], device)
            speed = conditions.batch / seconds.median if seconds.median else 0.0
            rows.append(Row(mode, name, seconds, relative[name], speed, kept, peak))
    floor = conditions.batch * sum(_bytes(site, conditions) for site in sites)
    return Bench(tuple(rows), len(sites), floor, conditions, _machine(device), tuple(not_run))


def _batched(example: Example, size: int) -> Example:
    """The example with a batch of this size.

    Raises:
        ModelError: it has no batch dimension that could be enlarged.
    """
    larger = example if size == 1 else example.with_batch(size - 1)
    if larger is None:
        raise ModelError("the example input has no batch dimension; measure with --batch 1")
    return larger


def _device(conditions: Conditions) -> torch.device:
    device = torch.device(conditions.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError("no CUDA device is available here; measure on the CPU with --device cpu")
    if conditions.dtype not in DTYPES:
        raise ModelError(f"unknown dtype {conditions.dtype!r}; choose from {', '.join(DTYPES)}")
    return device


def _made_ready(model: nn.Module, device: torch.device, conditions: Conditions) -> nn.Module:
    model.to(device, DTYPES[conditions.dtype])
    if conditions.channels_last:
        model.to(memory_format=torch.channels_last)
    return torch.compile(model) if conditions.compile else model  # type: ignore[return-value]


def _on(example: Example, device: torch.device, conditions: Conditions) -> Example:
    def move(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        moved = leaf.to(device, DTYPES[conditions.dtype]) if leaf.is_floating_point() else leaf.to(device)
        return (
            moved.contiguous(memory_format=torch.channels_last)
            if conditions.channels_last and moved.dim() == 4
            else moved
        )

    return Example(*map_nested(move, (example.args, example.kwargs)))


def _forward(model: nn.Module, example: Example) -> Callable[[], object]:
    return lambda: model(*example.args, **example.kwargs)


def _runner(model: nn.Module, example: Example, *, training: bool) -> Callable[[], object]:
    forward = _forward(model, example)

    def infer() -> None:
        model.eval()
        with torch.inference_mode():
            forward()

    def train() -> None:
        with _training(model):
            outputs = [tensor for _, tensor in tensors_in(forward()) if tensor.requires_grad]
            torch.stack([tensor.float().mean() for tensor in outputs]).sum().backward()  # type: ignore[no-untyped-call]

    return train if training else infer


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    model.train()
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)


def _bytes(site: Insertion, conditions: Conditions) -> int:
    size = 4 if conditions.dtype == "fp32" else 2
    elements = 1
    for length in site.shape[1:]:
        elements *= length
    return 2 * size * elements * int(site.runs)


def _machine(device: torch.device) -> dict[str, str]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": name,
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
