"""`compare`: what each variant is, one run of it, and all runs of a study or as many as the time allows."""

from __future__ import annotations

import base64
import errno
import hashlib
import inspect
import math
import numbers
import random
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from simam_inject.api import eject, inject, injected
from simam_inject.bench.measuring import bytes_kept, time_rounds
from simam_inject.bench.run import peer_factory
from simam_inject.compare.cells import AGAIN, AGAIN_OFFSET, PLAIN, WRONG_SIGN, Cell, Costs, Report, Variant
from simam_inject.compare.report import Comparison
from simam_inject.compare.study import NAME, Study, import_optuna
from simam_inject.dataflow.example import Example, example_of
from simam_inject.errors import CompareError, InjectError, ModelError, a_type
from simam_inject.recipe import Recipe, adjusted, load_recipe
from simam_inject.warmup.batches import readable_twice
from simam_inject.zoo.names import PEERS

Train = Callable[[Any, int, Report], float]
Progress = Callable[[int, int, float | None], None]
"""Called with the cells done, all cells, and the seconds left at the pace of this worker (None before its first)."""
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def compare(
    make_model: Callable[..., Any],
    recipes: Sequence[Any],
    train: Train,
    against: Sequence[str] = (),
    seeds: int = 10,
    storage: Any = None,
    *,
    e_lambdas: Sequence[float] = (),
    example_inputs: Any = None,
    batches: Any = None,
    resolve: float | None = None,
    budget: float | None = None,
    settings: dict[str, Any] | None = None,
    name: str = NAME,
    retry_stale: bool = False,
    progress: Progress = lambda _done, _total, _seconds: None,
) -> Comparison:
    """Train a network plain, twice, and with SimAM and other attention modules at the same sites; test the differences.

    All variants of a seed start from the same weights and see the same data order. Runs go seed by seed; with a
    storage, the same call continues a study that was stopped, or helps from another process.

    Args:
        make_model: Makes a new network, as `make_model(seed=seed)` if it has such a parameter, else as
            `make_model(seed)` if a parameter has no default, else as `make_model()`; torch, numpy and random are seeded
            before. Trained weights are loaded in it.
        recipes: A list of recipes, each as for `inject`.
        train: `train(model, seed, report) -> float`, higher is better: the last epoch or an average of the weights,
            never the best epoch on the test set. `seed` sets the data order: 0 to `seeds` - 1, and the same plus
            1,000,000 for *plain again*. `report(epoch, value)` adds to the learning curve;
            `report.samples(correct)` gives the noise of the test set.
        against: Other attention modules: `se`, `eca`, `cbam`, `gc`.
        seeds: Runs of each variant, seeds 0 to this - 1.
        storage: None for memory, a path for a journal file, a database URL, or an Optuna storage.
        e_lambdas: SimAM once with each of these instead of the recipe's own.
        example_inputs: As for `inject`; the costs are measured on them.
        batches: For trained weights: tensors or (input, target) pairs on which the batch norm statistics of every
            variant, including plain, are computed again before training.
        resolve: A difference of interest: the result contains how many seeds find it.
        budget: Seconds after which no new run starts.
        settings: What else the result depends on (data, epochs, ...); a study with other settings is refused.
        name: Name of the study, where a storage holds several.
        retry_stale: Also repeat the runs of workers on other machines that have no heartbeat.
        progress: Called after each run.

    Returns:
        The comparison; of an unfinished study, the finished runs.

    Raises:
        CompareError: An argument is invalid, the storage cannot be written, or holds other settings.
        RecipeError: A recipe does not exist or is invalid; no run is started.
        NoMatchError: A recipe has no effect on the network; no run is started.
        ModelError: The network cannot be planned, or `batches` cannot be iterated over or is empty.

    Example:
        >>> def train(model, seed, report):  # doctest: +SKIP
        ...     ...
        ...     return 100 * accuracy
        >>> comparison = compare(resnet20, ["paper"], train, against=["se", "eca"], seeds=10)  # doctest: +SKIP
        >>> [(d.variant, d.mean, d.verdict) for d in comparison.differences]  # doctest: +SKIP
        [('simam', -0.11, 'not resolved'), ('se', 1.1, 'not resolved'), ('eca', 2.8, 'not resolved')]
    """
    optuna = import_optuna()
    if not isinstance(cast(Any, seeds), numbers.Integral) or seeds < 1:
        raise CompareError(f"seeds is {seeds!r}; an int of at least 1 is required, and 5 for a verdict")
    for what, number in {"resolve": resolve, "budget": budget}.items():
        if number is not None and (not isinstance(cast(Any, number), numbers.Real) or not number >= 0):
            raise CompareError(f"{what} is {number!r}; it must be a number from 0, or None")
    if not callable(cast(Any, train)) or not isinstance(settings, (Mapping, type(None))):
        raise CompareError("train must be a function train(model, seed, report), and settings a dict or None")
    variants = list_variants(recipes, against, e_lambdas)
    check_recipes(make_model, variants, example_inputs)
    batches = None if batches is None else readable_twice(batches)  # each run reads them
    if batches is not None and not any(True for _ in batches):
        raise ModelError("batches holds no batch, so norms would lose their statistics")
    used = {variant.recipe: variant.where.to_dict() for variant in variants if variant.where is not None}
    settings = {"recipes": used, "warm_start": batches is not None, **(settings or {})}
    try:
        study = Study(storage, settings, variants, int(seeds), name=name, resolve=resolve, retry_stale=retry_stale)
        with study.heartbeat():
            return _work(study, partial(run_cell, make_model, train, example_inputs, batches), budget, progress)
    except (OSError, optuna.exceptions.StorageInternalError) as error:
        reason = getattr(error, "strerror", None) or error.__cause__ or error
        raise CompareError(
            f"the study cannot be written: {reason}; every finished run is saved. Free some space or fix the "
            "cause, and run the same command again"
        ) from error


