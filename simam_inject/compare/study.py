"""The queue of a study: cells in Optuna's storage, shared by workers that may come and die at any moment.

One cell is one trial. A trial that completed holds a value, one that failed holds what went wrong: both are results.
A pruned trial is none: a duplicate, a stray one, or a cell of a worker that stopped or died, which is queued again as a
new trial. Where two trials hold the same cell, the earlier one that is not pruned owns it, so
whatever two workers do at the same time, a cell has one result.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simam_inject.compare.records import Cell, Costs, Variant
from simam_inject.compare.report import Comparison
from simam_inject.errors import CompareError

if TYPE_CHECKING:
    import optuna

HEARTBEAT, STALE = 10.0, 90.0
"""Seconds between two heartbeats of a worker, and of silence after which `retry_stale` takes it for dead."""
_CLAIM = 3.0
"""Seconds in which a worker surely wrote its name to the cell that it took; one killed in between never does."""
NAME = "compare"
_STARTED = time.time()
"""Tells this process from an earlier one that had its number."""
_PACKAGES = ("simam_inject", "torch", "torchvision", "timm", "optuna", "ultralytics")
_RESULTS, _OWNERS = ("COMPLETE", "FAIL"), ("WAITING", "RUNNING", "COMPLETE", "FAIL")


def load_optuna() -> Any:
    """The optuna module, or a message that names what to install."""
    try:
        import optuna
        import scipy  # noqa: F401
    except ImportError as error:
        raise CompareError(
            f"{error.name} is not installed, which compare needs: pip install 'simam_inject[compare]'"
        ) from None
    return optuna


def open_storage(storage: Any, *, must_exist: bool = False) -> Any:
    """Memory for None, a journal file for a path, a database for a URL; an Optuna storage as it is."""
    optuna = load_optuna()
    if storage is None:
        return optuna.storages.InMemoryStorage()
    if isinstance(storage, optuna.storages.BaseStorage):
        return storage
    if isinstance(storage, str) and "://" in storage:
        try:
            return optuna.storages.RDBStorage(storage)
        except Exception as error:
            lines = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
            raise CompareError(f"{storage.rpartition('@')[-1]} cannot be opened: {lines[0]}") from None
    from simam_inject.compare.journal import Journal

    path = Path(storage)
    if must_exist and not path.is_file():
        raise CompareError(f"no such study: {path}")
    if not path.parent.is_dir():
        raise CompareError(f"no such folder: {path.parent}, for the study {path.name}")
    try:
        return optuna.storages.JournalStorage(Journal(str(path)))
    except (ValueError, KeyError):
        raise CompareError(f"{path} is not a study: compare did not write this file") from None


@dataclass(frozen=True, slots=True)
class Ticket:
    """A cell that this worker holds."""

    trial: optuna.Trial
    variant: str
    recipe: str
    seed: int


class Study:
    """The cells of one comparison in a storage."""

    def __init__(
        self, storage: Any, settings: dict[str, Any], name: str = NAME, *, resolve: float | None = None
    ) -> None:
        """Open the study of these settings, or begin it.

        Raises:
            CompareError: The storage holds a study of that name with other settings, or cannot be opened.
        """
        self._optuna = load_optuna()
        self.worker = f"{platform.node()}:{os.getpid()}:{_STARTED:.3f}"
        with _quiet(self._optuna):
            self._study: optuna.Study = self._optuna.create_study(
                storage=open_storage(storage),
                study_name=name,
                sampler=self._optuna.samplers.RandomSampler(),
                direction="maximize",
                load_if_exists=True,
            )
        if "settings" in self._study.user_attrs:
            _check_same(self._study.user_attrs["settings"], settings, name)
        else:
            self._study.set_user_attr("made_with", made_with())
            self._study.set_user_attr("settings", settings)
        if resolve is not None:
            self._study.set_user_attr("resolve", resolve)

    def extend(self, variants: tuple[Variant, ...], seeds: int) -> None:
        """Make these the variants, and give each so many seeds, or as many as an earlier call asked for.

        How often the number was raised after results were there is kept: it is the number of looks.
        """
        self._variants = variants
        planned = list(self._study.user_attrs.get("planned", []))
        if not planned or seeds > planned[-1]:
            planned = [*(planned if self._trials(*_RESULTS) else []), seeds]
            self._study.set_user_attr("planned", planned)
        self._study.set_user_attr("cells", planned[-1] * len(variants))

    def take(self) -> Ticket | None:
        """The next cell, now held by this worker; None if every cell has a result or a worker."""
        while self._trials("WAITING") or self._refill():
            try:
                trial = self._study.ask()
                key = trial.user_attrs.get("cell")
                # Another worker emptied the queue an instant before (a stray trial), or two queued the same cell.
                if key is None or any(_cell(t) == key and t.number < trial.number for t in self._trials(*_OWNERS)):
                    self._end(trial.number, "PRUNED")
                    continue
                trial.set_user_attr("worker", self.worker)
            except self._optuna.exceptions.UpdateFinishedTrialError:
                continue
            return Ticket(trial, *json.loads(key))
        return None

    def _refill(self) -> bool:
        """Queue the cells that are missing of the first seed that lacks some; False if none does.

        Seed by seed, so that a study that is stopped is balanced.
        """
        there = set(map(_cell, self._trials(*_OWNERS)))
        for seed in range(self._study.user_attrs["planned"][-1]):
            keys = [json.dumps([one.name, one.recipe, seed]) for one in self._variants]
            missing = [key for key in keys if key not in there]
            for key in missing:
                self._study.enqueue_trial({}, user_attrs={"cell": key})
            if missing:
                return True
        return False

    def _trials(self, *states: str) -> list[optuna.trial.FrozenTrial]:
        wanted = tuple(self._optuna.trial.TrialState[state] for state in states)
        found: list[optuna.trial.FrozenTrial] = self._study.get_trials(deepcopy=False, states=wanted)
        return found

    def finish(self, ticket: Ticket, cell: Cell) -> bool:
        """Store the result; False if the cell was given to another worker meanwhile, which makes it no result."""
        with suppress(self._optuna.exceptions.UpdateFinishedTrialError):
            ticket.trial.set_user_attr("outcome", json.dumps(asdict(cell)))
            return self._end(ticket.trial.number, "FAIL" if cell.value is None else "COMPLETE", cell.value)
        return False

    def release(self, ticket: Ticket) -> None:
        """Give a cell back that was not finished."""
        self._end(ticket.trial.number, "PRUNED")

    def _end(self, number: int, state: str, value: float | None = None) -> bool:
        """End a running trial; False if another worker did."""
        try:
            self._study.tell(number, value, self._optuna.trial.TrialState[state])
        except (self._optuna.exceptions.UpdateFinishedTrialError, ValueError):
            return False
        return True

    def free_dead(self, *, retry_stale: bool = False) -> int:
        """Take the cells of dead workers from them; how many.

        Args:
            retry_stale: Also those of workers elsewhere that gave no sign of life for `STALE` seconds. Without it only
                those of processes of this machine that are gone.
        """
        if any("worker" not in trial.user_attrs for trial in self._trials("RUNNING")):
            time.sleep(_CLAIM)
        freed = 0
        for trial in self._trials("RUNNING"):
            worker = trial.user_attrs.get("worker")
            beat = float(self._study.user_attrs.get(f"heartbeat {worker}", 0.0))
            is_silent = retry_stale and time.time() - beat > STALE
            if worker is None or is_silent or self._is_gone(worker):
                freed += self._end(trial.number, "PRUNED") and _cell(trial) is not None
        return freed

    def _is_gone(self, worker: str) -> bool:
        """It is a process of this machine that does not run any more."""
        machine, pid, _ = worker.rsplit(":", 2)
        if worker == self.worker or machine != platform.node():
            return False
        if int(pid) == os.getpid():
            return True
        try:
            os.kill(int(pid), 0)
        except OSError as error:
            return isinstance(error, ProcessLookupError)
        return False

    @contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Write a sign of life every few seconds while the body runs."""
        over = threading.Event()
        self._study.set_user_attr(f"heartbeat {self.worker}", time.time())

        def beat() -> None:
            while not over.wait(HEARTBEAT):
                with suppress(Exception):  # of a full disk or a lost server, the next result says so aloud
                    self._study.set_user_attr(f"heartbeat {self.worker}", time.time())

        thread = threading.Thread(target=beat, daemon=True, name="simam_inject heartbeat")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def counts(self) -> tuple[int, int]:
        """Cells that have a result, and all."""
        return len(self._trials(*_RESULTS)), int(self._study.user_attrs.get("cells", 0))

    def comparison(self) -> Comparison:
        """What the finished cells say."""
        return read_comparison(self._study)


