"""One forked process per model: a crash or a time-out is a result, and the libraries are imported once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One task in a process of its own."""

    task: Any
    process: Any
    answers: Connection
    deadline: float


def run_all(
    tasks: Iterable[Any], work: Callable[[Any], Any], *, workers: int, timeout: float
) -> Iterator[tuple[Any, Any, str]]:
    """(task, result, error) as they finish; `error` is "" or why there is no result."""
    waiting, running = iter(tasks), {}
    context = multiprocessing.get_context("fork")
    exhausted = False
    while not exhausted or running:
        while not exhausted and len(running) < workers:
            task = next(waiting, None)
            if task is None:
                exhausted = True
                break
            job = _start(context, task, work, timeout)
            running[job.answers] = job
        ready = set(wait(list(running), timeout=1.0))
        for answers, job in list(running.items()):
            if answers in ready:
                yield (job.task, *_collect(job))
            elif time.monotonic() > job.deadline:
                job.process.kill()
                job.process.join()
                yield job.task, None, f"timed out after {timeout:.0f} s"
            else:
                continue
            del running[answers]
            answers.close()


def _start(context: Any, task: Any, work: Callable[[Any], Any], timeout: float) -> Job:
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(theirs, work, task), daemon=True)
    process.start()
    theirs.close()
    return Job(task, process, ours, time.monotonic() + timeout)


def _serve(answers: Connection, work: Callable[[Any], Any], task: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    try:
        answers.send((work(task), ""))
    except BaseException as error:
        answers.send((None, f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]))


def _collect(job: Job) -> tuple[Any, str]:
    try:
        result, error = job.answers.recv()
    except EOFError:
        job.process.join()
        return None, f"the process died (exit code {job.process.exitcode})"
    job.process.join()
    return result, error
