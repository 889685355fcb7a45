"""`compare`: run the cells of a study, or as many as the time allows, and return what they show."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, cast

from simam_inject.compare.cells import PLAIN, WRONG_SIGN, Experiment, Train
from simam_inject.compare.report import Comparison
from simam_inject.compare.study import NAME, Study, import_optuna
from simam_inject.compare.variants import check_recipes, list_variants, run_cell
from simam_inject.errors import CompareError
from simam_inject.warmup.batches import readable_twice

Progress = Callable[[int, int, float | None], None]
"""Called with the cells done, all cells, and the seconds left at the pace of this worker (None before its first)."""


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
        make_model: Makes a new network, as `make_model(seed)` or `make_model()`; torch, numpy and random are seeded
            before. Trained weights are loaded in it.
        recipes: A list of recipes, each as for `inject`.
        train: `train(model, seed, report) -> float`, higher is better: the last epoch or an average of the weights,
            never the best epoch on the test set. `seed` sets the data order. `report(epoch, value)` adds to the
            learning curve; `report.samples(correct)` gives the noise of the test set.
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
        ModelError: The network cannot be planned, or `batches` cannot be iterated over.

    Example:
        >>> def train(model, seed, report):  # doctest: +SKIP
        ...     ...
        ...     return 100 * accuracy
        >>> comparison = compare(resnet20, ["paper"], train, against=["se", "eca"], seeds=10)  # doctest: +SKIP
        >>> [(d.variant, d.mean, d.verdict) for d in comparison.differences]  # doctest: +SKIP
        [('simam', -0.11, 'not resolved'), ('se', 1.1, 'not resolved'), ('eca', 2.8, 'not resolved')]
    """
    optuna = import_optuna()
    if not isinstance(cast(Any, seeds), int) or seeds < 1:
        raise CompareError(f"seeds is {seeds}; at least 1 is required, and 5 for a verdict")
    variants = list_variants(recipes, against, e_lambdas)
    check_recipes(make_model, variants, example_inputs)
    batches = None if batches is None else readable_twice(batches)  # each run reads them
    used = {variant.recipe: variant.where.to_dict() for variant in variants if variant.where is not None}
    settings = {"recipes": used, "warm_start": batches is not None, **(settings or {})}
    try:
        study = Study(storage, settings, variants, seeds, name=name, resolve=resolve, retry_stale=retry_stale)
        with study.heartbeat():
            return _work(study, Experiment(make_model, train, example_inputs, batches), budget, progress)
    except (OSError, optuna.exceptions.StorageInternalError) as error:
        reason = getattr(error, "strerror", None) or error.__cause__ or error
        raise CompareError(
            f"the study cannot be written: {reason}; every finished run is saved. Free some space or fix the "
            "cause, and run the same command again"
        ) from error


def _work(study: Study, experiment: Experiment, budget: float | None, progress: Progress) -> Comparison:
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
            cell = run_cell(experiment, variant, seed)
        except BaseException:  # stopped by the user, or the disk is full
            study.end(trial)
            raise
        study.end(trial, cell)
        lengths.append(cell.seconds)
        if cell.variant == PLAIN and cell.falls:
            warnings.warn(WRONG_SIGN, stacklevel=3)
