"""Is the attention live in a checkpoint? Every site: planned, present, run as trained, run as deployed, exported.

As trained is the network in the file; as deployed is the same after `fuse()`, which `val`, `predict` and `export` run.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from simam_inject.dataflow.example import Example, example_of
from simam_inject.errors import FileError, InjectError
from simam_inject.export.proving import count_sites, expected_sites, relative_difference
from simam_inject.export.records import ExportedSite
from simam_inject.integrations.ultralytics.record import names_of, recorded
from simam_inject.persist.record import Record
from simam_inject.planning.records import Insertion
from simam_inject.verification import bypassed
from simam_inject.verification.outputs import tensors_of


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
class CheckedExport:
    """An exported file beside the checkpoint."""

    path: Path
    live: int
    """Sites that reach its output."""
    wanted: int
    """Sites that the fused network runs."""
    difference: float | None
    """Largest |file - network| over largest |network|; None where the file's outputs have another form."""
    effect: float | None
    """The same measure between the network without SimAM and with it."""
    fault: str = ""
    """What is wrong with the file; "" if nothing is."""


@dataclass(frozen=True, slots=True)
class Checkup:
    """Everything found about one checkpoint."""

    path: Path
    network: str
    recipe: str
    """Name of the recorded recipe; "" without a record."""
    sites: tuple[CheckedSite, ...]
    exports: tuple[CheckedExport, ...]
    faults: tuple[str, ...]
    """What is wrong, in sentences; empty if every site is live everywhere."""


def check_checkpoint(path: Path) -> Checkup:
    """Look into a checkpoint and the .onnx file of the same name beside it. Changes neither.

    Raises:
        FileError: the file does not exist, or ultralytics cannot load it.
    """
    network = _load(path)
    record = recorded(network)
    image = example_of(network).tensors[0]
    fused = copy.deepcopy(network).fuse(verbose=False)
    sites = _compare_sites(record, network, fused, Example((image,), {}))
    file = path.with_suffix(".onnx")
    exports = (_check_export(file, fused, image),) if file.is_file() and any(site.present for site in sites) else ()
    faults = (*_faults(record, sites), *(f"{export.path.name}: {export.fault}" for export in exports if export.fault))
    return Checkup(path, type(network).__name__, names_of(record) if record else "", sites, exports, faults)


def _load(path: Path) -> Any:
    from ultralytics import YOLO

    if not path.is_file():
        raise FileError(f"no such file: {str(path)!r}")
    if path.suffix != ".pt":
        raise FileError(
            f"{path} is not a checkpoint: give the .pt file; an .onnx of the same name beside it is checked too"
        )
    try:
        return YOLO(str(path)).model.float().eval()
    except InjectError:
        raise
    except Exception as error:  # whatever unpickling somebody's file raises
        raise FileError(f"ultralytics cannot load {path}: {type(error).__name__}: {error}") from error


def _compare_sites(
    record: Record | None, network: nn.Module, fused: nn.Module, example: Example
) -> tuple[CheckedSite, ...]:
    with torch.no_grad():
        runs, runs_fused = ({site.module: site for site in expected_sites(net, example)} for net in (network, fused))
    planned = {site.module: site for site in record.insertions} if record else {}
    sites: dict[str, Insertion | ExportedSite] = {**planned, **runs}
    return tuple(
        CheckedSite(
            path=site.path,
            e_lambda=site.e_lambda,
            planned=module in planned,
            present=module in runs,
            runs=runs[module].runs if module in runs else 0,
            runs_fused=runs_fused[module].runs if module in runs_fused else 0,
        )
        for module, site in sites.items()
    )


def _faults(record: Record | None, sites: tuple[CheckedSite, ...]) -> list[str]:
    if not sites:
        why = "its record lists no sites" if record else "its yaml has no record of it"
        return [f"the network has no SimAM, and {why}: it was never injected, or all sites were lost"]
    faults = []
    for name, missing in (
        ("not recorded in model.yaml, so training from this file would lose", [s for s in sites if not s.planned]),
        ("recorded and missing from the network", [s for s in sites if not s.present]),
        ("present but never run", [s for s in sites if s.present and not s.runs]),
    ):
        if missing:
            shown = ", ".join(site.path for site in missing[:5]) + (", ..." if len(missing) > 5 else "")
            faults.append(f"{len(missing)} of {len(sites)} sites {name}: {shown}")
    return faults


@torch.no_grad()
def _check_export(file: Path, network: nn.Module, image: torch.Tensor) -> CheckedExport:
    try:
        import onnxruntime  # noqa: F401

        from simam_inject.export.exporting import read
    except ImportError as error:
        fault = f"not checked, since {error.name} is not installed (pip install 'simam_inject[export]')"
        return CheckedExport(file, 0, 0, None, None, fault)
    artefact = read(file)
    sizes = zip(artefact.size, image.shape, strict=True)  # names where a length is open
    size = [length if isinstance(length, int) else ours for length, ours in sizes]
    example = Example((torch.rand(size, generator=torch.Generator().manual_seed(0)),), {})
    expected = tuple(site for site in expected_sites(network, example) if site.runs)
    wanted = sum(site.runs for site in expected)
    live = min(wanted, sum(gate.is_live for gate in artefact.gates))
    difference, effect = _differences(artefact, network, example)
    fault = ""
    try:
        count_sites(artefact, expected)
    except InjectError as error:
        fault = str(error)
    if not fault and difference is not None and effect is not None and not difference < effect / 10:
        fault = (
            f"its output is {difference:.2g} from the network's; without SimAM the network's would be {effect:.2g} off"
        )
    return CheckedExport(file, live, wanted, difference, effect, fault)


def _differences(artefact: Any, network: nn.Module, example: Example) -> tuple[float | None, float | None]:
    """How far the file is from the network, and the network without SimAM."""
    ours = [next(tensors_of(example.run(network)))]
    with bypassed(network):
        plain = [next(tensors_of(example.run(network)))]
    try:
        theirs = artefact.run(example)[:1]
    except Exception:  # half precision, several inputs: the graph is all there is to go by
        return None, None
    if [tensor.shape for tensor in theirs] != [tensor.shape for tensor in ours]:
        return None, None
    return relative_difference(theirs, ours), relative_difference(plain, ours)
