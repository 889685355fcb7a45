"""`compare`: does attention help this network, where, and which one? And the report of a study."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

import typer

from simam_inject.cli.options import CompareOptions, StudyOptions
from simam_inject.cli.preparing import check_weights
from simam_inject.cli.program import MAIN_JOB, MainJobGroup, Report, Step, add_command, show_error
from simam_inject.zoo.names import find_library

if TYPE_CHECKING:
    from simam_inject.compare import Comparison
    from simam_inject.compare.records import Experiment, Variant

_STOPPED = 130
"""Exit code of a process that Ctrl-C ended."""

compare_app = typer.Typer(
    cls=MainJobGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Train MODEL plain, with SimAM and with other attentions, from the same weights, and test the differences. "
    "A classifier is trained on FOLDER/train/CLASS and FOLDER/val/CLASS (or FOLDER/CLASS, which is split); a YOLO by "
    "ultralytics' own trainer. The study can be stopped at any time; the same command continues it, here or "
    "on another machine.",
)


def compare(options: CompareOptions, step: Step) -> Report:
    """Run the cells of the study that are not done, and print its report."""
    check_weights(options)
    step(f"setting up {options.model}", of=2)
    from simam_inject.compare.running import run_study
    from simam_inject.compare.study import import_optuna
    from simam_inject.compare.variants import list_variants

    optuna = import_optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it announces each study on stderr
    variants = list_variants(options.recipe, options.against, options.e_lambda)
    work = partial(
        run_study,
        *(_set_up(options, variants), variants, options.seeds, options.study, options.budget),
        lambda done, total, seconds: step.show(done, total, _describe_progress(done, total, seconds)),
        resolve=options.resolve,
        name=options.name,
        retry_stale=options.retry_stale,
    )
    comparison = _work_together(options, work)
    if len(comparison.cells) < comparison.total:
        typer.echo(
            f"{len(comparison.cells)} of {comparison.total} runs are done; the same command continues the study; add "
            "--retry-stale to repeat the runs of workers that died on other machines",
            err=True,
        )
    return Report([comparison.to_markdown()])


def report(options: StudyOptions, step: Step) -> Report:
    """Write the report of a study, finished or not; without a file, print it."""
    step(f"reading {_without_password(options.study)}", of=2)
    from simam_inject.compare import load_comparison

    comparison = load_comparison(options.study, options.name)
    step("writing")
    comparison.save(options.html, options.markdown)
    files = [str(file) for file in (options.html, options.markdown) if file is not None]
    return Report([f"wrote {' and '.join(files)}" if files else comparison.to_markdown()])


def _set_up(options: CompareOptions, variants: list[Variant]) -> Experiment:
    from simam_inject.compare.setups import set_up
    from simam_inject.compare.training import Training

    usual_size = 640 if find_library(options.model) == "ultralytics" else 224
    training = Training(
        epochs=options.epochs,
        batch=options.batch,
        size=options.size or usual_size,
        rate=options.rate,
        warmup=min(5.0, options.epochs / 6),
        ema=options.ema,
        workers=options.loaders,
        augment=options.augment,
        amp=options.amp,
        compile=options.compile,
    )
    return set_up(
        *(options.model, options.data, training, options.device, variants),
        pretrained=options.pretrained,
        weights=options.weights,
    )


def _work_together(options: CompareOptions, work: Callable[[], Comparison]) -> Comparison:
    """Run cells here and in other processes, and at the end those of a process that died."""
    from simam_inject.compare.study import open_storage

    open_storage(options.study)  # creates the tables of a new database, which several processes cannot do at once
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "simam_inject", *sys.argv[1:], "--workers", "1"]
    with ExitStack() as stack:
        # Files, since a worker that prints much would wait for this process to read a full pipe.
        logs = [stack.enter_context(TemporaryFile("w+")) for _ in range(options.workers - 1)]
        others = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=log) for log in logs]
        try:
            comparison = work()
            for other, log in zip(others, logs, strict=True):
                if other.wait():
                    log.seek(0)
                    words = log.read().strip()[-1000:]
                    typer.echo(f"a worker ended with exit code {other.returncode}: {words}", err=True)
            return work() if others else comparison
        except KeyboardInterrupt:
            for other in others:
                other.wait()
            place = _without_password(options.study)
            show_error(f"stopped; every finished run is saved in {place}; the same command continues the study")
            raise typer.Exit(_STOPPED) from None


def _without_password(study: str) -> str:
    return study.rpartition("@")[-1]


def _describe_progress(done: int, total: int, seconds_left: float | None) -> str:
    if seconds_left is None:
        return f"{done} of {total} runs"
    hours, minutes = divmod(round(seconds_left / 60), 60)
    return f"{done} of {total} runs, about {f'{hours} h ' if hours else ''}{minutes} min left"


add_command(compare_app, MAIN_JOB, compare, CompareOptions)
add_command(compare_app, "report", report, StudyOptions)
