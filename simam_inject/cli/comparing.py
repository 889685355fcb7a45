"""`simam-inject compare`: train a network with and without attention, alone or with other workers, and report."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING

import typer

from simam_inject.cli.options import CompareOptions, StudyOptions
from simam_inject.cli.preparing import library_of
from simam_inject.cli.program import Outcome, Step, command, group, note
from simam_inject.errors import CompareError

if TYPE_CHECKING:
    from simam_inject.compare import Comparison

_STOPPED = 130
"""Exit code of a process that Ctrl-C ended."""


def compare(options: CompareOptions, step: Step) -> Outcome:
    """Train MODEL plain, with SimAM and with other attention modules, from the same weights, and test the differences.
    A classifier is trained on FOLDER/train/CLASS and FOLDER/val/CLASS (or FOLDER/CLASS, which is split); a YOLO by
    ultralytics' own trainer. The study can be stopped at any time; the same command continues it, here or on another
    machine. Exits with 1 if no run succeeded.
    """
    library = library_of(options)
    if library != "ultralytics" and not Path(options.data).is_dir():  # ultralytics finds data sets by name, too
        raise CompareError(f"no such folder: {options.data}; give a folder with train/ and val/, or one of classes")
    from simam_inject.recipe import load_recipe

    for recipe in options.recipe:  # raises an error before torch is imported
        load_recipe(recipe)
    step(f"setting up {options.model}")
    from simam_inject.compare import compare as run
    from simam_inject.compare.running import list_variants
    from simam_inject.compare.setups import set_up
    from simam_inject.compare.study import import_optuna, open_storage
    from simam_inject.compare.training import Training

    import_optuna()
    list_variants(options.recipe, options.against, options.e_lambda)  # raises an error before images are read
    same = {name: getattr(options, name) for name in ("epochs", "batch", "rate", "ema", "augment", "amp", "compile")}
    training = Training(**same, size=options.size or 0, warmup=min(5.0, options.epochs / 6), loaders=options.loaders)
    about = (options.model, options.data, training, options.device)
    setup = set_up(*about, pretrained=options.pretrained, weights=options.weights)
    if "://" in options.study:
        open_storage(options.study)  # creates the tables of a new database, which several processes cannot do at once
    same = {name: getattr(options, name) for name in ("against", "seeds", "resolve", "budget", "name", "retry_stale")}
    work = partial(
        run,
        recipes=options.recipe,
        e_lambdas=options.e_lambda,
        storage=options.study,
        progress=partial(_show_progress, step),
        **setup,
        **same,
    )
    found = _work_together(options, work)
    if len(found.cells) < found.total:
        note(
            f"{len(found.cells)} of {found.total} runs are done; the same command continues the study; add "
            "--retry-stale to repeat the runs of workers that died on other machines"
        )
    none_succeeded = bool(found.cells) and all(cell.value is None for cell in found.cells)
    return Outcome([found.to_markdown()], ok=not none_succeeded)


def report(options: StudyOptions, _step: Step) -> Outcome:
    """Write the report of a study, finished or not; without a file, print it."""
    if "://" not in options.study and not Path(options.study).is_file():
        raise CompareError(f"no such study: {options.study}")
    from simam_inject.compare import load_comparison

    found = load_comparison(options.study, options.name)
    found.save(options.html, options.markdown)
    files = [str(file) for file in (options.html, options.markdown) if file is not None]
    return Outcome([f"wrote {' and '.join(files)}" if files else found.to_markdown()])


def _work_together(options: CompareOptions, work: Callable[..., Comparison]) -> Comparison:
    """Run cells here and in other processes, and at the end, if there is time, those of a process that died."""
    started = time.monotonic()
    with ExitStack() as stack:
        # Files, since a worker that prints much would wait for this process to read a full pipe.
        logs = [stack.enter_context(TemporaryFile("w+")) for _ in range(options.workers - 1)]
        workers = [_start_worker(log) for log in logs]
        try:
            found = work()
            for worker, log in zip(workers, logs, strict=True):
                if worker.wait():
                    log.seek(0)
                    note(f"a worker ended with exit code {worker.returncode}: {log.read().strip()[-1000:]}")
            left = None if options.budget is None else max(0.0, options.budget - (time.monotonic() - started))
            return work(budget=left) if workers else found
        except KeyboardInterrupt:
            for worker in workers:
                worker.wait()
            place = options.study.rpartition("@")[-1]  # without a password
            note(f"stopped; every finished run is saved in {place}; the same command continues the study")
            raise typer.Exit(_STOPPED) from None
        except Exception:  # a recipe without effect or a full disk stops the others too
            for worker in workers:
                worker.terminate()
                worker.wait()
            raise


def _start_worker(log: IO[str]) -> subprocess.Popen[bytes]:
    """The same command in another process, as one worker."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    again = [sys.executable, "-m", "simam_inject", *sys.argv[1:], "--workers", "1"]
    return subprocess.Popen(again, env=environment, stdout=subprocess.DEVNULL, stderr=log)


def _show_progress(step: Step, done: int, total: int, seconds: float | None) -> None:
    """On a terminal beside the bar, else a line each."""
    text = f"{done} of {total} runs"
    if seconds is not None:
        hours, minutes = divmod(round(seconds / 60), 60)
        text += f", about {f'{hours} h ' if hours else ''}{minutes} min left"
    (step if sys.stderr.isatty() else note)(text)


compare_app = group(compare)
compare_app.command("report")(command(report))