def _cell(trial: optuna.trial.FrozenTrial) -> str | None:
    """Variant, recipe and seed of a trial, as JSON; None for a stray trial."""
    return trial.user_attrs.get("cell")


def read_comparison(study: optuna.Study) -> Comparison:
    """The comparison that an Optuna study of ours holds."""
    attributes = study.user_attrs
    cells: dict[str, Cell] = {}
    for trial in study.get_trials(deepcopy=False):
        outcome = trial.user_attrs.get("outcome")
        if outcome is not None and trial.state.name in _RESULTS:
            data = json.loads(outcome)
            data["curve"] = tuple((epoch, value) for epoch, value in data["curve"])
            data["costs"] = None if data["costs"] is None else Costs(**data["costs"])
            cells.setdefault(trial.user_attrs["cell"], Cell(**data))
    return Comparison(
        cells=tuple(cells.values()),
        settings=dict(attributes.get("settings", {})),
        made_with=dict(attributes.get("made_with", {})),
        total=int(attributes.get("cells", len(cells))),
        looks=max(1, len(attributes.get("planned", []))),
        resolve=attributes.get("resolve"),
    )


def load_comparison(storage: Any, name: str = NAME) -> Comparison:
    """Read a study without changing it.

    Raises:
        CompareError: The study does not exist.
    """
    optuna = load_optuna()
    opened = open_storage(storage, must_exist=True)
    try:
        with _quiet(optuna):
            return read_comparison(optuna.load_study(study_name=name, storage=opened))
    except KeyError:
        names = ", ".join(optuna.get_all_study_names(opened)) or "none"
        raise CompareError(f"the storage has no study named {name!r}; it has: {names}") from None


def _check_same(there: dict[str, Any], asked: dict[str, Any], name: str) -> None:
    asked = json.loads(json.dumps(asked))
    other = [key for key in sorted(there.keys() | asked.keys()) if there.get(key) != asked.get(key)]
    if other:
        lines = [f"  {key}: {there.get(key)!r} in the study, {asked.get(key)!r} here" for key in other]
        raise CompareError(
            "\n".join([f"the storage has a study {name!r} with other settings; nothing was changed", *lines])
            + "\nuse another file or name, or the settings of that study"
        )


def made_with() -> dict[str, str]:
    """The command and the versions, for the report."""
    program = Path(sys.argv[0]).name or "python"
    command = shlex.join(["simam-inject" if program == "__main__.py" else program, *sys.argv[1:]])
    found = {"command": command, "python": platform.python_version(), "machine": platform.machine()}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Optuna announces each study on stderr."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
