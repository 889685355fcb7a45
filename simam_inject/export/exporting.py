"""`export` and `prove`: a file appears only after it was opened, counted and run."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from simam_inject.discovery.naming import join
from simam_inject.export.forms import Form, form_name, form_of
from simam_inject.export.proving import as_exported, compare, count_sites, expected_sites, first_line, tolerance_for
from simam_inject.export.records import ExportError, ExportReport, LostSiteError
from simam_inject.export.shapes import other_examples, parse_dynamic, widened
from simam_inject.integrations import deployed_forms, network_of
from simam_inject.persist.wrappers import unwrapped
from simam_inject.rewriting.rewriter import edits_in, stock
from simam_inject.subjects import check_subject
from simam_inject.tracing.inputs import Example, example_of


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    example_inputs: Any = None,
    dynamic: bool | str = False,
    tolerance: float | None = None,
) -> ExportReport:
    """Write the injected model to a file that other runtimes run, prove it, and return the proof. Copies and changes
    nothing in the model: it is exported in eval mode and is afterwards as it was.

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
        ExportError: no SimAM in the model, a SimAM bypassed, an unknown suffix, a folder in the place of the file, a
            model or size that the exporter cannot express.
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
    form, varying = form_of(target), parse_dynamic(dynamic)
    if not target.parent.is_dir():
        raise ExportError(f"there is no folder {str(target.parent)!r}")
    if target.is_dir():
        raise ExportError(f"{str(target)!r} is a folder; give the name of a file")
    network = _network(model)
    example = widened(example_of(network, example_inputs), varying)
    with tempfile.TemporaryDirectory(prefix=f".{target.stem}-", dir=target.parent) as folder:
        written = Path(folder) / target.name
        with as_exported(network):
            _write(network, form, example, varying, written)
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
    form, varying = form_of(source), parse_dynamic(dynamic)
    network = _network(model)
    example = widened(example_of(network, example_inputs), varying)
    for candidate in (network, *deployed_forms(network)):
        try:
            return _prove(candidate, form, source, source, example, varying, tolerance, complete=False)
        except LostSiteError as error:
            lost = error
    raise lost


def _network(model: nn.Module) -> nn.Module:
    network = network_of(unwrapped(model))
    check_subject(network)
    sites = list(edits_in(network))
    if not sites:
        raise ExportError("there is no SimAM in this model; inject(model, recipe) puts it there")
    asleep = [join(scope, edit.child) for scope, holder, edit in sites if getattr(holder, edit.child).bypassed]
    if asleep:
        raise ExportError(f"{asleep[0]} is bypassed, and an export would lose it; leave bypass() first")
    return network


def _write(model: nn.Module, form: Form, example: Example, varying: tuple[str, ...], path: Path) -> None:
    try:
        form.write(model, example, varying, path)
    except ExportError:
        raise
    except Exception as error:  # an exporter raises anything at all
        blame = _blame(model, form, example, varying, path)
        raise ExportError(f"the exporter cannot express this model{blame}. It says: {first_line(error)}") from error


def _blame(model: nn.Module, form: Form, example: Example, varying: tuple[str, ...], path: Path) -> str:
    """Whether the model without SimAM can be exported, and what to try next."""
    try:
        with stock(model):
            form.write(model, example, varying, path)
    except Exception:
        advice = "; try dynamic='batch' or fixed sizes" if varying else "; another suffix may do"
        return f" with or without SimAM{advice}"
    return " with SimAM in it, though it can without"


def _prove(
    model: nn.Module,
    form: Form,
    path: Path,
    target: Path,
    example: Example,
    varying: tuple[str, ...],
    tolerance: float | None,
    *,
    complete: bool,
) -> ExportReport:
    artefact = form.read(path)
    with as_exported(model):
        sites = count_sites(artefact, expected_sites(model, example))
        comparisons = [compare(model, artefact, example, sites, tolerance, complete=complete)]
        if varying:
            other = _runnable(model, other_examples(example, varying))
            comparisons.append(compare(model, artefact, other, sites, tolerance, complete=complete))
    allowed = tolerance_for(example, tolerance)
    return ExportReport(target, form_name(target), sites, tuple(comparisons), allowed, varying)


def _runnable(model: nn.Module, examples: list[Example]) -> Example:
    """The first that the model takes."""
    for example in examples:
        try:
            example.given_to(model)
        except Exception as error:
            reason = first_line(error)
        else:
            return example
    raise ExportError(f"the model itself takes no other size than the example's ({reason}); use dynamic='batch'")
