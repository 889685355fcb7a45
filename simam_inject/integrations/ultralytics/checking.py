"""Is the attention live in a checkpoint? Every site: planned, present, run as trained, run as deployed, exported.

As trained is the network in the file; as deployed is the same after `fuse()`, which `val`, `predict` and `export` run.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from simam_inject.dataflow.example import Example, example_of
from simam_inject.errors import FileError, InjectError, shortened
from simam_inject.export.exporting import read
from simam_inject.export.proving import count_sites, expected_sites
from simam_inject.export.records import ExportedSite
from simam_inject.integrations.ultralytics.record import names_of, recorded
from simam_inject.persist.record import Record
from simam_inject.planning.records import Insertion


@dataclass(frozen=True, slots=True)
class CheckedSite:
    """One site and what became of it."""

    path: str
    e_lambda: float
    planned: bool
    """The record in the checkpoint names it."""
    present: bool
    """The network in the checkpoint has its SimAM."""
    runs: int
    """How often one forward of that network runs it."""
    runs_fused: int
    """How often one forward runs it after `fuse()`."""

    @property
    def is_live(self) -> bool:
        """Planned, present and run, fused or not. A branch that only training needs is not run when fused."""
        return self.planned and self.present and self.runs > 0


@dataclass(frozen=True, slots=True)
class Checkup:
    """Everything found about one checkpoint."""

    path: Path
    network: str
    recipe: str
    """Name of the recorded recipe; "" without a record."""
    sites: tuple[CheckedSite, ...]
    exported: int | None
    """How many sites reach the output of the .onnx file of the same name; None where there is none to check."""
    faults: tuple[str, ...]
    """What is wrong, in sentences; empty if every site is live everywhere."""


@torch.no_grad()
def check_checkpoint(path: Path) -> Checkup:
    """Look into a checkpoint and the .onnx file of the same name beside it. Changes neither.

    Raises:
        FileError: the file does not exist, or ultralytics cannot load it.
    """
    network = _load(path)
    record, example = recorded(network), Example((example_of(network).tensors[0],), {})
    trained, fused = (expected_sites(net, example) for net in (network, copy.deepcopy(network).fuse(verbose=False)))
    sites = _compare(record, trained, fused)
    file, exported, faults = path.with_suffix(".onnx"), None, _faults(record, sites)
    if trained and file.is_file():
        try:
            gates = read(file).gates
            exported = sum(gate.is_live for gate in gates)
            count_sites(gates, tuple(site for site in fused if site.runs))
        except InjectError as error:  # onnxruntime is not installed, it is no .onnx, or it lost a site
            faults.append(f"{file.name}: {error}")
    name = names_of(record) if record else ""
    return Checkup(path, type(network).__name__, name, sites, exported, tuple(faults))


def _load(path: Path) -> Any:
    from ultralytics import YOLO

    if not path.is_file():
        raise FileError(f"no such file: {str(path)!r}")
    try:
        return YOLO(str(path)).model.float().eval()
    except InjectError:
        raise
    except Exception as error:  # unpickling a file may raise anything
        raise FileError(f"ultralytics cannot load {path}: {type(error).__name__}: {error}") from error


def _compare(
    record: Record | None, trained: tuple[ExportedSite, ...], fused: tuple[ExportedSite, ...]
) -> tuple[CheckedSite, ...]:
    planned = {site.module: site for site in record.sites} if record else {}
    runs, runs_fused = ({site.module: site.runs for site in found} for found in (trained, fused))
    sites: dict[str, Insertion | ExportedSite] = {**planned, **{site.module: site for site in trained}}
    return tuple(
        CheckedSite(
            path=site.path,
            e_lambda=site.e_lambda,
            planned=module in planned,
            present=module in runs,
            runs=runs.get(module, 0),
            runs_fused=runs_fused.get(module, 0),
        )
        for module, site in sites.items()
    )


def _faults(record: Record | None, sites: tuple[CheckedSite, ...]) -> list[str]:
    if not sites:
        why = "its record lists no sites" if record else "its yaml has no record of it"
        return [f"the network has no SimAM, and {why}: it was never injected, or all sites were lost"]
    kinds = {
        "not recorded in model.yaml, so training from this file would lose": [s for s in sites if not s.planned],
        "recorded and missing from the network": [s for s in sites if not s.present],
        "present but never run": [s for s in sites if s.present and not s.runs],
    }
    return [
        f"{len(found)} of {len(sites)} sites {kind}: {shortened([site.path for site in found])}"
        for kind, found in kinds.items()
        if found
    ]
