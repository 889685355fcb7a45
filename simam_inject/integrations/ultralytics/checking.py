"""Is the attention live in a checkpoint? Every site: planned, present, run as trained, run as deployed, exported.

As trained is the network in the file; as deployed is the same after `fuse()`, which `val`, `predict` and `export` run.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from simam_inject.api import bypass
from simam_inject.dataflow.example import Example, example_of
from simam_inject.editing.attach import attended_in
from simam_inject.editing.checking import SiteRecord
from simam_inject.errors import FileError, InjectError
from simam_inject.integrations.ultralytics.record import Key, key_of, names_of, recorded
from simam_inject.nested import tensors_in
from simam_inject.persist.record import Record


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
    """Name of the recorded recipe; "" if there is no record."""
    sites: tuple[CheckedSite, ...]
    exports: tuple[CheckedExport, ...]
    faults: tuple[str, ...]
    """What is wrong, in sentences; empty if every site is live everywhere."""


def check_checkpoint(path: Path) -> Checkup:
    """Look into a checkpoint and the .onnx file of the same name beside it. Changes neither.

    Raises:
        FileError: there is no such file, or ultralytics cannot load it.
    """
    network = _load(path)
    record = recorded(network)
    planned = record.sites if record else ()
    image = example_of(network).tensors[0]
    runs, fused = _runs(network, image), copy.deepcopy(network).fuse(verbose=False)
    sites = _compare_sites(planned, network, runs, _runs(fused, image))
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


def _runs(network: nn.Module, image: torch.Tensor) -> Counter[Key]:
    """How often each site runs in one forward."""
    counts: Counter[Key] = Counter()
    handles = []
    for entry in attended_in(network):
        if entry.attention is not None:
            key = key_of(entry.site)
            counts[key] = 0
            handles.append(entry.attention.register_forward_hook(lambda *_, key=key: counts.update([key])))
    try:
        with torch.no_grad():
            network(image)
    finally:
        for handle in handles:
            handle.remove()
    return counts


def _compare_sites(
    planned: Iterable[SiteRecord], network: nn.Module, runs: Counter[Key], fused: Counter[Key]
) -> tuple[CheckedSite, ...]:
    wanted = {key_of(site): site for site in planned}
    found = {key_of(entry.site): entry.site for entry in attended_in(network) if entry.attention is not None}
    return tuple(
        CheckedSite(site["path"], site["e_lambda"], key in wanted, key in found, runs[key], fused[key])
        for key, site in (wanted | found).items()
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


def _check_export(file: Path, network: nn.Module, image: torch.Tensor) -> CheckedExport:
    try:
        import onnxruntime  # noqa: F401

        from simam_inject.export.exporting import read
        from simam_inject.export.gates import find_gates
        from simam_inject.export.proving import count_sites, expected_sites
    except ImportError as error:
        fault = f"not checked, since {error.name} is not installed (pip install 'simam_inject[export]')"
        return CheckedExport(file, 0, 0, None, None, fault)
    artefact = read(file)
    size = [length if isinstance(length, int) else given for length, given in _sizes(artefact, image)]
    image = torch.rand(size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = tuple(site for site in expected_sites(network, Example((image,), {})) if site.runs)
        live = sum(gate.is_live for gate in find_gates(artefact.graph))
        wanted = sum(site.runs for site in expected)
        difference, effect = _differences(artefact, network, image)
    try:
        count_sites(artefact, expected)
    except InjectError as error:
        return CheckedExport(file, min(live, wanted), wanted, difference, effect, str(error))
    fault = ""
    if difference is not None and effect is not None and not difference < effect / 10:
        fault = (
            f"its output is {difference:.2g} from the network's; without SimAM the network's would be {effect:.2g} off"
        )
    return CheckedExport(file, wanted, wanted, difference, effect, fault)


def _sizes(artefact: Any, image: torch.Tensor) -> list[tuple[Any, int]]:
    """Sizes that the file asks for, beside those to use where it leaves them open."""
    return list(zip(artefact.size, image.shape, strict=True))


def _differences(artefact: Any, network: nn.Module, image: torch.Tensor) -> tuple[float | None, float | None]:
    """How far the file is from the network, and the network without SimAM."""
    from simam_inject.export.proving import relative_difference

    ours = [_first(network(image))]
    with bypass(network):
        plain = [_first(network(image))]
    try:
        theirs = artefact.run(Example((image,), {}))[:1]
    except Exception:  # half precision, several inputs: the graph is all there is to go by
        return None, None
    if [tensor.shape for tensor in theirs] != [tensor.shape for tensor in ours]:
        return None, None
    return relative_difference(theirs, ours), relative_difference(plain, ours)


def _first(output: Any) -> torch.Tensor:
    return next(tensor for _, tensor in tensors_in(output))
