"""The variants of a study, and one run of one of them."""

from __future__ import annotations

import base64
import errno
import hashlib
import inspect
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.optim.swa_utils
from torch import nn

from simam_inject import inject
from simam_inject.bench.measuring import Quartiles, bytes_kept, time_rounds
from simam_inject.bench.variants import PEERS, peer_factory
from simam_inject.compare.records import AGAIN, AGAIN_OFFSET, PLAIN, SIMAM, Cell, Costs, Report, Train, Variant
from simam_inject.errors import CompareError, InjectError


@dataclass(frozen=True, slots=True)
class Experiment:
    """What is run for every cell, the same for all variants but the attention."""

    make_model: Callable[..., Any]
    train: Train
    recipes: dict[str, Any]
    """Recipes by the name they have in results."""
    variants: tuple[Variant, ...]
    example_inputs: Any = None
    batches: Any = None
    """For trained weights: batches on which every variant's batch norms are estimated again before it trains."""


def name_recipes(recipes: Sequence[Any]) -> dict[str, Any]:
    """Each recipe under the name it has in results."""
    if isinstance(recipes, str) or not recipes:
        raise CompareError("recipes must be a list with at least one recipe, such as ['paper', 'residual']")
    named: dict[str, Any] = {}
    for number, recipe in enumerate(recipes, 1):
        name = str(recipe if isinstance(recipe, str) else getattr(recipe, "name", None) or f"recipe {number}")
        if name in named:
            raise CompareError(f"two recipes are called {name!r}; give each its own name")
        named[name] = recipe
    return named


def list_variants(recipes: Sequence[str], against: Sequence[str], e_lambdas: Sequence[float]) -> tuple[Variant, ...]:
    """Plain, plain again, and for each recipe SimAM (at each lambda) and the peers."""
    for name in against:
        if name not in PEERS:
            raise CompareError(f"unknown attention {name!r}; choose from {', '.join(PEERS)}")
    lambdas: Sequence[float | None] = list(dict.fromkeys(e_lambdas)) or [None]
    attentions = [*((SIMAM, value) for value in lambdas), *((name, None) for name in dict.fromkeys(against))]
    sited = [Variant(attention, recipe, value) for recipe in recipes for attention, value in attentions]
    return (Variant(PLAIN), Variant(AGAIN), *sited)


def seed_everything(seed: int) -> None:
    """Seed torch, numpy and random."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def build(experiment: Experiment, variant: Variant, seed: int) -> tuple[nn.Module, str]:
    """The network of one cell, and the fingerprint of its weights from before anything was attached.

    The weights are drawn from the seed alone, and a peer's parameters after them.
    """
    make = experiment.make_model
    seed_everything(seed)
    model = make(seed) if _takes_seed(make) else make()
    if not isinstance(model, nn.Module):
        raise CompareError(f"make_model returned {type(model).__name__}; it must return a new torch.nn.Module")
    weights, recipe = _fingerprint(model), experiment.recipes.get(variant.recipe, "")
    if variant.attention == SIMAM:
        inject(model, recipe, example_inputs=experiment.example_inputs, e_lambda=variant.e_lambda)
    elif variant.recipe:
        # Verification runs forwards, which would move the batch norms that a peer may hold (CBAM's does).
        peer = peer_factory(variant.attention)
        inject(model, recipe, example_inputs=experiment.example_inputs, attention=peer, verify=False)
    if experiment.batches is not None:
        # The same for every arm, plain included: gains that are fitted for SimAM alone would favour it.
        torch.optim.swa_utils.update_bn(experiment.batches, model)
    return model, weights


def _takes_seed(make_model: Callable[..., Any]) -> bool:
    """It has a parameter that must be given, or one called `seed`."""
    try:
        signature = inspect.signature(make_model)
    except (TypeError, ValueError):
        return False
    try:
        signature.bind()
    except TypeError:
        return True
    return "seed" in signature.parameters


def _fingerprint(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def run_cell(experiment: Experiment, variant: Variant, seed: int) -> Cell:
    """Build, train and measure one cell. Whatever goes wrong in it is its result.

    Raises:
        OSError: The disk is full: no result of the run, and the study cannot go on.
    """
    started, report, weights = time.perf_counter(), Report(), ""
    value: float | None = None
    error, costs = "", None
    try:
        model, weights = build(experiment, variant, seed)
        order = seed + AGAIN_OFFSET if variant.attention == AGAIN else seed
        seed_everything(order)
        value = float(experiment.train(model, order, report))
        if not math.isfinite(value):
            value, error = None, f"diverged: the training function returned {value}"
        costs = measure_costs(model, experiment.example_inputs)
    except Exception as failure:
        if isinstance(failure, OSError) and failure.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        error = f"{failure}" if isinstance(failure, InjectError) else f"{type(failure).__name__}: {failure}"
    return Cell(
        *(variant.name, variant.recipe, seed),
        value=value,
        error=error.strip()[:2000],
        curve=tuple(report.curve),
        correct=base64.b64encode(np.packbits(report.correct).tobytes()).decode(),
        samples=len(report.correct),
        weights=weights,
        costs=costs,
        seconds=round(time.perf_counter() - started, 3),
    )


def measure_costs(model: nn.Module, example_inputs: Any) -> Costs:
    """Parameters, and with an example input what its forward keeps and how long it takes."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if example_inputs is None:
        return Costs(parameters)
    try:
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        given = example_inputs if isinstance(example_inputs, (tuple, list)) else (example_inputs,)
        inputs = [one.to(device) if isinstance(one, torch.Tensor) else one for one in given]
        kept = bytes_kept(model.train(), lambda: model(*inputs))
        model.eval()
        with torch.inference_mode():
            times = time_rounds({"": lambda: model(*inputs)}, rounds=7, warmups=2, device=device)[""]
        return Costs(parameters, kept, Quartiles.of(times).median)
    except Exception:
        # The run has its result; a network that cannot be timed on this input keeps it.
        return Costs(parameters)
