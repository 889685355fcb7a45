"""`export` and `prove`: a file is written only after its graph and outputs were checked."""

from __future__ import annotations

import inspect
import itertools
import os
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from simam_inject.adapters import adapter_of, network_of
from simam_inject.attention.arguments import check_number
from simam_inject.dataflow.example import Example, example_of
from simam_inject.dataflow.survey import cannot_run
from simam_inject.editing.attach import attended_in, simams_in, without_attention
from simam_inject.errors import ModelError, a_type, describe_exception
from simam_inject.export.formats import Form, form_of
from simam_inject.export.proving import as_exported, check_file, vary
from simam_inject.export.report import ExportError, ExportReport, LostSiteError
from simam_inject.modules import check_injectable, unwrapped
from simam_inject.verification.verifier import remembered_example


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    example_inputs: Any = None,
    dynamic: bool | str = False,
    tolerance: float | None = None,
) -> ExportReport:
    """Write the injected model to a file that other runtimes run, check it, and return the report. The model is not
    changed: a copy of it is exported in eval mode.

    Args:
        model: an injected `nn.Module` or ultralytics `YOLO`; DDP, DataParallel and `torch.compile` wrappers are
            unwrapped.
        path: ends in `.onnx` (dynamo exporter), `.pt2` (`torch.export`) or `.torchscript` (trace). An existing file is
            replaced at the end, when the proof has succeeded.
        example_inputs: a tensor, a tuple (positional) or a dict (keywords) for one forward; None as for `inject`. The
            dtype of the model decides that of the file.
        dynamic: True lets batch and spatial size vary, "batch" and "size" only that; the proof then runs the file on a
            second input of other sizes.
        tolerance: largest |file - eager| over largest |eager| that passes; None is 1e-4 in float32, 1e-2 in half
            precision.

    Raises:
        ExportError: no SimAM in the model, one bypassed or at strength 0, an unknown suffix, a folder instead of a
            file, a model or size that the exporter cannot express.
        LostSiteError: the file lacks a site, has another lambda, or computes something else. No file was written.
        ModelError: the model cannot be run on the example, or is sharded, scripted or compiled in place.
        ArgumentError: the tolerance is not a number from 0.

    Example:
        >>> import tempfile, torchvision
        >>> from simam_inject import inject
        >>> model = inject(torchvision.models.resnet18(), "after basicblock.conv2", verify=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = export(model, f"{folder}/net.pt2")
        >>> report.live
        8
    """
    if isinstance(path, nn.Module):
        raise ModelError("the model comes first: export(model, path)")
    target = Path(path)
    form, varying = form_of(target), _varying(dynamic, tolerance)
    if not target.parent.is_dir():
        raise ExportError(f"no such folder: {str(target.parent)!r}")
    if target.exists() and not target.is_file():  # a link to a device would be followed, and replace it
        raise ExportError(f"{str(target)!r} is a {'folder' if target.is_dir() else 'device'}; give the name of a file")
    network = _network(model)
    example = _example(network, example_inputs)
    place = target.resolve()  # a link stays a link
    with tempfile.TemporaryDirectory(prefix=f".{target.stem}-", dir=place.parent) as folder:
        written = Path(folder) / target.name
        with as_exported(network) as twin, warnings.catch_warnings(action="ignore"):  # no user can act on them
            _write(form, twin, vary(twin, example, varying), written)
        report = check_file(network, written, example, varying, tolerance)
        if report.comparisons[0].left_out:
            raise LostSiteError(f"the file lacks the last {report.comparisons[0].left_out} outputs of the model")
        written.replace(place)
    return replace(report, path=target)


def prove(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    example_inputs: Any = None,
    dynamic: bool | str = False,
    tolerance: float | None = None,
) -> ExportReport:
    """Check that a file, written by any exporter, is this injected model. Neither is changed.

    The file may leave out the last of the model's outputs (`Comparison.left_out`), and may be of the form that the
    model's own library exports: ultralytics folds norms and removes branches that only training needs.

    Args and Raises: as for `export`.

    Example:
        >>> torch.onnx.export(model, (x,), "net.onnx")  # doctest: +SKIP
        >>> prove("net.onnx", model, example_inputs=x).live  # doctest: +SKIP
        8
    """
    source = Path(path)
    if not source.is_file():
        raise ExportError(f"no such file: {str(source)!r}")
    network, varying = _network(model), _varying(dynamic, tolerance)
    example = _example(network, example_inputs)
    for candidate in itertools.chain([network], adapter_of(model).exported_copies(model)):
        try:
            return check_file(candidate, source, example, varying, tolerance)
        except LostSiteError as error:
            lost = error
    raise lost


def _varying(dynamic: bool | str, tolerance: object) -> tuple[str, ...]:
    if tolerance is not None:
        check_number("tolerance", tolerance)
    if isinstance(dynamic, bool):
        return ("batch", "size") if dynamic else ()
    if dynamic in ("batch", "size"):
        return (dynamic,)
    raise ExportError(f"dynamic must be True (batch and size), False, 'batch' or 'size'; found {dynamic!r}")


def _network(model: nn.Module) -> nn.Module:
    """The network to export, every SimAM of which is switched on."""
    network = network_of(unwrapped(model))
    check_injectable(network)
    found = simams_in(network)
    if other := next((entry.attention for entry in attended_in(network) if not found), None):
        raise ExportError(f"the sites of this model hold {a_type(other)}; export writes and checks SimAM only")
    if not found:
        raise ExportError("no SimAM in this model; inject(model, recipe) adds it")
    for site, attention in found:
        missing = "and would be missing in the export"
        if attention.bypassed:
            raise ExportError(f"{site.module} is bypassed {missing}; leave bypass() first")
        if attention.strength == 0:
            raise ExportError(f"{site.module} has strength 0 {missing}; call set_strength(model, 1.0) first")
    weak = [attention.strength for _, attention in found if attention.strength < 1]
    if weak:
        count = f"{len(weak)} of {len(found)} SimAM have a strength below 1 (the least is {min(weak):g})"
        warnings.warn(f"{count}, as in the middle of a ramp; the file has the same", stacklevel=3)
    return network


def _example(network: nn.Module, example_inputs: Any) -> Example:
    """The example with positional arguments in the order of the forward method, as files have them."""
    examples = [example_of(network, example_inputs)]
    if example_inputs is None and (remembered := remembered_example(network)) is not None:
        examples.append(remembered)
    problems: list[ModelError] = []
    for given in examples:
        try:
            bound = inspect.signature(network.forward).bind(*given.args, **given.kwargs)
        except TypeError as error:
            problems.append(ModelError(f"the forward method does not accept the example inputs: {error}"))
            continue
        for noise in (True, False):
            example = Example(bound.args, bound.kwargs).with_distinct_tensors(noise=noise)
            try:
                with as_exported(network) as twin:
                    example.run(twin)
                return example
            except Exception as error:  # a forward may refuse other values, as of a mask
                problem = error
        problems.append(cannot_run(network, given, problem))
    raise problems[0]


def _write(form: Form, twin: nn.Module, examples: tuple[Example, ...], path: Path) -> None:
    try:
        form.write(twin, examples, path)
    except ExportError:
        raise
    except Exception as error:  # an exporter raises anything at all
        blame = "with SimAM, although it can without"
        try:
            with without_attention(twin):
                form.write(twin, examples, path)
        except Exception:
            advice = "dynamic='batch' or fixed sizes may work" if len(examples) > 1 else "another suffix may work"
            blame = f"with or without SimAM; {advice}"
        reason = describe_exception(error)
        raise ExportError(f"the exporter cannot express this model {blame}: {reason}") from error
