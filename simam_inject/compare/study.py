"""A study: cells in Optuna's storage, shared by workers that may start, stop and die at any moment.

A worker claims a cell by adding a running trial that names the cell and the worker, in one operation of the storage. A
trial that completed holds a value, one that failed holds what went wrong: both are results. A pruned trial is neither:
a duplicate, or the claim of a worker that stopped or died. Where two trials name the same cell, the earlier one that is
not pruned owns it, so whatever workers do at the same time, a cell has one result.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import shlex
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from simam_inject.compare.cells import Cell, Variant
from simam_inject.compare.report import Comparison
from simam_inject.errors import CompareError, check_installed, describe_exception
from simam_inject.persist.record import versions_of

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

HEARTBEAT, STALE = 10.0, 90.0
"""Seconds between two heartbeats of a worker, and without one until `retry_stale` frees its cell."""
NAME = "compare"
_PACKAGES = ("simam_inject", "torch", "torchvision", "timm", "optuna", "ultralytics")
_JOURNAL_START = b'{"op_code":'
_NAMESPACE = Path("/proc/self/ns/pid")


def import_optuna() -> Any:
    """The optuna module; a message that names what to install if it or another library of compare is missing."""
    check_installed("compare", "compare", "optuna", "scipy", "matplotlib", error=CompareError)
    return import_module("optuna")


class _JournalLock:
    """The lock of Optuna's journal file: it ends with its process, and half a line at the end of the file is removed.

    Optuna 5.0's own locks wait 30 s for a worker that was killed. It appends behind half a line, which a killed worker
    or a full disk leaves, and can then read neither. A network file system must support `flock`, as NFS 4 does.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def acquire(self) -> bool:
        self._file = self._path.open("r+b")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._file.truncate(self._file.read().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        self._file.close()


def open_storage(storage: Any, *, must_exist: bool = False) -> Any:
    """A storage of Optuna: in memory for None, a journal for a path, a database for a URL.

    Raises:
        CompareError: It does not exist, cannot be opened, or is another kind of file.
    """
    optuna = import_optuna()
    if storage is None:
        return optuna.storages.InMemoryStorage()
    if isinstance(storage, optuna.storages.BaseStorage):
        return storage
    if "://" in str(storage):
        file = str(storage).removeprefix("sqlite:///")
        if must_exist and file != storage and not Path(file).is_file():  # it would be created
            raise CompareError(f"no such study: {file}")
        try:
            return optuna.storages.RDBStorage(str(storage))
        except Exception as error:
            reason = describe_exception(error.__cause__ or error)
            raise CompareError(f"{storage.rpartition('@')[-1]} cannot be opened: {reason}") from None
    path = Path(storage)
    if must_exist and not path.is_file():
        raise CompareError(f"no such study: {path}")
    if path.is_dir() or not path.parent.is_dir():
        what = f"{path} is a folder, not a file" if path.is_dir() else f"no such folder: {path.parent}"
        raise CompareError(f"{what}, for the study {path.name}")
    start = path.read_bytes()[: len(_JOURNAL_START)] if path.is_file() else b""
    try:
        if not _JOURNAL_START.startswith(start):  # Optuna ignores a last line that it cannot read
            raise ValueError
        backend = optuna.storages.journal.JournalFileBackend(str(path), _JournalLock(path))
        return optuna.storages.JournalStorage(backend)
    except (ValueError, KeyError):
        raise CompareError(f"{path} is not a study: compare did not write this file") from None


class Study:
    """The cells of one comparison in a storage, and this process as one of the workers.

    Begins the study, or continues the one with these settings. It has so many seeds, or as many as an earlier call
    asked for, if that is more. How often the number was raised after there were results is the number of looks.

    Raises:
        CompareError: The storage cannot be opened, or holds a study of that name with other settings.
    """

    def __init__(
        self,
        storage: Any,
        settings: dict[str, Any],
        variants: Sequence[Variant],
        seeds: int,
        *,
        name: str = NAME,
        resolve: float | None = None,
        retry_stale: bool = False,
    ) -> None:
        names = [(variant.name, variant.recipe) for variant in variants]
        try:
            self._settings = json.loads(json.dumps({**settings, "variants": names}, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise CompareError(f"settings cannot be written as JSON: {error}") from None
        self._optuna, self._storage, self._retry_stale = import_optuna(), open_storage(storage), retry_stale
        with ExitStack() as stack:
            stack.callback(self._optuna.logging.set_verbosity, self._optuna.logging.get_verbosity())
            self._optuna.logging.set_verbosity(self._optuna.logging.WARNING)  # it announces each study on stderr
            self._study: optuna.Study = self._optuna.create_study(
                storage=self._storage, study_name=name, direction="maximize", load_if_exists=True
            )
        self.machine = f"{platform.node()}/{_NAMESPACE.stat().st_ino if _NAMESPACE.exists() else ''}"
        """Where process ids have one meaning: containers may have the name of their host, but count their own."""
        self.worker = f"{self.machine}:{os.getpid()}:{threading.get_ident()}"
        attributes, write = self._study.user_attrs, self._study.set_user_attr
        if "settings" not in attributes:
            write("made_with", _made_with())
            write("settings", self._settings)
        self._check_settings()
        if resolve is not None:
            write("resolve", float(resolve))
        planned = attributes.get("planned", [])
        if not planned or seeds > planned[-1]:
            planned = [*(planned if self.comparison().cells else []), seeds]
            write("planned", planned)
        # Seed by seed, so that a study that is stopped is balanced.
        cells = [(variant, seed) for seed in range(planned[-1]) for variant in variants]
        self._cells = {json.dumps([variant.name, variant.recipe, seed]): (variant, seed) for variant, seed in cells}

    def _check_settings(self) -> None:
        """Before each cell and each result, since another worker may have begun the same study at the same time."""
        written, given = self._study.user_attrs["settings"], self._settings
        other = [key for key in sorted(written.keys() | given.keys()) if written.get(key) != given.get(key)]
        if other:
            lines = "\n".join(f"  {key}: {written.get(key)!r} in the study, {given.get(key)!r} here" for key in other)
            problem = f"the storage has a study {self._study.study_name!r} with other settings; nothing was changed"
            raise CompareError(f"{problem}\n{lines}\nuse another file or name, or the settings of that study")

    def take(self) -> tuple[int, Variant, int] | None:
        """Claim the next cell: the id of its trial, variant and seed. None if every cell has a result or a worker."""
        self._check_settings()
        for trial in _owners(self._study).values():
            if trial.state.name == "RUNNING" and self._has_ended(trial.user_attrs["worker"]):
                self.end(trial._trial_id)
        while True:
            owners = _owners(self._study)
            cell = next((cell for cell in self._cells if cell not in owners), None)
            if cell is None:
                return None
            running = self._optuna.create_trial(
                state=self._optuna.trial.TrialState.RUNNING, user_attrs={"cell": cell, "worker": self.worker}
            )
            trial_id = self._storage.create_new_trial(self._study._study_id, running)
            if _owners(self._study)[cell]._trial_id == trial_id:
                return trial_id, *self._cells[cell]
            self.end(trial_id)  # another worker claimed it at the same time

    def end(self, trial: int, cell: Cell | None = None) -> None:
        """Store the result of a claim, or give the cell back; nothing happens if the claim was taken away meanwhile."""
        if cell is not None:
            self._check_settings()
        state, values = "PRUNED", None
        with suppress(self._optuna.exceptions.UpdateFinishedTrialError):
            if cell is not None:
                self._storage.set_trial_user_attr(trial, "outcome", json.dumps(asdict(cell)))
                state, values = ("FAIL", None) if cell.value is None else ("COMPLETE", [cell.value])
            self._storage.set_trial_state_values(trial, self._optuna.trial.TrialState[state], values)

    def _has_ended(self, worker: str) -> bool:
        """Whether a worker of this machine is gone, or with `retry_stale` any worker is silent."""
        last = float(self._study.user_attrs.get(f"heartbeat {worker}", 0.0))
        if self._retry_stale and time.time() - last > STALE:
            return True
        machine, pid, *_ = worker.split(":")
        if machine != self.machine:
            return False
        try:
            os.kill(int(pid), 0)
        except OSError as error:
            return isinstance(error, ProcessLookupError)
        return worker == self.worker  # an earlier call in this thread, which could not give its cell back

    @contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Write the time every few seconds while the body runs, so that other workers see that this one is alive."""
        over, key = threading.Event(), f"heartbeat {self.worker}"

        def beat() -> None:
            while not over.wait(HEARTBEAT):
                with suppress(Exception):  # if the disk is full or the server lost, the next result raises
                    self._study.set_user_attr(key, time.time())

        self._study.set_user_attr(key, time.time())
        thread = threading.Thread(target=beat, daemon=True, name="simam_inject heartbeat")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def comparison(self) -> Comparison:
        """The finished cells."""
        return _read(self._study)


def load_comparison(storage: Any, name: str = NAME) -> Comparison:
    """Read a study without changing it.

    Raises:
        CompareError: The study does not exist.
    """
    optuna, opened = import_optuna(), open_storage(storage, must_exist=True)
    try:
        return _read(optuna.load_study(study_name=name, storage=opened))
    except KeyError:
        names = ", ".join(optuna.get_all_study_names(opened)) or "none"
        raise CompareError(f"the storage has no study named {name!r}; it has: {names}") from None


def _owners(study: optuna.Study) -> dict[str, FrozenTrial]:
    """The trial of each cell that has a result or a worker."""
    owners: dict[str, FrozenTrial] = {}
    for trial in study.get_trials(deepcopy=False):
        if "cell" in trial.user_attrs and trial.state.name != "PRUNED":
            owners.setdefault(trial.user_attrs["cell"], trial)
    return owners


def _read(study: optuna.Study) -> Comparison:
    attributes, read = study.user_attrs, TypeAdapter(Cell)
    outcomes = [trial.user_attrs["outcome"] for trial in _owners(study).values() if trial.state.is_finished()]
    settings, planned = attributes.get("settings", {}), attributes.get("planned", [])
    return Comparison(
        cells=tuple(map(read.validate_json, outcomes)),
        settings=settings,
        made_with=attributes.get("made_with", {}),
        total=planned[-1] * len(settings["variants"]) if planned else 0,
        looks=max(1, len(planned)),
        resolve=attributes.get("resolve"),
    )


def _made_with() -> dict[str, str]:
    """The command without passwords of databases, and the versions, for the report."""
    program = Path(sys.argv[0]).name or "python"
    arguments = [re.sub(r"(://[^:/@]+):[^@]*@", r"\1:***@", argument) for argument in sys.argv[1:]]
    command = shlex.join(["simam-inject" if program == "__main__.py" else program, *arguments])
    about = {"command": command, "python": platform.python_version(), "machine": platform.machine()}
    return about | versions_of(_PACKAGES)
