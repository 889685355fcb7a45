"""`compare`: does attention help this network, where, and which one? And the report of a study."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import typer

from simam_inject.cli.options import CompareOptions, StudyOptions, parse_number
from simam_inject.cli.preparing import check_weights
from simam_inject.cli.program import MAIN_JOB, MainJobCommand, MainJobGroup, Report, Step, add_command, show_error
from simam_inject.zoo.names import is_yolo_name

if TYPE_CHECKING:
    from simam_inject.compare import Comparison
    from simam_inject.compare.records import Experiment, Variant

_STOPPED = 130
_WIDE = 100
"""Columns of a terminal in which no word of the tables is cut."""

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
    from simam_inject.compare.variants import list_variants

    lambdas = [float(parse_number(text)) for text in options.e_lambda]
    variants = list_variants(options.recipe, options.against, lambdas)
    comparison = _work_together(options, _set_up(options, variants), variants, step)
    if len(comparison.cells) < comparison.total:
        typer.echo(
            f"{len(comparison.cells)} of {comparison.total} runs are done; the same command continues the study; add "
            "--retry-stale to repeat the runs of workers that died on other machines",
            err=True,
        )
    return Report(_shown(comparison))


def report(options: StudyOptions, step: Step) -> Report:
    """Write the report of a study, finished or not; without a file, print it."""
    step(f"reading {_without_password(options.study)}", of=2)
    from simam_inject.compare import load_comparison

    comparison = load_comparison(options.study, options.name)
    step("writing")
    comparison.save(options.html, options.markdown)
    files = [str(file) for file in (options.html, options.markdown) if file is not None]
    return Report(f"wrote {' and '.join(files)}" if files else _shown(comparison))


def _shown(comparison: Comparison) -> Any:
    """Markdown, on a terminal that is wide enough for its tables rendered."""
    from rich.console import Console
    from rich.markdown import Markdown

    text = comparison.to_markdown()
    return Markdown(text) if sys.stdout.isatty() and Console().width >= _WIDE else text


def _set_up(options: CompareOptions, variants: list[Variant]) -> Experiment:
    from simam_inject.compare.setups import set_up
    from simam_inject.compare.training import Training

    yolo = options.model.startswith("ultralytics:") or is_yolo_name(options.model)
    training = Training(
        epochs=options.epochs,
        batch=options.batch,
        size=options.size or (640 if yolo else 224),
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


def _work(options: CompareOptions, experiment: Experiment, variants: list[Variant], step: Step) -> Comparison:
    from simam_inject.compare.running import run_study
    from simam_inject.compare.study import import_optuna

    optuna = import_optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it announces each study on stderr
    return run_study(
        *(experiment, variants, options.seeds, options.study, options.budget),
        lambda done, total, seconds: step.show(done, total, _describe_progress(done, total, seconds)),
        resolve=options.resolve,
        name=options.name,
        retry_stale=options.retry_stale,
    )


def _work_together(options: CompareOptions, experiment: Experiment, variants: list[Variant], step: Step) -> Comparison:
    """Run cells here and in processes of their own; what a process that died left is run here."""
    from simam_inject.compare.study import open_storage

    open_storage(options.study)  # creates the tables of a new database, which several processes cannot do at once
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "simam_inject", *sys.argv[1:], "--workers", "1"]
    others = [
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(options.workers - 1)
    ]
    try:
        comparison = _work(options, experiment, variants, step)
        for words, code in [(other.communicate()[1], other.returncode) for other in others]:
            if code:
                typer.echo(f"a worker ended with exit code {code}: {words.strip()[-1000:]}", err=True)
        return _work(options, experiment, variants, step) if others else comparison
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


add_command(compare_app, MAIN_JOB, compare, CompareOptions, cls=MainJobCommand, hidden=True, no_args_is_help=True)
add_command(compare_app, "report", report, StudyOptions)