def _work(study: Study, run: Callable[[Variant, int], Cell], budget: float | None, progress: Progress) -> Comparison:
    """Run cells until none is left, or the budget is used up."""
    started, lengths = time.monotonic(), list[float]()
    while True:
        found = study.comparison()
        done, total = len(found.cells), found.total
        progress(done, total, median(lengths) * (total - done) if lengths else None)
        in_time = budget is None or time.monotonic() - started < budget
        claim = study.take() if in_time else None
        if claim is None:
            return found
        trial, variant, seed = claim
        try:
            cell = run(variant, seed)
            study.end(trial, cell)
        except BaseException:  # stopped by the user, the disk is full, or the study is not this one any more
            study.end(trial)
            raise
        lengths.append(cell.seconds)
        if cell.variant == PLAIN and cell.falls:
            warnings.warn(WRONG_SIGN, stacklevel=3)
        if cell.error and not done:
            warnings.warn(f"the first run failed, and others may fail as well: {cell.error}", stacklevel=3)


def list_variants(recipes: Sequence[Any], against: Sequence[str], e_lambdas: Sequence[float]) -> list[Variant]:
    """Plain, plain again, and for each recipe SimAM (with each lambda) and the others.

    Raises:
        CompareError: An attention module is unknown, no recipe is given, or two have the same name.
        RecipeError: A recipe does not exist or is invalid, or a lambda is.
    """
    for what, given in {"recipes": recipes, "against": against, "e_lambdas": e_lambdas}.items():
        if isinstance(given, (str, Mapping, Recipe)) or not isinstance(cast(Any, given), Iterable):
            raise CompareError(f"{what} must be a list; found {given!r:.60}")
    against, e_lambdas = list(against), list(e_lambdas)
    if any(value is None for value in e_lambdas):
        raise CompareError("e_lambdas holds None; leave it empty for the lambda of the recipe")
    for name in against:
        if name not in PEERS:
            raise CompareError(f"unknown attention {name!r}; choose from {', '.join(PEERS)}")
    if not recipes:
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
        raise CompareError("make_model returns a network with SimAM, which plain would have too: call eject(model)")
    for recipe in {variant.recipe: variant.where for variant in variants if variant.where is not None}.values():
        eject(inject(model, recipe, example_inputs=example_inputs, verify=False))


def run_cell(
    make_model: Callable[..., Any], train: Train, example: Any, batches: Any, variant: Variant, seed: int
) -> Cell:
    """Build, train and measure one variant. An exception in one of these is the result of the run.

    Raises:
        OSError: The disk is full: the run has no result, and the study cannot continue.
    """
    started, report, weights = time.perf_counter(), Report(), ""
    value, error, costs = None, "", None
    try:
        model = _make(make_model, seed)
        weights = _hash_weights(model)
        if variant.where is not None:  # after the hash: its weights are drawn last, so that the others are the same
            # Verification runs forwards, which would move the statistics of CBAM's batch norm.
            peer = variant.attention
            inject(model, variant.where, example_inputs=example, attention=peer, verify=peer is None)
        if batches is not None:  # no gains: they exist for SimAM only, and would favour it
            seed_everything(seed)  # a loader may shuffle, perhaps by a generator of its own
            if isinstance(own := getattr(batches, "generator", None), torch.Generator):
                own.manual_seed(seed)
            copies = (Example((batch,), {}).fresh()[0][0] for batch in batches)  # a forward may write to its input
            update_bn(copies, model, _device_of(model))
        order = seed + AGAIN_OFFSET if variant.name == AGAIN else seed
        seed_everything(order)
        value = _number(train(model, order, report))
        if not math.isfinite(value):
            value, error = None, f"diverged: the training function returned {value}"
        costs = _measure_costs(model, example)
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


def _number(returned: Any) -> float:
    try:
        return float(returned)
    except TypeError:
        raise CompareError(f"train returned {a_type(returned)}; it must return a number") from None


def _hash_weights(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _make(make_model: Callable[..., Any], seed: int) -> nn.Module:
    """A new network; `make_model` gets the seed as `seed`, or by position if it has a parameter without a default."""
    if isinstance(make_model, nn.Module) or not callable(cast(Any, make_model)):
        raise CompareError(f"make_model must be a function that makes a network; found {a_type(make_model)}")
    seed_everything(seed)
    signature = inspect.signature(make_model)
    named = signature.parameters.get("seed")
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = any(one.default is one.empty and one.kind not in variable for one in signature.parameters.values())
    is_keyword = named is not None and named.kind not in (inspect.Parameter.POSITIONAL_ONLY, *variable)
    kwargs = {"seed": seed} if is_keyword else {}
    args = [seed] if not is_keyword and (needed or named is not None) else []
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise CompareError(f"make_model must take a seed or no argument, as make_model(seed): {error}") from None
    model = make_model(*args, **kwargs)
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
        args, kwargs = example_of(model, example_inputs).fresh(lambda tensor: tensor.to(device, copy=True))
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
