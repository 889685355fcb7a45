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
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from simam_inject.api import eject, inject, injected
from simam_inject.bench.measuring import bytes_kept, time_rounds
from simam_inject.bench.peers import PEERS, peer_factory
from simam_inject.compare.cells import AGAIN, AGAIN_OFFSET, PLAIN, Cell, Costs, Experiment, Report, Variant
from simam_inject.dataflow.example import example_of
from simam_inject.errors import CompareError, InjectError, a_type
from simam_inject.recipe import adjusted, load_recipe

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def list_variants(recipes: Sequence[Any], against: Sequence[str], e_lambdas: Sequence[float]) -> list[Variant]:
    """Plain, plain again, and for each recipe SimAM (with each lambda) and the others.

    Raises:
        CompareError: An attention module is unknown, no recipe is given, or two have the same name.
        RecipeError: A recipe does not exist or is invalid, or a lambda is.
    """
    for name in against:
        if name not in PEERS:
            raise CompareError(f"unknown attention {name!r}; choose from {', '.join(PEERS)}")
    if isinstance(recipes, str) or not recipes:
        raise CompareError("recipes must be a list with at least one recipe, such as ['paper', 'residual']")
    variants = [Variant(PLAIN), Variant(AGAIN)]
    for number, given in enumerate(recipes, 1):
        recipe = load_recipe(given)
        name = given if isinstance(given, str) else recipe.name or f"recipe {number}"
        if any(variant.recipe == name for variant in variants):
            raise CompareError(f"two recipes are called {name!r}; give each its own name")
        with_lambda = {f"simam {value}": adjusted(recipe, e_lambda=value) for value in dict.fromkeys(e_lambdas)}
        variants += [Variant(simam, name, where) for simam, where in (with_lambda or {"simam": recipe}).items()]
        variants += [Variant(peer, name, recipe, peer_factory(peer)) for peer in dict.fromkeys(against)]
    return variants


def seed_everything(seed: int) -> None:
    """Seed torch, numpy and random."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def check_recipes(make_model: Callable[..., Any], variants: Sequence[Variant], example_inputs: Any = None) -> None:
    """Apply each recipe once to a new network, since a recipe without effect would be trained for nothing.

    Raises:
        NoMatchError: A recipe has no effect on the network.
        ModelError: The network cannot be planned.
        CompareError: `make_model` makes no network, the same one again, or one that is injected already.
    """
    model = _make(make_model, seed=0)
    if _make(make_model, seed=0) is model:
        raise CompareError("make_model returned the same network twice; it must make a new one for each run")
    if injected(model):
        raise CompareError(
            "make_model returns a network that already has SimAM, so the plain variant would have it too: call "
            "eject(model)"
        )
    for recipe in {variant.recipe: variant.where for variant in variants if variant.where is not None}.values():
        eject(inject(model, recipe, example_inputs=example_inputs, verify=False))


def run_cell(experiment: Experiment, variant: Variant, seed: int) -> Cell:
    """Build, train and measure one variant. An exception in one of these is the result of the run.

    Raises:
        OSError: The disk is full: the run has no result, and the study cannot continue.
    """
    started, report, weights = time.perf_counter(), Report(), ""
    value, error, costs = None, "", None
    try:
        model, weights = _build(experiment, variant, seed)
        order = seed + AGAIN_OFFSET if variant.name == AGAIN else seed
        seed_everything(order)
        value = float(experiment.train(model, order, report))
        if not math.isfinite(value):
            value, error = None, f"diverged: the training function returned {value}"
        costs = _measure_costs(model, experiment.example_inputs)
    except Exception as failure:
        if isinstance(failure, OSError) and failure.errno in _DISK_FULL:
            raise
        error = f"{failure}" if isinstance(failure, InjectError) else f"{type(failure).__name__}: {failure}"
    return Cell(
        *(variant.name, variant.recipe, seed, value),
        error=error.strip()[:2000],
        curve=tuple(report.curve),
        correct=base64.b64encode(np.packbits(report.correct).tobytes()).decode(),
        samples=len(report.correct),
        weights=weights,
        costs=costs,
        seconds=round(time.perf_counter() - started, 3),
    )


def _build(experiment: Experiment, variant: Variant, seed: int) -> tuple[nn.Module, str]:
    """The network of one cell, and a hash of its weights without the attention.

    The weights depend on the seed alone; the parameters of other attentions are drawn after them.
    """
    model = _make(experiment.make_model, seed)
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    if variant.where is not None:
        # Verification runs forwards, which would move the statistics of CBAM's batch norm.
        example, peer = experiment.example_inputs, variant.attention
        inject(model, variant.where, example_inputs=example, attention=peer, verify=peer is None)
    if experiment.batches is not None:
        # The same for every variant: gains exist for SimAM only, and would favour it.
        seed_everything(seed)  # a loader may shuffle
        update_bn(experiment.batches, model, _device_of(model))
    return model, digest.hexdigest()[:16]


def _make(make_model: Callable[..., Any], seed: int) -> nn.Module:
    """A new network; `make_model` gets the seed if it has a parameter without a default, or one called `seed`."""
    seed_everything(seed)
    signature = inspect.signature(make_model)
    try:
        signature.bind()
        takes_seed = "seed" in signature.parameters
    except TypeError:
        takes_seed = True
    model = make_model(seed) if takes_seed else make_model()
    if not isinstance(model, nn.Module):
        raise CompareError(f"make_model returned {a_type(model)}; it must return a new torch.nn.Module")
    return model


def _measure_costs(model: nn.Module, example_inputs: Any) -> Costs:
    """Parameters, and with example inputs what a forward saves for the backward pass, and how long it takes."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if example_inputs is None:
        return Costs(parameters)
    try:
        device = _device_of(model)
        args, kwargs = example_of(model, example_inputs).fresh(lambda tensor: tensor.to(device))
        run = partial(model, *args, **kwargs)
        kept = bytes_kept(model.train(), run)
        model.eval()
        with torch.inference_mode():
            times = time_rounds({"": run}, rounds=7, warmups=2, device=device)[""]
        return Costs(parameters, kept, median(times))
    except Exception:  # the network cannot be timed on these inputs, which does not affect its result
        return Costs(parameters)


def _device_of(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
