"""Is the attention live in a checkpoint? Every site: planned, present, run as trained, run as deployed, exported.

As trained is the network in the file; as deployed is the same after `fuse()`, which `val`, `predict` and `export` run.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from simam_inject.dataflow.example import example_of
from simam_inject.editing.attach import simams_in
from simam_inject.errors import InjectError, shortened
from simam_inject.export.formats import read
from simam_inject.export.proving import count_sites, expected_sites
from simam_inject.export.report import ExportedSite
from simam_inject.integrations.ultralytics.record import names_of, network_in, recorded
from simam_inject.persist.record import Record
from simam_inject.planning.insertions import Insertion
from simam_inject.zoo.yolo import read_yolo


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
def check_checkpoint(path: str | os.PathLike[str]) -> Checkup:
    """Look into a checkpoint and the .onnx file of the same name beside it. Changes neither."""
    path = Path(path)
    network: Any = network_in(read_yolo(path).model).float().eval()
    record, example = recorded(network), example_of(network)
    planned = {site.module: site for site in record.sites} if record else {}
    trained, fused = (
        {site.module: site for site in expected_sites(net, example)}
        for net in (network, copy.deepcopy(network).fuse(verbose=False))
    )
    found: dict[str, Insertion | ExportedSite] = {**planned, **trained}
    sites = tuple(
        CheckedSite(
            path=site.path,
            e_lambda=site.e_lambda,
            planned=module in planned,
            present=module in trained,
            runs=trained[module].runs if module in trained else 0,
            runs_fused=fused[module].runs if module in fused else 0,
        )
        for module, site in found.items()
    )
    off = [site.path for site, attention in simams_in(network) if attention.bypassed or attention.strength == 0]
    file, exported, faults = path.with_suffix(".onnx"), None, _faults(record, sites, off)
    if trained and file.is_file():
        try:
            simams = read(file).simams
            exported = sum(simam.is_live for simam in simams)
            count_sites(simams, tuple(site for site in fused.values() if site.runs))
        except InjectError as error:  # onnxruntime is not installed, it is not an .onnx file, or it lost a site
            faults.append(f"{file.name}: {error}")
    recipe = names_of(record) if record else ""
    return Checkup(path, type(network).__name__, recipe, sites, exported, tuple(faults))


def _faults(record: Record | None, sites: tuple[CheckedSite, ...], off: list[str]) -> list[str]:
    if not sites:
        why = "its record lists no sites" if record else "its yaml has no record of it"
        return [f"the network has no SimAM, and {why}: it was never injected, or all sites were lost"]
    unrecorded = [site.path for site in sites if not site.planned]
    faulty = {
        "are not recorded in model.yaml, so training without `YOLO.train` would lose them": unrecorded,
        "are recorded but missing from the network": [site.path for site in sites if not site.present],
        "are bypassed or have strength 0, so they change nothing": off,
        "are present but never run": [site.path for site in sites if site.present and not site.runs],
    }
    return [f"{len(paths)} of {len(sites)} sites {why}: {shortened(paths)}" for why, paths in faulty.items() if paths]
