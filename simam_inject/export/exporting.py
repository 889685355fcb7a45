"""`export` and `prove`: a file appears only after it was opened, counted and run."""

from __future__ import annotations

import importlib
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from simam_inject.adapters import adapter_of, network_of
from simam_inject.attention import SimAM
from simam_inject.dataflow.example import Example, example_of
from simam_inject.editing.attach import attended_in, without_attention
from simam_inject.export.proving import as_exported, compare, count_sites, expected_sites, first_line, tolerance_for
from simam_inject.export.records import ExportError, ExportReport, LostSiteError
from simam_inject.export.shapes import other_examples, parse_dynamic, widened
from simam_inject.persist.tables import unwrapped
from simam_inject.subjects import check_subject

SUFFIXES = {".onnx": "onnx", ".pt2": "pt2", ".torchscript": "torchscript"}
_FORMS = {"onnx": "onnx_file", "pt2": "program", "torchscript": "script"}
"""Form -> the file of this package with its `write` and `read`."""


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    example_inputs: Any = None,
    dynamic: bool | str = False,
    tolerance: float | None = None,
) -> ExportReport:
    """Write the injected model to a file that other runtimes run, prove it, and return the proof. The model is not
    changed: a copy of it is exported in eval mode.

    Args:
        model: an injected `nn.Module` or ultralytics `YOLO`; DDP, DataParallel and `torch.compile` wrappers are looked
            through.
        path: ends in `.onnx` (dynamo exporter), `.pt2` (`torch.export`) or `.torchscript` (trace). An existing file is
            replaced at the end, when the proof has succeeded.
        example_inputs: a tensor, a tuple (positional) or a dict (keywords) for one forward; None uses the input size
            that the model declares, else 1 x 3 x 224 x 224. The dtype of the model decides that of the file.
        dynamic: True lets batch and spatial size vary, "batch" and "size" only that; the proof then runs the file on a
            second input of other sizes.
        tolerance: largest |file - eager| over largest |eager| that passes; None is 1e-4 in float32, 1e-2 in half
            precision.

    Raises:
        ExportError: no SimAM in the model, one bypassed or at strength 0, an unknown suffix, a folder in the place of
            the file, a model or size that the exporter cannot express.
        LostSiteError: the file lacks a site, has another lambda, or computes something else. No file was written.
        ModelError: the model cannot be run on the example, or is sharded, scripted or compiled in place.

    Example:
        >>> import tempfile, torchvision
        >>> from simam_inject import inject
        >>> model = inject(torchvision.models.resnet18(), "after basicblock.conv2", verify=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = export(model, f"{folder}/net.pt2")
        >>> report.live
        8
    """
    target = Path(path)
    form, varying = _form_of(target), parse_dynamic(dynamic)
    if not target.parent.is_dir():
        raise ExportError(f"there is no folder {str(target.parent)!r}")
    if target.is_dir():
        raise ExportError(f"{str(target)!r} is a folder; give the name of a file")
    network = _network(model)
    example = widened(example_of(network, example_inputs), varying)
    with tempfile.TemporaryDirectory(prefix=f".{target.stem}-", dir=target.parent) as folder:
        written = Path(folder) / target.name
        with as_exported(network) as twin:
            _write(twin, form, example, varying, written)
        report = _prove(network, form, written, target, example, varying, tolerance, complete=True)
        written.replace(target)
    return report


def prove(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    example_inputs: Any = None,
    dynamic: bool | str = False,
    tolerance: float | None = None,
) -> ExportReport:
    """Prove of an existing file, whoever exported it, that it is this injected model. Changes neither.

    The file may leave out the last of the model's outputs (`Comparison.left_out`), and may be of the form that the
    model's own library exports: ultralytics folds norms away and drops branches that only training needs.

    Args and Raises: as for `export`.
    """
    source = Path(path)
    if not source.is_file():
        raise ExportError(f"there is no file {str(source)!r}")
    form, varying = _form_of(source), parse_dynamic(dynamic)
    network = _network(model)
    example = widened(example_of(network, example_inputs), varying)
    for candidate in (network, *adapter_of(model).deployed(model)):
        try:
            return _prove(candidate, form, source, source, example, varying, tolerance, complete=False)
        except LostSiteError as error:
            lost = error
    raise lost


def _form_of(path: Path) -> Any:
    """The module that writes and reads the format of a suffix, imported when it is first asked for."""
    if path.suffix not in SUFFIXES:
        raise ExportError(f"{path.name!r} names no export format; the suffix must be one of {', '.join(SUFFIXES)}")
    try:
        return importlib.import_module(f"simam_inject.export.{_FORMS[SUFFIXES[path.suffix]]}")
    except ImportError as error:
        raise ExportError(
            f"ONNX needs the package {error.name!r}; install it with: pip install 'simam_inject[export]'"
        ) from None


def _network(model: nn.Module) -> nn.Module:
    network = network_of(unwrapped(model))
    check_subject(network)
    attentions = [
        (entry.insertion.module, entry.attention)
        for entry in attended_in(network)
        if isinstance(entry.attention, SimAM)
    ]
    if not attentions:
        raise ExportError("there is no SimAM in this model; inject(model, recipe) puts it there")
    for name, attention in attentions:
        if attention.bypassed:
            raise ExportError(f"{name} is bypassed, and an export would lose it; leave bypass() first")
        if attention.strength == 0:
            raise ExportError(f"{name} has strength 0, and an export would lose it; set_strength(model, 1.0) first")
    weak = [attention.strength for _, attention in attentions if attention.strength < 1]
    if weak:
        warnings.warn(
            f"{len(weak)} of {len(attentions)} SimAM have a strength below 1 (the least is {min(weak):g}), as in the "
            "middle of a ramp; the file keeps it",
            stacklevel=3,
        )
    return network


def _write(twin: nn.Module, form: Any, example: Example, varying: tuple[str, ...], path: Path) -> None:
    try:
        form.write(twin, example, varying, path)
    except ExportError:
        raise
    except Exception as error:  # an exporter raises anything at all
        try:
            with without_attention(twin):
                form.write(twin, example, varying, path)
        except Exception:
            advice = "; try dynamic='batch' or fixed sizes" if varying else "; another suffix may do"
            blame = f" with or without SimAM{advice}"
        else:
            blame = " with SimAM in it, though it can without"
        raise ExportError(f"the exporter cannot express this model{blame}. It says: {first_line(error)}") from error


def _prove(
    model: nn.Module,
    form: Any,
    path: Path,
    target: Path,
    example: Example,
    varying: tuple[str, ...],
    tolerance: float | None,
    *,
    complete: bool,
) -> ExportReport:
    artefact = form.read(path)
    with as_exported(model) as twin:
        sites = count_sites(artefact, expected_sites(twin, example))
        examples = [example, _runnable(twin, other_examples(example, varying))] if varying else [example]
        comparisons = tuple(compare(twin, artefact, given, tolerance, complete=complete) for given in examples)
    return ExportReport(target, SUFFIXES[target.suffix], sites, comparisons, tolerance_for(example, tolerance), varying)


def _runnable(model: nn.Module, examples: list[Example]) -> Example:
    """The first that the model takes."""
    reason = ""
    for example in examples:
        try:
            example.run(model)
        except Exception as error:
            reason = first_line(error)
        else:
            return example
    raise ExportError(f"the model itself takes no other size than the example's ({reason}); use dynamic='batch'")
