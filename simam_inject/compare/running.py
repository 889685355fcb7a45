"""`compare`: run the cells of a study, or as many as the time allows, and say what they show."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from simam_inject.compare.records import PLAIN, SIGN, Progress, Train
from simam_inject.compare.report import Comparison
from simam_inject.compare.study import NAME, Study, load_optuna
from simam_inject.compare.variants import Experiment, list_variants, name_recipes, run_cell
from simam_inject.errors import CompareError


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
    progress: Callable[[Progress], None] = lambda _: None,
) -> Comparison:
    """Train a network plain, twice, and with SimAM and other attentions at the same sites; test the differences.

    All variants of a seed start from the same weights and see the same data order. Cells run seed by seed; with a
    storage, a call that was stopped goes on where it was, and the same call elsewhere helps.

    Args:
        make_model: Makes a new network, as `make_model(seed)` or `make_model()`; torch, numpy and random are seeded
            before. Trained weights are loaded in it.
        recipes: As for `inject`, one or several.
        train: `train(model, seed, report) -> float`, higher is better: the last epoch or an average of the weights,
            never the best epoch on the test set. `seed` sets the data order. `report(epoch, value)` feeds the curves;
            `report.samples(correct)` gives the noise of the test set.
        against: Peers: `se`, `eca`, `cbam`, `gc`.
        seeds: Runs of each variant, seeds 0 to this - 1.
        storage: None for memory, a path for a journal file, a database URL, or an Optuna storage.
        e_lambdas: SimAM once with each of these instead of the recipe's own.
        example_inputs: As for `inject`; also what the costs are measured on.
        batches: For trained weights: batches on which batch norms are estimated again in every variant before it
            trains, so that none is punished for what the attention does to trained statistics.
        resolve: A difference of interest: the result says how many seeds find it.
        budget: Seconds after which no new cell is begun.
        settings: What else the result depends on (data, epochs, ...); a study with other settings is refused.
        name: Of the study, where a storage holds several.
        retry_stale: Queue the cells of workers that fell silent again.
        progress: Called after each cell.

    Returns:
        The comparison; of an unfinished study, what there is so far.

    Raises:
        CompareError: The arguments are not fit, the storage cannot be written, or holds other settings.

    Example:
        >>> def train(model, seed, report):  # doctest: +SKIP
        ...     ...
        ...     return 100 * accuracy
        >>> comparison = compare(resnet20, ["paper"], train, against=["se", "eca"], seeds=10)  # doctest: +SKIP
        >>> [(d.variant, d.mean, d.verdict) for d in comparison.differences]  # doctest: +SKIP
        [('simam', -0.11, 'not resolved'), ('se', 1.1, 'not resolved'), ('eca', 2.8, 'not resolved')]
    """
    optuna = load_optuna()
    if seeds < 1:
        raise CompareError(f"seeds is {seeds}; at least 1 is required, and 5 for a verdict")
    named = name_recipes(recipes)
    variants = list_variants(tuple(named), against, e_lambdas)
    experiment = Experiment(make_model, train, named, variants, example_inputs, batches)
    written = {
        "recipes": {key: _written(recipe) for key, recipe in named.items()},
        "variants": [[variant.name, variant.recipe] for variant in variants],
        "warm_start": batches is not None,
        **(settings or {}),
    }
    try:
        study = Study(storage, written, name, resolve=resolve)
        study.free_dead(retry_stale=retry_stale)
        study.extend(variants, seeds)
        with study.heartbeat():
            _work(study, experiment, budget, progress)
        return study.comparison()
    except (OSError, optuna.exceptions.StorageInternalError) as error:
        reason = getattr(error, "strerror", None) or str(error.__cause__ or error)
        raise CompareError(
            f"the study cannot be written: {reason}; every finished run is saved. Free some space or fix the "
            "cause, and run the same command again"
        ) from error


def _written(recipe: Any) -> Any:
    if isinstance(recipe, str):
        return recipe
    return recipe.to_dict() if hasattr(recipe, "to_dict") else repr(recipe)


def _work(study: Study, experiment: Experiment, budget: float | None, progress: Callable[[Progress], None]) -> None:
    """Run cells until none waits, or the next would end after the budget."""
    by_name = {(variant.name, variant.recipe): variant for variant in experiment.variants}
    started, lengths = time.monotonic(), list[float]()

    def show() -> None:
        done, total = study.counts()
        progress(Progress(done, total, median(lengths) * (total - done) if lengths else None))

    show()
    while budget is None or time.monotonic() - started + median(lengths or [0.0]) < budget:
        ticket = study.take()
        if ticket is None:
            if study.free_dead():
                continue
            return
        try:
            cell = run_cell(experiment, by_name[ticket.variant, ticket.recipe], ticket.seed)
        except BaseException:  # stopped by the user, or the disk is full: the cell goes back
            study.release(ticket)
            raise
        study.finish(ticket, cell)
        lengths.append(cell.seconds)
        if cell.variant == PLAIN and cell.falls:
            warnings.warn(SIGN, stacklevel=3)
        show()
