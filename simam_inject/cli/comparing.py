"""`compare`: does attention help this network, where, and which one? And the report of a study."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simam_inject.cli import options
from simam_inject.cli.routing import MAIN_JOB, MainJobGroup
from simam_inject.cli.working import show_error, working

if TYPE_CHECKING:
    from simam_inject.compare import Comparison
    from simam_inject.compare.records import Progress

STUDY, TRAINING = "The study", "The training"
_STOPPED = 130
_EVERY = 30.0
"""Seconds between two lines of progress where there is no terminal."""

compare_app = typer.Typer(
    cls=MainJobGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Train MODEL plain, with SimAM and with other attentions, from the same weights, and test the differences. "
    "A classifier is trained on FOLDER/train/CLASS and FOLDER/val/CLASS (or FOLDER/CLASS, which is split); a YOLO by "
    "ultralytics' own trainer. The study can be stopped at any time; the same command continues it, here or "
    "on another machine.",
)


def _option(name: str, help_text: str, panel: str = STUDY, **more: Any) -> Any:
    return typer.Option(name, help=help_text, rich_help_panel=panel, **more)


@compare_app.command(MAIN_JOB, hidden=True, no_args_is_help=True)
def compare(
    model: options.ModelName,
    data: Annotated[str, _option("--data", "Folder of images, or a data.yaml of ultralytics", metavar="FOLDER|YAML")],
    recipe: Annotated[list[str], _option("--recipe", "A shipped recipe or a YAML file; may be repeated")],
    against: options.Against = "",
    e_lambda: Annotated[str, _option("--e-lambda", "Lambdas of SimAM; one variant for each", metavar="A,B")] = "",
    seeds: Annotated[int, _option("--seeds", "Runs of each variant; below 5 nothing is tested", min=1)] = 10,
    study: Annotated[str, _option("--study", "Journal file or database URL", metavar="FILE|URL")] = "compare.journal",
    name: Annotated[str, _option("--name", "Name of the study, where the storage holds several")] = "compare",
    budget: Annotated[str, _option("--budget", "Start no run after this time", metavar="2h|30m|90s")] = "",
    resolve: Annotated[float | None, _option("--resolve", "Report how many seeds detect this difference")] = None,
    workers: Annotated[int, _option("--workers", "Processes on this machine", min=1)] = 1,
    retry_stale: Annotated[bool, _option("--retry-stale", "Repeat the runs of workers that died")] = False,
    weights: Annotated[str | None, _option("--weights", "Trained weights to start from", TRAINING)] = None,
    pretrained: options.Pretrained = False,
    device: Annotated[str, _option("--device", "cpu or cuda", TRAINING)] = "cpu",
    epochs: Annotated[int, _option("--epochs", "Epochs of every run", TRAINING, min=1)] = 20,
    size: Annotated[int | None, _option("--size", "Image size; default 224, or 640 for a YOLO", TRAINING)] = None,
    batch: Annotated[int, _option("--batch", "Batch size", TRAINING, min=1)] = 64,
    rate: Annotated[float, _option("--rate", "Learning rate for a batch of 256 images", TRAINING)] = 0.1,
    ema: Annotated[
        float, _option("--ema", "Evaluate an exponential moving average of the weights with this decay", TRAINING)
    ] = 0.0,
    augment: Annotated[bool, _option("--augment/--no-augment", "Random crops and mirrors", TRAINING)] = True,
    amp: Annotated[bool, _option("--amp/--no-amp", "Train with bfloat16 autocast", TRAINING)] = False,
    compiled: Annotated[bool, _option("--compile", "With torch.compile", TRAINING)] = False,
    loaders: Annotated[int, _option("--loaders", "Data-loading processes per worker", TRAINING)] = 0,
) -> None:
    """Run the cells of the study that are not done, and print its report."""
    seconds = parse_time(budget)
    with working(steps=2) as step:
        step(f"setting up {model}")
        from simam_inject.compare import compare as run
        from simam_inject.compare.setups import set_up
        from simam_inject.compare.training import Training
        from simam_inject.zoo.yolo import is_yolo_name

        yolo = model.startswith("ultralytics:") or is_yolo_name(model)
        training = Training(
            epochs=epochs,
            batch=batch,
            size=size or (640 if yolo else 224),
            rate=rate,
            warmup=min(5.0, epochs / 6),
            ema=ema,
            workers=loaders,
            augment=augment,
            amp=amp,
            compile=compiled,
        )
        setup = set_up(model, data, training, device, pretrained=pretrained, weights=weights)

        def work(progress: Callable[[Progress], None], *, retry: bool) -> Comparison:
            return run(
                setup.make_model,
                recipe,
                setup.train,
                options.split_names(against),
                seeds,
                study,
                e_lambdas=[float(options.parse_number(text)) for text in options.split_names(e_lambda)],
                example_inputs=setup.example_inputs,
                batches=setup.batches,
                resolve=resolve,
                budget=seconds,
                settings=setup.settings,
                name=name,
                retry_stale=retry,
                progress=progress,
            )

        comparison = _work_together(work, workers, study, retry=retry_stale)
    typer.echo(comparison.to_markdown())
    if len(comparison.cells) < comparison.total:
        _say(
            f"{len(comparison.cells)} of {comparison.total} runs are done; the same command continues the study; add "
            "--retry-stale to repeat the runs of workers that died on other machines"
        )


@compare_app.command("report")
def report(
    study: Annotated[str, typer.Argument(metavar="STUDY", show_default=False, help="Journal file or database URL")],
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write one HTML file")] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", metavar="FILE", help="Write Markdown")] = None,
    name: Annotated[str, typer.Option("--name", help="Name of the study in the storage")] = "compare",
) -> None:
    """Write the report of a study, finished or not; without a file, print it."""
    with working(steps=2) as step:
        step(f"reading {study.rpartition('@')[-1]}")
        from simam_inject.compare import load_comparison

        comparison = load_comparison(study, name)
        step("writing")
        comparison.save(html, markdown)
    if html is None and markdown is None:
        typer.echo(comparison.to_markdown())


def parse_time(text: str) -> float | None:
    """`2h`, `30m`, `90s` or `90` in seconds; None for nothing.

    Raises:
        typer.BadParameter: It has another form.
    """
    if not text:
        return None
    unit = {"h": 3600.0, "m": 60.0, "s": 1.0}.get(text[-1])
    try:
        return float(text if unit is None else text[:-1]) * (unit or 1.0)
    except ValueError:
        raise typer.BadParameter(f"found {text!r}; write a time, e.g. 2h, 30m or 90s", param_hint="--budget") from None


def _work_together(work: Callable[..., Comparison], workers: int, study: str, *, retry: bool) -> Comparison:
    """Run cells here and in processes of their own; what a process that died left is run here."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "simam_inject", *sys.argv[1:], "--workers", "1"]
    others = [
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(workers - 1)
    ]
    try:
        with _progress() as progress:
            comparison = work(progress, retry=retry)
            codes = [(other.communicate()[1], other.returncode) for other in others]
            if others:
                comparison = work(progress, retry=retry)
        for words, code in codes:
            if code:
                _say(f"a worker ended with exit code {code}: {words.strip()[-1000:]}")
        return comparison
    except KeyboardInterrupt:
        for other in others:
            other.wait()
        show_error(
            f"stopped; every finished run is saved in {study.rpartition('@')[-1]}; the same command continues the study"
        )
        raise typer.Exit(_STOPPED) from None


@contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
    """Cells done and time left: a bar on a terminal, else a line now and then."""
    if not sys.stderr.isatty():
        last = -_EVERY

        def write(now: Progress) -> None:
            nonlocal last
            if time.monotonic() - last >= _EVERY or now.done == now.total:
                last = time.monotonic()
                _say(_words(now))

        yield write
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    with Bar(BarColumn(), TextColumn("{task.description}"), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("")
        yield lambda now: bar.update(task, completed=now.done, total=now.total, description=_words(now))


def _words(now: Progress) -> str:
    if now.seconds_left is None:
        return f"{now.done} of {now.total} runs"
    hours, minutes = divmod(round(now.seconds_left / 60), 60)
    return f"{now.done} of {now.total} runs, about {f'{hours} h ' if hours else ''}{minutes} min left"


def _say(words: str) -> None:
    typer.echo(words, err=True)
