"""The command: inventory, sweep, table."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.coverage.catalogue import LIBRARIES, SECOND_RING, import_libraries, list_names, take_stock
from benchmarks.coverage.choice import in_order, representatives, shard
from benchmarks.coverage.examining import examine
from benchmarks.coverage.records import Entry, Row, Run, append, read_entries, read_rows
from benchmarks.coverage.second_ring import PACKAGES, is_installed
from benchmarks.coverage.workers import run_all

ROOT = Path(__file__).resolve().parents[2]
EXTENTS = ("all", "numeric", "family")
"""All in scope; those with numeric checks; the smallest of each family."""


def main() -> None:
    """Run what the command line asks for."""
    options = _parse()
    libraries = _installed() if options.library == "all" else (options.library,)
    os.environ.setdefault("YOLO_OFFLINE", "true")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    if options.table:
        from benchmarks.coverage.table import write_table

        write_table(ROOT / "docs" / "coverage.md", options.results)
        return
    import_libraries()
    this_run = _this_run()
    append(options.results / "runs.jsonl", this_run)
    console = Console()
    entries = _take_inventory(console, libraries, options)
    chosen = representatives(entries, families_only=options.extent == "family")
    wanted = in_order(entries, chosen)
    if options.only:
        wanted = [entry for entry in wanted if entry.name in options.only or entry.family in options.only]
    elif options.extent != "all":
        wanted = [entry for entry in wanted if entry.key in chosen]
    _sweep(console, shard(wanted, *options.shard), chosen, options, this_run.commit)


def _installed() -> tuple[str, ...]:
    return tuple(library for library in LIBRARIES if library != SECOND_RING or is_installed())


def _take_inventory(console: Console, libraries: Iterable[str], options: Any) -> list[Entry]:
    file = options.results / "inventory.jsonl"
    known = read_entries(file)
    tasks = [(library, name) for library in libraries for name in list_names(library)]
    missing = [task for task in tasks if ":".join(task) not in known]
    with _progress(console) as progress:
        bar = progress.add_task("inventory", total=len(missing))
        for (library, name), entry, error in run_all(
            missing, lambda task: take_stock(*task), workers=options.workers, timeout=options.timeout
        ):
            append(file, entry or Entry(library, name, error=error))
            progress.advance(bar)
    known = read_entries(file)
    return [known[":".join(task)] for task in tasks if ":".join(task) in known]


def _this_run() -> Run:
    packages = ("torch", "torchvision", "timm", "ultralytics", *PACKAGES)
    versions = {}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)

    def git(*words: str) -> str:
        found = subprocess.run(("git", *words), cwd=ROOT, capture_output=True, text=True, check=False)
        return found.stdout.strip()

    changed = "+" if git("status", "--porcelain", "--untracked-files=no", "simam_inject") else ""
    return Run(
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        command=" ".join(["python -m benchmarks.coverage", *sys.argv[1:]]),
        machine=f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        versions=versions,
        commit=git("rev-parse", "--short", "HEAD") + changed,
    )


def _sweep(console: Console, wanted: list[Entry], chosen: set[str], options: Any, commit: str) -> None:
    file = options.results / "rows.jsonl"
    done = read_rows(file) if options.resume else {}
    waiting = [entry for entry in wanted if entry.key not in done]
    failed = 0
    with _progress(console) as progress:
        bar = progress.add_task("sweep", total=len(wanted), completed=len(wanted) - len(waiting))
        for entry, row, error in run_all(
            waiting,
            lambda entry: examine(entry, numeric=entry.key in chosen or bool(options.only)),
            workers=options.workers,
            timeout=options.timeout,
        ):
            found = row or Row(entry.library, entry.name, entry.family, entry.parameters, error=error)
            append(file, replace(found, commit=commit))
            for failure in found.failures:
                progress.console.print(f"[red]{found.key}[/]  {failure}", highlight=False, soft_wrap=True)
            failed += bool(found.failures)
            progress.update(bar, advance=1, description=f"sweep ({failed} with failures)")


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--library", choices=(*LIBRARIES, "all"), default="all")
    parser.add_argument("--shard", type=_shard, default=(1, 1), metavar="I/N", help="part I of N")
    parser.add_argument("--resume", action="store_true", help="leave out models that have a row already")
    parser.add_argument("--extent", choices=EXTENTS, default="all", help=f"models: {EXTENTS}")
    parser.add_argument("--only", nargs="*", default=(), metavar="NAME", help="these models or families, all checks")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds per model")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "coverage")
    parser.add_argument("--table", action="store_true", help="write docs/coverage.md from the rows, run nothing")
    return parser.parse_args()


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with 1 <= I <= N")
    return int(index), int(count)


if __name__ == "__main__":
    main()
