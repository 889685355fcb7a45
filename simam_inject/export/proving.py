"""The proof: count the file's SimAM sites against the model's, and compare the outputs of both.

The two checks support each other. A file that lost a site differs from eager mode by far more than rounding; a graph
that has every site, each of them reaching the output, cannot agree with eager mode by chance.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simam_inject.attention.functional import LARGEST, SMALLEST
from simam_inject.dataflow.example import Example
from simam_inject.dataflow.surroundings import same_surroundings
from simam_inject.dataflow.twin import set_mode, to_clone, twin_of
from simam_inject.editing.attach import simams_in
from simam_inject.editing.bypass import bypassed
from simam_inject.errors import describe_exception, shortened
from simam_inject.export.formats import Artefact, read
from simam_inject.export.graph import GraphSimAM
from simam_inject.export.report import Comparison, ExportedSite, ExportError, ExportReport, LostSiteError
from simam_inject.nested import tensors_of
from simam_inject.verification.outputs import relative_distance

TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 1e-2}
"""By dtype of the input: one order of magnitude and more above rounding in deep networks, far below a lost site."""


def check_file(
    model: nn.Module, path: Path, example: Example, dynamic: tuple[str, ...], tolerance: float | None
) -> ExportReport:
    """Open a file, and check its graph and its outputs against those of the model; an `ExportError` if they differ."""
    artefact = read(path)
    if tolerance is None:
        dtypes = {tensor.dtype for tensor in example.tensors} & TOLERANCES.keys()
        tolerance = max((TOLERANCES[dtype] for dtype in dtypes), default=1e-4)
    with as_exported(model) as twin:
        examples = vary(twin, example, dynamic)
        sites = count_sites(artefact.simams, expected_sites(twin, examples[0]))
        comparisons = tuple(_compare(twin, artefact, given, tolerance) for given in examples)
    return ExportReport(path, sites, comparisons, tolerance, dynamic)


@contextmanager
def as_exported(model: nn.Module) -> Iterator[nn.Module]:
    """A twin of the model in eval mode, over tensors of its own: whatever is done to it, the model is as it was.

    Inside, no gradients are recorded, and everything is computed in full float32 (TensorFloat-32 differs by 1e-3).
    """
    with same_surroundings(model), torch.no_grad(), _full_float32():
        twin = twin_of(model, to_clone)
        set_mode(twin, False)
        yield twin


@contextmanager
def _full_float32() -> Iterator[None]:
    backends: Any = torch.backends
    cudnn, mkldnn = backends.cudnn, backends.mkldnn
    # That of mkldnn itself, which torch.export sets: setting `mkldnn.fp32_precision` sets that of all backends.
    all_mkldnn = type(mkldnn.conv)("mkldnn", "all")
    parts = (cudnn, cudnn.conv, cudnn.rnn, all_mkldnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn)
    operators = [backends, backends.cuda.matmul, *parts]
    precisions = [operator.fp32_precision for operator in operators]
    try:
        allowed = cudnn.allow_tf32  # torch.export reads this older flag, which must agree with those of the operators
    except RuntimeError:
        allowed = True  # its default: they were set without it, and do not agree
    try:
        cudnn.allow_tf32 = cudnn.benchmark = False  # timing algorithms for every size would take long
        for operator in operators:
            operator.fp32_precision = "ieee"
        yield
    finally:
        cudnn.allow_tf32 = allowed
        for operator, precision in zip(operators, precisions, strict=True):
            operator.fp32_precision = precision


def vary(model: nn.Module, example: Example, dynamic: tuple[str, ...]) -> tuple[Example, ...]:
    """The example; if sizes may vary, followed by one that the model accepts in which all of these are larger.

    Where the batch may vary, the first has at least two samples: exporters take a one for a constant. An input
    with one number per sample then has a fixed length in the file. An `ExportError` if the model accepts no larger
    images, or takes none.
    """
    batch = next((len(tensor) for tensor in example.tensors if _is_map(tensor)), 0)
    if not dynamic:
        return (example,)
    if not batch:
        raise ExportError("dynamic has no effect: no input has a batch, channels and spatial dimensions")
    count, reason = max(batch, 2) if "batch" in dynamic else batch, ""
    for lengthen in (lambda length: length + 32, lambda length: 2 * length) if "size" in dynamic else (int,):
        other = _enlarged(example, batch, count + ("batch" in dynamic), lengthen)
        try:
            other.run(model)
        except Exception as error:
            reason = describe_exception(error)
        else:
            return _enlarged(example, batch, count, int), other
    raise ExportError(f"the model accepts no other input size than the example's ({reason}); use dynamic='batch'")


def _enlarged(example: Example, batch: int, count: int, lengthen: Callable[[int], int]) -> Example:
    """The example with `count` samples in place of `batch`, and other spatial sizes: its tensors are repeated."""

    def enlarge(tensor: Tensor) -> Tensor:
        lengths = list(tensor.shape)
        if lengths[:1] == [batch] and (_is_map(tensor) or batch > 1):
            lengths[0] = count
        if _is_map(tensor):
            lengths[2:] = map(lengthen, lengths[2:])
        for dim, length in enumerate(lengths):
            if length != tensor.shape[dim]:
                tensor = tensor.index_select(dim, torch.arange(length, device=tensor.device) % tensor.shape[dim])
        return tensor

    return Example(*example.fresh(enlarge))


def _is_map(tensor: Tensor) -> bool:
    return 3 <= tensor.dim() <= 5


def expected_sites(model: nn.Module, example: Example) -> tuple[ExportedSite, ...]:
    """Every SimAM of the model with how often eager mode runs it."""
    runs, found = Counter[str](), simams_in(model)
    with ExitStack() as hooks:
        for site, attention in found:
            hooks.enter_context(attention.register_forward_hook(lambda *_, name=site.module: runs.update([name])))
        example.run(model)
    counted = [(site, attention.e_lambda, runs[site.module]) for site, attention in found]
    return tuple(
        ExportedSite(site.path, site.module, e_lambda, count, "name" if count else "idle")
        for site, e_lambda, count in counted
    )


def count_sites(simams: tuple[GraphSimAM, ...], expected: tuple[ExportedSite, ...]) -> tuple[ExportedSite, ...]:
    """The expected sites with how the file has each: by name, else by formula and lambda; or a `LostSiteError`."""
    live = [simam for simam in simams if simam.is_live]
    nameless = [simam for simam in live if simam.module not in {site.module for site in expected}]
    found, lost = [], []
    for site in expected:
        named = [simam for simam in live if simam.module == site.module]
        for simam in named:
            if simam.e_lambda is not None and not _has_lambda(simam, site):
                raise LostSiteError(
                    f"{site.path} has lambda {simam.e_lambda:g} in the file and {site.e_lambda:g} in the model"
                )
        missing = max(site.runs - len(named), 0)
        fitting = [simam for simam in nameless if _has_lambda(simam, site)][:missing]
        for simam in fitting:
            nameless.remove(simam)
        found.append(replace(site, found_by="structure") if fitting else site)
        if len(fitting) < missing:
            is_unused = any(simam.module == site.module and not simam.is_live for simam in simams)
            lost.append(f"{site.path} (computed, but its output is never used)" if is_unused else site.path)
    if lost:
        merged = ". An exporter to ONNX may merge identical computations of one value into one; a .pt2 file keeps them"
        raise LostSiteError(
            f"the file lost {len(lost)} of {len(expected)} SimAM sites: {shortened(lost)}. "
            f"Its graph holds {len(live)} live of {sum(site.runs for site in expected)}{merged * bool(live)}"
        )
    return tuple(found)


def _has_lambda(simam: GraphSimAM, site: ExportedSite) -> bool:
    """Within 5 %: a lambda that was folded into a float16 constant is not exact."""
    wanted = min(max(site.e_lambda, SMALLEST), LARGEST)
    return simam.e_lambda is not None and math.isclose(simam.e_lambda, wanted, rel_tol=0.05)


def _compare(model: nn.Module, artefact: Artefact, example: Example, tolerance: float) -> Comparison:
    """Run both on the example. The file may leave out the last outputs, as ultralytics leaves out what a loss needs."""
    ours = _numbers(example.run(model))
    with bypassed(model):
        plain = _numbers(example.run(model))
    shapes = tuple(tuple(tensor.shape) for tensor in example.tensors)
    shown = ", ".join("x".join(map(str, shape)) for shape in shapes)
    try:
        theirs = _numbers(artefact.run(example))
    except Exception as error:
        raise ExportError(f"the file does not run on an input of {shown}: {describe_exception(error)}") from None
    if not 0 < len(theirs) <= len(ours):
        raise LostSiteError(f"the file has {len(theirs)} outputs, the model {len(ours)}")
    left_out = len(ours) - len(theirs)
    ours, plain = ours[: len(theirs)], plain[: len(theirs)]
    difference, effect = relative_distance(theirs, ours), relative_distance(plain, ours)
    if isinstance(difference, str):
        found = " and ".join(str([tuple(tensor.shape) for tensor in tensors]) for tensors in (theirs, ours))
        raise LostSiteError(f"the file's output {difference} than the model's ({found})")
    if not difference <= tolerance:  # of a NaN too
        found = f"{difference:.3g} relative, {tolerance:g} allowed"
        raise LostSiteError(f"the file's output differs from eager mode on an input of {shown}: {found}")
    return Comparison(shapes, difference, math.nan if isinstance(effect, str) else effect, left_out)


def _numbers(output: Any) -> list[Tensor]:
    """The tensors of an output in double precision, on the CPU; complex ones stay complex."""
    return [tensor.cpu().to(torch.promote_types(tensor.dtype, torch.float64)) for tensor in tensors_of(output)]
